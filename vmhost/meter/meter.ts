import { readFileSync } from 'node:fs'
import { access } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { SpanState } from '../../migrations/schema.ts'
import type { TransferReadings } from '../network/counters.ts'
import { coalesce } from '../reconcile/coalesce.ts'
import { LeaseLostError } from '../reconcile/rows.ts'
import { type Clocks, MeterClock } from './clock.ts'
import { asidePath, JournalError, type Kept, putAside, readJournal, writeJournal } from './journal.ts'
import type { LedgerRows } from './ledger-rows.ts'
import { countedAt, type Reading, Readings } from './readings.ts'
import { eachOrAll } from './refusals.ts'
import { isSameSize, nextMidnight, type Piece, Spans, type Standing } from './spans.ts'

/**
 * Meters one server's machines: what state and size each is in and for how long (spans.ts), and what its tap carries
 * (readings.ts). Facts wait in a file of the server (journal.ts) until the ledger has them, in the order
 *
 *     seen --file--> kept --ledger--> there --file--> forgotten
 *
 * so that a kill -9 at any moment has the next vmhost send again what may have arrived, word for word, which the ledger
 * takes for what it is. Counters lose nothing by a kill -9: they are the kernel's. A power cut loses what came after the
 * last writing of the file, `everyMs` at most.
 *
 * A database that is away, half upgraded or broken gets the same facts again later, as long as no more of them wait than
 * `waitingMost`. A fact that it refuses for what the fact says is put aside in a file that the doctor names, and so are
 * the oldest of too many.
 */

export type MeterOptions = {
  /** the file */
  readonly path: string
  readonly rows: Pick<
    LedgerRows,
    'appendSpans' | 'missingOf' | 'appendReadings' | 'lastReadings' | 'ends' | 'checkpointBytes'
  >
  readonly clocks: Clocks
  /** from one look at everything to the next */
  readonly everyMs: number
  /** pieces, and readings, that wait for the ledger; what is more is put aside */
  readonly waitingMost?: number
  readTransfer(): Promise<TransferReadings>
  /** @returns until when a machine's hypervisor is known to have been there, in milliseconds since 1970 */
  lastWrite(machineId: number): Promise<number | undefined>
  readonly log: Pick<Logger, 'info' | 'warn' | 'error'>
  /** another vmhost has taken over this server */
  onLeaseLost(): void
}

/** How a machine stands as its reconciler sees it. `between`: as in spans.ts. */
export type MachineStanding = {
  readonly state: SpanState | 'between'
  readonly cpus: number
  readonly memoryBytes: number
  readonly diskBytes: number
  /** of its hypervisor */
  readonly pid?: number | undefined
}

const batchMost = 500
/** Days of a hundred machines, since what waits is joined where it is of one day. */
const waitingMostByDefault = 50_000

/** What an operator should see to. */
export type LedgerTroubles = {
  /** since when nothing arrives, and why not */
  readonly away: { readonly since: Date; readonly why: string } | undefined
  /** the file with facts that the ledger will never have */
  readonly aside: string | undefined
}

export class Meter {
  readonly #options: MeterOptions
  readonly #clock: MeterClock
  readonly #kept: Kept | undefined
  readonly #spans = new Spans()
  readonly #readings: Readings
  readonly #standings = new Map<number, MachineStanding>()
  readonly #processes = new Map<number, { readonly pid: number; readonly key: string }>()
  readonly #save = coalesce(() => this.#write())
  readonly #send = coalesce(() => this.#sendAll())
  #underway: readonly Piece[]
  #waiting: Piece[]
  #checkpointBytes: ReadonlyMap<number, number> = new Map()
  /** When counters were read last; a jump of the clock since then has begun at `#jumpedFrom`. */
  #lookedAt: number
  #jumpedFrom: number | undefined
  #hasGoneOn = false
  #away: LedgerTroubles['away']
  #closed = false
  #timer: NodeJS.Timeout | undefined
  #ticking: Promise<void> | undefined

