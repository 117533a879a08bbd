import type { MachinePool } from '../pool/pool.ts'
import type { Upstream } from '../pool/upstream.ts'
import { type ChannelEnd, type ChannelSink, deafSink, stderrDataType } from '../transport/channel-end.ts'
import { firstWindowBytes } from '../transport/flow.ts'
import { ReplyOrder } from './reply-order.ts'
import { belongsToConnection, join } from './through.ts'

/** What a session channel needs of the connection it is on. */
export type SessionHost = {
  readonly pool: MachinePool
  /**
   * A connection to the machine with a place kept on it. `dedicated`: the session asks for its agent or X11.
   * `fresh`: not the one given out before, which did not answer.
   */
  upstream(wish: { dedicated: boolean; fresh: boolean }): Promise<Upstream>
  /** Counts bytes held for sessions that have not reached their machine; false when they are too many. */
  hold(bytes: number): boolean
  machineName(): string
  /** The client asks for its agent or X11: the machine may open such channels from now on. */
  permit(request: string): void
  onActivity(): void
}

type HeldRequest = { name: string; wantReply: boolean; payload: Buffer }

// A connection that has been silent may be dead without anybody having noticed; do not let a person wait for that
const openTimeoutMs = 5000
const lostStatus = 255

/**
 * A session channel of a client, until it has started something on the machine; from then on it is two joined ends.
 *
 *   new       confirmed to the client at once, with no window: requests come, data cannot. Nothing is asked of the machine yet,
 *             because the first requests tell whether the session needs a connection of its own (agent, X11)
 *   reaching  first request is there: a connection is found or made, a session opened on it; requests are held
 *   preparing the machine's session is open: requests are passed on, and kept. One for agent or X11 that comes only now
 *             goes back to `reaching` for a connection of its own, where all of them are repeated; so does a loss
 *   started   shell, exec or subsystem was passed on: the ends are joined, no way back
 *   failed    the machine cannot be reached: what is asked is answered, and the reason is said on stderr, status 255
 */
export class Session implements ChannelSink {
  readonly #near: ChannelEnd
  readonly #host: SessionHost
  #held: HeldRequest[] = []
  #heldBytes = 0
  #replies: ReplyOrder
  /** Replies that the client has got for `#held`. */
  #answered = 0
  #dedicated = false
  #tries = 0
  /** Grows with each attempt, so that what belongs to an abandoned one is recognised. */
  #attempt = 0
  #reaching = false
  #far: ChannelEnd | undefined
  #joined: ChannelSink | undefined
  #eof = false
  #pty = false
  #started = false
  #exited = false
  #failure: string | undefined
  #openTimer: NodeJS.Timeout | undefined

  constructor(near: ChannelEnd, host: SessionHost) {
    this.#near = near
    this.#host = host
    this.#replies = new ReplyOrder(near)
  }

  /** Ends the session with a sentence on its stderr, whatever it is doing. */
  endWith(sentence: string): void {
    this.#far?.close()
    this.#fail(sentence)
    this.#finish(sentence)
  }

