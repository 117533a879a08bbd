import type { Connection } from 'ssh2'
import type { MachineTarget } from '../pool/target.ts'
import type { Upstream } from '../pool/upstream.ts'
import { deafSink } from '../transport/channel-end.ts'
import { sweepBusy } from '../transport/flow.ts'
import { type IncomingOpen, Link, type LinkOwner, refuseUnasked } from '../transport/link.ts'
import { disconnectReason, encode, message, openFailure, WireReader } from '../transport/wire.ts'
import { openDirect, passOpen } from './direct.ts'
import { isForwardRequest, Permissions, passForward } from './forwards.ts'
import type { RelayOptions } from './options.ts'
import { Session, type SessionHost } from './session.ts'

/** One client connection being relayed. */
export type Relay = {
  readonly channelCount: number
  /** Ends the connection; `sentence` is shown on the stderr of its open sessions. */
  close(sentence?: string): void
}

/**
 * Hands an authenticated connection over to a machine, which then has everything that its client does: sessions, agent,
 * X11 and forwards in both directions, message by message. Call it from the connection's 'ready' event, in the same
 * tick: from then on ssh2's own channel events ('session', 'tcpip', 'request', …) are not emitted for it.
 */
export function relayConnection(client: Connection, options: RelayOptions): Relay {
  return new ClientRelay(client, options)
}

const defaultMaxChannels = 512
// OpenSSH's own size of packets on sessions, for data from clients; machines that take less get it in pieces
const sessionPacketBytes = 32 * 1024
// Requests kept for sessions that have not reached their machine; one may be a command of 200 KB
const maxHeldBytes = 4 * 1024 * 1024
const maxPendingGlobalRequests = 1000
// A connection may live for days: its machine stops, sleeps and changes hands meanwhile
const targetLastsMs = 2000
const activityEveryMs = 1000
const sweepEveryMs = 10_000

class ClientRelay implements Relay, LinkOwner, SessionHost {
  readonly #options: RelayOptions
  readonly #link: Link
  readonly #gone = new AbortController()
  readonly #permissions = new Permissions()
  readonly #sessions = new Set<Session>()
  /** Answers owed to global requests, in their order; undefined ones are still being waited for. */
  readonly #globalReplies: { reply: Buffer | undefined }[] = []
  #target: Promise<MachineTarget> | undefined
  #targetUntilMs = 0
  #name = ''
  #dedicated: Promise<Upstream> | undefined
  #noMoreSessions = false
  #heldBytes = 0
  #activeAtMs = 0
  #sweptAtMs = 0

  constructor(client: Connection, options: RelayOptions) {
    this.#options = options
    this.#link = new Link(client, this)
  }

  get pool() {
    return this.#options.pool
  }

  get channelCount(): number {
    return this.#link.openChannels
  }

