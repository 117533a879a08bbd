/**
 * Where a host name leads: a machine's row as the proxy needs it, from memory or from Postgres.
 *
 * News of a machine drops what is remembered of it at once, and what is remembered as "no such name", which may be its
 * new name. A row that was being read when news came is read again, so that nothing older than the news is kept.
 *
 * Whoever visits a machine may stay for hours without asking again, so every machine that was ever asked for is also
 * followed: at news of it the row is read anew and compared with what was seen last.
 */
import type { Sql } from '../../../migrations/connect.ts'
import { goesOn, type Life, type LifeRow, lifeOf, type Run, runOf } from '../../activity/life.ts'
import type { Watches } from '../../activity/watches.ts'
import { askAgain } from '../../fault.ts'
import type { Log } from '../../log.ts'
import { isReady } from '../../machines.ts'
import type { News } from '../../news.ts'
import type { Route } from '../proxy/seams.ts'

/** The port that `https://NAME.domain/` shows when neither the owner nor the image chose one. */
export const DEFAULT_PORT = 8000

/** A machine's route with what decides who may take it. */
export type MachineRoute = Route & {
  accountId: number
  /** its primary port is open to everybody */
  isPublic: boolean
  /** its account is suspended: nothing of it is shown */
  isSuspended: boolean
  /** some tokens open machines by their tags */
  tags: readonly string[]
  /** what its connections are to expect */
  life: Life
  /** tells one run of the machine from the next */
  run: Run
}

export type RouteTableOptions = {
  sql: Sql
  news: News
  log: Log
  watches: Watches
  /** a machine that was reached stopped, or runs anew elsewhere: connections to it are dead */
  onEnded(route: MachineRoute): void
  /** what decides access to a machine changed */
  onAccessChanged(machineId: number): void
}

/** Names remembered; the oldest go first. */
const NAMES_MOST = 10_000
const UNKNOWN_MOST = 1000
/** Without news a row is read again after this long: a connection to Postgres may have gone silent. */
const FRESH_MS = 60_000
/** News come in bursts while a machine starts. */
const GATHER_MS = 20

/** A name that news keep changing under the reader is answered all the same, and not remembered. */
const READS_MOST = 5

type Entry = { route: MachineRoute; readAtMs: number }

export class RouteTable {
  readonly #options: RouteTableOptions
  readonly #entries = new Map<string, Entry>()
  /** machines that are followed, as they were seen last */
  readonly #seen = new Map<number, MachineRoute>()
  /** names of no machine, and when that was seen */
  readonly #unknown = new Map<string, number>()
  readonly #reading = new Map<string, Promise<MachineRoute | undefined>>()
  /** machines with news, until it was seen what changed */
  readonly #changed = new Set<number>()
  readonly #stop: (() => void)[]
  #timer: NodeJS.Timeout | undefined
  /** grows with each piece of news */
  #generation = 0

