import type { Duplex } from 'node:stream'
import type { Settings } from '../../settings.ts'
import type { Clock } from './clock.ts'
import type { UpstreamPool } from './pool.ts'
import type { Problem, Seams } from './seams.ts'
import type { CutError } from './upstream.ts'

export type ProxyLimits = {
  headBytes: number
  /** for the database to say where a request goes, and whether it may */
  lookUpMs: number
  /** bytes of a client held while its request is being decided, or an upgrade answered */
  heldBytes: number
  /** from the first byte of a head to its last */
  headMs: number
  /** between two requests; above the 60 s of common load balancers */
  idleMs: number
  /** without a byte of a body moving, either way */
  stallMs: number
  /** the same for a stream of an HTTP/2 connection for which as much is held as may be */
  crowdedStallMs: number
  /** bytes held for an HTTP/2 connection, of all its streams, from which on each stream holds no more than a little */
  crowdedBytes: number
  /** how long a connection that was refused may go on sending */
  lingerMs: number
  /** a tunnel of which one side has ended */
  halfClosedMs: number
}

export const PROXY_LIMITS: ProxyLimits = {
  headBytes: 65_536,
  lookUpMs: 10_000,
  heldBytes: 65_536,
  headMs: 30_000,
  idleMs: 75_000,
  stallMs: 600_000,
  crowdedStallMs: 60_000,
  crowdedBytes: 2_097_152,
  lingerMs: 3_000,
  halfClosedMs: 60_000,
}

/** One finished exchange, for the access log and the metrics. */
export type Finished = {
  protocol: 'h1' | 'h2'
  remoteAddress: string
  method: string
  host: string
  /** path only: queries carry secrets */
  path: string
  /** 499 when the client left first, as nginx has it */
  status: number
  machineId: number | undefined
  user: string | undefined
  startedAtMs: number
  /** performance.now() of the head; undefined when none was sent */
  firstByteAtMs: number | undefined
  sentBytes: number
  upgraded: boolean
  cut: CutError['code'] | undefined
}

/** What every client connection of a listener shares. */
export type ProxyContext = {
  seams: Seams
  settings: Pick<Settings, 'domain' | 'machineDomain'>
  limits: ProxyLimits
  listenPorts: ReadonlySet<number>
  pool: UpstreamPool
  clock: Clock
  /** set when the process is to stop: connections end with the exchange they are in */
  draining: boolean
  /** takes over a connection whose request is for the control host; the bytes read so far come first */
  toControl(socket: Duplex, bytes: Buffer): void
  finished(exchange: Finished): void
  tunnels: { opened(): void; closed(): void }
  failed(problem: Problem): void
}

/** Something that `revoke` and an orderly stop reach: a connection of a client, whatever its protocol. */
export type ClientConnection = {
  tick(nowMs: number): void
  /** ends what the grants name; connections that serve others go on */
  revoke(isRevoked: (grant: string, machineId: number) => boolean): void
  /** ends after the exchange at hand */
  drain(): void
  destroy(): void
}
