import { connect, type Socket } from 'node:net'
import type { Tie } from '../../activity/tie.ts'
import type { MachineWatch } from '../../activity/watch.ts'
import { ChunkScanner } from './chunked.ts'
import { type Field, type Framing, HeadError, parseResponseHead, type ResponseHead, responseFraming } from './head.ts'

const MAX_HEAD_BYTES = 65_536
const MAX_INTERIM_RESPONSES = 32

/**
 * One read buffer for all machines' sockets: bytes are handed on, or copied, before the read callback returns, so an
 * idle connection holds no buffer. Its size is what one read brings: at 256 KiB a large body costs a third less CPU
 * than at Node's 64 KiB.
 */
const READ_BUFFER = Buffer.allocUnsafeSlow(262_144)

/**
 * The first read of a response, and every read of a reader that is sparing: what one read brings has to be held for a
 * client that does not take it, and an HTTP/2 client may have many such streams.
 */
const FIRST_BUFFER = READ_BUFFER.subarray(0, 16_384)

/** How an exchange ended before its response was complete. */
export class CutError extends Error {
  override readonly name = 'CutError'
  readonly code: 'refused' | 'timeout' | 'unreachable' | 'cut' | 'malformed'
  /** the connection had served before and died without a byte of answer: most likely its idle time was over */
  readonly stale: boolean

  constructor(code: CutError['code'], message: string, options: { stale?: boolean } & ErrorOptions = {}) {
    super(message, options)
    this.code = code
    this.stale = options.stale ?? false
  }
}

/** Hears one exchange's response. After `ended` or `cut` nothing more is called. */
export type ResponseReader = {
  readonly method: string
  /** true: the body's bytes come as they are coded; false: the payload alone */
  readonly coded: boolean
  /** true: what one read brings is to be little */
  readonly sparing: boolean
  /** 1xx other than 101 */
  interim(head: ResponseHead): void
  /** the final head, or 101: then `bytes` carries the tunnel */
  head(head: ResponseHead, framing: Framing): void
  /** @param bytes lent until `flush` or `ended` returns; called once a read when `coded` */
  bytes(bytes: Buffer): void
  /**
   * What one read brought is through: the moment to write it.
   * @returns false when no more should come until `resume`
   */
  flush(): boolean
  /** complete; `trailers` only of a chunked body */
  ended(trailers: readonly Field[] | undefined): void
  cut(error: CutError): void
  /** the machine takes bytes again */
  drained(): void
}

export type UpstreamOptions = {
  host: string
  port: number
  connectTimeoutMs: number
  watch?: MachineWatch | undefined
  /** called once, when the connection can no longer be used */
  onClosed: (upstream: Upstream) => void
}

const KEEPALIVE_MS = 60_000

/** A request that was sent so shortly before its machine fell asleep was not known to whoever let it. */
const JUST_SENT_MS = 15_000

type State = 'connecting' | 'idle' | 'head' | 'body' | 'tunnel' | 'closed'

/**
 * A connection to one port of a machine. States: `connecting` and `idle` become `head` with an exchange; its response
 * head leads to `body` (or back to `idle` without one) or to `tunnel` after 101; a complete response leads to `idle`
 * when the machine keeps the connection, else to `closed`. While the machine sleeps all of them last but `idle`: what is
 * written waits, and wakes it (activity/tie.ts).
 */
export class Upstream {
  /** exchanges served so far */
  served = 0
  /** when it became idle, by the pool's clock */
  idleSinceMs = 0
  /** how long the machine keeps it idle (Keep-Alive: timeout), undefined when it did not say */
  keepAliveMs: number | undefined
  /** the response is complete and the connection may serve again */
  reusable = false
  readonly #socket: Socket
  readonly #tie: Tie | undefined
  readonly #onClosed: (upstream: Upstream) => void
  #state: State = 'connecting'
  #reader: ResponseReader | undefined
  #partial: Buffer | undefined
  #remainingBytes = 0
  #scanner: ChunkScanner | undefined
  #framing: Framing['kind'] = 'none'
  #interims = 0
  #answered = false
  #begunAtMs = 0
  #connectTimer: NodeJS.Timeout | undefined
  #error: Error | undefined

