import { spawn } from 'node:child_process'
import { NetworkError } from './types.ts'

/** No command of ours takes a tenth of this; one that does hangs, and must not hang every machine's start. */
const COMMAND_TIMEOUT_MS = 20_000

/** `sbin` is missing from the PATH of some services and of `su` without a dash. */
const PATH = `${process.env.PATH ?? '/usr/bin:/bin'}:/usr/sbin:/sbin`

const PACKAGE_OF = { ip: 'iproute2', nft: 'nftables', conntrack: 'conntrack' } as const

/**
 * Runs a command with `input` as standard input.
 * @returns its standard output
 * @throws NetworkError with what the command said when it fails, is missing or takes longer than 20 s
 */
export async function runCommand(
  command: keyof typeof PACKAGE_OF,
  args: readonly string[],
  input = '',
): Promise<string> {
  const child = spawn(command, args, { env: { PATH, LC_ALL: 'C' }, timeout: COMMAND_TIMEOUT_MS, killSignal: 'SIGKILL' })
  const output = { stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output.stdout += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    output.stderr = `${output.stderr}${text}`.slice(0, 4096)
  })
  // The command may end, with a message, before it has read everything: its exit status tells, not EPIPE.
  child.stdin.on('error', () => {})
  child.stdin.end(input)
  const { promise, resolve, reject } = Promise.withResolvers<[number | null, NodeJS.Signals | null]>()
  child.once('error', reject)
  child.once('close', (code, signal) => resolve([code, signal]))
  const [code, signal] = await promise.catch((cause: unknown) => {
    const missing = cause instanceof Error && 'code' in cause && cause.code === 'ENOENT'
    const advice = missing ? `is missing; install the package ${PACKAGE_OF[command]}` : 'could not be started'
    throw new NetworkError(`${command} ${advice}`, { cause })
  })
  if (code !== 0) {
    const how = signal === null ? `failed with status ${code}` : `was ended by ${signal}`
    throw new NetworkError(`${[command, ...args].join(' ')} ${how}: ${output.stderr.trim() || 'it said nothing'}`)
  }
  return output.stdout
}
