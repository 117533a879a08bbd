import { isIPv6 } from 'node:net'

/** Bounds on what a stranger can make the gateway hold or do. Each refusal has a sentence. */
export type Limits = {
  /** from the TCP connection to the end of the key exchange */
  handshakeMs: number
  /** from the TCP connection to being signed in (OpenSSH's LoginGraceTime) */
  loginGraceMs: number
  /** for the database to say whose a key is; much less than `loginGraceMs`, so that the person is told whose fault it is */
  lookUpMs: number
  /** from the TCP connection to having an account, for an unknown key; it keeps its place among the startups */
  signUpMs: number
  /** from the first question of a sign-up to its last answer; less than `signUpMs`, so that the person is told */
  signUpDialogMs: number
  /** for a suspended account to hear that it is; until then it keeps its place among the startups */
  suspendedMs: number
  /** failed signatures on one connection (OpenSSH's MaxAuthTries) */
  failedSignatures: number
  /** sign-in requests of any kind on one connection: a client offers each of its keys */
  signInRequests: number
  /** connections without an account, all addresses together (OpenSSH's MaxStartups) */
  startups: number
  startupsPerAddress: number
  /** connections in all */
  connections: number
  connectionsPerAccount: number
  /** of `connections`, the last ones, which only accounts with fewer than `fewConnections` of their own get */
  reservedConnections: number
  fewConnections: number
  /** connections an address may make at once; each comes back after `1 / connectionsPerSecond` */
  connectionBurst: number
  connectionsPerSecond: number
  /** how many connections a failed signature or a wrong join code counts for */
  failureCost: number
  /** the same for each unknown key: an offer costs a stranger nothing, and the database a query */
  unknownKeyCost: number
}

export const DEFAULT_LIMITS: Limits = {
  handshakeMs: 30_000,
  loginGraceMs: 120_000,
  lookUpMs: 10_000,
  signUpMs: 20 * 60_000,
  signUpDialogMs: 15 * 60_000,
  suspendedMs: 10_000,
  failedSignatures: 6,
  signInRequests: 200,
  startups: 512,
  startupsPerAddress: 128,
  connections: 10_000,
  connectionsPerAccount: 2_000,
  reservedConnections: 1_000,
  fewConnections: 20,
  connectionBurst: 600,
  connectionsPerSecond: 30,
  failureCost: 20,
  unknownKeyCost: 0.2,
}

/** One connection that is not signed in. */
export type Startup = {
  /** signed in, or gone */
  end(): void
}

type Pending = { address: string; drop: (text: string) => void }
type Bucket = { tokens: number; at: number }

/**
 * Counts connections by address. An IPv6 address counts as its /64, which is what one customer has.
 *
 * When the bound on all that are not signed in is reached, an address with none gets in all the same: the oldest of
 * the address with the most makes room. So nobody can shut others out by holding connections.
 */
export class AddressLimits {
  readonly #limits: Limits
  readonly #pending = new Map<string, Set<Pending>>()
  readonly #buckets = new Map<string, Bucket>()
  #pendingCount = 0
  readonly #sweeper: NodeJS.Timeout

  constructor(limits: Limits) {
    this.#limits = limits
    this.#sweeper = setInterval(() => this.#sweep(), 60_000)
    this.#sweeper.unref()
  }

  close(): void {
    clearInterval(this.#sweeper)
  }

  /**
   * @param drop called when this connection has to make room for another address
   * @returns the place taken, or the sentence to refuse with
   */
  admit(ip: string, drop: (text: string) => void): Startup | string {
    const address = addressGroup(ip)
    const bucket = this.#bucket(address)
    if (bucket.tokens < 1) {
      const waitSeconds = Math.ceil((1 - bucket.tokens) / this.#limits.connectionsPerSecond)
      return `Berth: too many connections from your address; try again in ${waitSeconds} s`
    }
    const mine = this.#pending.get(address)
    if (mine && mine.size >= this.#limits.startupsPerAddress) {
      return 'Berth: too many connections from your address are not signed in yet; try again in a moment'
    }
    if (this.#pendingCount >= this.#limits.startups) {
      const crowd = this.#largest()
      if (!crowd || crowd.size <= (mine?.size ?? 0) + 1) {
        return 'Berth: too many people are signing in right now; try again in a moment'
      }
      const [oldest] = crowd
      oldest?.drop('Berth: others wait to sign in, and your address had the most connections waiting; try again')
      if (oldest) this.#remove(oldest)
    }
    bucket.tokens -= 1
    const pending: Pending = { address, drop }
    const group = mine ?? new Set()
    group.add(pending)
    this.#pending.set(address, group)
    this.#pendingCount++
    return { end: () => this.#remove(pending) }
  }

  /** A failed signature or a wrong code: the address may make fewer connections for a while. */
  failed(ip: string): void {
    this.#charge(ip, this.#limits.failureCost)
  }

  /** The same, for a key that was looked up and that no account has. */
  askedInVain(ip: string): void {
    this.#charge(ip, this.#limits.unknownKeyCost)
  }

  #charge(ip: string, connections: number): void {
    const bucket = this.#bucket(addressGroup(ip))
    bucket.tokens = Math.max(bucket.tokens - connections, -this.#limits.connectionBurst)
  }

  #remove(pending: Pending): void {
    const group = this.#pending.get(pending.address)
    if (!group?.delete(pending)) return
    this.#pendingCount--
    if (group.size === 0) this.#pending.delete(pending.address)
  }

  #largest(): Set<Pending> | undefined {
    let largest: Set<Pending> | undefined
    for (const group of this.#pending.values()) if (!largest || group.size > largest.size) largest = group
    return largest
  }

  #bucket(address: string): Bucket {
    const now = performance.now()
    const bucket = this.#buckets.get(address) ?? { tokens: this.#limits.connectionBurst, at: now }
    bucket.tokens = Math.min(
      this.#limits.connectionBurst,
      bucket.tokens + ((now - bucket.at) / 1000) * this.#limits.connectionsPerSecond,
    )
    bucket.at = now
    this.#buckets.set(address, bucket)
    return bucket
  }

  /** An address whose bucket is full again needs no row. */
  #sweep(): void {
    for (const address of [...this.#buckets.keys()]) {
      if (this.#bucket(address).tokens >= this.#limits.connectionBurst) this.#buckets.delete(address)
    }
  }
}

/** `::ffff:192.0.2.1` and `192.0.2.1` are one address to people. */
export function plainAddress(ip: string): string {
  const match = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(ip)
  return match?.[1] ?? ip
}

/** IPv4 address, or the /64 of an IPv6 one. */
export function addressGroup(ip: string): string {
  const plain = plainAddress(ip).replace(/%.*$/, '')
  if (!isIPv6(plain)) return plain
  const [head = '', tail] = plain.split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = tail === undefined ? [] : Array(Math.max(0, 8 - left.length - right.length)).fill('0')
  const groups = [...left, ...zeros, ...right].slice(0, 4)
  return `${groups.map((group) => Number.parseInt(group, 16).toString(16)).join(':')}::/64`
}
