import { once } from 'node:events'
import type { Readable, Writable } from 'node:stream'
import { type App, type Caller, type CommandIo, EXIT, type RunLine } from '../app.ts'
import { faultOf } from '../fault.ts'
import { openSeat, type Seat } from '../lobby/seat.ts'
import { MachineNotReadyError } from '../machines.ts'
import { MachineUnreachableError } from '../ssh/pool/target.ts'
import { TO_RAISE_A_LIMIT } from './admission.ts'
import type { Context, Result } from './command.ts'
import { CommandError, usageError, wayOnOf } from './error.ts'
import { commandDescription, commandHelp, familyHelp } from './help-text.ts'
import { asksForFamily, type Found, findCommand, operatorOnly } from './lookup.ts'
import { parseCommand } from './parse.ts'
import { refuseBeyondScope } from './permission.ts'
import { createProgress, SILENT, tellingProgress } from './progress.ts'
import { recordedLine } from './recorded-line.ts'
import { commandsFor, TABLE } from './table.ts'
import { fitted, harmless, viewOf } from './text.ts'
import { LINE_LIMIT_BYTES, scanWords, splitWords } from './words.ts'

/** 128 + SIGINT, as a shell reports it. */
const INTERRUPTED = 130
const INTERRUPTED_DOCUMENT = `${JSON.stringify({ error: 'interrupted', code: 'interrupted' })}\n`

/**
 * Runs one line of the lobby for a caller, with or without a terminal.
 * @returns one of `EXIT`, or 130 when interrupted
 */
export const runLine: RunLine = async (app, caller, line, io) => {
  if (!io.terminal) return runInSeat(app, caller, line, io, undefined)
  using seat = openSeat({ ...io, terminal: io.terminal })
  // Awaited here, or the seat would be gone before the command begins.
  return await runInSeat(app, caller, line, io, seat)
}

/**
 * The same for a person who sits at a terminal already: the seat has the keyboard and knows of Ctrl-C.
 * Never rejects: what went wrong is a sentence on stderr, or a JSON document on stdout with `--json`.
 */
export async function runInSeat(
  app: App,
  caller: Caller,
  line: string,
  io: CommandIo,
  seat: Seat | undefined,
): Promise<number> {
  const signal = seat ? AbortSignal.any([io.signal, seat.interrupt]) : io.signal
  const context = contextOf(app, caller, io, signal, seat)
  let words: string[] = []
  try {
    if (Buffer.byteLength(line) > LINE_LIMIT_BYTES) throw usageError('the line is longer than 256 KiB')
    words = scanWords(line, true).map((word) => word.text)
    words = splitWords(line)
    if (words.length === 0) return 0
    const offered = commandsFor(caller)
    const family = asksForFamily(offered, words)
    if (family) {
      context.json ||= asksForJson(words)
      return await show(context, familyHelp(offered, family))
    }
    const found = findCommand(TABLE, words, offered)
    if (found.command.operator && !caller.isOwner) throw operatorOnly(found.command.name)
    refuseBeyondScope(caller.scope, found.command)
    const given = caller.via === 'exec' ? withUnits(found) : found.words
    const parsed = parseCommand(found.command, given)
    context.json ||= parsed.json
    if (parsed.help) {
      const json = commandDescription(found.command)
      return await show(context, { json, text: (view) => commandHelp(found.command, view) })
    }
    // No terminal line is rewritten above a document for a program.
    if (context.json) context.progress = io.tell ? tellingProgress(io.tell) : SILENT
    context.caller = { ...caller, command: recordedLine(found.command, given) }
    return await show(context, await found.command.run(context, parsed))
  } catch (error) {
    context.progress.clear()
    context.json ||= asksForJson(words)
    return await fail(context, error).catch(() => 1)
  } finally {
    context.progress.clear()
  }
}

