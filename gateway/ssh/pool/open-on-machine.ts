import { Duplex, Readable, type Writable } from 'node:stream'
import type { MachineWatch } from '../../activity/watch.ts'
import {
  type ChannelEnd,
  type ChannelSink,
  dataHeaderBytes,
  extendedDataHeaderBytes,
} from '../transport/channel-end.ts'
import { WireReader } from '../transport/wire.ts'
import type { MachinePool } from './pool.ts'
import { type MachineTarget, MachineUnreachableError } from './target.ts'

export type MachineCommand = {
  /** Run by the login user's shell; undefined is a login shell. Bytes are passed as they are. */
  command?: string | Buffer
  /** Asks for a terminal. `modes` are encoded as in RFC 4254, 8; default none. */
  pty?: { term: string; columns: number; rows: number; modes?: Buffer }
  env?: Record<string, string>
  /** What is held of its output for a reader that is behind; default 1 MiB. */
  windowBytes?: number
}

/** How a process on a machine ended. */
export type MachineExit = {
  /** Exit status; null when a signal ended it. */
  status: number | null
  /** Signal name without SIG, e.g. 'TERM'. */
  signal: string | null
}

export type MachineProcess = {
  stdin: Writable
  stdout: Readable
  stderr: Readable
  /**
   * Settles when the channel is closed; what was printed may still wait to be read then.
   * Rejects with MachineUnreachableError when the connection was lost before the process ended.
   */
  exit: Promise<MachineExit>
  resize(columns: number, rows: number): void
  /** Sends a signal; `name` without SIG. */
  signal(name: string): void
  /** Closes the channel at once. */
  close(): void
}

// Both outputs share it, as the protocol has one window for a channel
const defaultWindowBytes = 1024 * 1024
const enoughBacklogBytes = 1024 * 1024
const packetBytes = 32 * 1024
const openTimeoutMs = 5000
// A busy emulated machine starts a shell in seconds; a hostile one never answers
const startTimeoutMs = 30_000

/**
 * Runs something on a machine over the pooled connection: the lobby's `ssh NAME CMD`, setup scripts, the web terminal.
 * Resolves when the machine has started it.
 * @param limitMs from the session being open to the machine having started what is asked for
 * @throws MachineUnreachableError also when the machine refuses
 */
export async function openOnMachine(
  pool: MachinePool,
  target: MachineTarget,
  what: MachineCommand,
  limitMs = startTimeoutMs,
): Promise<MachineProcess> {
  const remote = await openSession(pool, target, what.windowBytes ?? defaultWindowBytes)
  const timer = setTimeout(() => remote.giveUp(), limitMs)
  try {
    await begin(remote, what)
  } catch (error) {
    // Nobody else would: it would count among the connection's channels as long as that lasts.
    remote.channel.destroy()
    throw error
  } finally {
    clearTimeout(timer)
  }
  return {
    stdin: remote.channel,
    stdout: remote.channel,
    stderr: remote.stderr,
    exit: remote.exit.promise,
    resize: (columns, rows) => remote.resize(columns, rows),
    signal: (name) => remote.end?.sendRequest('signal', false, name),
    close: () => remote.channel.destroy(),
  }
}

async function begin(remote: RemoteProcess, { command, pty, env = {} }: MachineCommand): Promise<void> {
  for (const [name, value] of Object.entries(env)) remote.end?.sendRequest('env', false, name, value)
  if (pty !== undefined) {
    const { term, columns, rows, modes = Buffer.of(0) } = pty
    await remote.request('pty-req', term, columns, rows, 0, 0, modes)
  }
  if (command === undefined) await remote.request('shell')
  else await remote.request('exec', command)
}

/** Tried twice: the shared connection may be dead without anybody having noticed, or full by the machine's own count. */
async function openSession(
  pool: MachinePool,
  target: MachineTarget,
  windowBytes: number,
  fresh = false,
): Promise<RemoteProcess> {
  const upstream = await pool.reserve(target, fresh)
  const remote = new RemoteProcess(target, windowBytes)
  try {
    remote.watch = upstream.watch
    remote.end = upstream.open('session', windowBytes, packetBytes, Buffer.alloc(0), remote)
  } finally {
    pool.unreserve(upstream)
  }
  const timer = setTimeout(() => remote.giveUp(), openTimeoutMs)
  try {
    await remote.opened.promise
    return remote
  } catch (error) {
    if (fresh) throw error
    return openSession(pool, target, windowBytes, true)
  } finally {
    clearTimeout(timer)
  }
}

/** A session channel as streams. What is read is granted again, so a reader that stops stops the machine. */
class RemoteProcess implements ChannelSink {
  end: ChannelEnd | undefined
  watch: MachineWatch | undefined
  readonly opened = Promise.withResolvers<void>()
  readonly exit = Promise.withResolvers<MachineExit>()
  readonly channel: Duplex
  readonly stderr: Readable
  readonly #target: MachineTarget
  readonly #windowBytes: number
  /** Each hears of the machine's answer, or undefined: none will come. */
  readonly #replies: ((success: boolean | undefined) => void)[] = []
  #status: MachineExit | undefined
  #unwritten: { bytes: Buffer; done: () => void } | undefined
  /** The terminal's size, while the machine lags behind with what it was sent. */
  #unsentSize: { columns: number; rows: number } | undefined
  #readBytes = 0
  #outputEnded = false
  /** Outputs whose reader is behind: they said so at the last push and have not asked for more since. */
  readonly #full = new Set<Readable>()

