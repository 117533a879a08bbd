import { Socket } from 'node:net'

/**
 * How a relayed socket is read. Node gives each read 64 KiB of new memory, which for bulk data costs more in garbage
 * collection than the ciphers' JavaScript does, and cuts every second SSH packet in two. Instead:
 *
 *   quiet  all sockets read into one buffer, which is used up before the next read: nothing of it may be kept
 *   bulk   after `bulkFromBytes` in `lookEveryMs` a socket has buffers of its own, large enough for several packets,
 *          which may be kept while they are written elsewhere (`keep`) and are used again afterwards
 *
 * Node's name for this is the `onread` option of net.Socket, which exists for outgoing connections only. What the
 * option sets are properties under private symbols; they are found on a socket made with it, and set on others.
 */
const quietBufferBytes = 64 * 1024
const bulkBufferBytes = 256 * 1024
const bulkFromBytes = 512 * 1024
const lookEveryMs = 5000
const spareBuffersMost = 2

type UserBufferHandle = { useUserBuffer(buffer: Buffer): void }
type ReadableInternals = { _handle: (Partial<UserBufferHandle> & object) | null } & Record<symbol, unknown>

const symbols = findSymbols()
const quietBuffer = Buffer.allocUnsafeSlow(quietBufferBytes)

class BulkBuffer {
  readonly bytes = Buffer.allocUnsafeSlow(bulkBufferBytes)
  /** Writes that have not ended. */
  uses = 0
  readonly release = (): void => {
    this.uses--
  }
}

/** Reads a socket into buffers of ours; 'data' events come as before, but their bytes are gone afterwards. */
export class Reading {
  readonly #socket: Socket
  #current: BulkBuffer | undefined
  #buffers: BulkBuffer[] = []
  #recentBytes = 0
  #bulk = false
  #timer: NodeJS.Timeout | undefined

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
    socket.once('close', () => this.#leaveBulk())
  }

  /**
   * Keeps the memory of a message that is being handled until the returned function is called.
   * @returns undefined when it cannot be kept
   */
  keep(message: Buffer): (() => void) | undefined {
    if (message.buffer === quietBuffer.buffer) return undefined
    const current = this.#current
    if (message.buffer !== current?.bytes.buffer) return keptAnyway
    current.uses++
    return current.release
  }

  #read(lengthBytes: number, buffer: Buffer): boolean {
    this.#recentBytes += lengthBytes
    if (!this.#bulk && this.#recentBytes > bulkFromBytes) this.#enterBulk()
    this.#socket.emit('data', buffer.subarray(0, lengthBytes))
    return true
  }

  /** Where the next read goes. */
  #next(): Buffer {
    if (!this.#bulk) {
      this.#current = undefined
      return quietBuffer
    }
    if (this.#current?.uses === 0) return this.#current.bytes
    this.#buffers = this.#buffers.filter((each, index) => each.uses > 0 || index < spareBuffersMost)
    let free = this.#buffers.find((each) => each.uses === 0)
    if (free === undefined) {
      free = new BulkBuffer()
      this.#buffers.push(free)
    }
    this.#current = free
    return free.bytes
  }

  #enterBulk(): void {
    this.#bulk = true
    this.#timer = setInterval(() => {
      if (this.#recentBytes <= bulkFromBytes) this.#leaveBulk()
      this.#recentBytes = 0
    }, lookEveryMs).unref()
  }

  // The read that is armed already keeps its buffer; the one after it is quiet again.
  #leaveBulk(): void {
    clearInterval(this.#timer)
    this.#bulk = false
    this.#buffers = []
  }
}

// A message that came in two reads has memory of its own
function keptAnyway(): void {}

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
