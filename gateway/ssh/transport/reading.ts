import { Socket } from 'node:net'

/**
 * How a relayed socket is read. Node gives each read 64 KiB of new memory, which for bulk data costs more in garbage
 * collection than the ciphers' JavaScript does, and cuts every second SSH packet in two. Instead:
 *
 *   quiet  all sockets read into one buffer, which is used up before the next read: nothing of it may be kept
 *   bulk   after `bulkFromBytes` in `lookEveryMs` a socket has a buffer of its own, large enough for several packets;
 *          the beginning of a packet at the end of a read can be carried over to the next one
 *   rest   a bulk socket that had little to read, while much moves, is not looked at for a few milliseconds: a peer that
 *          writes a packet at a time would wake us for each, and each read, write and wake-up costs as much as the packet
 *
 * Node's name for this is the `onread` option of net.Socket, which exists for outgoing connections only. What the
 * option sets are properties under private symbols; they are found on a socket made with it, and set on others.
 */
const quietBufferBytes = 64 * 1024
const bulkReadBytes = 256 * 1024
const mostCarriedBytes = 64 * 1024
const bulkFromBytes = 512 * 1024
const lookEveryMs = 5000
// Less than the first is somebody typing, more than the second is worth a turn
const restFromBytes = 16 * 1024
const enoughBytes = 128 * 1024
const leastRestMs = 1
const mostRestMs = 4

type UserBufferHandle = { useUserBuffer(buffer: Buffer): void }
/** The part of libuv's stream that net.Socket itself uses to pause; `reading` is its own note of what it asked for. */
type ReadHandle = { reading: boolean; readStart(): void; readStop(): void }
type ReadableInternals = { _handle: (Partial<UserBufferHandle> & ReadHandle) | null } & Record<symbol, unknown>

const symbols = findSymbols()
const quietBuffer = Buffer.allocUnsafeSlow(quietBufferBytes)

/** Reads a socket into buffers of ours; 'data' events come as before, but their bytes are gone afterwards. */
export class Reading {
  readonly #socket: Socket
  #bulkBuffer: Buffer | undefined
  #carriedBytes = 0
  #recentBytes = 0
  #timer: NodeJS.Timeout | undefined
  #restTimer: NodeJS.Timeout | undefined
  #restMs = leastRestMs
  /** Of what `moved` was told, since the last read. */
  #receivedBytes = 0
  #sentBytes = 0
  #nextReadBytes = quietBufferBytes

  /** @returns undefined when this Node does it otherwise: then the socket is read as Node reads it */
  static takeOver(socket: Socket): Reading | undefined {
    const internals = socket as unknown as ReadableInternals
    const handle = internals._handle
    if (symbols === undefined || typeof handle?.useUserBuffer !== 'function') return undefined
    return new Reading(socket, internals, handle as UserBufferHandle, symbols)
  }

  private constructor(socket: Socket, internals: ReadableInternals, handle: UserBufferHandle, names: Symbols) {
    this.#socket = socket
    internals[names.buffer] = quietBuffer
    internals[names.next] = () => this.#next()
    internals[names.callback] = (lengthBytes: number, buffer: Buffer) => this.#read(lengthBytes, buffer)
    handle.useUserBuffer(quietBuffer)
    socket.once('close', () => {
      this.#leaveBulk()
      clearTimeout(this.#restTimer)
    })
  }

  /**
   * Takes back the end of what is being read, to come again at the beginning of the next read.
   * @param bytes the rest of the event's bytes
   * @returns false when it cannot: they have to be used now
   */
  carry(bytes: Buffer): boolean {
    const own = this.#bulkBuffer
    if (own === undefined || bytes.buffer !== own.buffer || bytes.length > mostCarriedBytes) return false
    own.set(bytes)
    this.#carriedBytes = bytes.length
    return true
  }

  /**
   * To be called for data in large pieces that came, or that was sent (then what comes is its peer's grants of more).
   * Everything else is read in quiet: 256 KiB of small messages, each to be answered, are megabytes of answers.
   */
  moved(receivedBytes: number, sentBytes: number): void {
    this.#receivedBytes += receivedBytes
    this.#sentBytes += sentBytes
    this.#recentBytes += receivedBytes + sentBytes
    if (this.#timer === undefined && this.#recentBytes > bulkFromBytes) this.#enterBulk()
  }

  #read(lengthBytes: number, buffer: Buffer): boolean {
    const carriedBytes = this.#carriedBytes
    this.#carriedBytes = 0
    // What was carried lies in front of what was read
    const bytes =
      carriedBytes > 0 ? Buffer.from(buffer.buffer, 0, carriedBytes + lengthBytes) : buffer.subarray(0, lengthBytes)
    this.#socket.emit('data', bytes)
    this.#nextReadBytes = this.#receivedBytes >= lengthBytes / 2 ? bulkReadBytes : quietBufferBytes
    if (this.#timer !== undefined && this.#receivedBytes + this.#sentBytes >= restFromBytes) this.#rest(lengthBytes)
    this.#receivedBytes = 0
    this.#sentBytes = 0
    return true
  }

  #rest(lengthBytes: number): void {
    if (lengthBytes >= enoughBytes) {
      this.#restMs = leastRestMs
      return
    }
    const handle = (this.#socket as unknown as ReadableInternals)._handle
    if (!handle?.reading) return
    handle.reading = false
    handle.readStop()
    this.#restTimer = setTimeout(() => this.#wake(), this.#restMs)
    if (lengthBytes < enoughBytes / 2) this.#restMs = Math.min(this.#restMs * 2, mostRestMs)
  }

  // Paused meanwhile: whoever did that will resume. Resumed after that: it reads already.
  #wake(): void {
    const handle = (this.#socket as unknown as ReadableInternals)._handle
    if (!handle || handle.reading || this.#socket.isPaused()) return
    handle.reading = true
    handle.readStart()
  }

  /** Where the next read goes. */
  #next(): Buffer {
    if (this.#timer === undefined && this.#carriedBytes === 0) {
      this.#bulkBuffer = undefined
      return quietBuffer
    }
    this.#bulkBuffer ??= Buffer.allocUnsafeSlow(mostCarriedBytes + bulkReadBytes)
    return this.#bulkBuffer.subarray(this.#carriedBytes, this.#carriedBytes + this.#nextReadBytes)
  }

  #enterBulk(): void {
    this.#timer = setInterval(() => {
      if (this.#recentBytes <= bulkFromBytes) this.#leaveBulk()
      this.#recentBytes = 0
    }, lookEveryMs).unref()
  }

  // The read that is armed already keeps its buffer; the one after it is quiet again.
  #leaveBulk(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}

type Symbols = { buffer: symbol; next: symbol; callback: symbol }

function findSymbols(): Symbols | undefined {
  const probe = new Socket({ onread: { buffer: Buffer.alloc(1), callback: () => true } })
  const find = (name: string) => Object.getOwnPropertySymbols(probe).find((each) => each.description === name)
  const buffer = find('kBuffer')
  const next = find('kBufferGen')
  const callback = find('kBufferCb')
  if (buffer === undefined || next === undefined || callback === undefined) return undefined
  return { buffer, next, callback }
}
