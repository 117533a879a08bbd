/** For tests and benchmarks: OpenSSH's own server as the sshd of a machine. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

export type Sshd = {
  process: ChildProcess
  log: string[]
  /** the lines of authorized_keys from now on, for every user */
  authorize(lines: readonly string[]): void
} & AsyncDisposable

export type SshdOptions = {
  /** `127.0.0.1:2022` */
  listen: string
  /** path of the private key */
  hostKey: string
  authorizedKeys: readonly string[]
  /** lines that come first and so win */
  config?: readonly string[]
  /** name of the network namespace that it runs in, if not this one */
  namespace?: string
}

/** @returns an sshd that listens, and ends with this process if nobody disposes of it */
export async function startSshd(options: SshdOptions): Promise<Sshd> {
  const { listen, hostKey, authorizedKeys, config = [], namespace } = options
  const directory = mkdtempSync(join(tmpdir(), 'berth-sshd-'))
  const path = join(directory, 'sshd_config')
  const authorized = join(directory, 'authorized_keys')
  const authorize = (lines: readonly string[]) =>
    writeFileSync(authorized, lines.map((line) => `${line.trim()}\n`).join(''))
  authorize(authorizedKeys)
  const home = join(directory, 'home')
  mkdirSync(home)
  mkdirSync('/run/sshd', { recursive: true })
  writeFileSync(
    path,
    [
      ...config,
      `ListenAddress ${listen}`,
      `HostKey ${hostKey}`,
      `AuthorizedKeysFile ${authorized}`,
      'PidFile none',
      'StrictModes no',
      'PermitRootLogin yes',
      'UsePAM no',
      'AcceptEnv *',
      // Without the start-up files of whoever runs this, which may do anything at all: shells look in HOME for theirs.
      `SetEnv HOME=${home}`,
      'PermitUserRC no',
      'MaxSessions 600',
      'MaxStartups 600',
      'AllowStreamLocalForwarding yes',
      'X11Forwarding yes',
      'Subsystem sftp internal-sftp',
      '',
    ].join('\n'),
  )
  // It must not outlive a test run that is killed.
  const program = ['setpriv', '--pdeathsig', 'TERM', '/usr/sbin/sshd', '-D', '-e', '-f', path]
  const [command = '', ...rest] = namespace === undefined ? program : ['ip', 'netns', 'exec', namespace, ...program]
  const child = spawn(command, rest, { stdio: ['ignore', 'ignore', 'pipe'] })
  const log: string[] = []
  await new Promise<void>((resolve, reject) => {
    const lines = createInterface({ input: child.stderr })
    lines.on('line', (line) => {
      log.push(line)
      if (line.includes('Server listening')) resolve()
    })
    lines.on('close', () => reject(new Error(`sshd did not start: ${log.join('\n')}`)))
  })
  return {
    process: child,
    log,
    authorize,
    [Symbol.asyncDispose]: async () => {
      const gone = child.exitCode === null && child.signalCode === null ? once(child, 'exit') : undefined
      child.kill()
      await gone
      rmSync(directory, { recursive: true, force: true })
    },
  }
}
