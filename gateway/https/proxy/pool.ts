import type { MachineWatch } from '../../activity/watch.ts'
import type { Clock } from './clock.ts'
import type { Framing } from './head.ts'
import { Upstream } from './upstream.ts'

export type PoolLimits = {
  /** connections to one port of one machine, tunnels included */
  perPort: number
  /** idle ones kept for it */
  idlePerPort: number
  /** below the 5 s after which Node's own servers close theirs */
  upstreamIdleMs: number
  connectTimeoutMs: number
}

/** `perPort` stays below the 28,000 source ports that Linux has for one destination. */
export const POOL_LIMITS: PoolLimits = {
  perPort: 20_000,
  idlePerPort: 64,
  upstreamIdleMs: 4_000,
  connectTimeoutMs: 10_000,
}

/** How long a connection may have been idle for a request that must not be sent twice. */
const FRESH_MS = 1_500

const IDEMPOTENT = new Set(['GET', 'HEAD', 'OPTIONS', 'PUT', 'DELETE'])

/** Sent twice without harm (RFC 9110, 9.2.2), as long as there is no body that is gone after the first time. */
export function isRepeatable(method: string, framing: Framing): boolean {
  return framing.kind === 'none' && IDEMPOTENT.has(method)
}

type Port = { open: Set<Upstream>; idle: Upstream[] }

/** Connections to the machines' ports, kept for the next request; most recently used first. */
export class UpstreamPool {
  readonly #limits: PoolLimits
  readonly #clock: Clock
  readonly #ports = new Map<string, Port>()
  readonly #stop: () => void

  constructor(clock: Clock, limits: PoolLimits = POOL_LIMITS) {
    this.#clock = clock
    this.#limits = limits
    this.#stop = clock.onTick(() => this.#sweep())
  }

  /** connections open now */
  get open(): number {
    let sum = 0
    for (const { open } of this.#ports.values()) sum += open.size
    return sum
  }

  /**
   * @param repeatable the request can be sent again when a kept connection turns out to be dead
   * @param fresh never a kept one (upgrades, repetitions)
   * @param watch of the machine
   * @returns undefined when the port has as many connections as it may have
   */
  acquire(
    host: string,
    port: number,
    { repeatable, fresh, watch }: { repeatable: boolean; fresh: boolean; watch: MachineWatch | undefined },
  ): Upstream | undefined {
    const key = `${host}:${port}`
    const entry = this.#ports.get(key) ?? this.#add(key)
    if (!fresh) {
      const kept = entry.idle.at(-1)
      if (kept && (repeatable || this.#clock.nowMs - kept.idleSinceMs < FRESH_MS)) {
        entry.idle.pop()
        return kept
      }
    }
    if (entry.open.size >= this.#limits.perPort) return undefined
    const upstream = new Upstream({
      host,
      port,
      connectTimeoutMs: this.#limits.connectTimeoutMs,
      watch,
      onClosed: (closed) => this.#forget(key, entry, closed),
    })
    entry.open.add(upstream)
    return upstream
  }

  /** Takes a connection back after a complete exchange; one that cannot serve again is closed. */
  give(host: string, port: number, upstream: Upstream): void {
    upstream.release()
    const entry = this.#ports.get(`${host}:${port}`)
    if (!entry || !upstream.reusable || upstream.closed || entry.idle.length >= this.#limits.idlePerPort) {
      upstream.destroy()
      return
    }
    upstream.idleSinceMs = this.#clock.nowMs
    entry.idle.push(upstream)
  }

  /** Closes what is kept for an address: the machine went to sleep, or another one has its address. */
  drop(host: string): void {
    for (const [key, entry] of this.#ports) {
      if (key.startsWith(`${host}:`)) for (const upstream of entry.idle.splice(0)) upstream.destroy()
    }
  }

  close(): void {
    this.#stop()
    for (const { open } of this.#ports.values()) for (const upstream of open) upstream.destroy()
  }

  #add(key: string): Port {
    const entry: Port = { open: new Set(), idle: [] }
    this.#ports.set(key, entry)
    return entry
  }

  #forget(key: string, entry: Port, upstream: Upstream): void {
    entry.open.delete(upstream)
    const at = entry.idle.indexOf(upstream)
    if (at >= 0) entry.idle.splice(at, 1)
    if (entry.open.size === 0 && this.#ports.get(key) === entry) this.#ports.delete(key)
  }

  /** The machine closes idle connections too; being first by a second avoids sending into one that it has closed. */
  #sweep(): void {
    const now = this.#clock.nowMs
    for (const { idle } of this.#ports.values()) {
      while (idle[0] && now - idle[0].idleSinceMs >= this.#idleMs(idle[0])) idle.shift()?.destroy()
    }
  }

  #idleMs({ keepAliveMs }: Upstream): number {
    return Math.min(
      this.#limits.upstreamIdleMs,
      keepAliveMs === undefined ? Number.POSITIVE_INFINITY : keepAliveMs - 1_500,
    )
  }
}
