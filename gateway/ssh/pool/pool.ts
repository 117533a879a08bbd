import { type MachineWatch, NotBackError } from '../../activity/watch.ts'
import type { Watches } from '../../activity/watches.ts'
import type { IncomingOpen } from '../transport/link.ts'
import type { Log } from '../transport/log.ts'
import { type MachineTarget, MachineUnreachableError } from './target.ts'
import { Upstream } from './upstream.ts'

export type MachinePoolOptions = {
  /** The gateway's private key (OpenSSH or PEM format), which every machine's sshd accepts. */
  privateKey: Buffer | string
  log: Log
  /** A connection without channels is closed after this long. Default 10 minutes. */
  idleTimeoutMs?: number
  /** TCP, key exchange and sign-in together. Default 20 s. */
  connectTimeoutMs?: number
  /** Channels on one connection before another is opened. Default 100. */
  maxChannelsPerConnection?: number
  /** Which machines sleep: connections to them are kept, and whoever comes wakes them. */
  watches?: Pick<Watches, 'of'>
  /** A machine silent for this long is asked whether it lives; three unanswered questions end the connection. Default 15 s. */
  keepaliveIntervalMs?: number
}

/**
 * Shared connections to one machine, whatever guest users they are for. What a hostile machine never closes counts as
 * open, so without a bound it would get one connection more for every hundred sessions.
 */
const CONNECTIONS_PER_MACHINE = 32

type Entry = { upstream: Upstream; idleTimer: NodeJS.Timeout | undefined }

/**
 * The gateway's connections to machines. Sessions of one account to one guest user of one machine share a connection,
 * so that all but the first skip its key exchange; a session that asks for what belongs to a whole connection (agent,
 * X11, remote forwards) gets a dedicated one. The first of several at once connects, the others wait for it.
 */
export class MachinePool {
  readonly #options: Required<Omit<MachinePoolOptions, 'watches'>>
  readonly #watches: MachinePoolOptions['watches']
  readonly #shared = new Map<string, Entry[]>()
  readonly #dedicated = new Set<Upstream>()
  #closed = false

