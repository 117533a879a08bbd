import { existsSync } from 'node:fs'
import { join } from 'node:path'

/**
 * The artifacts that `npm test` prepared: kernel, tools disk and images, made once and shared by every test's data
 * directory through a link.
 * @throws with the command that makes them
 */
export async function testArtifacts(): Promise<string> {
  const path = join(process.env.BERTH_TEST_CACHE || '/var/cache/berth', 'artifacts')
  if (!existsSync(join(path, 'boot', 'current'))) throw new Error(`no artifacts in ${path}: npm test makes them`)
  return path
}
