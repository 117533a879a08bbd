import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

const execFileAsync = promisify(execFile)

const askLimitMs = 2_000

/**
 * Whether the end of this process is the end of its server, and not an upgrade or a restart of Berth, which no machine
 * notices. Only systemd knows; without it the operator says so by SIGPWR.
 * @see systemctl(1), is-system-running
 */
export async function isServerGoingDown(endedBy: string): Promise<boolean> {
  if (endedBy === 'SIGPWR') return true
  if (endedBy !== 'SIGTERM') return false
  // It exits with a failure for every answer but `running`.
  const { stdout } = await execFileAsync('systemctl', ['is-system-running'], { timeout: askLimitMs }).catch(
    (error: { stdout?: string }) => ({ stdout: error.stdout ?? '' }),
  )
  return stdout.trim() === 'stopping'
}
