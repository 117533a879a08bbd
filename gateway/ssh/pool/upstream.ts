import { Socket } from 'node:net'
import ssh2 from 'ssh2'
import type { Tie } from '../../activity/tie.ts'
import type { MachineWatch } from '../../activity/watch.ts'
import { machineAlgorithms } from '../transport/algorithms.ts'
import type { ChannelEnd, ChannelSink } from '../transport/channel-end.ts'
import { sweepBusy } from '../transport/flow.ts'
import { type IncomingOpen, Link, refuseUnasked } from '../transport/link.ts'
import type { Log } from '../transport/log.ts'
import { encode, message } from '../transport/wire.ts'
import { type MachineTarget, MachineUnreachableError } from './target.ts'

export type UpstreamOptions = {
  privateKey: Buffer | string
  log: Log
  connectTimeoutMs: number
  keepaliveIntervalMs: number
  /** Of the machine; without it the connection knows nothing of its sleep. */
  watch?: MachineWatch | undefined
  /** Takes channels that the machine opens; without it they are refused. */
  onChannelOpen?: (open: IncomingOpen, upstream: Upstream) => void
  onLost: (upstream: Upstream) => void
  /** A channel was released. */
  onIdle?: (upstream: Upstream) => void
}

const unansweredKeepalivesMost = 3

/**
 * One signed-in SSH connection from the gateway to a machine's sshd.
 *
 *   connecting -> ready -> lost
 *
 * `ready` settles once; afterwards channels and global requests may be opened until `lost`. While the machine sleeps it
 * is neither lost nor asked whether it lives; what is sent waits (activity/tie.ts).
 */
export class Upstream {
  readonly target: MachineTarget
  /** Rejects with MachineUnreachableError. */
  readonly ready: Promise<void>
  /** Channels promised to somebody who has not opened them yet. */
  reserved = 0
  /** Nothing has answered on it lately; new channels go elsewhere. */
  suspect = false
  lost = false
  readonly #options: UpstreamOptions
  readonly #client = new ssh2.Client()
  readonly #socket = new Socket()
  readonly #replies: ((success: boolean, rest: Buffer) => void)[] = []
  readonly #tie: Tie | undefined
  #link: Link | undefined
  #keepalive: NodeJS.Timeout | undefined

