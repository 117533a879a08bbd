import { ChunkScanner } from './chunked.ts'
import { passedTrailers } from './fields.ts'
import type { Field, Framing } from './head.ts'

/** The body of an HTTP/1.1 request (RFC 9112, 6): which of the bytes that come belong to it, and where it ends. */
export class RequestBody {
  readonly #scanner: ChunkScanner | undefined
  #remainingBytes: number

  constructor(framing: Framing) {
    this.#scanner = framing.kind === 'chunked' ? new ChunkScanner() : undefined
    this.#remainingBytes = framing.kind === 'length' ? framing.bytes : 0
  }

  /** All of it was read. */
  get isComplete(): boolean {
    return this.#scanner ? this.#scanner.done : this.#remainingBytes === 0
  }

  /**
   * Reads on.
   * @param write is handed what the machine is to have of it, coded as it came; its answer is passed on
   * @returns `next`: the first byte behind the body, the length of `bytes` unless it is complete. `more`: false when the
   *   machine is slow
   * @throws HeadError when the chunked coding is broken
   */
  read(bytes: Buffer, write: (bytes: Buffer | string) => boolean): { next: number; more: boolean } {
    if (!this.#scanner) {
      const next = Math.min(bytes.length, this.#remainingBytes)
      this.#remainingBytes -= next
      return { next, more: write(next === bytes.length ? bytes : bytes.subarray(0, next)) }
    }
    const { end, next } = this.#scanner.feed(bytes, 0)
    let more = true
    if (end > 0) more = write(bytes.subarray(0, end))
    if (this.#scanner.done) more = write(trailerText(this.#scanner.trailers ?? []))
    return { next, more }
  }
}

function trailerText(trailers: readonly Field[]): string {
  return `${passedTrailers(trailers)
    .map(({ line }) => line)
    .join('')}\r\n`
}
