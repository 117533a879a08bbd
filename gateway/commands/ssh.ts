import { constants } from 'node:os'
import type { Readable, Writable } from 'node:stream'
import { finished, pipeline } from 'node:stream/promises'
import type { Machine } from '../machines.ts'
import {
  type MachineCommand,
  type MachineExit,
  type MachineProcess,
  openOnMachine,
} from '../ssh/pool/open-on-machine.ts'
import { runOnMachine } from '../ssh/pool/run-on-machine.ts'
import type { MachineTarget } from '../ssh/pool/target.ts'
import type { Context, Result } from './command.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError, usageError } from './error.ts'
import { reachable, untilSshWorks } from './machine-steps.ts'

const JSON_OUTPUT_LIMIT_BYTES = 1024 * 1024
/** Hundreds run at once for programs, and any of them may have a reader that is behind. */
const ATTACHED_WINDOW_BYTES = 256 * 1024

export const ssh = defineCommand({
  name: 'ssh',
  group: 'machines',
  onMachines: true,
  summary: 'a shell on a machine, or a command; its exit status is passed on',
  description:
    'From your own shell ssh NAME@.. does the same and more (files, forwards). Words after NAME are joined and run by the login shell there; quote what is for that shell.',
  flags: {
    login: { type: 'string', short: 'l', value: 'USER', summary: "another user than the image's login user" },
    tty: {
      type: 'boolean',
      short: 't',
      summary: 'taken for habit: a terminal is used when there is one',
      hidden: true,
    },
    'no-tty': { type: 'boolean', short: 'T', summary: 'no terminal for the command' },
  },
  arguments: {
    name: { label: 'NAME', complete: machineNames },
    command: { label: 'CMD', repeated: true, optional: true },
  },
  passThrough: true,
  examples: ['ssh demo', 'ssh demo uptime', "ssh demo 'ls -l | head'"],
  async run(context, { flags, args }) {
    const { app, caller, io } = context
    // `user+name` as everywhere; a machine's name has no plus.
    const plus = args.name.lastIndexOf('+')
    const user = flags.login ?? (plus > 0 ? args.name.slice(0, plus) : undefined)
    if (user !== undefined && !/^[a-zA-Z_][a-zA-Z0-9_.-]{0,31}$/.test(user)) throw usageError('that is no user name')
    const machine = await reachable(app, caller, args.name.slice(plus + 1))
    const command = args.command.length ? args.command.join(' ') : undefined
    if (command === undefined && context.json)
      throw usageError('ssh wants a command to run', `ssh ${machine.name} uptime`)
    const terminal = flags['no-tty'] || context.json ? undefined : io.terminal
    const what: MachineCommand = {
      ...(command === undefined ? {} : { command }),
      ...(terminal ? { pty: { term: terminal.term, columns: terminal.columns, rows: terminal.rows } } : {}),
      env: localeOf(io.env),
    }
    if (io.attach) {
      const running = await start(context, machine, user, (target) =>
        runOnMachine(app.pool, target, { ...what, windowBytes: ATTACHED_WINDOW_BYTES }),
      )
      return { json: null, text: '', exit: await io.attach(running) }
    }
    const remote = await start(context, machine, user, (target) => openOnMachine(app.pool, target, what))
    return context.json ? await collect(context, remote) : await connect(context, remote)
  },
})

/** @throws CommandError that names the machine */
async function start<T>(
  context: Context,
  { id, name }: Machine,
  user: string | undefined,
  open: (target: MachineTarget) => Promise<T>,
): Promise<T> {
  const { app, caller } = context
  try {
    const ready = await untilSshWorks(context, id)
    context.progress.clear()
    return await open(app.machines.target(ready, caller, user))
  } catch (error) {
    if (context.signal.aborted) throw error
    const { code, exit, message, wayOn, detail } = context.asCommandError(error)
    throw new CommandError(code, exit, message, {
      ...(wayOn === undefined ? {} : { wayOn }),
      detail,
      machineName: name,
      cause: error,
    })
  }
}

