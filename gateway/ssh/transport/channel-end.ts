import type { Link } from './link.ts'
import { encode, type Field, message, writeUint32 } from './wire.ts'

/** What the other side of a channel's link did. Payloads are whole messages and valid only during the call. */
export type ChannelSink = {
  /** Our CHANNEL_OPEN was confirmed; windows and packet size are known. */
  onOpen(): void
  /** Our CHANNEL_OPEN was refused; the channel is gone. */
  onRefused(reason: number, description: string): void
  onData(payload: Buffer, lengthBytes: number): void
  onExtendedData(payload: Buffer, lengthBytes: number): void
  /** The peer granted more window, or the link's backlog has drained: there may be room to send. */
  onRoom(): void
  onRequest(name: string, wantReply: boolean, payload: Buffer): void
  onReply(success: boolean): void
  onEof(): void
  onClose(): void
  /** The link is gone, and this channel with it. */
  onLost(): void
}

/** DATA: type, recipient, length. EXTENDED_DATA: also the data type (RFC 4254, 5.2). */
export const dataHeaderBytes = 9
export const extendedDataHeaderBytes = 13
export const stderrDataType = 1

const maxWindowBytes = 0xffffffff

/**
 * One end of one channel: what this side of one link knows of it. A relayed channel has two, on two links.
 *
 *   opening -> open -> closing (one CLOSE seen) -> gone (CLOSE sent and received, or refused, or link lost)
 */
export class ChannelEnd {
  readonly link: Link
  readonly localId: number
  sink: ChannelSink
  remoteId = 0
  opened = false
  /** Bytes that the peer lets us send. */
  sendWindowBytes = 0
  /** Most bytes of data in one packet that the peer takes. */
  sendPacketBytes = 0
  /** Bytes that we let the peer send and that have not come yet. */
  receiveWindowBytes = 0
  /** Bytes sent to the peer since the last look at who is busy; see flow.ts. */
  recentBytes = 0
  busy = false
  eofSent = false
  closeSent = false
  closeReceived = false
  /** Called when the channel is gone, for whatever reason. */
  onReleased: (() => void) | undefined

  constructor(link: Link, localId: number, sink: ChannelSink) {
    this.link = link
    this.localId = localId
    this.sink = sink
  }

  /** Whether messages may still be sent on this channel. */
  get sendable(): boolean {
    return this.opened && !this.closeSent && this.link.alive
  }

  /** Answers the peer's CHANNEL_OPEN. */
  confirm(windowBytes: number, packetBytes: number): void {
    this.opened = true
    this.receiveWindowBytes = windowBytes
    this.link.send(encode(message.channelOpenConfirmation, this.remoteId, this.localId, windowBytes, packetBytes))
  }

  /** Answers the peer's CHANNEL_OPEN; the channel is gone afterwards. */
  refuse(reason: number, description: string): void {
    this.link.refuseOpen(this.remoteId, reason, description)
    this.link.release(this)
  }

  /** Passes on a DATA message. The caller keeps within `sendWindowBytes`. */
  forwardData(payload: Buffer, lengthBytes: number): void {
    if (!this.sendable || this.eofSent) return
    if (this.link.isHeld) this.link.want()
    this.sendWindowBytes -= lengthBytes
    if (lengthBytes > this.sendPacketBytes) {
      this.#sendSplit(payload.subarray(dataHeaderBytes), undefined)
      return
    }
    writeUint32(payload, this.remoteId, 1)
    this.link.send(payload)
  }

  forwardExtendedData(payload: Buffer, lengthBytes: number): void {
    if (!this.sendable || this.eofSent) return
    if (this.link.isHeld) this.link.want()
    this.sendWindowBytes -= lengthBytes
    if (lengthBytes > this.sendPacketBytes) {
      this.#sendSplit(payload.subarray(extendedDataHeaderBytes), payload.subarray(5, 9))
      return
    }
    writeUint32(payload, this.remoteId, 1)
    this.link.send(payload)
  }

  /** Sends data of our own. The caller keeps within `sendWindowBytes`. */
  sendData(bytes: Buffer, dataType?: number): void {
    if (!this.sendable || this.eofSent) return
    if (this.link.isHeld) this.link.want()
    this.sendWindowBytes -= bytes.length
    this.#sendSplit(bytes, dataType === undefined ? undefined : uint32(dataType))
  }

  /** Passes on a message whose second field is the recipient: CHANNEL_REQUEST. `name` is the request's. */
  forwardMessage(payload: Buffer, name: string): void {
    if (!this.sendable) return
    if (this.link.isHeld && wakes(name)) this.link.want()
    writeUint32(payload, this.remoteId, 1)
    this.link.send(payload)
  }

  /** Lets the peer send more. */
  grant(bytes: number): void {
    if (!this.sendable || this.closeReceived) return
    this.receiveWindowBytes += bytes
    this.link.send(encode(message.channelWindowAdjust, this.remoteId, bytes))
  }

  addSendWindow(bytes: number): void {
    this.sendWindowBytes = Math.min(this.sendWindowBytes + bytes, maxWindowBytes)
  }

  sendRequest(name: string, wantReply: boolean, ...fields: readonly Field[]): void {
    if (!this.sendable) return
    if (this.link.isHeld && wakes(name)) this.link.want()
    this.link.send(encode(message.channelRequest, this.remoteId, name, wantReply, ...fields))
  }

  sendReply(success: boolean): void {
    if (this.sendable) this.link.send(encode(success ? message.channelSuccess : message.channelFailure, this.remoteId))
  }

  sendEof(): void {
    if (!this.sendable || this.eofSent) return
    this.eofSent = true
    if (this.link.isHeld) this.link.want()
    this.link.send(encode(message.channelEof, this.remoteId))
  }

  /** Sends CLOSE once; of a channel that is not open yet, as soon as it is. */
  close(): void {
    if (this.closeSent) return
    if (!this.opened) {
      this.sink = closeWhenOpen(this)
      return
    }
    if (this.link.alive) this.link.send(encode(message.channelClose, this.remoteId))
    this.closeSent = true
    if (this.closeReceived) this.link.release(this)
  }

  #sendSplit(bytes: Buffer, dataType: Buffer | undefined): void {
    // A peer that takes no data in a packet could never be sent any
    const most = Math.max(this.sendPacketBytes, 1)
    for (let start = 0; start < bytes.length; start += most) {
      const piece = bytes.subarray(start, start + most)
      this.link.send(
        dataType === undefined
          ? encode(message.channelData, this.remoteId, piece)
          : encode(message.channelExtendedData, this.remoteId, { raw: dataType }, piece),
      )
    }
  }
}

/** Another size of somebody's window is no reason to wake a machine; it is told when there is one. */
function wakes(request: string): boolean {
  return request !== 'window-change'
}

function uint32(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4)
  writeUint32(bytes, value, 0)
  return bytes
}

/** Does nothing; for channels that nobody waits for any more. */
export const deafSink: ChannelSink = {
  onOpen() {},
  onRefused() {},
  onData() {},
  onExtendedData() {},
  onRoom() {},
  onRequest() {},
  onReply() {},
  onEof() {},
  onClose() {},
  onLost() {},
}

function closeWhenOpen(end: ChannelEnd): ChannelSink {
  return { ...deafSink, onOpen: () => end.close() }
}
