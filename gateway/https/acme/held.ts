import { X509Certificate } from 'node:crypto'
import { createSecureContext, type SecureContext } from 'node:tls'
import type { Sql } from '../../../migrations/connect.ts'
import type { News } from '../../news.ts'
import { unseal } from '../../secrets.ts'
import { readHeld } from './store.ts'
import { sealName } from './worker.ts'

export type HeldOptions = {
  sql: Sql
  news: News
  secretKey: Buffer
  /** contexts kept in memory */
  contexts?: number
}

type Entry = { context: SecureContext; leaf: X509Certificate } | undefined

/** Without news a row is read again after this long; "none" sooner, for it is what ends first. */
const FRESH_MS = 300_000
const NONE_MS = 15_000

/** What the directory issued, ready to be served: from memory (least recently used goes first), else from Postgres. */
export class HeldCertificates {
  readonly #options: HeldOptions
  readonly #limit: number
  readonly #entries = new Map<string, { entry: Entry; checkAtMs: number }>()
  readonly #loading = new Map<string, Promise<Entry>>()
  readonly #stop: (() => void)[]
  #generation = 0

  constructor(options: HeldOptions) {
    this.#options = options
    this.#limit = options.contexts ?? 1000
    this.#stop = [
      options.news.on('certificates', (name) => {
        this.#generation++
        this.#entries.delete(name)
      }),
      options.news.onRescan(() => {
        this.#generation++
        this.#entries.clear()
      }),
    ]
  }

  /**
   * @param name of the row
   * @param host that is asked for
   * @returns undefined when there is none, it is over, or it is not for that host
   */
  async contextFor(name: string, host: string): Promise<SecureContext | undefined> {
    const entry = await this.#entry(name)
    if (!entry || entry.leaf.validToDate.getTime() < Date.now()) return undefined
    return entry.leaf.checkHost(host) === undefined ? undefined : entry.context
  }

  expiryAt(): ReadonlyMap<string, Date> {
    return new Map([...this.#entries].flatMap(([name, { entry }]) => (entry ? [[name, entry.leaf.validToDate]] : [])))
  }

  close(): void {
    for (const stop of this.#stop) stop()
  }

  async #entry(name: string): Promise<Entry> {
    const known = this.#entries.get(name)
    if (known && performance.now() < known.checkAtMs) {
      this.#entries.delete(name)
      this.#entries.set(name, known)
      return known.entry
    }
    const loading = this.#loading.get(name)
    if (loading) return await loading
    const load = this.#load(name).finally(() => this.#loading.delete(name))
    this.#loading.set(name, load)
    return await load
  }

  async #load(name: string): Promise<Entry> {
    const { sql, secretKey } = this.#options
    const generation = this.#generation
    const held = await readHeld(sql, name)
    const entry = held && {
      leaf: new X509Certificate(held.chain),
      context: createSecureContext({
        cert: held.chain,
        key: unseal(secretKey, sealName(name), held.sealedKey),
        minVersion: 'TLSv1.2',
      }),
    }
    // News that came meanwhile may be of this very row: it is read again at the next handshake.
    if (generation !== this.#generation) return entry
    this.#entries.set(name, { entry, checkAtMs: performance.now() + (entry ? FRESH_MS : NONE_MS) })
    for (const oldest of this.#entries.keys()) {
      if (this.#entries.size <= this.#limit) break
      this.#entries.delete(oldest)
    }
    return entry
  }
}