  constructor(options: RouteTableOptions) {
    this.#options = options
    const { news } = options
    this.#stop = [
      news.on('machines', (id) => this.#note(Number(id))),
      // Suspension, told with the account's number.
      news.on('keys', (id) => {
        const theirs = [...this.#seen.values()].filter(({ accountId }) => accountId === Number(id))
        for (const { machineId } of theirs) this.#note(machineId)
      }),
      news.onRescan(() => {
        this.#unknown.clear()
        for (const id of [...this.#seen.keys()]) this.#note(id)
      }),
    ]
  }

  /** @returns at once where it is remembered */
  find(name: string): MachineRoute | undefined | Promise<MachineRoute | undefined> {
    const entry = this.#entries.get(name)
    const nowMs = performance.now()
    if (entry && nowMs - entry.readAtMs < FRESH_MS) return entry.route
    const unknownAtMs = this.#unknown.get(name)
    if (unknownAtMs !== undefined && nowMs - unknownAtMs < FRESH_MS) return undefined
    const reading = this.#reading.get(name)
    if (reading) return reading
    const read = this.#read(name).finally(() => this.#reading.delete(name))
    this.#reading.set(name, read)
    return read
  }

  /** The machine whose row this is, as it is now. */
  async byId(machineId: number): Promise<MachineRoute | undefined> {
    const rows = await this.#select(this.#options.sql`m.id = ${machineId}`)
    return rows[0] && this.#routeOf(rows[0])
  }

  close(): void {
    for (const stop of this.#stop) stop()
    clearTimeout(this.#timer)
  }

  async #read(name: string): Promise<MachineRoute | undefined> {
    for (let reads = 1; ; reads++) {
      const generation = this.#generation
      const rows = await this.#select(this.#options.sql`n.name = ${name}`)
      const [row] = rows
      const route = row && this.#routeOf(row)
      if (generation === this.#generation) {
        // No news since: it is what its connections should know before another is made.
        if (row) this.#options.watches.of(row.id).see(row)
        this.#keep(name, route)
      } else if (reads < READS_MOST) continue
      return route
    }
  }

  /** Indexes: machine_names_pkey or machines_pkey, accounts_pkey, addresses_machine_id_key. */
  async #select(which: ReturnType<Sql>): Promise<Row[]> {
    const ask = () => this.#options.sql<Row[]>`
      select m.id, n.name, m.account_id as "accountId", host(a.address) as address, coalesce(m.web_port, m.observed_web_port) as "webPort",
        m.web_public as "isPublic", c.suspended_at is not null as "isSuspended", m.tags,
        m.desired_state as "desiredState", m.observed_state as "observedState", m.desired_boot as "desiredBoot",
        m.observed_boot as "observedBoot", m.observed_stage as "observedStage", m.observed_ready_at as "observedReadyAt",
        m.desired_restore as "desiredRestore", m.observed_restore as "observedRestore"
      from machine_names n join machines m on m.id = n.machine_id join accounts c on c.id = m.account_id
        left join addresses a on a.machine_id = m.id
      where ${which} and m.observed_state <> 'gone'`
    return await askAgain(ask)
  }

  #keep(name: string, route: MachineRoute | undefined): void {
    this.#entries.delete(name)
    if (!route) {
      this.#unknown.set(name, performance.now())
      if (this.#unknown.size > UNKNOWN_MOST) this.#unknown.clear()
      return
    }
    this.#entries.set(name, { route, readAtMs: performance.now() })
    dropOldest(this.#entries)
    this.#notice(route.machineId, route)
  }

  #note(machineId: number): void {
    this.#generation++
    this.#unknown.clear()
    const seen = this.#seen.get(machineId)
    if (!seen) return
    this.#entries.delete(seen.name)
    this.#changed.add(machineId)
    this.#timer ??= setTimeout(() => void this.#look(), GATHER_MS)
  }

  async #look(): Promise<void> {
    this.#timer = undefined
    const { sql, log, onAccessChanged } = this.#options
    const ids = [...this.#changed]
    this.#changed.clear()
    try {
      const rows = await this.#select(sql`m.id in ${sql(ids)}`)
      const now = new Map(rows.map((row) => [row.id, this.#routeOf(row)]))
      for (const id of ids) this.#notice(id, now.get(id))
    } catch (error) {
      log.warn({ err: error }, 'could not see which machines changed')
      for (const id of ids) onAccessChanged(id)
    }
  }

  #routeOf(row: Row): MachineRoute {
    const wasHeld = this.#seen.get(row.id)?.life === 'held'
    return routeOf(row, lifeOf(row, wasHeld), this.#options.watches)
  }

  /** A machine's row was read; undefined: it has none any more, or no name. */
  #notice(machineId: number, is: MachineRoute | undefined): void {
    const { onEnded, onAccessChanged } = this.#options
    const was = this.#seen.get(machineId)
    this.#seen.delete(machineId)
    if (is) this.#seen.set(machineId, is)
    dropOldest(this.#seen)
    if (!was) return
    const isOver = !is || is.life === 'over' || !goesOn(was.run, is.run)
    if (was.life !== 'over' && isOver) onEnded(was)
    if (!is || decides(is) !== decides(was)) onAccessChanged(machineId)
  }
}

function dropOldest(remembered: Map<unknown, unknown>): void {
  for (const oldest of remembered.keys()) {
    if (remembered.size <= NAMES_MOST) return
    remembered.delete(oldest)
  }
}

/** What the grants look at, in one text. */
function decides({ accountId, isPublic, isSuspended, primaryPort, tags }: MachineRoute): string {
  return JSON.stringify([accountId, isPublic, isSuspended, primaryPort, tags])
}

type Row = LifeRow & {
  id: number
  name: string
  accountId: number
  address: string | null
  webPort: number | null
  isPublic: boolean
  isSuspended: boolean
  tags: string[]
}

function routeOf(row: Row, life: Life, watches: Watches): MachineRoute {
  return {
    machineId: row.id,
    name: row.name,
    address: row.address ?? '',
    primaryPort: row.webPort ?? DEFAULT_PORT,
    awake: isReady(row) && row.address !== null,
    watch: watches.of(row.id),
    accountId: row.accountId,
    isPublic: row.isPublic,
    isSuspended: row.isSuspended,
    tags: row.tags,
    life,
    run: runOf(row),
  }
}
