import { execFileSync } from 'node:child_process'
import { join } from 'node:path'

/** The dashboard as its sources are now: a gateway in a test serves what was built. */
export function setup() {
  execFileSync(process.execPath, [join(import.meta.dirname, '../web/build.ts')], { stdio: 'inherit' })
}