/** Joins this session's streams with the machine's until the process there ends. */
async function connect(context: Context, remote: MachineProcess): Promise<Result> {
  const { io } = context
  const input = context.rawInput()
  const stopResize = io.terminal?.onResize(() => remote.resize(io.terminal?.columns ?? 80, io.terminal?.rows ?? 24))
  // With a terminal Ctrl-C is a byte for the machine; the signal then only means that the person is gone. The process
  // is told, and its streams end; sshd may keep the channel as long as it lives, so nobody waits for that.
  const gone = Promise.withResolvers<never>()
  const onGone = () => {
    remote.signal('TERM')
    remote.close()
    gone.reject(new CommandError('interrupted', 1, 'the client is gone'))
  }
  gone.promise.catch(() => {})
  io.signal.addEventListener('abort', onGone, { once: true })
  if (io.signal.aborted) onGone()
  input.stdin.pipe(remote.stdin)
  remote.stdin.on('error', () => {})
  try {
    const joined = Promise.all([remote.exit, pour(remote.stdout, io.stdout), pour(remote.stderr, io.stderr)])
    const [end] = await Promise.race([joined, gone.promise])
    return { json: null, text: '', exit: exitOf(end) }
  } finally {
    input.stdin.unpipe(remote.stdin)
    input.release()
    stopResize?.()
    io.signal.removeEventListener('abort', onGone)
    remote.close()
  }
}

async function pour(from: Readable, to: Writable): Promise<void> {
  await pipeline(from, to, { end: false }).catch(() => {})
}

/** For `--json`: both outputs whole, bounded. */
async function collect(context: Context, remote: MachineProcess): Promise<Result> {
  remote.stdin.on('error', () => {})
  remote.stdin.end()
  const gone = Promise.withResolvers<never>()
  gone.promise.catch(() => {})
  const onGone = () => {
    remote.close()
    gone.reject(new CommandError('interrupted', 1, 'interrupted'))
  }
  context.signal.addEventListener('abort', onGone, { once: true })
  try {
    const whole = Promise.all([remote.exit, bounded(remote.stdout), bounded(remote.stderr)])
    const [end, stdout, stderr] = await Promise.race([whole, gone.promise])
    const exit = exitOf(end)
    return { json: { stdout, stderr, exit_code: exit }, text: '', exit }
  } finally {
    context.signal.removeEventListener('abort', onGone)
    remote.close()
  }
}

/** @throws CommandError as soon as it is too much: what prints without end would never be told of otherwise */
async function bounded(stream: Readable): Promise<string> {
  const chunks: Buffer[] = []
  let total = 0
  const tooMuch = Promise.withResolvers<never>()
  stream.on('data', (chunk: Buffer) => {
    total += chunk.length
    if (total <= JSON_OUTPUT_LIMIT_BYTES) chunks.push(chunk)
    else tooMuch.reject(tooLong())
  })
  await Promise.race([finished(stream, { writable: false }).catch(() => {}), tooMuch.promise])
  return Buffer.concat(chunks).toString('utf8')
}

function tooLong(): CommandError {
  return new CommandError('output.too_long', 1, 'the command printed more than 1 MiB, and was ended', {
    wayOn: 'run it without --json',
  })
}

/** As a shell counts: 128 and the signal's number when one ended it. */
export function exitOf({ status, signal }: MachineExit): number {
  if (status !== null) return status
  const numbers: Record<string, number | undefined> = constants.signals
  return 128 + (numbers[`SIG${signal ?? 'HUP'}`] ?? 1)
}

/** LANG and LC_*, as OpenSSH's clients are commonly set up to send. */
function localeOf(env: Record<string, string>): Record<string, string> {
  return Object.fromEntries(Object.entries(env).filter(([name]) => /^(LANG|LC_[A-Z]+|COLORTERM)$/.test(name)))
}
