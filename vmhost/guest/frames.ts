import { crc32 } from 'node:zlib'

/**
 * The control channel's frames, host side. The format is written down in `init/protocol.h`; the two files change
 * together. A frame is COBS(type u8, id u32, fields, crc32 u32) and one zero byte; a field is tag u8, length u32,
 * bytes. All integers are big-endian. Because zero never occurs inside a frame, a reader that comes in in the
 * middle, after the other side's predecessor died half way through a frame, is in step again at the next zero.
 * @see Cheshire and Baker, "Consistent Overhead Byte Stuffing", 1999
 */
export const maxFrameBytes = 256 * 1024

export type Field = { tag: number; bytes: Buffer }
export type Frame = { type: number; id: number; fields: Field[] }

/** Thrown for what cannot be framed; what cannot be read back is dropped, as the sender will repeat it. */
export class FrameError extends Error {
  override readonly name = 'FrameError'
}

/**
 * @returns the frame as it goes on the wire, its closing zero included
 * @throws FrameError when it would be longer than `maxFrameBytes`
 */
export function encodeFrame(frame: Frame): Buffer {
  const head = Buffer.alloc(5)
  head.writeUInt8(frame.type, 0)
  head.writeUInt32BE(frame.id, 1)
  const parts: Buffer[] = [head]
  for (const field of frame.fields) {
    const prefix = Buffer.alloc(5)
    prefix.writeUInt8(field.tag, 0)
    prefix.writeUInt32BE(field.bytes.length, 1)
    parts.push(prefix, field.bytes)
  }
  const body = Buffer.concat(parts)
  if (body.length + 4 > maxFrameBytes)
    throw new FrameError(`A control message of ${body.length} bytes is over the limit of ${maxFrameBytes - 4}`)
  const sum = Buffer.alloc(4)
  sum.writeUInt32BE(crc32(body), 0)
  return stuff(Buffer.concat([body, sum]))
}

/** Cuts a byte stream into frames. Damaged and oversized ones are counted in `dropped` and passed over. */
export class FrameReader {
  dropped = 0
  #held: Buffer[] = []
  #heldBytes = 0
  #skipping = false

  /** @returns the frames that `chunk` completes, in order */
  push(chunk: Buffer): Frame[] {
    const frames: Frame[] = []
    let rest = chunk
    for (let zero = rest.indexOf(0); zero >= 0; zero = rest.indexOf(0)) {
      this.#hold(rest.subarray(0, zero))
      rest = rest.subarray(zero + 1)
      const frame = this.#take()
      if (frame) frames.push(frame)
    }
    this.#hold(rest)
    return frames
  }

  #hold(part: Buffer): void {
    if (part.length === 0 || this.#skipping) return
    // The worst case of the stuffing is one byte in 254.
    if (this.#heldBytes + part.length > maxFrameBytes + maxFrameBytes / 254 + 2) {
      this.#skipping = true
      this.#held = []
      this.#heldBytes = 0
      return
    }
    this.#held.push(Buffer.from(part))
    this.#heldBytes += part.length
  }

  #take(): Frame | undefined {
    const whole = this.#held.length === 1 ? this.#held[0] : Buffer.concat(this.#held)
    const skipped = this.#skipping
    this.#held = []
    this.#heldBytes = 0
    this.#skipping = false
    // A lone zero is what a new sender begins with: it ends whatever its predecessor left unfinished.
    if (!skipped && (whole === undefined || whole.length === 0)) return undefined
    const frame = skipped || whole === undefined ? undefined : parseFrame(whole)
    if (!frame) this.dropped++
    return frame
  }
}

function parseFrame(stuffed: Buffer): Frame | undefined {
  const plain = unstuff(stuffed)
  if (!plain || plain.length < 9) return undefined
  const end = plain.length - 4
  if (crc32(plain.subarray(0, end)) !== plain.readUInt32BE(end)) return undefined
  const fields: Field[] = []
  let at = 5
  while (at < end) {
    if (end - at < 5) return undefined
    const length = plain.readUInt32BE(at + 1)
    if (length > end - at - 5) return undefined
    fields.push({ tag: plain.readUInt8(at), bytes: plain.subarray(at + 5, at + 5 + length) })
    at += 5 + length
  }
  return { type: plain.readUInt8(0), id: plain.readUInt32BE(1), fields }
}

function stuff(plain: Buffer): Buffer {
  const out = Buffer.alloc(plain.length + Math.floor(plain.length / 254) + 2)
  let to = 1
  let codeAt = 0
  let code = 1
  for (const byte of plain) {
    if (byte !== 0) {
      out[to++] = byte
      code++
    }
    if (byte === 0 || code === 255) {
      out[codeAt] = code
      codeAt = to++
      code = 1
    }
  }
  out[codeAt] = code
  out[to++] = 0
  return out.subarray(0, to)
}

function unstuff(stuffed: Buffer): Buffer | undefined {
  const out = Buffer.alloc(stuffed.length)
  let to = 0
  let at = 0
  while (at < stuffed.length) {
    const code = stuffed.readUInt8(at++)
    if (code === 0 || at + code - 1 > stuffed.length) return undefined
    stuffed.copy(out, to, at, at + code - 1)
    to += code - 1
    at += code - 1
    if (code < 255 && at < stuffed.length) out[to++] = 0
  }
  return out.subarray(0, to)
}
