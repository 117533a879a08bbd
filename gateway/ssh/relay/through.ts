import { bulkPieceBytes } from '../transport/bulk.ts'
import type { ChannelEnd, ChannelSink } from '../transport/channel-end.ts'
import { grantRoom, moved } from '../transport/flow.ts'
import { ReplyOrder } from './reply-order.ts'

/** What a joined pair of channel ends tells whoever joined them. */
export type ThroughEvents = {
  /** Something other than a keepalive passed. */
  onActivity(): void
  /** The machine said how the process ended. */
  onExit?(): void
  /** The machine's connection is gone; the client's end is still open. */
  onFarLost(): void
}

/**
 * Joins two open channel ends: from now on each does what the peer of the other does, message by message. Nothing is
 * interpreted but windows (flow.ts), the order of replies, and OpenSSH's keepalives, which are between neighbours: a
 * client that is asleep must not make the machine give up a connection that others use.
 * @param near the client's end
 * @param far the machine's end
 * @param nearReplies replies that the client is still owed for earlier requests
 */
export function join(
  near: ChannelEnd,
  far: ChannelEnd,
  events: ThroughEvents,
  nearReplies: ReplyOrder = new ReplyOrder(near),
): void {
  const farReplies = new ReplyOrder(far)
  near.sink = new Through({ self: near, other: far, requests: nearReplies, replies: farReplies, events })
  far.sink = new Through({ self: far, other: near, requests: farReplies, replies: nearReplies, events, isFar: true })
}

type Direction = {
  self: ChannelEnd
  other: ChannelEnd
  /** Order of the replies that go out at `self`. */
  requests: ReplyOrder
  /** Order of the replies that go out at `other`. */
  replies: ReplyOrder
  events: ThroughEvents
  isFar?: boolean
}

/** Passes on what arrives at one end. */
class Through implements ChannelSink {
  readonly #self: ChannelEnd
  readonly #other: ChannelEnd
  readonly #requests: ReplyOrder
  readonly #replies: ReplyOrder
  readonly #events: ThroughEvents
  readonly #isFar: boolean

  constructor({ self, other, requests, replies, events, isFar = false }: Direction) {
    this.#self = self
    this.#other = other
    this.#requests = requests
    this.#replies = replies
    this.#events = events
    this.#isFar = isFar
  }

  readonly #passed = (lengthBytes: number): void => {
    moved(this.#self, this.#other, lengthBytes)
    this.#events.onActivity()
  }

  onOpen(): void {}
  onRefused(): void {}

  onData(payload: Buffer, lengthBytes: number): void {
    this.#other.forwardData(payload, lengthBytes)
    this.#passed(lengthBytes)
    if (lengthBytes >= bulkPieceBytes) this.#self.link.passOn(this.#self, this.#other, this.#passed)
  }

  onExtendedData(payload: Buffer, lengthBytes: number): void {
    this.#other.forwardExtendedData(payload, lengthBytes)
    this.#passed(lengthBytes)
  }

  onRoom(): void {
    grantRoom(this.#other, this.#self)
  }

  onRequest(name: string, wantReply: boolean, payload: Buffer): void {
    if (name === 'keepalive@openssh.com') {
      if (wantReply) this.#requests.answer(false)
      return
    }
    // Agent and X11 belong to a whole connection; after the start it is too late to choose one (session.ts)
    if (!this.#isFar && belongsToConnection(name)) {
      if (wantReply) this.#requests.answer(false)
      return
    }
    if (wantReply) this.#requests.expectFromOther()
    this.#other.forwardMessage(payload, name)
    if (this.#isFar && (name === 'exit-status' || name === 'exit-signal')) this.#events.onExit?.()
    this.#events.onActivity()
  }

  onReply(success: boolean): void {
    this.#replies.answeredByOther(success)
  }

  onEof(): void {
    this.#other.sendEof()
  }

  onClose(): void {
    this.#other.close()
    // Nobody is left who could close the other end first
    if (this.#other.closeReceived) this.#self.close()
  }

  onLost(): void {
    if (this.#isFar) this.#events.onFarLost()
    else this.#other.close()
  }
}

/** Requests that change what the machine does with the whole connection. */
export function belongsToConnection(request: string): boolean {
  return request === 'auth-agent-req@openssh.com' || request === 'x11-req'
}
