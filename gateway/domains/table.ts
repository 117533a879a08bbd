/**
 * Where a host that is none of the installation's own leads: from memory or from Postgres. News of a domain forgets
 * everything, since it is rare; news of a machine forgets its hosts, for it may be called something else. What was
 * being read when news came is read again.
 */
import type { Sql } from '../../migrations/connect.ts'
import type { News } from '../news.ts'

/** A custom domain that a host is, or is one label below of. */
export type DomainEntry = { domain: string; wildcard: boolean; machineId: number; machineName: string }

export type DomainTableOptions = { sql: Sql; news: News }

const HOSTS_MOST = 10_000
const UNKNOWN_MOST = 1000
/** Without news a row is read again after this long: a connection to Postgres may have gone silent. */
const FRESH_MS = 60_000
const READS_MOST = 5

type MaybePromise<T> = T | Promise<T>

export class DomainTable {
  readonly #sql: Sql
  readonly #known = new Map<string, { entry: DomainEntry; readAtMs: number }>()
  readonly #unknown = new Map<string, number>()
  /** machines that hosts in memory lead to */
  readonly #machines = new Set<number>()
  readonly #reading = new Map<string, Promise<DomainEntry | undefined>>()
  readonly #stop: (() => void)[]
  #generation = 0

  constructor({ sql, news }: DomainTableOptions) {
    this.#sql = sql
    this.#stop = [
      news.on('domains', () => this.#forgetAll()),
      news.on('machines', (id) => this.#forget(Number(id))),
      news.onRescan(() => this.#forgetAll()),
    ]
  }

  /** @param host lower case, no port @returns at once where it is remembered */
  find(host: string): MaybePromise<DomainEntry | undefined> {
    const nowMs = performance.now()
    const known = this.#known.get(host)
    if (known && nowMs - known.readAtMs < FRESH_MS) return known.entry
    const unknownAtMs = this.#unknown.get(host)
    if (unknownAtMs !== undefined && nowMs - unknownAtMs < FRESH_MS) return undefined
    const reading = this.#reading.get(host)
    if (reading) return reading
    const read = this.#read(host).finally(() => this.#reading.delete(host))
    this.#reading.set(host, read)
    return read
  }

  close(): void {
    for (const stop of this.#stop) stop()
  }

  async #read(host: string): Promise<DomainEntry | undefined> {
    for (let reads = 1; ; reads++) {
      const generation = this.#generation
      const entry = await this.#select(host)
      if (generation === this.#generation) this.#keep(host, entry)
      else if (reads < READS_MOST) continue
      return entry
    }
  }

  /** Indexes: custom_domains_pkey, machine_names_machine_id_key. A domain of its own goes before a wildcard above it. */
  async #select(host: string): Promise<DomainEntry | undefined> {
    const dot = host.indexOf('.')
    const above = dot < 0 ? '' : host.slice(dot + 1)
    const rows = await this.#sql<(Omit<DomainEntry, 'machineName'> & { machineName: string | null })[]>`
      select d.domain, d.wildcard, d.machine_id as "machineId", n.name as "machineName"
      from custom_domains d left join machine_names n on n.machine_id = d.machine_id
      where d.domain in (${host}, ${above}) and (d.domain = ${host} or d.wildcard)
      order by length(d.domain) desc limit 1`
    const row = rows[0]
    return row && row.machineName !== null ? { ...row, machineName: row.machineName } : undefined
  }

  #keep(host: string, entry: DomainEntry | undefined): void {
    if (!entry) {
      if (this.#unknown.size >= UNKNOWN_MOST) this.#unknown.clear()
      this.#unknown.set(host, performance.now())
      return
    }
    this.#known.delete(host)
    this.#known.set(host, { entry, readAtMs: performance.now() })
    this.#machines.add(entry.machineId)
    for (const oldest of this.#known.keys()) {
      if (this.#known.size <= HOSTS_MOST) break
      this.#known.delete(oldest)
    }
  }

  #forget(machineId: number): void {
    // A machine that leaves the trash has a name again.
    this.#generation++
    this.#unknown.clear()
    if (!this.#machines.delete(machineId)) return
    for (const [host, { entry }] of this.#known) if (entry.machineId === machineId) this.#known.delete(host)
  }

  #forgetAll(): void {
    this.#generation++
    this.#known.clear()
    this.#unknown.clear()
    this.#machines.clear()
  }
}
