import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { LoadState } from '../../migrations/schema.ts'
import type { DiskCounters, Hypervisor } from '../hypervisor/driver.ts'
import { coalesce } from '../reconcile/coalesce.ts'
import { LeaseLostError } from '../reconcile/rows.ts'
import { ageMs, type ProcessReading, readProcess, readTaps, type TapReading } from './load-readings.ts'
import type { LoadMark, LoadRows, LoadSample } from './load-rows.ts'

/**
 * Samples what one server's machines do, at every tenth second of the clock, for plots: nobody pays by it.
 *
 * Counters are absolute and a sample is the difference to the look before. A counter of a process that began since
 * then began at zero, and so did one that reads less than before. The first look of a vmhost has nothing to compare
 * with, and is no sample; nor is one that comes too late to say when things happened: gaps stay gaps.
 *
 * What the database does not take waits in memory, for half an hour of 200 machines; then the oldest is given up. It is
 * not worth a disk's time: a vmhost that is killed meanwhile leaves a gap.
 */

export type LoadSource = {
  readonly id: number
  /** as shown beside its plots; undefined: on its way from one to another */
  readonly state: LoadState | undefined
  /** its hypervisor, while it has one */
  readonly runs?: {
    readonly pid: number
    readonly cpus: number
    readonly memoryBytes: number
    /** by its guest's word; undefined: it has not said anything lately */
    readonly guest: GuestFigures | undefined
    readonly hypervisor: Pick<Hypervisor, 'diskCounters'>
  }
}

export type GuestFigures = {
  readonly memoryUsedBytes: number
  readonly filesystemUsedBytes: number
  readonly filesystemBytes: number
}

export type LoadSamplerOptions = {
  sources(): Iterable<LoadSource>
  readonly rows: Pick<LoadRows, 'add' | 'keepPartitions'>
  readonly log: Pick<Logger, 'info' | 'warn' | 'error' | 'debug'>
  /** another vmhost has taken over this server */
  onLeaseLost(): void
  /** tests: other figures than this server's, and other clocks */
  readonly world?: Partial<SampledWorld>
}

export type SampledWorld = {
  readProcess(pid: number): ProcessReading | undefined
  ageMs(process: ProcessReading): number
  readTaps(): Map<number, TapReading>
  /** since 1970 */
  now(): number
  monotonicMs(): number
}

const everyMs = 10_000
/** Timers may be early by a millisecond, and a look before its time would be of the ten seconds before. */
const afterMs = 20
/** A look that comes later than this says what happened, but not when. */
const comparedMs = 3 * everyMs
const diskLimitMs = 5_000
const sendMost = 2_000
const waitingMost = 36_000
const partitionsEveryMs = 3_600_000
const partitionsAgainMs = 60_000

/** Counters as they read last. */
type Known = {
  readonly pid: number
  readonly startTicks: number
  readonly atMs: number
  readonly cpuMs: number
  readonly disk: (DiskCounters & { readonly atMs: number }) | undefined
}

type Look = { readonly samples: LoadSample[]; readonly marks: LoadMark[] }

export class LoadSampler {
  readonly #options: LoadSamplerOptions
  readonly #world: SampledWorld
  readonly #known = new Map<number, Known>()
  readonly #marked = new Map<number, string>()
  /** whose disk has been asked for and has not answered */
  readonly #asked = new Set<number>()
  readonly #send = coalesce(() => this.#sendAll())
  #waiting: Look[] = []
  #taps: ReadonlyMap<number, TapReading> = new Map()
  #lookedAtMs: number | undefined
  #partitionsAtMs = Number.NEGATIVE_INFINITY
  #isAway = false
  #isOvertaken = false
  #closed = false
  #timer: NodeJS.Timeout | undefined
  #looking: Promise<void> | undefined

  constructor(options: LoadSamplerOptions) {
    this.#options = options
    const here = { readProcess, ageMs, readTaps, now: () => Date.now(), monotonicMs: () => performance.now() }
    this.#world = { ...here, ...options.world }
  }

  /** Looks now, to have something to compare with, and at every tenth second from then on. */
  start(): void {
    this.#begin()
  }