  constructor({ watches, ...options }: MachinePoolOptions) {
    this.#watches = watches
    this.#options = {
      idleTimeoutMs: 10 * 60_000,
      connectTimeoutMs: 20_000,
      maxChannelsPerConnection: 100,
      keepaliveIntervalMs: 15_000,
      ...options,
    }
  }

  /** Connections there are, shared and dedicated, connecting ones included. */
  get connections(): number {
    let count = this.#dedicated.size
    for (const entries of this.#shared.values()) count += entries.length
    return count
  }

  /**
   * Connects and signs in, so that the next session starts at once, which counts as use of the machine.
   * @returns when the machine's sshd has let the gateway in
   * @throws MachineUnreachableError
   */
  async warm(target: MachineTarget): Promise<void> {
    const upstream = await this.reserve(target)
    this.#watches?.of(target.machineId).carriedOverSsh()
    this.unreserve(upstream)
  }

  /**
   * A shared connection with room for one more channel, for which a place is kept until `unreserve`.
   * @param fresh not one that was there before: the one that was given out last did not answer
   * @throws MachineUnreachableError
   */
  async reserve(target: MachineTarget, fresh = false): Promise<Upstream> {
    const watch = this.#watches?.of(target.machineId)
    if (watch?.isHeld) await untilBack(watch, target)
    this.#throwIfClosed()
    const key = keyOf(target)
    const entries = this.#shared.get(key) ?? []
    if (fresh) for (const { upstream } of entries) upstream.suspect = true
    let entry = entries.find(
      ({ upstream }) => !upstream.suspect && upstream.channels < this.#options.maxChannelsPerConnection,
    )
    if (entry === undefined) {
      if (this.#sharedWith(target.machineId) >= CONNECTIONS_PER_MACHINE)
        throw new MachineUnreachableError(
          'machine.unreachable',
          `Machine ${target.name} has too many sessions; close some, or start it anew: restart ${target.name}`,
        )
      entry = { upstream: this.#connectShared(target, key, watch), idleTimer: undefined }
      this.#shared.set(key, [...entries, entry])
    }
    const { upstream } = entry
    upstream.reserved++
    clearTimeout(entry.idleTimer)
    await upstream.ready
    return upstream
  }

  /** Gives a place back, once the channel is opened or given up. */
  unreserve(upstream: Upstream): void {
    upstream.reserved--
    this.#closeWhenIdle(upstream)
  }

  /**
   * A connection of its own, for what belongs to a whole connection. Whoever asked for it closes it.
   * @throws MachineUnreachableError
   */
  async dedicate(
    target: MachineTarget,
    owner: { onChannelOpen: (open: IncomingOpen, upstream: Upstream) => void; onLost: () => void },
  ): Promise<Upstream> {
    const watch = this.#watches?.of(target.machineId)
    if (watch?.isHeld) await untilBack(watch, target)
    this.#throwIfClosed()
    const upstream = new Upstream(target, {
      ...this.#options,
      watch,
      onChannelOpen: owner.onChannelOpen,
      onLost: (lost) => {
        this.#dedicated.delete(lost)
        owner.onLost()
      },
    })
    this.#dedicated.add(upstream)
    await upstream.ready
    return upstream
  }

  /** Closes every connection to a machine: it stopped, restarted or is gone. */
  forget(machineId: number): void {
    for (const upstream of this.#all()) if (upstream.target.machineId === machineId) upstream.destroy()
  }

  /** Closes all connections; nothing can be opened afterwards. */
  close(): void {
    this.#closed = true
    for (const upstream of this.#all()) upstream.destroy()
  }

  #connectShared(target: MachineTarget, key: string, watch: MachineWatch | undefined): Upstream {
    return new Upstream(target, {
      ...this.#options,
      watch,
      onIdle: (upstream) => this.#closeWhenIdle(upstream),
      onLost: (lost) => {
        const entries = this.#shared.get(key) ?? []
        clearTimeout(entries.find(({ upstream }) => upstream === lost)?.idleTimer)
        const left = entries.filter(({ upstream }) => upstream !== lost)
        if (left.length === 0) this.#shared.delete(key)
        else this.#shared.set(key, left)
      },
    })
  }

  #closeWhenIdle(upstream: Upstream): void {
    if (upstream.lost || upstream.channels > 0) return
    const entry = this.#shared.get(keyOf(upstream.target))?.find((each) => each.upstream === upstream)
    if (entry === undefined) return
    clearTimeout(entry.idleTimer)
    const afterMs = upstream.suspect ? 0 : this.#options.idleTimeoutMs
    entry.idleTimer = setTimeout(() => {
      // Kept for whoever wakes it, to whom it saves the key exchange.
      if (upstream.watch?.isHeld) this.#closeWhenIdle(upstream)
      else upstream.close()
    }, afterMs).unref()
  }

  #sharedWith(machineId: number): number {
    return [...this.#shared.values()].flat().filter(({ upstream }) => upstream.target.machineId === machineId).length
  }

  #all(): Upstream[] {
    return [...this.#dedicated, ...[...this.#shared.values()].flat().map(({ upstream }) => upstream)]
  }

  #throwIfClosed(): void {
    if (this.#closed) throw new MachineUnreachableError('pool.closed', 'The gateway is shutting down.')
  }
}

async function untilBack(watch: MachineWatch, { name }: MachineTarget): Promise<void> {
  try {
    await watch.back('an SSH session')
  } catch (cause) {
    if (!(cause instanceof NotBackError)) throw cause
    throw new MachineUnreachableError('machine.unreachable', `Machine ${name} did not wake: ${cause.message}.`, {
      cause,
    })
  }
}

// The address and host key too: a machine that came back with others is not to be reached over old connections.
function keyOf({ machineId, user, accountId, address, port, hostKey }: MachineTarget): string {
  return JSON.stringify([machineId, user, accountId, address, port, hostKey.toString('base64')])
}