  constructor(target: MachineTarget, windowBytes: number) {
    this.#target = target
    this.#windowBytes = windowBytes
    this.exit.promise.catch(() => {})
    this.channel = new Duplex({
      highWaterMark: packetBytes,
      read: () => this.#wanted(this.channel),
      write: (bytes: Buffer, _encoding, done) => {
        this.#unwritten = { bytes, done }
        this.onRoom()
      },
      final: (done) => {
        this.end?.sendEof()
        done()
      },
      destroy: (error, done) => {
        this.end?.close()
        done(error)
      },
    })
    this.stderr = new Readable({ highWaterMark: packetBytes, read: () => this.#wanted(this.stderr) })
    // Whoever has no use for an output does not listen to it; an error nobody listens for would be the process's
    this.channel.on('error', () => {})
    this.stderr.on('error', () => {})
  }

  /** The machine did not answer. */
  giveUp(): void {
    this.end?.close()
    this.opened.reject(this.#lost())
    for (const answer of this.#replies.splice(0)) answer(undefined)
  }

  request(name: string, ...fields: (number | string | Buffer)[]): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    this.#replies.push((success) => {
      if (success) resolve()
      else if (success === undefined) reject(this.#lost())
      else reject(this.#unreachable(`Machine ${this.#target.name} refused "${name}".`))
    })
    this.end?.sendRequest(name, true, ...fields)
    return promise
  }

  onOpen(): void {
    this.opened.resolve()
  }

  onRefused(_reason: number, description: string): void {
    this.opened.reject(this.#unreachable(`Machine ${this.#target.name} refused the session: ${description}`))
  }

  onData(payload: Buffer, lengthBytes: number): void {
    this.#push(this.channel, payload.subarray(dataHeaderBytes), lengthBytes)
  }

  onExtendedData(payload: Buffer, lengthBytes: number): void {
    this.#push(this.stderr, payload.subarray(extendedDataHeaderBytes), lengthBytes)
  }

  /** The last of several sizes is enough for a machine that reads slowly, and one that does not read gets none. */
  resize(columns: number, rows: number): void {
    this.#unsentSize = { columns, rows }
    this.#sendSize()
  }

  #sendSize(): void {
    const { end } = this
    const size = this.#unsentSize
    if (end === undefined || size === undefined) return
    if (end.link.backlogBytes > enoughBacklogBytes) {
      end.link.callWhenDrained(end)
      return
    }
    this.#unsentSize = undefined
    end.sendRequest('window-change', false, size.columns, size.rows, 0, 0)
  }

  onRoom(): void {
    this.#sendSize()
    const { end } = this
    const waiting = this.#unwritten
    if (end === undefined || waiting === undefined) return
    if (end.link.backlogBytes > enoughBacklogBytes) {
      end.link.callWhenDrained(end)
      return
    }
    const now = waiting.bytes.subarray(0, end.sendWindowBytes)
    if (now.length > 0) {
      this.watch?.carriedOverSsh()
      end.sendData(now)
    }
    waiting.bytes = waiting.bytes.subarray(now.length)
    if (waiting.bytes.length > 0) return
    this.#unwritten = undefined
    waiting.done()
  }

  onRequest(name: string, wantReply: boolean, payload: Buffer): void {
    const reader = new WireReader(payload, 5)
    reader.bytes()
    reader.boolean()
    if (name === 'exit-status') this.#status = { status: reader.uint32(), signal: null }
    else if (name === 'exit-signal') this.#status = { status: null, signal: reader.text() }
    if (wantReply) this.end?.sendReply(false)
  }

  onReply(success: boolean): void {
    this.#replies.shift()?.(success)
  }

  onEof(): void {
    this.#endOutput()
  }

  onClose(): void {
    this.end?.close()
    this.#ended()
    if (this.#status === undefined) this.exit.reject(this.#lost())
    else this.exit.resolve(this.#status)
  }

  onLost(): void {
    this.opened.reject(this.#lost())
    for (const answer of this.#replies.splice(0)) answer(undefined)
    this.#ended()
    this.exit.reject(this.#lost())
  }

  #push(output: Readable, bytes: Buffer, lengthBytes: number): void {
    // Nothing may come after EOF (RFC 4254, 5.3), but a machine sends what it likes
    if (this.#outputEnded) return
    this.watch?.carriedOverSsh()
    this.#readBytes += lengthBytes
    // A copy: the memory of a message is the transport's
    if (output.push(Buffer.from(bytes))) this.#grant()
    else this.#full.add(output)
  }

  #wanted(output: Readable): void {
    this.#full.delete(output)
    this.#grant()
  }

  /** Grants what was taken, when no reader is behind. */
  #grant(): void {
    if (this.#full.size > 0 || this.#readBytes < this.#windowBytes / 4) return
    this.end?.grant(this.#readBytes)
    this.#readBytes = 0
  }

  #endOutput(): void {
    if (this.#outputEnded) return
    this.#outputEnded = true
    this.channel.push(null)
    this.stderr.push(null)
  }

  #ended(): void {
    this.#endOutput()
    const waiting = this.#unwritten
    this.#unwritten = undefined
    waiting?.done()
    this.channel.end()
  }

  #lost(): MachineUnreachableError {
    return this.#unreachable(`The connection to machine ${this.#target.name} was lost.`)
  }

  #unreachable(sentence: string): MachineUnreachableError {
    return new MachineUnreachableError('machine.unreachable', sentence)
  }
}
