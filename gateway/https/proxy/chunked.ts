import { type Field, HeadError, parseFields } from './head.ts'

const MAX_SIZE_LINE_BYTES = 256
const MAX_TRAILER_BYTES = 16_384
/** A body of one-byte chunks with long extensions costs much and carries little (the "chunk extension" floods). */
const MAX_EXTENSION_BYTES = 16_384

const CR = 13
const LF = 10

type Step = 'size' | 'extension' | 'sizeLf' | 'bytes' | 'bytesCr' | 'bytesLf' | 'trailers' | 'done'

/**
 * Follows the chunked coding (RFC 9112, 7.1) through a stream of bytes, without changing them: where the payload
 * lies, where the trailers begin and where the body ends. Lines end with CRLF alone, a size is 1 to 12 hexadecimal
 * digits with nothing around them, extensions are visible ASCII.
 */
export class ChunkScanner {
  /** set once the body ended */
  trailers: Field[] | undefined
  #step: Step = 'size'
  #digits = 0
  #remainingBytes = 0
  #lineBytes = 0
  #extensionBytes = 0
  #trailerText = ''

  get done(): boolean {
    return this.#step === 'done'
  }

  /**
   * Reads on.
   * @param onPayload is handed each stretch of payload; leave it out when the coded bytes themselves are passed on
   * @returns `end`: where the coded bytes up to and including the last chunk's line end, in this buffer; trailers and
   *   the final CRLF are not among them, they are in `trailers` when `done`. `next`: the first byte that is not part
   *   of this body (the buffer's length unless done).
   * @throws HeadError
   */
  feed(buffer: Buffer, from: number, onPayload?: (payload: Buffer) => void): { end: number; next: number } {
    let at = from
    while (at < buffer.length) {
      if (this.#step === 'bytes') {
        const size = Math.min(this.#remainingBytes, buffer.length - at)
        if (onPayload) onPayload(buffer.subarray(at, at + size))
        this.#remainingBytes -= size
        at += size
        if (this.#remainingBytes === 0) this.#step = 'bytesCr'
        continue
      }
      if (this.#step === 'trailers') return this.#feedTrailers(buffer, at)
      this.#control(buffer[at] ?? 0)
      at++
      // Where the coded bytes end: right behind the last chunk's size line.
      if (this.step() === 'trailers') return at < buffer.length ? this.#feedTrailers(buffer, at) : { end: at, next: at }
    }
    return { end: at, next: at }
  }

  /** Widens what the compiler narrowed: #control moves the step. */
  private step(): Step {
    return this.#step
  }

  #control(byte: number): void {
    switch (this.#step) {
      case 'size': {
        const digit = hex(byte)
        if (digit >= 0) {
          if (++this.#digits > 12) throw new HeadError('chunk size too large')
          this.#remainingBytes = this.#remainingBytes * 16 + digit
          return
        }
        if (this.#digits === 0) throw new HeadError('malformed chunk size')
        if (byte === CR) this.#step = 'sizeLf'
        else if (byte === 0x3b) this.#step = 'extension'
        else throw new HeadError('malformed chunk size')
        return
      }
      case 'extension':
        if (byte === CR) this.#step = 'sizeLf'
        else if ((byte < 0x20 && byte !== 9) || byte >= 0x7f) throw new HeadError('malformed chunk extension')
        else if (++this.#lineBytes > MAX_SIZE_LINE_BYTES || ++this.#extensionBytes > MAX_EXTENSION_BYTES)
          throw new HeadError('chunk extensions too long')
        return
      case 'sizeLf':
        if (byte !== LF) throw new HeadError('malformed chunk size line')
        this.#step = this.#remainingBytes === 0 ? 'trailers' : 'bytes'
        this.#digits = 0
        this.#lineBytes = 0
        return
      case 'bytesCr':
        if (byte !== CR) throw new HeadError('chunk longer than its size')
        this.#step = 'bytesLf'
        return
      case 'bytesLf':
        if (byte !== LF) throw new HeadError('chunk longer than its size')
        this.#step = 'size'
        return
    }
  }

  #feedTrailers(buffer: Buffer, from: number): { end: number; next: number } {
    const before = this.#trailerText.length
    const taken = Math.min(buffer.length, from + MAX_TRAILER_BYTES + 4 - before)
    const text = this.#trailerText + buffer.toString('latin1', from, taken)
    // The section ends with an empty line: at once, or behind the last field.
    const close = text.startsWith('\r\n') ? 2 : text.indexOf('\r\n\r\n') + 4
    if (close < 4 && close !== 2) {
      if (text.length > MAX_TRAILER_BYTES) throw new HeadError('trailers too long', 431)
      this.#trailerText = text
      return { end: from, next: buffer.length }
    }
    this.trailers = parseFields(text.slice(0, close), 0)
    this.#step = 'done'
    this.#trailerText = ''
    return { end: from, next: from + close - before }
  }
}

function hex(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30
  const lower = byte | 0x20
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1
}
