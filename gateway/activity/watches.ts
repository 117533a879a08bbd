/**
 * The machines that this gateway is connected to: which of them sleep, waking them, and telling Postgres that something is
 * carried. News of a machine make its row be read; whoever reads a row for another reason says so (`see`).
 */
import type { Sql } from '../../migrations/connect.ts'
import { askAgain } from '../fault.ts'
import type { Log } from '../log.ts'
import type { News } from '../news.ts'
import { Joined } from './joined.ts'
import type { LifeRow } from './life.ts'
import { type Carried, noteCarried } from './note.ts'
import { wakeMachine } from './wake.ts'
import { MachineWatch, type WatchOwner } from './watch.ts'

/** News come in bursts; short, because what is held waits for them. */
const GATHER_MS = 5
const TICK_MS = 1_000
/** Of one machine no more often. The first after so long without any is written at once. */
const NOTE_EVERY_MS = 15_000
const AGAIN_MS = 1_000

export type WatchesOptions = {
  sql: Sql
  news: News
  log: Log
  /** how fine the clock is, and how often it is looked at what was carried; a second unless given */
  tickMs?: number
  /** between two notes of one machine; 15 s unless given */
  noteEveryMs?: number
}

export class Watches {
  readonly #options: WatchesOptions
  readonly #watches = new Map<number, MachineWatch>()
  /** when a machine's activity was last written, and which it was */
  readonly #noted = new Map<number, { carriedAtMs: number; writtenAtMs: number }>()
  readonly #changed = new Set<number>()
  readonly #waking = new Joined<number, boolean>()
  readonly #stop: (() => void)[]
  readonly #clock: NodeJS.Timeout
  #timer: NodeJS.Timeout | undefined
  #writing: Promise<void> | undefined
  #isClosed = false
  /** as of the last second: cheap enough to be written down for each packet */
  #nowMs = performance.now()
  readonly #owner: WatchOwner

  constructor(options: WatchesOptions) {
    this.#options = options
    const { news, tickMs = TICK_MS, noteEveryMs = NOTE_EVERY_MS } = options
    const watches = this
    this.#owner = {
      get nowMs() {
        return watches.#nowMs
      },
      wake: (id, because) => this.wake(id, because),
      look: (id) => this.#lookAt(id, GATHER_MS),
    }
    this.#stop = [
      news.on('machines', (id) => {
        const watch = this.#watches.get(Number(id))
        if (!watch) return
        watch.generation++
        this.#lookAt(watch.machineId, GATHER_MS)
      }),
      news.onRescan(() => {
        for (const id of this.#watches.keys()) this.#lookAt(id, GATHER_MS)
      }),
    ]
    this.#clock = setInterval(() => {
      this.#nowMs = performance.now()
      this.#writing ??= this.#note(noteEveryMs).finally(() => {
        this.#writing = undefined
      })
    }, tickMs)
    this.#clock.unref()
  }

  /** The same for as long as this gateway runs. */
  of(machineId: number): MachineWatch {
    const known = this.#watches.get(machineId)
    if (known) return known
    const watch = new MachineWatch(machineId, this.#owner)
    this.#watches.set(machineId, watch)
    return watch
  }

  /**
   * Takes note of a machine's row.
   * @param generation of its watch, from before the row was read
   * @returns false when there was news meanwhile: the row may be older than what is known, and was not looked at
   */
  see(machineId: number, row: LifeRow, generation: number): boolean {
    const watch = this.of(machineId)
    if (watch.generation !== generation) return false
    watch.see(row)
    return true
  }

  /**
   * Wants a machine awake that is wanted asleep. However many ask at once, it is written once, and once more for those who
   * ask meanwhile: what was on its way then may have found the machine before it was put to sleep.
   * @param because who came, for the record: `an SSH session`
   * @returns whether this or the one before it on its way woke it; false: nobody may, or there was nothing to wake
   */
  wake(machineId: number, because: string): Promise<boolean> {
    const { sql, log } = this.#options
    return this.#waking.ask(machineId, async (isWoken = false) => {
      try {
        return (await wakeMachine(sql, machineId, because)) || isWoken
      } catch (error) {
        log.warn({ err: error, machine: machineId }, 'a machine could not be woken')
        // What waits for it is looked at again then.
        setTimeout(() => this.#lookAt(machineId, 0), AGAIN_MS).unref()
        throw error
      }
    })
  }

  async close(): Promise<void> {
    this.#isClosed = true
    for (const stop of this.#stop) stop()
    clearInterval(this.#clock)
    clearTimeout(this.#timer)
    await this.#writing
    await this.#note(0)
  }

  #lookAt(machineId: number, afterMs: number): void {
    this.#changed.add(machineId)
    if (!this.#isClosed) this.#timer ??= setTimeout(() => void this.#look(), afterMs)
  }

  async #look(): Promise<void> {
    this.#timer = undefined
    const { sql, log } = this.#options
    const ids = [...this.#changed]
    this.#changed.clear()
    const before = new Map(ids.map((id) => [id, this.of(id).generation]))
    try {
      const ask = () => sql<(LifeRow & { id: number })[]>`
        select id, desired_state as "desiredState", observed_state as "observedState", desired_boot as "desiredBoot",
          observed_boot as "observedBoot", observed_stage as "observedStage", observed_ready_at as "observedReadyAt",
          desired_restore as "desiredRestore", observed_restore as "observedRestore"
        from machines where id in ${sql(ids)}`
      const found = new Map((await askAgain(ask)).map((row) => [row.id, row]))
      for (const [id, generation] of before) {
        const watch = this.of(id)
        // Newer news have their own look.
        if (watch.generation === generation) watch.see(found.get(id))
      }
    } catch (error) {
      log.warn({ err: error }, 'could not see which machines sleep or ended')
      // The database is away: it is looked at when it is heard again.
    }
  }

  /** Writes down which machines carried something since that was last written, all in one statement. */
  async #note(everyMs: number): Promise<void> {
    const nowMs = performance.now()
    const carried: Carried[] = []
    for (const { machineId, sshAtMs, httpsAtMs, websocketAtMs } of this.#watches.values()) {
      const atMs = Math.max(sshAtMs, httpsAtMs, websocketAtMs)
      if (atMs === 0) continue
      const noted = this.#noted.get(machineId)
      if (noted && (noted.carriedAtMs >= atMs || nowMs - noted.writtenAtMs < everyMs)) continue
      this.#noted.set(machineId, { carriedAtMs: atMs, writtenAtMs: nowMs })
      const what = atMs === sshAtMs ? 'ssh' : atMs === websocketAtMs ? 'websocket' : 'https'
      carried.push({ machineId, agoMs: Math.max(0, nowMs - atMs), what })
    }
    if (carried.length === 0) return
    try {
      await noteCarried(this.#options.sql, carried)
    } catch (error) {
      // With the next round, not with the next second: the database has other worries.
      for (const { machineId } of carried) this.#noted.set(machineId, { carriedAtMs: 0, writtenAtMs: nowMs })
      this.#options.log.warn({ err: error }, 'could not write down which machines are used')
    }
  }
}