function contextOf(app: App, caller: Caller, io: CommandIo, signal: AbortSignal, seat: Seat | undefined): Context {
  const view = viewOf(io.terminal, io.env)
  const onTerminal = io.terminal !== undefined
  const context: Context = {
    app,
    caller,
    io,
    json: io.json === true,
    view,
    signal,
    progress: createProgress(
      view,
      () => io.terminal?.columns || view.columns,
      (bytes) => io.stdout.write(bytes),
    ),
    print: async (text) => {
      if (!io.tell) await send(io.stdout, text, onTerminal, signal)
      else if (text !== '') await io.tell({ text })
    },
    remark: async (text) => {
      if (context.json) return await io.tell?.({ remark: text.trim() })
      context.progress.clear()
      await send(errorStream(io), fitted(text, view).join('\n'), onTerminal, signal)
    },
    ask: async (question) => {
      if (!seat || context.json) return undefined
      context.progress.clear()
      const answer = await seat.ask(question)
      if (answer === undefined) throw new CommandError('interrupted', 1, 'nothing was changed')
      return answer
    },
    readStdin: (limitBytes, what) => readAll(io.stdin, limitBytes, what, onTerminal, signal),
    asCommandError: (error) => asCommandError(error, context),
    rawInput: () => seat?.rawInput() ?? { stdin: io.stdin, release: () => {} },
  }
  return context
}

async function show(context: Context, result: Result): Promise<number> {
  context.progress.clear()
  const { io, view } = context
  const onTerminal = io.terminal !== undefined
  const [firstFailure] = result.failures ?? []
  if (context.json) {
    await send(io.stdout, `${JSON.stringify(result.json)}\n`, onTerminal, io.signal)
    return firstFailure?.exit ?? result.exit ?? 0
  }
  const text = typeof result.text === 'function' ? result.text(view) : fitted(result.text, view).join('\n')
  if (text) await send(io.stdout, text, onTerminal, io.signal)
  const failures = result.failures ?? []
  for (const [index, failure] of failures.entries()) {
    // What several have in common is said once, after the last of them.
    const isLast = failures[index + 1]?.wayOn !== failure.wayOn
    await send(errorStream(io), sentence(failure, context, isLast), onTerminal, io.signal)
  }
  return firstFailure?.exit ?? result.exit ?? 0
}

/** The edge: whatever went wrong becomes a sentence here, once, and a log line where it is our fault. */
async function fail(context: Context, error: unknown): Promise<number> {
  const { io, signal } = context
  const onTerminal = io.terminal !== undefined
  if (io.onFailure) {
    const failure =
      signal.aborted && signal.reason instanceof CommandError ? signal.reason : asCommandError(error, context)
    io.onFailure(failure)
    return failure.exit
  }
  if (signal.aborted && !(error instanceof CommandError)) {
    if (context.json) await send(io.stdout, INTERRUPTED_DOCUMENT, onTerminal, io.signal)
    return INTERRUPTED
  }
  const failure = asCommandError(error, context)
  if (context.json) {
    const document = { ...failure.detail, error: failure.message, code: failure.code, ...wayOnOf(failure) }
    await send(io.stdout, `${JSON.stringify(document)}\n`, onTerminal, io.signal)
  } else await send(errorStream(io), sentence(failure, context), onTerminal, io.signal)
  return signal.aborted && failure.code === 'interrupted' ? INTERRUPTED : failure.exit
}

/** Programs that were written for exe.dev give a size as a bare number, and mean GiB. */
function withUnits({ command, words }: Found): readonly string[] {
  return words.map((word) => {
    const name = /^--([a-z-]+)=\d+$/.exec(word)?.[1] ?? ''
    return command.flags[name]?.type === 'size' ? `${word}G` : word
  })
}

function sentence(failure: CommandError, { view }: Context, withWayOn = true): string {
  // A reason may quote what a machine printed.
  const head = fitted(harmless(failure.message), view).map((line) => `${view.style.failure(line)}\n`)
  const wayOn = withWayOn && failure.wayOn ? fitted(failure.wayOn, view).map((line) => `${line}\n`) : []
  return [...head, ...wayOn].join('')
}

