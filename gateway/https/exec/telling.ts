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
import { PacedResponse } from './paced.ts'

export class Telling {
  readonly #paced: PacedResponse
  readonly #heartbeatMs: number

  constructor(response: ServerResponse, heartbeatMs: number) {
    this.#paced = new PacedResponse(response)
    this.#heartbeatMs = heartbeatMs
  }

  get begun(): boolean {
    return this.#paced.begun
  }

  get sentBytes(): number {
    return this.#paced.sentBytes
  }

  /** Sends the head; from here on an error is the last line. */
  begin(): void {
    this.#paced.begin({ 'Content-Type': 'application/x-ndjson' }, this.#heartbeatMs)
  }

  /** Resolves when the client has read, or is gone. */
  async tell(piece: Piece): Promise<void> {
    // Of what is going on only the newest matters to a client that lags behind.
    if (this.#paced.isOver || (this.#paced.isBlocked && 'progress' in piece)) return
    this.begin()
    this.#paced.write(`${JSON.stringify(lineOf(piece))}\n`)
    await this.#paced.taken()
  }

  /** The last line, with the document of the command or of its failure. */
  end(document: { result: unknown } | { error: string; code: string }): void {
    this.begin()
    this.#paced.write(`${JSON.stringify(document)}\n`)
    this.#paced.end()
  }
}

function lineOf(piece: Piece): Record<string, unknown> {
  if (!('progress' in piece)) return piece
  const { progress, part } = piece
  return { progress, ...(part === undefined ? {} : { done_bytes: part.doneBytes, total_bytes: part.totalBytes }) }
}
