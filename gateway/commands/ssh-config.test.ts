import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, it } from 'vitest'
import { startWorld } from './testing/world.ts'

const directory = mkdtempSync(join(tmpdir(), 'berth-ssh-config-'))
afterAll(() => rmSync(directory, { recursive: true }))

/** What OpenSSH itself makes of the lines, for one host. */
function readBy(config: string, host: string): Record<string, string> {
  const file = join(directory, 'config')
  writeFileSync(file, config)
  const lines = execFileSync('ssh', ['-G', '-F', file, host], { encoding: 'utf8' }).trim().split('\n')
  return Object.fromEntries(lines.map((line) => line.split(/ (.*)/s)))
}

it('leads to machines through the control host, and to that without a jump, also where its name is like theirs', async () => {
  await using world = await startWorld({
    env: { BERTH_DOMAIN: 'berth.example.com', BERTH_MACHINE_DOMAIN: 'example.com' },
  })
  const { document } = await world.json('ssh-config')
  // The test's listener has no port of its own yet.
  const config = (document as { config: string }).config.replaceAll('Port 0', 'Port 2222').replaceAll(':0', ':2222')
  expect(readBy(config, 'demo.example.com')).toMatchObject({
    proxyjump: expect.stringMatching(/^lobby@berth\.example\.com/),
    user: 'dev',
  })
  expect(readBy(config, 'berth.example.com').proxyjump ?? 'none').toBe('none')
  expect(readBy(config, 'berth')).toMatchObject({ hostname: 'berth.example.com', user: 'lobby' })
})