  /** Shows a sentence on its stderr while the machine is being reached. */
  say(sentence: string): void {
    if (this.#far?.opened || this.#failure !== undefined || this.#exited) return
    const text = Buffer.from(`${sentence}${this.#pty ? '\r\n' : '\n'}`)
    if (text.length <= this.#near.sendWindowBytes) this.#near.sendData(text, stderrDataType)
  }

  onRequest(name: string, wantReply: boolean, payload: Buffer): void {
    if (name === 'keepalive@openssh.com') {
      if (wantReply) this.#replies.answer(false)
      return
    }
    this.#host.onActivity()
    if (name === 'pty-req') this.#pty = true
    if (this.#failure !== undefined) {
      if (wantReply) this.#near.sendReply(true)
      if (starts(name)) this.#finish(this.#failure)
      return
    }
    const request = { name, wantReply, payload: Buffer.from(payload) }
    this.#held.push(request)
    this.#heldBytes += payload.length
    if (!this.#host.hold(payload.length)) {
      this.endWith('Too much was asked before the machine could be reached.')
      return
    }
    if (belongsToConnection(name) && !this.#dedicated) {
      this.#dedicated = true
      this.#abandon()
    }
    if (this.#far?.opened) this.#pass(request)
    else if (!this.#reaching) this.#reach(false)
  }

  onEof(): void {
    this.#eof = true
    if (this.#joined !== undefined) this.#joined.onEof()
  }

  onClose(): void {
    this.#abandon()
    this.#near.close()
  }

  onLost(): void {
    this.#abandon()
    this.#release()
  }

  onRoom(): void {
    this.#joined?.onRoom()
  }

  onReply(success: boolean): void {
    this.#joined?.onReply(success)
  }

  onData(payload: Buffer, lengthBytes: number): void {
    this.#joined?.onData(payload, lengthBytes)
  }

  onExtendedData(payload: Buffer, lengthBytes: number): void {
    this.#joined?.onExtendedData(payload, lengthBytes)
  }

  onOpen(): void {}
  onRefused(): void {}

  #reach(fresh: boolean): void {
    this.#reaching = true
    this.#tries++
    const attempt = ++this.#attempt
    this.#host.upstream({ dedicated: this.#dedicated, fresh }).then(
      (upstream) => {
        if (attempt === this.#attempt) this.#open(upstream, attempt)
        this.#host.pool.unreserve(upstream)
      },
      (error: unknown) => {
        if (attempt !== this.#attempt) return
        this.#fail(error instanceof Error ? error.message : String(error))
      },
    )
  }

  #open(upstream: Upstream, attempt: number): void {
    const current = () => attempt === this.#attempt
    this.#far = upstream.open('session', firstWindowBytes(this.#near), this.#near.sendPacketBytes, Buffer.alloc(0), {
      ...deafSink,
      onOpen: () => current() && this.#prepare(),
      onRefused: (_reason, description) => {
        if (current()) this.#retry(`Machine ${this.#host.machineName()} refused the session: ${description}`)
      },
      onLost: () => current() && this.#retry(this.#lostSentence()),
    })
    this.#openTimer = setTimeout(() => this.#retry(this.#lostSentence()), openTimeoutMs)
  }

  #prepare(): void {
    const far = this.#far
    if (far === undefined) return
    clearTimeout(this.#openTimer)
    this.#reaching = false
    this.#replies = new ReplyOrder(this.#near)
    const attempt = this.#attempt
    join(
      this.#near,
      far,
      {
        onActivity: () => this.#host.onActivity(),
        onExit: () => {
          this.#exited = true
        },
        onFarLost: () => {
          if (attempt === this.#attempt) this.#farLost()
        },
      },
      this.#replies,
    )
    this.#joined = this.#near.sink
    this.#near.sink = this
    let answered = this.#answered
    for (const request of [...this.#held]) this.#pass(request, request.wantReply && answered-- > 0)
    if (this.#eof) far.sendEof()
  }

  #pass(request: HeldRequest, answeredBefore = false): void {
    if (request.wantReply) {
      if (answeredBefore) this.#replies.expectSwallowed()
      else this.#replies.expectFromOther()
    }
    if (belongsToConnection(request.name)) this.#host.permit(request.name)
    const starting = starts(request.name)
    this.#far?.forwardMessage(starting ? request.payload : Buffer.from(request.payload), request.name)
    if (!starting || this.#joined === undefined) return
    this.#started = true
    this.#near.sink = this.#joined
    this.#release()
  }

  #farLost(): void {
    if (!this.#started) this.#retry(this.#lostSentence())
    else if (this.#exited) this.#near.close()
    else this.endWith(this.#lostSentence())
  }

  /** Once more with another connection: the shared one may have been dead, or full by the machine's own count. */
  #retry(sentence: string): void {
    this.#abandon()
    if (this.#tries < 2) this.#reach(true)
    else this.#fail(sentence)
  }

  #abandon(): void {
    clearTimeout(this.#openTimer)
    this.#attempt++
    this.#reaching = false
    this.#answered = Math.max(this.#answered, this.#replies.answeredByOtherCount)
    this.#joined = undefined
    const far = this.#far
    this.#far = undefined
    if (far === undefined) return
    far.sink = deafSink
    far.close()
  }

  #fail(sentence: string): void {
    this.#abandon()
    this.#failure = sentence
    this.#near.sink = this
    // A yes, so that what the person reads is the reason and not "PTY allocation request failed"
    const owed = this.#held.filter(({ wantReply }) => wantReply).length - this.#answered
    for (let count = 0; count < owed; count++) this.#near.sendReply(true)
    const started = this.#held.some(({ name }) => starts(name))
    this.#release()
    if (started) this.#finish(sentence)
  }

  #finish(sentence: string): void {
    const newline = this.#pty ? '\r\n' : '\n'
    const text = Buffer.from(`${sentence}${newline}`).subarray(0, this.#near.sendWindowBytes)
    if (text.length > 0) this.#near.sendData(text, stderrDataType)
    if (!this.#exited) this.#near.sendRequest('exit-status', false, lostStatus)
    this.#near.sendEof()
    this.#near.close()
  }

  #release(): void {
    this.#host.hold(-this.#heldBytes)
    this.#heldBytes = 0
    this.#held = []
  }

  #lostSentence(): string {
    return `The connection to machine ${this.#host.machineName()} was lost.`
  }
}

function starts(request: string): boolean {
  return request === 'shell' || request === 'exec' || request === 'subsystem'
}