  constructor(options: UpstreamOptions) {
    this.#onClosed = options.onClosed
    this.#socket = connect({
      host: options.host,
      port: options.port,
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: KEEPALIVE_MS,
      allowHalfOpen: true,
      onread: { buffer: () => this.#nextBuffer(), callback: (bytes) => this.#read(READ_BUFFER.subarray(0, bytes)) },
    })
    this.#connectTimer = setTimeout(
      () => this.#fail(new CutError('timeout', 'the machine does not answer')),
      options.connectTimeoutMs,
    )
    this.#socket
      .on('connect', () => {
        clearTimeout(this.#connectTimer)
        if (this.#state === 'connecting') this.#state = this.#reader ? 'head' : 'idle'
      })
      .on('drain', () => this.#reader?.drained())
      .on('end', () => this.#end())
      .on('error', (error) => {
        this.#error = error
      })
      .on('close', () => this.#closed())
    this.#tie = options.watch?.attach(this.#socket, {
      keepAliveMs: KEEPALIVE_MS,
      onHold: () => this.#held(),
      onEnded: () => this.#socket.destroy(),
    })
  }

  get closed(): boolean {
    return this.#state === 'closed'
  }

  /** Begins an exchange. @param text the request head, latin1 */
  begin(reader: ResponseReader, text: string): void {
    this.#reader = reader
    this.#answered = false
    this.reusable = false
    this.#interims = 0
    this.#begunAtMs = performance.now()
    if (this.#state === 'idle') this.#state = 'head'
    this.write(text)
  }

  /** @returns false when the machine is slow and `drained` will say when to go on */
  write(bytes: Buffer | string): boolean {
    if (this.#tie?.isHeld) this.#want()
    return typeof bytes === 'string' ? this.#socket.write(bytes, 'latin1') : this.#socket.write(bytes)
  }

  /** Lets a reader that asked for a pause have more. */
  resume(): void {
    if (this.#state !== 'closed') this.#socket.resume()
  }

  /** No more bytes will come from the client of a tunnel. */
  end(): void {
    if (this.#tie) this.#tie.end()
    else this.#socket.end()
  }

  /** Gives the connection up; the reader hears nothing more. */
  destroy(): void {
    this.#reader = undefined
    if (this.#tie) this.#tie.destroy()
    else this.#socket.destroy()
  }

  /** The exchange is over on both sides: nothing more is told to its reader. */
  release(): void {
    this.#reader = undefined
    this.served++
  }

  /** The machine falls asleep, and hears for a moment yet. */
  #held(): void {
    if (this.#state === 'idle') {
      this.#socket.destroy()
      return
    }
    const waits = this.#state === 'connecting' || this.#state === 'head'
    if (waits && performance.now() - this.#begunAtMs < JUST_SENT_MS) this.#want()
  }

  #want(): void {
    this.#tie?.want(this.#state === 'tunnel' ? 'a WebSocket' : 'a web request')
  }

  /** Asked after each read. Both buffers begin at the same byte. */
  #nextBuffer(): Buffer {
    const passing = this.#state === 'body' || this.#state === 'tunnel'
    return passing && this.#reader?.sparing === false ? READ_BUFFER : FIRST_BUFFER
  }

  #read(buffer: Buffer): boolean {
    const reader = this.#reader
    if (!reader || this.#state === 'idle') {
      // Bytes nobody asked for: whatever would read them next is another person's exchange.
      this.reusable = false
      this.#socket.destroy()
      return false
    }
    try {
      this.#consume(reader, buffer)
      // The exchange may be over, and this connection in use for the next one, which is not to be paused by this one.
      return this.#reader === reader ? reader.flush() : true
    } catch (error) {
      this.#spoiled(reader, error)
      return false
    }
  }

  /** Whatever goes wrong with one exchange ends that exchange: thrown on, it would end the process, and all others. */
  #spoiled(reader: ResponseReader, error: unknown): void {
    const message = error instanceof HeadError ? error.message : 'the gateway could not pass it on'
    const cut = new CutError('malformed', message, { cause: error })
    if (this.#reader === reader) this.#fail(cut)
    else reader.cut(cut)
  }

  #consume(reader: ResponseReader, read: Buffer): void {
    let buffer = read
    let at = 0
    while (this.#state === 'head') {
      if (this.#partial) {
        buffer = Buffer.concat([this.#partial, buffer])
        this.#partial = undefined
      }
      const end = buffer.indexOf('\r\n\r\n', at, 'latin1')
      if ((end < 0 ? buffer.length : end) - at > MAX_HEAD_BYTES) throw new HeadError('response head too large')
      if (end < 0) {
        if (at < buffer.length) this.#partial = Buffer.from(buffer.subarray(at))
        return
      }
      const head = parseResponseHead(buffer.toString('latin1', at, end + 4))
      at = end + 4
      if (head.status < 200 && head.status !== 101) {
        this.#answered = true
        if (++this.#interims > MAX_INTERIM_RESPONSES) throw new HeadError('too many interim responses')
        reader.interim(head)
        continue
      }
      // Does not come back to this loop: a complete response may already have begun the next exchange here.
      this.#takeFinal(reader, head, buffer, at)
      return
    }
    this.#takeBody(reader, buffer, at)
  }

  #takeFinal(reader: ResponseReader, head: ResponseHead, buffer: Buffer, at: number): void {
    this.#answered = true
    if (head.status === 101) {
      this.#state = 'tunnel'
      reader.head(head, { kind: 'close' })
    } else {
      const framing = responseFraming(head, reader.method)
      this.#framing = framing.kind
      this.reusable = framing.kind !== 'close' && this.#keepsAlive(head)
      this.#state = 'body'
      if (framing.kind === 'length') this.#remainingBytes = framing.bytes
      else if (framing.kind === 'chunked') this.#scanner = new ChunkScanner()
      reader.head(head, framing)
      if (framing.kind === 'none') {
        this.#complete(reader, undefined, at === buffer.length)
        return
      }
    }
    // The reader may have refused the head.
    if (at < buffer.length && this.#reader === reader) this.#takeBody(reader, buffer, at)
  }

  #takeBody(reader: ResponseReader, buffer: Buffer, from: number): void {
    if (this.#state === 'tunnel' || this.#framing === 'close') {
      reader.bytes(buffer.subarray(from))
      return
    }
    if (this.#framing === 'length') {
      const end = Math.min(buffer.length, from + this.#remainingBytes)
      this.#remainingBytes -= end - from
      reader.bytes(buffer.subarray(from, end))
      if (this.#remainingBytes === 0) this.#complete(reader, undefined, end === buffer.length)
      return
    }
    const scanner = this.#scanner
    if (!scanner) return
    const { end, next } = scanner.feed(buffer, from, reader.coded ? undefined : (payload) => reader.bytes(payload))
    if (reader.coded && end > from) reader.bytes(buffer.subarray(from, end))
    if (!scanner.done) return
    this.#scanner = undefined
    this.#complete(reader, scanner.trailers, next === buffer.length)
  }

  /** @param clean nothing came behind the response; what did is not an answer to anything and ends the connection */
  #complete(reader: ResponseReader, trailers: readonly Field[] | undefined, clean: boolean): void {
    this.#state = 'idle'
    if (!clean) this.reusable = false
    reader.ended(trailers)
  }

  #keepsAlive(head: ResponseHead): boolean {
    for (const { name, value } of head.fields) {
      if (name === 'connection') {
        if (/(^|,)\s*close\s*(,|$)/i.test(value)) return false
      } else if (name === 'keep-alive') {
        const seconds = /timeout=(\d{1,6})/i.exec(value)?.[1]
        if (seconds !== undefined) this.keepAliveMs = Number(seconds) * 1000
      }
    }
    return head.minor === 1
  }

  /** The machine sent FIN. Only a body that lasts until then, or a tunnel, ends cleanly by it. */
  #end(): void {
    const reader = this.#reader
    if (reader && (this.#state === 'tunnel' || (this.#state === 'body' && this.#framing === 'close'))) {
      const tunnel = this.#state === 'tunnel'
      if (!tunnel) this.#state = 'idle'
      try {
        reader.ended(undefined)
      } catch (error) {
        this.#spoiled(reader, error)
      }
      if (tunnel) return
    }
    this.#socket.destroy()
  }

  #fail(error: CutError): void {
    const reader = this.#reader
    this.#reader = undefined
    this.#socket.destroy()
    reader?.cut(error)
  }

  #closed(): void {
    clearTimeout(this.#connectTimer)
    const state = this.#state
    const reader = this.#reader
    this.#state = 'closed'
    this.#reader = undefined
    this.reusable = false
    this.#partial = undefined
    this.#onClosed(this)
    reader?.cut(this.#reason(state))
  }

  #reason(state: State): CutError {
    const cause = this.#error
    const code = cause && 'code' in cause ? cause.code : undefined
    if (state === 'connecting') {
      if (code === 'ECONNREFUSED') return new CutError('refused', 'nothing listens on this port', { cause })
      return new CutError(code === 'ETIMEDOUT' ? 'timeout' : 'unreachable', 'the machine cannot be reached', { cause })
    }
    const stale = this.served > 0 && !this.#answered
    return new CutError('cut', 'the connection to the machine ended early', { cause, stale })
  }
}