  close(sentence = 'The gateway ended this connection.'): void {
    for (const session of this.#sessions) session.endWith(sentence)
    this.#link.disconnect(disconnectReason.byApplication, sentence)
  }

  machineName(): string {
    return this.#name
  }

  permit(request: string): void {
    if (request === 'x11-req') this.#permissions.x11 = true
    else this.#permissions.agent = true
  }

  hold(bytes: number): boolean {
    this.#heldBytes += bytes
    return this.#heldBytes <= maxHeldBytes
  }

  async upstream(wish: { dedicated: boolean; fresh: boolean }): Promise<Upstream> {
    const target = await this.#resolve()
    if (!wish.dedicated && this.#dedicated === undefined) return this.pool.reserve(target, wish.fresh)
    this.#dedicated ??= this.#dedicate(target)
    const upstream = await this.#dedicated
    upstream.reserved++
    return upstream
  }

  onActivity(): void {
    const nowMs = performance.now()
    if (nowMs - this.#activeAtMs < activityEveryMs) return
    this.#activeAtMs = nowMs
    this.#options.onActivity?.()
    if (nowMs - this.#sweptAtMs < sweepEveryMs) return
    this.#sweptAtMs = nowMs
    sweepBusy(this.#link)
  }

  onChannelOpen(open: IncomingOpen): void {
    const most = this.#options.maxChannels ?? defaultMaxChannels
    if (this.channelCount >= most) {
      this.#link.refuseOpen(open.remoteId, openFailure.resourceShortage, `At most ${most} channels on one connection.`)
      return
    }
    if (open.type === 'session') {
      this.#openSession(open)
      return
    }
    const { type } = open
    void openDirect(
      this.#link.accept(open, deafSink),
      { type, rest: Buffer.from(open.rest) },
      this.upstream({ dedicated: false, fresh: false }),
      { onActivity: () => this.onActivity(), onOpened: (upstream) => this.pool.unreserve(upstream) },
    )
  }

  onGlobalRequest(name: string, wantReply: boolean, payload: Buffer): void {
    if (name === 'no-more-sessions@openssh.com') {
      // Ours to keep: on a shared connection it would be everybody's
      this.#noMoreSessions = true
      this.#answerGlobal(wantReply, true)
      return
    }
    if (!isForwardRequest(name)) {
      this.#answerGlobal(wantReply, false)
      return
    }
    const reader = new WireReader(payload)
    reader.bytes()
    reader.boolean()
    void this.#forward(name, Buffer.from(reader.rest()), this.#expectGlobal(wantReply))
  }

  onGlobalReply(): void {}

  onLost(): void {
    this.#gone.abort()
    this.#dedicated?.then(
      (upstream) => upstream.close(),
      () => {},
    )
    this.#options.onClose?.()
  }

  #openSession(open: IncomingOpen): void {
    if (this.#noMoreSessions) {
      this.#link.refuseOpen(open.remoteId, openFailure.administrativelyProhibited, 'No more sessions were promised.')
      return
    }
    const near = this.#link.accept(open, deafSink)
    const session = new Session(near, this)
    near.sink = session
    near.onReleased = () => this.#sessions.delete(session)
    this.#sessions.add(session)
    near.confirm(0, sessionPacketBytes)
  }

  async #forward(name: string, fields: Buffer, answer: (success: boolean, rest: Buffer) => void): Promise<void> {
    try {
      const upstream = await this.upstream({ dedicated: true, fresh: false })
      upstream.reserved--
      passForward(upstream, this.#permissions, name, fields, answer)
      this.onActivity()
    } catch (error) {
      this.#options.log.info({ err: error, request: name }, 'remote forward failed')
      answer(false, Buffer.alloc(0))
    }
  }

  /** The machine opens a channel on the dedicated connection. */
  #openFromMachine(open: IncomingOpen, upstream: Upstream): void {
    if (!this.#permissions.allows(open) || !this.#link.alive) {
      refuseUnasked(upstream.link, open)
      return
    }
    passOpen(upstream.link.accept(open, deafSink), this.#link, open, {
      onActivity: () => this.onActivity(),
      answeringIsMachine: false,
    })
  }

  async #resolve(): Promise<MachineTarget> {
    if (performance.now() > this.#targetUntilMs) this.#target = undefined
    this.#target ??= this.#ask()
    const asked = this.#target
    try {
      return await asked
    } catch (error) {
      // A later session on the same connection (ControlMaster) may find the machine started
      if (this.#target === asked) this.#target = undefined
      throw error
    }
  }

  /** Whoever comes meanwhile shares the answer; it grows old from when it was given, however many come. */
  async #ask(): Promise<MachineTarget> {
    this.#targetUntilMs = Number.POSITIVE_INFINITY
    const target = await this.#options.resolve(this.#gone.signal, (sentence) => {
      for (const session of this.#sessions) session.say(sentence)
    })
    this.#name = target.name
    this.#targetUntilMs = performance.now() + targetLastsMs
    return target
  }

  async #dedicate(target: MachineTarget): Promise<Upstream> {
    try {
      return await this.pool.dedicate(target, {
        onChannelOpen: (open, upstream) => this.#openFromMachine(open, upstream),
        onLost: () => {
          this.#dedicated = undefined
          const listened = this.#permissions.listens
          this.#permissions.clear()
          // Nothing would ever come to `ssh -N -R` again, and nobody would be told: it ends, as with any sshd
          if (listened && this.#link.alive) this.close(`The connection to machine ${this.#name} was lost.`)
        },
      })
    } catch (error) {
      this.#dedicated = undefined
      throw error
    }
  }

  #answerGlobal(wantReply: boolean, success: boolean): void {
    this.#expectGlobal(wantReply)(success, Buffer.alloc(0))
  }

  #expectGlobal(wantReply: boolean): (success: boolean, rest: Buffer) => void {
    if (!wantReply) return () => {}
    if (this.#globalReplies.length >= maxPendingGlobalRequests) this.#link.destroy()
    const owed: { reply: Buffer | undefined } = { reply: undefined }
    this.#globalReplies.push(owed)
    return (success, rest) => {
      owed.reply = encode(success ? message.requestSuccess : message.requestFailure, { raw: rest })
      while (this.#globalReplies[0]?.reply !== undefined) {
        const reply = this.#globalReplies.shift()?.reply
        if (reply !== undefined) this.#link.send(reply)
      }
    }
  }
}
