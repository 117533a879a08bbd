import type { Client, Connection } from 'ssh2'
import { bulkPieceBytes, isOpen, type Passed, passPackets, type Route, releaseOutput, stopped } from './bulk.ts'
import { ChannelEnd, type ChannelSink, dataHeaderBytes, extendedDataHeaderBytes } from './channel-end.ts'
import { type Protocol, transportOf } from './protocol.ts'
import { Reading } from './reading.ts'
import { disconnectReason, encode, message, openFailure, readUint32, WireError, WireReader } from './wire.ts'

/** A channel that the peer wants to open. */
export type IncomingOpen = {
  type: string
  remoteId: number
  windowBytes: number
  packetBytes: number
  /** The type's own fields; valid only during the call. */
  rest: Buffer
}

export type LinkOwner = {
  onChannelOpen(open: IncomingOpen): void
  onGlobalRequest(name: string, wantReply: boolean, payload: Buffer): void
  /** An answer to a global request of ours, in the order of the requests; `rest` is empty on failure. */
  onGlobalReply(success: boolean, rest: Buffer): void
  /** A channel is gone from this link, in order. */
  onChannelReleased?(): void
  /** Called once; every channel's `onLost` has been called before. */
  onLost(): void
}

/**
 * Above this much unsent data for a peer, nothing more is read for it: whoever sends it is paused. It is the bound on
 * memory that no choice of windows, packet sizes or messages gets around. Windows (flow.ts) keep honest peers below.
 */
const maxBacklogBytes = 4.5 * 1024 * 1024
// What short cuts write (bulk.ts) is written from where it lies, unless the peer lags or the piece is small: it would keep
// much more memory than its own size
const inPlaceBacklogBytes = 512 * 1024
const inPlaceFromBytes = 224 * 1024
// What a small packet costs in memory besides its bytes while it waits in a socket's queue
const smallPacketBytes = 2048
const smallPacketCostBytes = 512
// Data for a peer that takes less at a time would cost many times its size
const leastPacketBytes = 512
// How long a peer that is being disconnected may take to read the reason
const lingerMs = 3000

/**
 * One SSH connection after sign-in, seen as messages: ssh2 keeps the transport (keys, ciphers, rekeying), the link has
 * the connection protocol (RFC 4254) with its channels. It is made in the same tick in which ssh2 says 'ready', so no
 * message of the connection protocol is ever handled by both.
 *
 * The link is lost when its socket ends or fails, or when its peer breaks the protocol.
 */
export class Link {
  readonly #protocol: Protocol
  readonly #socket: ReturnType<typeof transportOf>['socket']
  readonly #owner: LinkOwner
  readonly #channels: (ChannelEnd | undefined)[] = []
  readonly #freeIds: number[] = []
  #openChannels = 0
  #lost = false
  #sending = false
  #corked = false
  #waitingSmallPackets = 0
  #paused = false
  readonly #reading: Reading | undefined
  /** The channel whose data takes the short cut. */
  #route: Route | undefined
  /** Links paused until this one's backlog has drained. */
  readonly #pausedSources = new Set<Link>()
  /** Channels with something to do once the backlog has drained. */
  readonly #waitingForRoom = new Set<ChannelEnd>()
  /** Channels over which much was sent lately; see flow.ts. */
  busyChannels = 0
  /** The peer sleeps: what is sent waits. Set by whoever holds it; `onWanted` is called when a user's bytes wait. */
  isHeld = false
  onWanted: (() => void) | undefined
  /** Messages received; keepalives look whether it grew. */
  receivedMessages = 0

