import { connect, type Socket } from 'node:net'
import type { ServerChannel } from 'ssh2'
import type { Tie } from '../activity/tie.ts'
import type { MachineWatch } from '../activity/watch.ts'
import { sendWindowBytes } from './internals.ts'

/**
 * Carries bytes between a client's jump channels and sockets of machines. What the client does not take stays in the
 * machine, however many channels there are and whatever windows they have:
 *
 * - A socket is read no further than the channel's window lets the client be sent, so nothing waits in the channel but
 *   `aheadBytes`, whose being sent tells of more window.
 * - When what was read stays behind because the client lags (`afterBacklog` in ssh2's patch), none of its sockets is
 *   read until the client has caught up.
 */
const readBytes = 64 * 1024
const aheadBytes = 1024

/** All sockets read into one buffer: what is read is encrypted, or copied, before the next read. */
const buffer = Buffer.allocUnsafeSlow(readBytes)

/** Sockets of channels that the client has closed count too, until the machine has taken what was sent. */
const maxCarriages = 512

/** For a machine to take what a client that is gone has sent it. */
const lingerMs = 10_000

/** Named in the record of what woke a machine. */
export const KNOCK = 'a connection through the lobby'

/** What one client has jumped to. */
export class Carriages {
  readonly #open = new Set<Carriage>()
  /** Those whose bytes the client lags behind with. */
  readonly #holders = new Set<Carriage>()

  get full(): boolean {
    return this.#open.size >= maxCarriages
  }
  get held(): boolean {
    return this.#holders.size > 0
  }

  add(carriage: Carriage): void {
    this.#open.add(carriage)
  }

  remove(carriage: Carriage): void {
    this.#open.delete(carriage)
    this.release(carriage)
  }

  hold(by: Carriage): void {
    this.#holders.add(by)
    for (const carriage of this.#open) carriage.socket.pause()
  }

  release(by: Carriage): void {
    if (!this.#holders.delete(by) || this.held) return
    for (const carriage of this.#open) carriage.resume()
  }

  /** The client is gone. */
  close(): void {
    for (const carriage of this.#open) carriage.finish()
  }
}

/** A connection to a port of a machine, read from `start` on. */
export class Carriage {
  readonly socket: Socket
  readonly #all: Carriages
  readonly #watch: MachineWatch
  readonly #tie: Tie
  #channel: ServerChannel | undefined
  /** Something waits in the channel, or behind it. */
  #waiting = false

  constructor(all: Carriages, host: string, port: number, watch: MachineWatch) {
    this.#all = all
    this.#watch = watch
    const onread = {
      buffer: () => this.#nextBuffer(),
      callback: (lengthBytes: number) => this.#read(lengthBytes),
    }
    this.socket = connect({ host, port, allowHalfOpen: true, noDelay: true, onread })
    this.socket.pause()
    this.#tie = watch.attach(this.socket, {
      onHold: () => this.socket.connecting && watch.want(KNOCK),
      onEnded: () => this.socket.destroy(),
    })
    all.add(this)
    this.socket.once('close', () => all.remove(this))
  }

  /**
   * Each side's end is passed on alone, as TCP does. The channel closes itself after both ends, when what waited has
   * been sent; only a fault closes it at once.
   */
  start(channel: ServerChannel | undefined): void {
    const { socket } = this
    socket.on('error', () => channel?.close())
    if (!channel) {
      socket.destroy()
      return
    }
    this.#channel = channel
    channel.on('error', () => this.#tie.destroy())
    channel.on('close', () => this.finish())
    socket.once('end', () => channel.end())
    channel.on('data', () => {
      this.#watch.carriedOverSsh()
      if (this.#tie.isHeld) this.#tie.want(KNOCK)
    })
    channel.pipe(socket, { end: false })
    channel.once('end', () => this.#tie.end())
    this.resume()
  }

  resume(): void {
    if (this.#channel && !this.#waiting && !this.#all.held) this.socket.resume()
  }

  /** The client has closed the channel, or is gone: the machine still gets what is on its way to it. */
  finish(): void {
    const timer = setTimeout(() => this.#tie.destroy(), lingerMs)
    this.socket.once('close', () => clearTimeout(timer))
    this.#waiting = false
    this.#all.release(this)
    this.resume()
  }

  #nextBuffer(): Buffer {
    const window = this.#channel ? sendWindowBytes(this.#channel) : 0
    return buffer.subarray(0, Math.max(aheadBytes, Math.min(readBytes, window)))
  }

  #read(lengthBytes: number): boolean {
    const channel = this.#channel
    // Nobody is left to read it
    if (!channel?.writable) return true
    this.#watch.carriedOverSsh()
    const bytes = buffer.subarray(0, lengthBytes)
    const fits = lengthBytes <= sendWindowBytes(channel)
    channel.write(fits ? bytes : Buffer.from(bytes), () => this.#written(channel))
    if (channel.writableLength === 0) return true
    this.#waiting = true
    this.socket.pause()
    if (fits) this.#all.hold(this)
    return true
  }

  #written(channel: ServerChannel): void {
    if (!this.#waiting || channel.writableLength > 0) return
    this.#waiting = false
    this.#all.release(this)
    this.resume()
  }
}