function asCommandError(error: unknown, context: Context): CommandError {
  if (error instanceof CommandError) return error
  if (error instanceof MachineNotReadyError) {
    const exits: Partial<Record<MachineNotReadyError['code'], 3 | 4 | 5>> = {
      'machine.not_found': 3,
      'account.suspended': 4,
      'account.over_limit': 4,
      'machine.no_room': 5,
    }
    const wayOn = error.code === 'account.over_limit' ? { wayOn: TO_RAISE_A_LIMIT } : {}
    return new CommandError(error.code, exits[error.code] ?? EXIT.failed, error.message, { ...wayOn, cause: error })
  }
  if (error instanceof MachineUnreachableError) return new CommandError(error.code, 1, error.message, { cause: error })
  const { app, caller } = context
  const { isAway, message, wayOn } = faultOf(error, app.log, 'a command failed', { account: caller.accountId })
  return isAway
    ? new CommandError('busy', EXIT.busy, message, { wayOn, cause: error })
    : new CommandError('internal', EXIT.failed, message, { wayOn, cause: error })
}

/** Whether a line that could not be read wanted its error as a document. */
function asksForJson(words: readonly string[]): boolean {
  const end = words.indexOf('--')
  const own = words[0] === 'ssh' ? words.slice(0, 2) : words.slice(0, end < 0 ? words.length : end)
  return own.some((word) => word === '--json' || word === '--json=true')
}

/** On a terminal both are one stream, as they are behind any sshd: two would reach the screen in either order. */
function errorStream(io: CommandIo): Writable {
  return io.terminal ? io.stdout : io.stderr
}

/** Writes and waits for the client; a terminal in raw mode wants carriage returns. */
async function send(stream: Writable, text: string, onTerminal: boolean, signal: AbortSignal): Promise<void> {
  if (stream.destroyed || stream.writableEnded) return
  const bytes = onTerminal ? text.replaceAll(/\r?\n/g, '\r\n') : text
  if (stream.write(bytes)) return
  await once(stream, 'drain', { signal }).catch(() => {})
}

/**
 * All of stdin, without destroying it: on an SSH channel stdin and stdout are one stream.
 * @throws CommandError (usage) for more than the limit, for bytes that are no text, and on a terminal
 */
async function readAll(
  stdin: Readable,
  limitBytes: number,
  what: string,
  onTerminal: boolean,
  signal: AbortSignal,
): Promise<string> {
  if (onTerminal) {
    throw usageError(
      `${what} is read from stdin, which is a terminal here`,
      'pipe it in from your own shell: ssh .. < FILE',
    )
  }
  const chunks: Buffer[] = []
  let total = 0
  const { promise: ended, resolve, reject } = Promise.withResolvers<void>()
  const onData = (chunk: Buffer | string) => {
    const bytes = Buffer.from(chunk as string)
    total += bytes.length
    if (total > limitBytes) reject(usageError(`${what} is longer than ${limitBytes / 1024} KiB`))
    else chunks.push(bytes)
  }
  const onClose = () =>
    stdin.readableEnded ? resolve() : reject(new CommandError('interrupted', 1, `${what} broke off`))
  const onAbort = () => reject(new CommandError('interrupted', 1, 'interrupted'))
  if (signal.aborted) onAbort()
  else if (stdin.readableEnded) resolve()
  signal.addEventListener('abort', onAbort, { once: true })
  stdin.on('data', onData).once('end', resolve).once('close', onClose).once('error', reject)
  try {
    await ended
  } finally {
    signal.removeEventListener('abort', onAbort)
    stdin.off('data', onData).off('end', resolve).off('close', onClose).off('error', reject)
    stdin.pause()
  }
  const text = Buffer.concat(chunks).toString('utf8')
  if (text.includes('\0')) throw usageError(`${what} is not text`)
  return text
}