  /** One look. What it saw is on its way when this returns. */
  async look(): Promise<void> {
    const { now, monotonicMs, readTaps: taps } = this.#world
    const slot = new Date(Math.round(now() / everyMs) * everyMs - everyMs).toISOString()
    const before = { taps: this.#taps, atMs: this.#lookedAtMs }
    this.#lookedAtMs = monotonicMs()
    this.#taps = taps()
    const look: Look = { samples: [], marks: [] }
    const seen = new Set<number>()
    await Promise.all(
      [...this.#options.sources()].map(async (source) => {
        seen.add(source.id)
        const reading = source.runs && this.#world.readProcess(source.runs.pid)
        this.#mark(source, reading, look)
        if (!source.runs || !reading) {
          this.#known.delete(source.id)
          return
        }
        const sample = await this.#sample(source.id, source.runs, reading, slot, before)
        if (sample) look.samples.push(sample)
      }),
    )
    for (const map of [this.#known, this.#marked]) for (const id of map.keys()) if (!seen.has(id)) map.delete(id)
    if (look.samples.length + look.marks.length > 0) this.#wait(look)
    void this.#send()
  }

  /** Resolves when everything that was seen is there, or the database is away. */
  async sent(): Promise<void> {
    await this.#send()
  }

  /** Sends what it can within `limitMs`. */
  async close(limitMs: number): Promise<void> {
    this.#closed = true
    clearTimeout(this.#timer)
    await this.#looking
    await Promise.race([this.#send(), sleep(limitMs, undefined, { ref: false })])
  }

  #begin(): void {
    this.#looking = this.look()
      .catch((err: unknown) => this.#options.log.warn({ err }, 'what machines do is looked at again later'))
      .finally(() => {
        if (this.#closed) return
        const { now } = this.#world
        this.#timer = setTimeout(() => this.#begin(), everyMs - (now() % everyMs) + afterMs).unref()
      })
  }

  async #sample(
    id: number,
    runs: NonNullable<LoadSource['runs']>,
    reading: ProcessReading,
    at: string,
    before: { readonly taps: ReadonlyMap<number, TapReading>; readonly atMs: number | undefined },
  ): Promise<LoadSample | undefined> {
    const atMs = this.#world.monotonicMs()
    const last = this.#known.get(id)
    const isSame = last?.pid === runs.pid && last.startTicks === reading.startTicks
    // Put down at once: another look must not compare with what is older.
    this.#known.set(id, { pid: runs.pid, ...reading, atMs, disk: isSame ? last.disk : undefined })
    const disk = await this.#disk(id, runs.hypervisor)
    const known = this.#known.get(id)
    if (known?.atMs === atMs && disk) this.#known.set(id, { ...known, disk })
    const since = isSame ? last : this.#beginning(reading, atMs, before.atMs)
    const ms = since && Math.round(atMs - since.atMs)
    if (!since || !ms || ms < 1 || ms > comparedMs) return undefined
    const diskMs = disk && since.disk && Math.round(disk.atMs - since.disk.atMs)
    const readsDisk = disk && since.disk && diskMs && diskMs > 0 && diskMs <= comparedMs + diskLimitMs
    const tap = this.#taps.get(id)
    const tapBefore = before.taps.get(id)
    return {
      machine_id: id,
      at,
      ms,
      cpus: runs.cpus,
      cpu_ms: difference(reading.cpuMs, since.cpuMs),
      memory_limit_bytes: runs.memoryBytes,
      memory_held_bytes: reading.heldBytes,
      memory_used_bytes: runs.guest?.memoryUsedBytes ?? null,
      disk_ms: readsDisk ? diskMs : null,
      disk_read_bytes: readsDisk ? difference(disk.readBytes, since.disk.readBytes) : null,
      disk_written_bytes: readsDisk ? difference(disk.writtenBytes, since.disk.writtenBytes) : null,
      network_ms: tap ? ms : null,
      network_out_bytes: tap ? difference(tap.outBytes, tapBefore?.outBytes ?? 0) : null,
      network_in_bytes: tap ? difference(tap.inBytes, tapBefore?.inBytes ?? 0) : null,
      filesystem_used_bytes: runs.guest?.filesystemUsedBytes ?? null,
      filesystem_bytes: runs.guest?.filesystemBytes ?? null,
    }
  }

  /** Counters of a process that began since the look before began then, at zero; of others nothing is known. */
  #beginning(
    reading: ProcessReading,
    atMs: number,
    beforeMs: number | undefined,
  ): Omit<Known, 'pid' | 'startTicks'> | undefined {
    const beganAtMs = atMs - this.#world.ageMs(reading)
    // What the kernel says of both clocks is rounded to a hundredth of a second.
    if (beforeMs === undefined || beganAtMs < beforeMs - 20) return undefined
    return { atMs: beganAtMs, cpuMs: 0, disk: { atMs: beganAtMs, readBytes: 0, writtenBytes: 0 } }
  }

  /** A hypervisor that saves its guest answers nothing meanwhile; it is asked again when it has. */
  async #disk(id: number, hypervisor: Pick<Hypervisor, 'diskCounters'>): Promise<Known['disk']> {
    if (this.#asked.has(id)) return undefined
    this.#asked.add(id)
    const answer = hypervisor
      .diskCounters()
      .then((counters) => ({ ...counters, atMs: this.#world.monotonicMs() }))
      .catch((err: unknown) => {
        this.#options.log.debug({ err, machine: id }, 'its disk has not been told of')
        return undefined
      })
      .finally(() => this.#asked.delete(id))
    const late = Promise.withResolvers<undefined>()
    const timer = setTimeout(() => late.resolve(undefined), diskLimitMs)
    return Promise.race([answer, late.promise]).finally(() => clearTimeout(timer))
  }

  #mark({ id, state, runs }: LoadSource, reading: ProcessReading | undefined, look: Look): void {
    const now = this.#world.now()
    const [as, key, at] =
      runs && reading
        ? (['running', `${runs.pid}:${reading.startTicks}`, now - this.#world.ageMs(reading)] as const)
        : [state, state, now]
    // Between two states, or its hypervisor has just gone: the next look knows more.
    if (as === undefined || (as === 'running' && !reading) || this.#marked.get(id) === key) return
    this.#marked.set(id, key ?? '')
    look.marks.push({ machine_id: id, at: new Date(at).toISOString(), state: as })
  }

  #wait(look: Look): void {
    this.#waiting.push(look)
    const size = ({ samples, marks }: Look) => samples.length + marks.length
    let all = this.#waiting.reduce((sum, one) => sum + size(one), 0)
    let lost = 0
    while (all > waitingMost && this.#waiting.length > 1) {
      const oldest = this.#waiting.shift()
      if (oldest) all -= size(oldest)
      lost++
    }
    if (lost > 0) this.#options.log.debug({ lost }, 'the database is away for too long: plots will have a gap')
  }

  async #sendAll(): Promise<void> {
    const { rows, log, onLeaseLost } = this.#options
    if (this.#isOvertaken) return
    try {
      if (this.#world.monotonicMs() - this.#partitionsAtMs >= partitionsEveryMs) {
        await rows.keepPartitions()
        this.#partitionsAtMs = this.#world.monotonicMs()
      }
    } catch (err) {
      // They are made a day ahead; and whoever waits for a table has everybody else wait for it too.
      this.#partitionsAtMs = this.#world.monotonicMs() - partitionsEveryMs + partitionsAgainMs
      log.warn({ err }, 'the tables of load have not been tended')
    }
    try {
      for (let batch = this.#batch(); batch.length > 0; batch = this.#batch()) {
        await this.#add(batch)
        this.#waiting = this.#waiting.filter((look) => !batch.includes(look))
      }
      if (this.#isAway) log.info('what machines did meanwhile has been written')
      this.#isAway = false
    } catch (err) {
      if (err instanceof LeaseLostError) {
        this.#isOvertaken = true
        onLeaseLost()
      } else if (!this.#isAway) log.warn({ err }, 'what machines do waits for the database')
      this.#isAway = true
    }
  }

  /** The oldest looks, as many as one statement is to have. */
  #batch(): Look[] {
    let samples = 0
    const end = this.#waiting.findIndex((look) => {
      samples += look.samples.length
      return samples > sendMost
    })
    return this.#waiting.slice(0, end < 0 ? undefined : Math.max(end, 1))
  }

  async #add(looks: readonly Look[]): Promise<void> {
    try {
      await this.#options.rows.add(
        looks.flatMap(({ samples }) => samples),
        looks.flatMap(({ marks }) => marks),
      )
    } catch (err) {
      const { code } = err as { code?: unknown }
      // SQLSTATE classes 22, 23, 42: refused next time too, such as a time for which there is no partition.
      if (typeof code !== 'string' || !/^(22|23|42)/.test(code)) throw err
      this.#options.log.error({ err }, 'the database refuses what machines did: plots will have a gap')
    }
  }
}

/** A counter that reads less than before began anew. */
function difference(now: number, before: number): number {
  return now >= before ? now - before : now
}
