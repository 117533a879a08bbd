import { PassThrough, type Readable } from 'node:stream'

/** Type-ahead kept while a command runs; what is beyond it waits in the client. */
const BACKLOG_LIMIT_BYTES = 64 * 1024
const CTRL_C = 0x03

/**
 * The one reader of a terminal's bytes. At each moment they go to one of:
 * an editor (`read`), the backlog with an eye on Ctrl-C (`watch`, while a command runs), or a command that
 * took the keyboard over (`raw`). What was typed ahead reaches the next editor, as on a real terminal.
 */
export class Keyboard {
  readonly #stdin: Readable
  readonly #closed = Promise.withResolvers<void>()
  #backlog: Buffer[] = []
  #backlogBytes = 0
  #reader: ((bytes: Buffer) => void) | undefined
  #onInterrupt: (() => void) | undefined
  #raw: PassThrough | undefined
  #ended = false

  constructor(stdin: Readable) {
    this.#stdin = stdin
    stdin.on('data', this.#onData)
    stdin.on('end', this.#onEnd)
    stdin.on('close', this.#onEnd)
    stdin.on('error', this.#onEnd)
    // Another keyboard may have read this stream before, and paused it when it was done.
    stdin.resume()
    if (stdin.readableEnded || stdin.destroyed) this.#onEnd()
  }

  /** Resolves when the client closed its input. */
  get closed(): Promise<void> {
    return this.#closed.promise
  }
  get ended(): boolean {
    return this.#ended
  }

  /**
   * Hands all that is typed to one reader, what was typed ahead first.
   * @returns stops reading; bytes that come later are kept
   */
  read(reader: (bytes: Buffer) => void): () => void {
    this.#reader = reader
    // Later, so that the reader has its way to stop in hand; before any 'data' event, so that order is kept.
    queueMicrotask(() => {
      if (this.#reader !== reader) return
      const ahead = Buffer.concat(this.#backlog)
      this.#dropBacklog()
      if (ahead.length) reader(ahead)
    })
    return () => {
      if (this.#reader === reader) this.#reader = undefined
    }
  }

  /** Gives bytes back that a reader did not use: they come first at the next `read`. */
  unread(bytes: Buffer): void {
    if (!bytes.length) return
    this.#backlog.unshift(bytes)
    this.#backlogBytes += bytes.length
  }

  /**
   * Listens for Ctrl-C while nobody reads. It also throws away what was typed ahead, as a terminal does.
   * @returns stops listening
   */
  watch(onInterrupt: () => void): () => void {
    this.#onInterrupt = onInterrupt
    return () => {
      if (this.#onInterrupt === onInterrupt) this.#onInterrupt = undefined
    }
  }

  /** Everything typed as it is, for a command that passes it on. */
  raw(): { stdin: Readable; release: () => void } {
    const stdin = new PassThrough()
    this.#raw = stdin
    const ahead = Buffer.concat(this.#backlog)
    this.#dropBacklog()
    if (ahead.length) stdin.write(ahead)
    if (this.#ended) stdin.end()
    stdin.on('drain', () => this.#stdin.resume())
    stdin.on('error', () => {})
    return {
      stdin,
      release: () => {
        if (this.#raw !== stdin) return
        this.#raw = undefined
        // Bytes that the command did not take are typed ahead for the next one.
        for (let chunk = stdin.read(); chunk !== null; chunk = stdin.read()) this.#keep(chunk as Buffer)
        stdin.destroy()
        this.#stdin.resume()
      },
    }
  }

  /** Stops reading altogether; the stream is left to its owner. */
  release(): void {
    this.#stdin.off('data', this.#onData)
    this.#stdin.off('end', this.#onEnd)
    this.#stdin.off('close', this.#onEnd)
    this.#stdin.off('error', this.#onEnd)
    this.#stdin.pause()
  }

  /** Waits while the terminal does not take what is drawn, so that a client which never reads cannot pile it up. */
  pauseUntil(drained: Promise<unknown>): void {
    this.#stdin.pause()
    drained.finally(() => this.#stdin.resume()).catch(() => {})
  }

  readonly #onData = (chunk: Buffer | string) => {
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk
    if (this.#raw) {
      if (!this.#raw.write(bytes)) this.#stdin.pause()
      return
    }
    if (this.#reader) return this.#reader(bytes)
    const interrupt = this.#onInterrupt ? bytes.lastIndexOf(CTRL_C) : -1
    if (interrupt < 0) return this.#keep(bytes)
    this.#dropBacklog()
    this.#keep(bytes.subarray(interrupt + 1))
    this.#onInterrupt?.()
  }

  readonly #onEnd = () => {
    if (this.#ended) return
    this.#ended = true
    this.#raw?.end()
    this.#closed.resolve()
  }

  #keep(bytes: Buffer): void {
    if (!bytes.length) return
    this.#backlog.push(bytes)
    this.#backlogBytes += bytes.length
    if (this.#backlogBytes > BACKLOG_LIMIT_BYTES) this.#stdin.pause()
  }

  #dropBacklog(): void {
    const paused = this.#backlogBytes > BACKLOG_LIMIT_BYTES
    this.#backlog = []
    this.#backlogBytes = 0
    if (paused) this.#stdin.resume()
  }
}
