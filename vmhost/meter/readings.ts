import { createHash } from 'node:crypto'
import type { Counted, TransferReading, TransferReadings } from '../network/counters.ts'
import { nextMidnight } from './spans.ts'

/**
 * What is to be sent of what counters read.
 *
 * A life of a tap's counters is a series of the ledger, under the name that they bear. Each of the four can be set back
 * alone (`nft reset counter`): what it reads from then on is in a series of its own, with nothing of the other three, while
 * the life's own series keeps for it what it read last. So every figure in the ledger is what a counter read, and none is
 * there twice. The name of such a series follows from the one before, so that whoever finds it out again, after a crash,
 * arrives at the same.
 *
 * A reading's time says to which day its bytes belong, so one waits for each UTC day that the ledger is away, the last.
 */

export const parts = ['directOut', 'directIn', 'gatewayOut', 'gatewayIn'] as const
type Part = (typeof parts)[number]
type Figures = { readonly [name in `${Part}${'Bytes' | 'Packets'}`]: number }

/** What a series' counters read, absolute; a row of the ledger but for whose it is. */
export type Reading = Figures & {
  readonly series: string
  readonly sequence: number
  readonly machineId: number
  /** id of the host's boot */
  readonly boot: string
  /** milliseconds since 1970 */
  readonly at: number
}

export type CountersReading = Reading & {
  /** the series that the counters have in their name */
  readonly counters: string
  /** the one of them that this is about, which was set back; undefined: all, in their own series */
  readonly part?: Part | undefined
}

/** As it is kept from one vmhost to the next: all that waits, and the last of each series. */
export type KeptReading = CountersReading & { readonly isSent: boolean }

/** What was read last of one life's counters. */
type Life = {
  own: CountersReading
  /** of those that were set back, in the latest series of each */
  readonly ofParts: { [part in Part]?: CountersReading }
}

const nothing: Figures = {
  directOutBytes: 0,
  directOutPackets: 0,
  directInBytes: 0,
  directInPackets: 0,
  gatewayOutBytes: 0,
  gatewayOutPackets: 0,
  gatewayInBytes: 0,
  gatewayInPackets: 0,
}
const figures = Object.keys(nothing) as (keyof Figures)[]

export class Readings {
  readonly #boot: string
  readonly #lives = new Map<string, Life>()
  /** In the order in which they were read. */
  readonly #unsent = new Set<CountersReading>()

  /** @param boot id of the host's boot */
  constructor(boot: string, kept: readonly KeptReading[] = []) {
    this.#boot = boot
    for (const { isSent, ...reading } of kept.toSorted((a, b) => Number(!!a.part) - Number(!!b.part))) {
      this.#know(reading)
      if (!isSent) this.#unsent.add(reading)
    }
  }

  /**
   * Learns what is known of these counters from the ledger, where the file that had it was lost.
   * @param lastOf the last reading of each series that there is
   */
  async recall(
    { readings }: TransferReadings,
    lastOf: (series: readonly string[]) => Promise<readonly Reading[]>,
  ): Promise<void> {
    type Asked = Pick<CountersReading, 'series' | 'counters' | 'part'>
    let asked = readings.map(({ series }): Asked => ({ series, counters: series, part: undefined }))
    while (asked.length > 0) {
      const found = new Map((await lastOf(asked.map(({ series }) => series))).map((one) => [one.series, one]))
      const next: Asked[] = []
      for (const { series, counters, part: only } of asked) {
        const last = found.get(series)
        if (!last) continue
        this.#know({ ...last, counters, part: only })
        for (const part of only ? [only] : parts) next.push({ series: seriesAfter(series, part), counters, part })
      }
      asked = next
    }
  }