  private constructor(options: MeterOptions, kept: Kept | undefined) {
    this.#options = options
    this.#kept = kept
    this.#clock = new MeterClock(options.clocks, kept?.time)
    this.#readings = new Readings(options.clocks.boot, kept?.readings)
    // Counters of another boot are gone: what is read from now on was counted since this one.
    const isSameBoot = kept?.time.boot === options.clocks.boot
    this.#lookedAt = (isSameBoot ? kept.lookedAt : undefined) ?? this.#clock.now()
    this.#underway = kept?.underway ?? []
    this.#waiting = [...(kept?.waiting ?? [])]
  }

  static async open(options: MeterOptions): Promise<Meter> {
    const kept = await readJournal(options.path).catch((error: unknown) => {
      if (!(error instanceof JournalError)) throw error
      options.log.error({ err: error }, 'the ledger may lack a few minutes of this server')
      return undefined
    })
    return new Meter(options, kept)
  }

  /** Says how a machine stands from now on; undefined: in the trash, gone, or not of this server any more. */
  note(machineId: number, standing: MachineStanding | undefined): void {
    if (standing) this.#standings.set(machineId, standing)
    else this.#standings.delete(machineId)
    if (this.#hasGoneOn && !this.#closed) this.#settle([machineId])
  }

  /** Goes on where the vmhost before was. Once, when `note` was told of all machines that there are. */
  async goOn(): Promise<void> {
    const { rows, log } = this.#options
    const late = (error: unknown) => log.warn({ err: error }, 'the ledger is away')
    for (const { machineId, endedAt } of [...this.#underway, ...this.#waiting]) this.#spans.endedAt(machineId, endedAt)
    for (const [id, at] of (await rows.ends().catch(late)) ?? []) this.#spans.endedAt(id, at)
    this.#checkpointBytes = (await rows.checkpointBytes().catch(late)) ?? new Map()
    if (!this.#kept) await this.#recall().catch(late)
    const jump = this.#clock.adjust()
    const now = jump?.from ?? this.#clock.now()
    const open = new Map(this.#kept?.open.map((piece) => [piece.machineId, piece]))
    for (const id of new Set([...open.keys(), ...this.#standings.keys()])) {
      const standing = this.#standing(id)
      const was = open.get(id)
      const times = { now, provenUntil: await this.#provenUntil(id, now), startedAt: this.#processStart(id, now) }
      this.#hold(this.#spans.goOn(id, was, standing, times))
    }
    if (jump) this.#jump(jump)
    this.#hasGoneOn = true
    await this.#save()
  }

  /** Begins to look by itself. */
  start(): void {
    this.#tickLater()
    void this.#send()
  }

  /** Looks at everything, as it does by itself. What is new is kept when this returns, and on its way. */
  async look(): Promise<void> {
    const { log, readTransfer } = this.#options
    const jump = this.#clock.adjust()
    if (jump) this.#jump(jump)
    try {
      const read = await readTransfer()
      this.#readings.take(read, this.#countedAt())
      this.#readings.forgetGone(read)
      this.#lookedAt = this.#clock.now()
      this.#jumpedFrom = undefined
    } catch (err) {
      log.error({ err }, 'what machines have sent cannot be read')
    }
    this.#hold(this.#spans.cut(this.#clock.now()))
    await this.#save().catch((err: unknown) => log.error({ err }, 'what the ledger is to have cannot be kept'))
    void this.#send()
  }

  /** Keeps what counters that are about to be removed read last. It is there after a power cut when this returns. */
  async keepTransfer(last: TransferReadings): Promise<void> {
    this.#readings.take(last, this.#countedAt())
    // Though nothing is new: what is known already may not be in the file yet.
    await this.#save()
    void this.#send()
  }

  /** Notes everything once more and sends what it can within `limitMs`; machines run on, and the next vmhost goes on. */
  async close(limitMs: number): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.#ticking
    if (!this.#hasGoneOn) return
    await this.look()
    await Promise.race([this.#send(), sleep(limitMs, undefined, { ref: false })])
  }

  async troubles(): Promise<LedgerTroubles> {
    const { path, everyMs } = this.#options
    const isThere = await access(asidePath(path)).then(
      () => true,
      () => false,
    )
    // A database that was started again is found at the next look.
    const isLong = this.#away && this.#clock.now() - this.#away.since.getTime() > 2 * everyMs
    return { away: isLong ? this.#away : undefined, aside: isThere ? asidePath(path) : undefined }
  }

  /** Of counters that are there already, when the file was lost with what was known of them. */
  async #recall(): Promise<void> {
    const { rows, readTransfer } = this.#options
    await this.#readings.recall(await readTransfer(), (series) => rows.lastReadings(series))
  }

  /** When what counters have now was counted. */
  #countedAt(): number {
    return countedAt(this.#lookedAt, this.#jumpedFrom ?? this.#clock.now())
  }

  #settle(machineIds: Iterable<number>): void {
    const before = this.#spans.revision
    for (const id of machineIds) this.#hold(this.#spans.note(id, this.#standing(id), this.#clock.now()))
    if (this.#spans.revision === before) return
    // What runs meanwhile must not wait for the disk.
    this.#save().then(
      () => this.#send(),
      (err: unknown) => this.#options.log.error({ err }, 'what the ledger is to have cannot be kept'),
    )
  }

  #tickLater(): void {
    if (this.#closed) return
    const now = this.#clock.now()
    this.#timer = setTimeout(
      () => {
        this.#ticking = this.look().finally(() => this.#tickLater())
      },
      Math.min(this.#options.everyMs, nextMidnight(now) - now + 1),
    )
  }

  #jump({ from, to }: { readonly from: number; readonly to: number }): void {
    this.#options.log.warn({ ms: to - from }, 'the clock was set: the ledger has nothing for the time between')
    this.#jumpedFrom ??= from
    this.#hold(this.#spans.jump(from, to))
  }

  /** Takes pieces for the ledger, one with the last of the same machine where they are one. */
  #hold(pieces: readonly Piece[]): void {
    for (const piece of pieces) {
      const index = this.#waiting.findLastIndex(({ machineId }) => machineId === piece.machineId)
      const last = this.#waiting[index]
      if (last && isContinued(last, piece)) this.#waiting[index] = { ...last, endedAt: piece.endedAt }
      else this.#waiting.push(piece)
    }
  }

  #standing(machineId: number): Standing | undefined {
    const standing = this.#standings.get(machineId)
    if (!standing) {
      this.#processes.delete(machineId)
      return undefined
    }
    const { pid, ...rest } = standing
    return {
      ...rest,
      process: this.#process(machineId, pid),
      checkpointBytes: this.#checkpointBytes.get(machineId) ?? 0,
    }
  }

  #process(machineId: number, pid: number | undefined): string | null {
    const known = this.#processes.get(machineId)
    if (pid === undefined) {
      this.#processes.delete(machineId)
      return null
    }
    if (known?.pid === pid) return known.key
    const key = `${this.#options.clocks.boot}:${pid}:${startTicks(pid) ?? '?'}`
    this.#processes.set(machineId, { pid, key })
    return key
  }

  /** When the hypervisor started that a vmhost before may have started and not noted; undefined: not known. */
  #processStart(machineId: number, now: number): number | undefined {
    const pid = this.#standings.get(machineId)?.pid
    const ticks = pid === undefined ? undefined : startTicks(pid)
    if (!this.#kept || ticks === undefined) return undefined
    const ageMs = uptimeMs() - ticks * tickMs
    return Math.min(now, Math.max(Math.round(now - ageMs), this.#kept.time.at))
  }

  async #provenUntil(machineId: number, now: number): Promise<number> {
    const seen = this.#kept?.time.at ?? now
    const written = await this.#options.lastWrite(machineId).catch(() => undefined)
    return Math.min(now, Math.max(seen, Math.floor(written ?? 0)))
  }

  async #write(): Promise<void> {
    await this.#putAsideTooMany()
    await writeJournal(this.#options.path, {
      time: this.#clock.kept(),
      lookedAt: this.#lookedAt,
      open: this.#spans.open,
      underway: this.#underway,
      waiting: this.#waiting,
      readings: this.#readings.kept,
    })
  }

  async #putAsideTooMany(): Promise<void> {
    const { waitingMost = waitingMostByDefault } = this.#options
    const pieces = this.#waiting.splice(0, Math.max(0, this.#waiting.length - waitingMost))
    const readings = this.#readings.tooMany(waitingMost)
    if (pieces.length + readings.length === 0) return
    try {
      await this.#putAside([...pieces, ...readings], new Error('the ledger was away for too long'))
    } catch (error) {
      this.#waiting.unshift(...pieces)
      throw error
    }
    for (const reading of readings) this.#readings.sent(reading)
  }

  async #putAside(facts: readonly (Piece | Reading)[], error: unknown): Promise<void> {
    const { path, log } = this.#options
    log.error({ err: error, facts: facts.slice(0, 10) }, `the ledger lacks facts, put aside in ${asidePath(path)}`)
    await putAside(path, facts, (error as Error).message)
  }

  async #sendAll(): Promise<void> {
    const { rows, log, onLeaseLost } = this.#options
    try {
      await this.#sendSpans()
      await this.#sendReadings()
      this.#checkpointBytes = await rows.checkpointBytes()
      if (this.#away) log.info('the ledger is back, and has everything')
      this.#away = undefined
    } catch (error) {
      if (error instanceof LeaseLostError) {
        this.#closed = true
        onLeaseLost()
      } else if (!this.#away) log.warn({ err: error }, 'the ledger is away: what it is to have is kept')
      this.#away = { since: this.#away?.since ?? new Date(this.#clock.now()), why: (error as Error).message }
      return
    }
    if (!this.#closed) this.#settle(this.#standings.keys())
  }

  async #sendSpans(): Promise<void> {
    while (this.#underway.length > 0 || this.#waiting.length > 0) {
      if (this.#underway.length === 0) {
        this.#underway = this.#waiting.splice(0, batchMost)
        // From here on they are sent as they are now, or not at all.
        await this.#save()
      }
      const { rows, log } = this.#options
      const append = (some: readonly Piece[]) => rows.appendSpans(some)
      await eachOrAll(this.#underway, append, async (piece, error) => {
        log.error({ err: error, piece }, 'the ledger refuses a span')
        await eachOrAll(await rows.missingOf(piece), append, (missing, why) => this.#putAside([missing], why))
        // Whatever comes of the others, this one is not put aside again.
        this.#underway = this.#underway.filter((one) => one !== piece)
      })
      this.#underway = []
    }
  }

  async #sendReadings(): Promise<void> {
    const { rows } = this.#options
    for (let unsent = this.#readings.unsent; unsent.length > 0; unsent = this.#readings.unsent) {
      const some = unsent.slice(0, batchMost)
      await eachOrAll(
        some,
        (readings) => rows.appendReadings(readings),
        async (reading, error) => {
          const [there] = await rows.lastReadings([reading.series], reading.sequence)
          if (there && this.#readings.setBack(reading, there)) return
          await this.#putAside([reading], error)
          this.#readings.sent(reading)
        },
      )
      for (const reading of some) this.#readings.sent(reading)
    }
  }
}

function isContinued(last: Piece, next: Piece): boolean {
  const sameDay = nextMidnight(last.startedAt) === nextMidnight(next.startedAt)
  return last.endedAt === next.startedAt && last.state === next.state && sameDay && isSameSize(last, next)
}

/** USER_HZ, what /proc counts in: 100 a second on x86 and ARM. @see time(7) */
const tickMs = 10

/** Field 22 of /proc/PID/stat. @see proc_pid_stat(5) */
function startTicks(pid: number): number | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[19])
  } catch {
    return undefined
  }
}

/** @see proc_uptime(5) */
function uptimeMs(): number {
  return Number.parseFloat(readFileSync('/proc/uptime', 'latin1')) * 1000
}
