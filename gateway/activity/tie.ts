import type { Socket } from 'node:net'
import type { MachineWatch } from './watch.ts'

export type TieOptions = {
  /** TCP keepalive while the machine is awake, after so long without a byte; none unless given */
  keepAliveMs?: number
  /** It is about to sleep, and still hears what is sent in this call. */
  onHold?(): void
  /** It is back, and what waited is on its way. */
  onRelease?(): void
  /** The start of the machine that this was a connection to is over. */
  onEnded(): void
}

/** The firewall of a machine's server forgets connections that it has not seen for long, and when the machine's tap is new. */
const PROBE_AFTER_MS = 1_000
const PROBED_MS = 5_000

/**
 * One TCP connection to a machine, and how it lives through the machine's sleep.
 *
 * The machine's own end is in its memory: its clocks stand still, and nothing is lost there however long it sleeps. This end
 * is in the host's kernel, whose clocks do not. Without a route to the machine it would not even tell the writer, but
 * try again, first after 0.2 s, then after twice as long each time, up to every two minutes: what was written would
 * arrive up to two minutes after the machine is back, and after a quarter of an hour (net.ipv4.tcp_retries2) the
 * connection would be given up. A keepalive probe into nowhere ends it within seconds. So while the machine sleeps nothing is
 * handed to the kernel: the socket is corked, which leaves flow control as it is, and is not probed. A vmhost gives a
 * machine time to acknowledge what was sent before it heard that it shall sleep.
 *
 * Once it is back a probe goes out at once, also where nothing waited. Whoever speaks first decides whether the host's
 * firewall takes the packets for a connection of the gateway's; and a machine that lost its memory answers with a reset.
 *
 * @see net/ipv4/tcp_timer.c in Linux: tcp_retransmit_timer, tcp_probe_timer, tcp_keepalive_timer
 */
export class Tie {
  readonly #watch: MachineWatch
  readonly #socket: Socket
  readonly #options: TieOptions
  #isCorked = false
  /** What is to be done with the socket when the machine is back. */
  #leaving: 'end' | 'destroy' | undefined
  #probed: NodeJS.Timeout | undefined

  constructor(watch: MachineWatch, socket: Socket, options: TieOptions) {
    this.#watch = watch
    this.#socket = socket
    this.#options = options
    socket.once('close', () => clearTimeout(this.#probed))
  }

  get isHeld(): boolean {
    return this.#watch.isHeld
  }

  /** Something that the machine's users sent waits for it. */
  want(because: string): void {
    this.#watch.want(because)
  }

  /** Ends this side, behind what waits. */
  end(): void {
    if (this.#isCorked) this.#leaving ??= 'end'
    else this.#socket.end()
  }

  /**
   * Gives the connection up. A machine that sleeps would never hear of it, and keep its end for hours: it is told when
   * it is back.
   */
  destroy(): void {
    if (this.#isCorked) this.#leaving = 'destroy'
    else this.#socket.destroy()
  }

  hold(): void {
    this.#options.onHold?.()
    if (this.#isCorked || this.#socket.destroyed) return
    this.#isCorked = true
    clearTimeout(this.#probed)
    // Sent before it was known, and not taken by the kernel yet.
    if (this.#socket.writableLength > 0) this.#watch.want('an open connection')
    this.#socket.cork()
    this.#socket.setKeepAlive(false)
  }

  release(): void {
    if (!this.#isCorked) return
    this.#isCorked = false
    const socket = this.#socket
    const { keepAliveMs, onRelease } = this.#options
    socket.uncork()
    if (this.#leaving === 'end') socket.end()
    else if (this.#leaving === 'destroy') socket.destroySoon()
    this.#leaving = undefined
    socket.setKeepAlive(true, PROBE_AFTER_MS)
    this.#probed = setTimeout(() => socket.setKeepAlive(keepAliveMs !== undefined, keepAliveMs), PROBED_MS)
    this.#probed.unref()
    onRelease?.()
  }

  ended(): void {
    this.#options.onEnded()
  }
}