  constructor(target: MachineTarget, options: UpstreamOptions) {
    this.target = target
    this.#options = options
    this.#tie = options.watch?.attach(this.#socket, {
      onHold: () => this.#held(),
      onRelease: () => this.#released(),
      onEnded: () => this.destroy(),
    })
    this.ready = this.#connect()
    // Whoever waits hears of it; a connection that nobody waits for any more may fail in peace
    this.ready.catch(() => {})
  }

  get channels(): number {
    return this.reserved + (this.#link?.openChannels ?? 0)
  }

  get link(): Link {
    if (this.#link === undefined) throw new Error('the connection to the machine is not ready')
    return this.#link
  }

  open(type: string, windowBytes: number, packetBytes: number, rest: Buffer, sink: ChannelSink): ChannelEnd {
    return this.link.open(type, windowBytes, packetBytes, rest, sink)
  }

  /** Sends a global request; `fields` are what follows want-reply. Answers come in the order of the requests. */
  globalRequest(name: string, fields: Buffer, onReply: (success: boolean, rest: Buffer) => void): void {
    this.#replies.push(onReply)
    this.link.send(encode(message.globalRequest, name, true, { raw: fields }))
  }

  /** Ends it; a machine that sleeps hears of it when it is back. */
  close(): void {
    if (this.#link === undefined || !this.#tie?.isHeld) {
      this.destroy()
      return
    }
    this.#link.abandon()
    this.#tie.destroy()
    this.#markLost()
  }

  /** The same at once, whatever the machine does. */
  destroy(): void {
    if (this.#link === undefined) this.#socket.destroy()
    else this.#link.destroy()
    this.#markLost()
  }

  get watch(): MachineWatch | undefined {
    return this.#options.watch
  }

  #connect(): Promise<void> {
    const { target } = this
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    let wrongHostKey = false
    let failure: Error | undefined
    const fail = () => {
      reject(unreachable(target, wrongHostKey, failure))
      this.#socket.destroy()
      this.#markLost()
    }
    this.#client.once('ready', () => {
      this.#link = this.#takeOver()
      this.#keepalive = setInterval(this.#beat(), this.#options.keepaliveIntervalMs).unref()
      this.#client.removeListener('close', fail)
      resolve()
    })
    this.#client.on('error', (error) => {
      failure ??= error
      if (this.#link === undefined) this.#socket.destroy()
    })
    this.#client.once('close', fail)
    this.#socket.setNoDelay(true)
    this.#client.connect({
      sock: this.#socket,
      username: target.user,
      privateKey: this.#options.privateKey,
      authHandler: ['publickey'],
      algorithms: machineAlgorithms,
      readyTimeout: this.#options.connectTimeoutMs,
      hostVerifier: (key: Buffer) => {
        wrongHostKey = !key.equals(target.hostKey)
        return !wrongHostKey
      },
    })
    this.#socket.connect({ host: target.address, port: target.port })
    return promise
  }

  #takeOver(): Link {
    const link = new Link(this.#client, {
      onChannelOpen: (open) => {
        if (this.#options.onChannelOpen === undefined) refuseUnasked(this.link, open)
        else this.#options.onChannelOpen(open, this)
      },
      // hostkeys-00@openssh.com wants no reply and keepalives want any; nothing else is asked of a client
      onGlobalRequest: (_name, wantReply) => {
        if (wantReply) this.link.send(encode(message.requestFailure))
      },
      onGlobalReply: (success, rest) => this.#replies.shift()?.(success, rest),
      onChannelReleased: () => this.#options.onIdle?.(this),
      onLost: () => this.#markLost(),
    })
    link.isHeld = this.#tie?.isHeld === true
    link.onWanted = () => this.#tie?.want('an SSH session')
    return link
  }

  /** Whoever is about to come in came before anybody knew that the machine shall sleep. */
  #held(): void {
    if (this.#link) this.#link.isHeld = true
    if (!this.#link || this.#link.isOpening) this.#tie?.want('an SSH session')
  }

  #released(): void {
    if (!this.#link) return
    this.#link.isHeld = false
    // Brings along what was on its way when the machine fell asleep, and tells soon whether it is the same one.
    this.globalRequest('keepalive@openssh.com', Buffer.alloc(0), () => {})
  }

  /** Asks a silent machine whether it lives. Any message is an answer. */
  #beat(): () => void {
    let seenMessages = 0
    let unanswered = 0
    return () => {
      const { link } = this
      sweepBusy(link)
      if (link.isHeld || link.receivedMessages !== seenMessages) {
        seenMessages = link.receivedMessages
        unanswered = 0
        this.suspect = false
        return
      }
      if (++unanswered > unansweredKeepalivesMost) {
        this.#options.log.warn({ machine: this.target.machineId }, 'machine does not answer, its connection is closed')
        this.close()
        return
      }
      this.globalRequest('keepalive@openssh.com', Buffer.alloc(0), () => {})
    }
  }

  #markLost(): void {
    if (this.lost) return
    this.lost = true
    clearInterval(this.#keepalive)
    for (const onReply of this.#replies.splice(0)) onReply(false, Buffer.alloc(0))
    this.#options.onLost(this)
  }
}

function unreachable(target: MachineTarget, wrongHostKey: boolean, cause: Error | undefined): MachineUnreachableError {
  if (wrongHostKey) {
    return new MachineUnreachableError(
      'machine.host_key_mismatch',
      `Machine ${target.name} answered with a host key that is not its own, so the connection was not made.`,
    )
  }
  const options = cause === undefined ? undefined : { cause }
  if ((cause as { level?: unknown } | undefined)?.level === 'client-authentication') {
    return new MachineUnreachableError(
      'machine.authentication_failed',
      `Machine ${target.name} does not let user ${target.user} in.`,
      options,
    )
  }
  return new MachineUnreachableError(
    'machine.unreachable',
    `Machine ${target.name} does not answer over SSH; if it is only busy, try again; to see: logs ${target.name}; to start it anew: restart ${target.name}`,
    options,
  )
}
