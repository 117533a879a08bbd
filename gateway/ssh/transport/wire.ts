/** SSH's data types on the wire (RFC 4251, 5) and the message numbers of the connection protocol (RFC 4254, 9). */

export const message = {
  globalRequest: 80,
  requestSuccess: 81,
  requestFailure: 82,
  channelOpen: 90,
  channelOpenConfirmation: 91,
  channelOpenFailure: 92,
  channelWindowAdjust: 93,
  channelData: 94,
  channelExtendedData: 95,
  channelEof: 96,
  channelClose: 97,
  channelRequest: 98,
  channelSuccess: 99,
  channelFailure: 100,
} as const

/** Reasons of CHANNEL_OPEN_FAILURE (RFC 4254, 5.1). */
export const openFailure = {
  administrativelyProhibited: 1,
  connectFailed: 2,
  unknownChannelType: 3,
  resourceShortage: 4,
} as const

/** Reasons of DISCONNECT (RFC 4253, 11.1). */
export const disconnectReason = {
  protocolError: 2,
  serviceNotAvailable: 7,
  connectionLost: 10,
  byApplication: 11,
  tooManyConnections: 12,
} as const

/** A peer sent something that RFC 4254 does not allow; the connection is not worth keeping. */
export class WireError extends Error {
  override readonly name = 'WireError'
}

/** Reads one message from its start; every read throws WireError at the end of the message. */
export class WireReader {
  readonly #bytes: Buffer
  #position: number

  constructor(bytes: Buffer, position = 1) {
    this.#bytes = bytes
    this.#position = position
  }

  uint32(): number {
    const start = this.#take(4)
    return readUint32(this.#bytes, start)
  }

  boolean(): boolean {
    return this.#bytes[this.#take(1)] !== 0
  }

  /** A view, not a copy: valid as long as the message is. */
  bytes(): Buffer {
    const length = this.uint32()
    const start = this.#take(length)
    return this.#bytes.subarray(start, start + length)
  }

  text(): string {
    return this.bytes().toString('utf8')
  }

  /** What is left, as a view. */
  rest(): Buffer {
    return this.#bytes.subarray(this.#position)
  }

  #take(length: number): number {
    const start = this.#position
    if (start + length > this.#bytes.length) throw new WireError('SSH message ends too early')
    this.#position = start + length
    return start
  }
}

export function readUint32(bytes: Buffer, offset: number): number {
  return (
    (bytes[offset] as number) * 0x1000000 +
    (((bytes[offset + 1] as number) << 16) | ((bytes[offset + 2] as number) << 8) | (bytes[offset + 3] as number))
  )
}

export function writeUint32(bytes: Buffer, value: number, offset: number): void {
  bytes[offset] = value >>> 24
  bytes[offset + 1] = value >>> 16
  bytes[offset + 2] = value >>> 8
  bytes[offset + 3] = value
}

/** `raw` goes into a message as it is, without a length. */
export type Field = number | boolean | string | Buffer | { raw: Buffer }

/** Encodes a message: numbers as uint32, booleans as one byte, text and bytes as strings with their length. */
export function encode(type: number, ...fields: readonly Field[]): Buffer {
  const parts: Buffer[] = [Buffer.of(type)]
  for (const field of fields) {
    if (typeof field === 'number') parts.push(uint32(field))
    else if (typeof field === 'boolean') parts.push(Buffer.of(field ? 1 : 0))
    else if (typeof field === 'string') parts.push(uint32(Buffer.byteLength(field)), Buffer.from(field))
    else if (Buffer.isBuffer(field)) parts.push(uint32(field.length), field)
    else parts.push(field.raw)
  }
  return Buffer.concat(parts)
}

function uint32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4)
  writeUint32(bytes, value, 0)
  return bytes
}
