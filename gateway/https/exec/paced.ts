import type { OutgoingHttpHeaders, ServerResponse } from 'node:http'

/** A response that comes into being while its client reads: nothing is kept for one that does not. */
export class PacedResponse {
  readonly response: ServerResponse
  sentBytes = 0
  #heartbeat: NodeJS.Timeout | undefined
  #isBlocked = false
  #isOver = false

  constructor(response: ServerResponse) {
    this.response = response
    response.once('close', () => this.#finish())
  }

  /** The head is sent: from here on an error is part of the body. */
  get begun(): boolean {
    return this.response.headersSent
  }

  /** The last line was written, or the client is gone. */
  get isOver(): boolean {
    return this.#isOver
  }

  /** What was written last is not taken yet. */
  get isBlocked(): boolean {
    return this.#isBlocked
  }

  /** Sends the head, once. @param heartbeatMs how often an empty line says that all is well; never unless given */
  begin(fields: OutgoingHttpHeaders, heartbeatMs?: number): void {
    if (this.begun || this.#isOver) return
    this.response.writeHead(200, { ...fields, 'Cache-Control': 'no-store', 'X-Content-Type-Options': 'nosniff' })
    this.response.flushHeaders()
    if (heartbeatMs === undefined) return
    this.#heartbeat = setInterval(() => {
      if (!this.#isBlocked) this.write('\n')
    }, heartbeatMs)
  }

  write(bytes: string | Buffer): void {
    if (this.#isOver) return
    this.sentBytes += Buffer.byteLength(bytes)
    this.#isBlocked = !this.response.write(bytes)
  }

  /** Resolves when the client has read what was written, or is gone. */
  async taken(): Promise<void> {
    if (!this.#isBlocked || this.#isOver) return
    await new Promise<void>((resolve) => {
      const done = () => {
        this.#isBlocked = false
        this.response.off('drain', done).off('close', done)
        resolve()
      }
      this.response.on('drain', done).on('close', done)
    })
  }

  end(): void {
    if (this.#isOver) return
    this.#finish()
    this.response.end()
  }

  #finish(): void {
    this.#isOver = true
    clearInterval(this.#heartbeat)
  }
}
