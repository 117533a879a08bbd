/**
 * `POST /exec?follow`: a command's answer as it comes into being, one JSON object a line, an empty line as a sign of life:
 *
 *     {"progress":"demo: booting"}
 *     {"progress":"demo: fetching its image, …","done_bytes":n,"total_bytes":n}
 *     {"remark":text}  {"text":text}  …  then {"result":document} or {"error":text,"code":…}, and nothing behind
 *
 * `text` is what `logs -f` prints. A client that does not read holds the command up; nothing is kept for it.
 */
import type { ServerResponse } from 'node:http'
import type { Piece } from '../../app.ts'

export class Telling {
  readonly #response: ServerResponse
  readonly #heartbeatMs: number
  #heartbeat: NodeJS.Timeout | undefined
  #blocked = false
  #over = false
  sentBytes = 0

  constructor(response: ServerResponse, heartbeatMs: number) {
    this.#response = response
    this.#heartbeatMs = heartbeatMs
    response.once('close', () => this.#finish())
  }

  get begun(): boolean {
    return this.#response.headersSent
  }

  /** Sends the head; from here on an error is the last line. */
  begin(): void {
    if (this.begun || this.#over) return
    this.#response.writeHead(200, {
      'Content-Type': 'application/x-ndjson',
      'Cache-Control': 'no-store',
      'X-Content-Type-Options': 'nosniff',
    })
    this.#response.flushHeaders()
    this.#heartbeat = setInterval(() => {
      if (!this.#blocked) this.#write('\n')
    }, this.#heartbeatMs)
  }

  /** Resolves when the client has read, or is gone. */
  async tell(piece: Piece): Promise<void> {
    // Of what is going on only the newest matters to a client that lags behind.
    if (this.#over || (this.#blocked && 'progress' in piece)) return
    this.begin()
    this.#write(`${JSON.stringify(lineOf(piece))}\n`)
    if (this.#blocked) await this.#room()
  }

  /** The last line, with the document of the command or of its failure. */
  end(document: { result: unknown } | { error: string; code: string }): void {
    if (this.#over) return
    this.begin()
    this.#write(`${JSON.stringify(document)}\n`)
    this.#finish()
    this.#response.end()
  }

  #write(text: string): void {
    this.sentBytes += Buffer.byteLength(text)
    this.#blocked = !this.#response.write(text)
  }

  #room(): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        this.#blocked = false
        this.#response.off('drain', done).off('close', done)
        resolve()
      }
      this.#response.on('drain', done).on('close', done)
      if (this.#over) done()
    })
  }

  #finish(): void {
    this.#over = true
    clearInterval(this.#heartbeat)
  }
}

function lineOf(piece: Piece): Record<string, unknown> {
  if (!('progress' in piece)) return piece
  const { progress, part } = piece
  return { progress, ...(part === undefined ? {} : { done_bytes: part.doneBytes, total_bytes: part.totalBytes }) }
}