  constructor(connection: Connection | Client, owner: LinkOwner) {
    const { protocol, socket } = transportOf(connection)
    this.#protocol = protocol
    this.#socket = socket
    this.#owner = owner
    socket.setNoDelay(true)
    protocol._onConnectionPacket = (type, payload) => this.#receive(type, payload)
    protocol._onPackets = (chunk, start, end) => this.#pass(chunk, start, end)
    const write = (bytes: Buffer) => this.#write(bytes)
    protocol._onWrite = write
    protocol._cipher._onWrite = write
    this.#reading = Reading.takeOver(socket)
    socket.on('drain', () => this.#drained())
    connection.on('handshake', () => this.#drained())
    // After sign-in every error is the end; ssh2 only half-closes
    connection.on('error', () => this.#finish())
    connection.once('end', () => this.#lose())
    connection.once('close', () => this.#lose())
  }

  get alive(): boolean {
    return !this.#lost && this.#protocol._destruct !== undefined && this.#socket.writable
  }

  /** Channels that are open, being opened or not yet closed by both sides. */
  get openChannels(): number {
    return this.#openChannels
  }

  /** Memory held by what the peer has not taken yet. */
  get backlogBytes(): number {
    return this.#socket.writableLength + this.#protocol.queuedBytes + this.#waitingSmallPackets * smallPacketCostBytes
  }

  /** Opens a channel. `rest` are the type's own fields. */
  open(type: string, windowBytes: number, packetBytes: number, rest: Buffer, sink: ChannelSink): ChannelEnd {
    const end = this.#add(sink)
    end.receiveWindowBytes = windowBytes
    if (this.isHeld) this.want()
    this.send(encode(message.channelOpen, type, end.localId, windowBytes, packetBytes, { raw: rest }))
    return end
  }

  /** Takes up a channel that the peer wants to open; `confirm` or `refuse` it. */
  accept(open: IncomingOpen, sink: ChannelSink): ChannelEnd {
    const end = this.#add(sink)
    end.remoteId = open.remoteId
    end.sendWindowBytes = open.windowBytes
    end.sendPacketBytes = open.packetBytes
    return end
  }

  refuseOpen(remoteId: number, reason: number, description: string): void {
    this.send(encode(message.channelOpenFailure, remoteId, reason, description, ''))
  }

  release(end: ChannelEnd): void {
    if (this.#channels[end.localId] !== end) return
    this.#channels[end.localId] = undefined
    this.#freeIds.push(end.localId)
    this.#openChannels--
    this.#waitingForRoom.delete(end)
    if (this.#route?.from === end) this.#route = undefined
    if (end.busy) this.busyChannels--
    end.onReleased?.()
    this.#owner.onChannelReleased?.()
  }

  /** Every channel there is, for sweeps. */
  *channels(): IterableIterator<ChannelEnd> {
    for (const end of this.#channels) if (end !== undefined) yield end
  }

  send(payload: Buffer): void {
    if (!this.alive) return
    this.#sending = true
    this.#protocol.sendPayload(payload)
    this.#sending = false
    this.#checkBacklog(receiving)
  }

  /** Lets data that comes for `from` go to `to` by the short cut (bulk.ts), instead of any other channel's. */
  passOn(from: ChannelEnd, to: ChannelEnd, onPassed: (lengthBytes: number) => void): void {
    if (this.#route?.from !== from) this.#route = { from, to, sink: from.sink, onPassed }
  }

  /** Something of a user's waits for a peer that is held. */
  want(): void {
    this.onWanted?.()
  }

  /** Whether a channel waits for an answer to its CHANNEL_OPEN. */
  get isOpening(): boolean {
    for (const end of this.channels()) if (!end.opened) return true
    return false
  }

  /** Calls the channel's `onRoom` once what is waiting has been taken by the peer. */
  callWhenDrained(end: ChannelEnd): void {
    this.#waitingForRoom.add(end)
  }

  /** Ends the connection in order; the sentence is printed by most clients. */
  disconnect(reason: number, sentence: string): void {
    if (this.alive) this.#protocol.disconnect(reason, sentence)
    this.#finish()
    this.#lose()
  }

  /** Lets go of the connection without ending it: whoever has the socket does that, later. */
  abandon(): void {
    this.#lose()
  }

  /** Ends the connection at once. */
  destroy(): void {
    this.#socket.destroy()
    this.#lose()
  }

  /** Lets go of the socket once it has sent what it holds, but soon in any case. */
  #finish(): void {
    this.#socket.destroySoon()
    if (!this.#socket.destroyed) setTimeout(() => this.#socket.destroy(), lingerMs).unref()
  }

  #add(sink: ChannelSink): ChannelEnd {
    const localId = this.#freeIds.pop() ?? this.#channels.length
    const end = new ChannelEnd(this, localId, sink)
    this.#channels[localId] = end
    this.#openChannels++
    return end
  }

  /** The short cut: passes on what it can of a chunk, and says where the ordinary way goes on. */
  #pass(chunk: Buffer, start: number, end: number): number {
    let position = start
    while (position < end && this.#route !== undefined) {
      const route = this.#route
      if (!isOpen(route)) {
        this.#route = undefined
        break
      }
      const passed = passPackets(route, this.#protocol, route.to.link.#protocol, chunk, position, end)
      if (passed === undefined) break
      position = passed.nextStart
      this.#account(route, passed)
      if (passed.stop === stopped.incomplete) {
        if (this.#reading?.carry(chunk.subarray(position, end))) return end
        break
      }
      if (passed.payload !== undefined) {
        const result = this.#protocol.handleDecrypted(passed.payload)
        if (typeof result === 'number') return result
        if (result === false) break
      } else if (passed.stop !== stopped.limit) {
        throw new Error('Inbound: a packet was forged or cut')
      } else if (passed.packets === 0) {
        break
      }
    }
    return position
  }

  /** Sends what the short cut has encrypted, and counts it as the ordinary way would. */
  #account({ from, to, onPassed }: Route, { output, outputBytes, dataBytes, packets }: Passed): void {
    if (packets === 0) {
      releaseOutput(output)
      return
    }
    const before = receiving
    receiving = this
    try {
      to.link.#writePassed(output, outputBytes)
      this.receivedMessages += packets
      this.#reading?.moved(dataBytes, 0)
      from.receiveWindowBytes -= dataBytes
      to.sendWindowBytes -= dataBytes
      // May ask for new keys, so only now that what was encrypted with the old ones is on its way
      this.#protocol.countRelayed(dataBytes)
      to.link.#protocol.countRelayed(dataBytes)
      onPassed(dataBytes)
      to.link.#checkBacklog(receiving)
    } finally {
      receiving = before
    }
  }

  #writePassed(output: Buffer, outputBytes: number): void {
    this.#reading?.moved(0, outputBytes)
    const bytes = output.subarray(0, outputBytes)
    const waiting = this.backlogBytes
    if (waiting > inPlaceBacklogBytes || (waiting > 0 && outputBytes < inPlaceFromBytes)) {
      this.#socket.write(Buffer.from(bytes))
      releaseOutput(output)
    } else {
      this.#socket.write(bytes, () => releaseOutput(output))
    }
  }

  #receive(type: number, payload: Buffer): void {
    this.receivedMessages++
    const before = receiving
    receiving = this
    try {
      this.#dispatch(type, payload)
    } catch (error) {
      if (!(error instanceof WireError)) throw error
      this.disconnect(disconnectReason.protocolError, error.message)
    } finally {
      receiving = before
    }
  }

  #dispatch(type: number, payload: Buffer): void {
    switch (type) {
      case message.channelData: {
        const end = this.#recipient(payload, dataHeaderBytes)
        const lengthBytes = readUint32(payload, 5)
        if (lengthBytes !== payload.length - dataHeaderBytes) throw new WireError('Bad length of channel data')
        if (end === undefined || !this.#consume(end, lengthBytes)) return
        if (lengthBytes >= bulkPieceBytes) this.#reading?.moved(lengthBytes, 0)
        end.sink.onData(payload, lengthBytes)
        return
      }
      case message.channelExtendedData: {
        const end = this.#recipient(payload, extendedDataHeaderBytes)
        const lengthBytes = readUint32(payload, 9)
        if (lengthBytes !== payload.length - extendedDataHeaderBytes) throw new WireError('Bad length of channel data')
        if (end === undefined || !this.#consume(end, lengthBytes)) return
        end.sink.onExtendedData(payload, lengthBytes)
        return
      }
      case message.channelWindowAdjust: {
        const end = this.#recipient(payload, 9)
        if (end === undefined) return
        end.addSendWindow(readUint32(payload, 5))
        end.sink.onRoom()
        return
      }
      case message.channelRequest: {
        const reader = new WireReader(payload, 5)
        const name = reader.text()
        const wantReply = reader.boolean()
        this.#recipient(payload, 5)?.sink.onRequest(name, wantReply, payload)
        return
      }
      case message.channelSuccess:
        this.#recipient(payload, 5)?.sink.onReply(true)
        return
      case message.channelFailure:
        this.#recipient(payload, 5)?.sink.onReply(false)
        return
      case message.channelEof:
        this.#recipient(payload, 5)?.sink.onEof()
        return
      case message.channelClose: {
        const end = this.#recipient(payload, 5)
        if (end === undefined || end.closeReceived) return
        end.closeReceived = true
        end.sink.onClose()
        if (end.closeSent) this.release(end)
        return
      }
      case message.channelOpen: {
        const reader = new WireReader(payload)
        const type = reader.text()
        const remoteId = reader.uint32()
        const windowBytes = reader.uint32()
        const packetBytes = reader.uint32()
        if (packetBytes < leastPacketBytes) {
          this.refuseOpen(remoteId, openFailure.resourceShortage, `Packets of ${packetBytes} bytes are too small.`)
          return
        }
        this.#owner.onChannelOpen({ type, remoteId, windowBytes, packetBytes, rest: reader.rest() })
        return
      }
      case message.channelOpenConfirmation: {
        const end = this.#opening(payload)
        const reader = new WireReader(payload, 5)
        end.remoteId = reader.uint32()
        end.sendWindowBytes = reader.uint32()
        end.sendPacketBytes = reader.uint32()
        if (end.sendPacketBytes < leastPacketBytes) throw new WireError('Packet size too small')
        end.opened = true
        end.sink.onOpen()
        return
      }
      case message.channelOpenFailure: {
        const end = this.#opening(payload)
        const reader = new WireReader(payload, 5)
        const reason = reader.uint32()
        this.release(end)
        end.sink.onRefused(reason, reader.text())
        return
      }
      case message.globalRequest: {
        const reader = new WireReader(payload)
        const name = reader.text()
        this.#owner.onGlobalRequest(name, reader.boolean(), payload)
        return
      }
      case message.requestSuccess:
        this.#owner.onGlobalReply(true, payload.subarray(1))
        return
      case message.requestFailure:
        this.#owner.onGlobalReply(false, payload.subarray(1))
    }
  }

  /** Undefined when the channel is gone already: messages may cross with our CLOSE. */
  #recipient(payload: Buffer, leastBytes: number): ChannelEnd | undefined {
    if (payload.length < leastBytes) throw new WireError('SSH message ends too early')
    const end = this.#channels[readUint32(payload, 1)]
    if (end === undefined || end.opened) return end
    throw new WireError('Message for a channel that is not open')
  }

  #opening(payload: Buffer): ChannelEnd {
    if (payload.length < 5) throw new WireError('SSH message ends too early')
    const end = this.#channels[readUint32(payload, 1)]
    if (end === undefined || end.opened) throw new WireError('Answer to a channel that was not being opened')
    return end
  }

  /** Enforces our window; false when the data is not wanted any more. */
  #consume(end: ChannelEnd, lengthBytes: number): boolean {
    if (lengthBytes > end.receiveWindowBytes) throw new WireError('Channel window exceeded')
    end.receiveWindowBytes -= lengthBytes
    return !end.closeReceived
  }

  // All packets of one turn go out in one system call.
  #write(bytes: Buffer): void {
    if (this.#lost || !this.#socket.writable) return
    if (!this.#corked) {
      this.#corked = true
      this.#socket.cork()
      process.nextTick(() => {
        this.#corked = false
        this.#socket.uncork()
      })
    }
    if (bytes.length < smallPacketBytes) {
      this.#waitingSmallPackets++
      this.#socket.write(bytes, this.#smallPacketWritten)
    } else {
      this.#socket.write(bytes, () => this.#protocol.releasePacket(bytes))
    }
    // An answer of the transport's own, to a ping or an unknown message
    if (!this.#sending && receiving === undefined) this.#checkBacklog(this)
  }

  readonly #smallPacketWritten = (): void => {
    // No 'drain' comes when it was their number, not their size, that made the backlog
    if (--this.#waitingSmallPackets === 0 && !this.#socket.writableNeedDrain) this.#drained()
  }

  /** Pauses whoever sent the message that made the backlog grow too far; that may be the same link, when answers are not read. */
  #checkBacklog(source: Link | undefined): void {
    if (source === undefined || source.#paused || this.backlogBytes <= maxBacklogBytes) return
    // What waits for new keys waits for the peer's next messages (its bound is in ssh2's patch)
    if (source === this && this.backlogBytes - this.#protocol.queuedBytes <= maxBacklogBytes) return
    source.#paused = true
    source.#socket.pause()
    this.#pausedSources.add(source)
  }

  #drained(): void {
    if (this.#pausedSources.size === 0 && this.#waitingForRoom.size === 0) return
    for (const source of this.#pausedSources) {
      source.#paused = false
      source.#socket.resume()
    }
    this.#pausedSources.clear()
    const waiting = [...this.#waitingForRoom]
    this.#waitingForRoom.clear()
    for (const end of waiting) end.sink.onRoom()
  }

  #lose(): void {
    if (this.#lost) return
    this.#lost = true
    this.#protocol._onConnectionPacket = undefined
    this.#protocol._onPackets = undefined
    this.#route = undefined
    const ends = [...this.channels()]
    this.#channels.length = 0
    this.#openChannels = 0
    for (const end of ends) {
      end.closeReceived = true
      end.closeSent = true
      end.sink.onLost()
      end.onReleased?.()
    }
    this.#drained()
    this.#owner.onLost()
  }
}

/** The link whose message is being handled; messages are handled one at a time, nested only by a loss. */
let receiving: Link | undefined

/** For channels that nobody asked for. */
export function refuseUnasked(link: Link, open: IncomingOpen): void {
  link.refuseOpen(open.remoteId, openFailure.administrativelyProhibited, 'This side did not ask for such channels')
}