  get kept(): readonly KeptReading[] {
    const lasts = [...this.#lives.values()].flatMap(({ own, ofParts }) => [own, ...Object.values(ofParts)])
    const sent = lasts.filter((reading) => !this.#unsent.has(reading))
    return [...sent.map((one) => ({ ...one, isSent: true })), ...this.unsent.map((one) => ({ ...one, isSent: false }))]
  }

  get unsent(): readonly CountersReading[] {
    return [...this.#unsent]
  }

  /** @param at when it was counted, in milliseconds since 1970 @returns whether anything is new */
  take({ sequence, readings }: TransferReadings, at: number): boolean {
    let isNews = false
    for (const counted of readings) isNews = this.#takeOne(counted, sequence, at) || isNews
    return isNews
  }

  /** Forgets lives whose counters are gone and whose last readings have arrived. @param all what there is */
  forgetGone({ sequence, readings }: TransferReadings): void {
    const needed = new Set([...readings.map(({ series }) => series), ...this.unsent.map(({ counters }) => counters)])
    for (const [counters, { own }] of this.#lives)
      if (!needed.has(counters) && (own.sequence < sequence || own.boot !== this.#boot)) this.#lives.delete(counters)
  }

  /** The ledger has it, or never will. */
  sent(reading: CountersReading): void {
    this.#unsent.delete(reading)
  }

  /**
   * The ledger has more of its series than this reading: counters were set back, and it is not known here any more.
   * @param there what the ledger has
   * @returns whether that is so
   */
  setBack(reading: CountersReading, there: Figures): boolean {
    // Another one has taken its place, and is told when it is refused.
    if (!this.#unsent.has(reading)) return true
    const fallen = (reading.part ? [reading.part] : parts).filter((part) =>
      isBelow(countedOf(reading, part), there, part),
    )
    if (fallen.length === 0) return false
    this.#unsent.delete(reading)
    const { counters, sequence, machineId, boot, at } = reading
    const rest: CountersReading = Object.assign(
      {},
      reading,
      ...fallen.map((part) => figuresOf(part, countedOf(there, part))),
    )
    if (isAbove(rest, there)) this.#unsent.add(rest)
    const life = this.#lives.get(counters)
    if (life?.own === reading) life.own = rest
    for (const part of fallen) {
      const series = seriesAfter(reading.series, part)
      const counted = figuresOf(part, countedOf(reading, part))
      const own = { ...nothing, ...counted, series, counters, part, sequence, machineId, boot, at }
      this.#unsent.add(own)
      this.#know(own)
    }
    return true
  }

  /**
   * When more wait than that, days of a series are joined, oldest first: what was read since has their bytes too, and says
   * of them but another day.
   * @returns the oldest of those that are too many still
   */
  tooMany(most: number): CountersReading[] {
    if (this.#unsent.size <= most) return []
    const lastOf = new Map(this.unsent.map((one) => [one.series, one]))
    for (const one of this.unsent)
      if (this.#unsent.size > most && lastOf.get(one.series) !== one) this.#unsent.delete(one)
    return this.unsent.slice(0, Math.max(0, this.#unsent.size - most))
  }

  /** @param reading the last of its series, or an earlier one */
  #know(reading: CountersReading): void {
    const { counters, part } = reading
    const life = this.#lives.get(counters)
    const last = part ? life?.ofParts[part] : life?.own
    // A series may begin with the reading that was to go on with the one before.
    if (last && last.sequence > reading.sequence) return
    if (!life) this.#lives.set(counters, { own: reading, ofParts: {} })
    else if (part) life.ofParts[part] = reading
    else life.own = reading
  }

  #takeOne(counted: TransferReading, sequence: number, at: number): boolean {
    const { series: counters, machineId } = counted
    const life = this.#lives.get(counters)
    const as = { counters, sequence, machineId, boot: this.#boot, at }
    let own: CountersReading = { ...nothing, series: counters, ...life?.own, ...as }
    let isNews = false
    for (const part of parts) {
      const now = counted[part]
      const last = life?.ofParts[part] ?? life?.own
      // A counter that is missing is taken for what it read last; and another reader may have read after this one.
      if (!now || (last && sequence <= last.sequence)) continue
      if (last && isBelow(now, last, part)) {
        const next = { ...nothing, ...figuresOf(part, now), ...as, series: seriesAfter(last.series, part), part }
        this.#know(next)
        if (now.packets > 0) this.#unsent.add(next)
        isNews = true
      } else if (last?.part) isNews = this.#goOn(last, { ...last, ...figuresOf(part, now), ...as }) || isNews
      else own = { ...own, ...figuresOf(part, now) }
    }
    return this.#goOn(life?.own, own) || isNews
  }

  /** What stays as it is keeps its sequence and its time too. @returns whether it does not */
  #goOn(last: CountersReading | undefined, next: CountersReading): boolean {
    if (!isAbove(next, last ?? nothing)) return false
    if (last && nextMidnight(last.at) === nextMidnight(next.at)) this.#unsent.delete(last)
    this.#unsent.add(next)
    this.#know(next)
    return true
  }
}

/**
 * When what was counted between two looks was counted: in the day that most of the time between was in. The look that is
 * taken at midnight ends the old day.
 * @param lookedAt milliseconds since 1970, like all
 */
export function countedAt(lookedAt: number, now: number): number {
  const midnight = nextMidnight(lookedAt)
  return midnight <= now && now - midnight < midnight - lookedAt ? midnight - 1 : now
}

function countedOf(reading: Figures, part: Part): Counted {
  return { bytes: reading[`${part}Bytes` as const], packets: reading[`${part}Packets` as const] }
}

function figuresOf(part: Part, { bytes, packets }: Counted): Partial<Figures> {
  return { [`${part}Bytes`]: bytes, [`${part}Packets`]: packets }
}

/** A counter is one: its bytes and its packets are set back together. */
function isBelow(now: Counted, last: Figures, part: Part): boolean {
  const before = countedOf(last, part)
  return now.bytes < before.bytes || now.packets < before.packets
}

function isAbove(now: Figures, last: Figures): boolean {
  return figures.some((figure) => now[figure] > last[figure])
}

/** @see RFC 9562, 5.8: a UUID of a kind of our own */
function seriesAfter(series: string, part: Part): string {
  const hex = createHash('sha256').update(`set back: ${series} ${part}`).digest('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}
