import { spawn } from 'node:child_process'
import { closeSync, openSync, writeSync } from 'node:fs'
import { createInterface } from 'node:readline'

export type CommandOptions = {
  cwd?: string
  env?: Record<string, string>
  /** Called with every line of standard output and standard error. */
  onLine?: (line: string) => void
  /** Gives the command mounts and processes of its own, all gone the moment it ends or is killed. Needs root. */
  confined?: boolean
  signal?: AbortSignal
  /** File that everything printed is appended to. */
  logPath?: string
}

export class CommandError extends Error {
  override name = 'CommandError'
}

/** Of a failed program's output: the last lines, and before those the ones that sound like a reason. */
const KEPT_LINES = 15
const COMPLAINT = /\b(error|fail|cannot|not found|no such|unable)/i
const PROGRESS_LINE = /^(pmstatus|dlstatus):/

/**
 * Runs a program to its end and returns its standard output.
 *
 * A set-up that is killed, even by SIGKILL, must not leave a compiler or a half-mounted chroot behind: every
 * program runs with a parent-death signal, and a confined one in namespaces that end with it (unshare(1)).
 * @throws CommandError with the last lines the program printed
 */
export async function run(program: string, args: readonly string[], options: CommandOptions = {}): Promise<string> {
  const prefix = ['setpriv', '--pdeathsig', 'KILL']
  if (options.confined) prefix.push('unshare', '--mount', '--pid', '--fork', '--kill-child=KILL', '--mount-proc', '--')
  const [first = program, ...rest] = [...prefix, program, ...args]
  const child = spawn(first, rest, {
    cwd: options.cwd ?? '/',
    env: { ...inheritedEnvironment(), ...options.env },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(options.signal ? { signal: options.signal, killSignal: 'SIGKILL' as const } : {}),
  })
  const output: string[] = []
  const kept: string[] = []
  const complaints: string[] = []
  using log = options.logPath ? openLog(options.logPath) : undefined
  const take = (line: string): void => {
    log?.write(line)
    if (!PROGRESS_LINE.test(line)) kept.push(line)
    if (kept.length > KEPT_LINES) {
      const old = kept.shift() ?? ''
      if (COMPLAINT.test(old) && complaints.length < KEPT_LINES) complaints.push(old)
    }
    options.onLine?.(line)
  }
  createInterface({ input: child.stdout }).on('line', (line) => {
    output.push(line)
    take(line)
  })
  createInterface({ input: child.stderr }).on('line', take)
  const ending = await new Promise<string>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, signal) =>
      resolve(code === 0 ? '' : signal ? `ended by ${signal}` : `exit status ${code}`),
    )
  })
  if (ending !== '') {
    const shown = [program, ...args.slice(0, 3)].join(' ').replace(/\s+/g, ' ').slice(0, 100)
    throw new CommandError(`${shown}: ${ending}${[...complaints, ...kept].map((line) => `\n  ${line}`).join('')}`)
  }
  return output.join('\n')
}

function openLog(path: string): { write(line: string): void } & Disposable {
  const descriptor = openSync(path, 'a', 0o644)
  return { write: (line) => writeSync(descriptor, `${line}\n`), [Symbol.dispose]: () => closeSync(descriptor) }
}

/** The environment without what would change what is built: locale, debconf, apt and compiler settings. */
function inheritedEnvironment(): Record<string, string> {
  const kept: Record<string, string> = {}
  for (const name of [
    'PATH',
    'HOME',
    'TMPDIR',
    'http_proxy',
    'https_proxy',
    'no_proxy',
    'HTTP_PROXY',
    'HTTPS_PROXY',
    'NO_PROXY',
  ]) {
    const value = process.env[name]
    if (value !== undefined) kept[name] = value
  }
  // A user's PATH often lacks the sbin folders, where depmod and mke2fs live.
  kept.PATH = `${kept.PATH ?? '/usr/bin:/bin'}:/usr/local/sbin:/usr/sbin:/sbin`
  return { ...kept, LC_ALL: 'C.UTF-8', DEBIAN_FRONTEND: 'noninteractive', DEBCONF_NONINTERACTIVE_SEEN: 'true' }
}
