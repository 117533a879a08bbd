import { createHash } from 'node:crypto'
import type { Counted, TransferReading, TransferReadings } from '../network/counters.ts'

/** What a series' counters read, absolute; a row of the ledger but for whose it is. */
export type Reading = {
  readonly series: string
  readonly sequence: number
  readonly machineId: number
  /** id of the host's boot */
  readonly boot: string
  /** milliseconds since 1970 */
  readonly at: number
  readonly directOutBytes: number
  readonly directOutPackets: number
  readonly directInBytes: number
  readonly directInPackets: number
  readonly gatewayOutBytes: number
  readonly gatewayOutPackets: number
  readonly gatewayInBytes: number
  readonly gatewayInPackets: number
}

/** The last reading of a series. */
export type LastReading = Reading & {
  /** the series that the counters themselves have in their name: another, where they were set back */
  readonly counters: string
  /** the ledger has it */
  readonly isSent: boolean
}

const figures = [
  'directOutBytes',
  'directOutPackets',
  'directInBytes',
  'directInPackets',
  'gatewayOutBytes',
  'gatewayOutPackets',
  'gatewayInBytes',
  'gatewayInPackets',
] as const

/**
 * The last reading of each series. A counter that reads less than before was set back (`nft reset`): what it reads from
 * then on belongs to a series of its own, whose name follows from the one before, so that whoever finds it out again,
 * after a crash, arrives at the same.
 */
export class Readings {
  readonly #boot: string
  readonly #last = new Map<string, LastReading>()

  /** @param boot id of the host's boot */
  constructor(boot: string, kept: readonly LastReading[] = []) {
    this.#boot = boot
    for (const reading of kept) this.#last.set(reading.series, reading)
  }

  get last(): readonly LastReading[] {
    return [...this.#last.values()]
  }

  get unsent(): readonly LastReading[] {
    return this.last.filter(({ isSent }) => !isSent)
  }

  /** @returns whether anything is new */
  take({ sequence, readings }: TransferReadings, at: number): boolean {
    let isNews = false
    for (const counted of readings) isNews = this.#takeOne(counted, sequence, at) || isNews
    return isNews
  }

  /** Forgets series whose counters are gone and whose last reading has arrived. @param all what there is */
  forgetGone({ sequence, readings }: TransferReadings): void {
    const there = new Set(readings.map(({ series }) => series))
    for (const last of this.#last.values())
      if (last.isSent && !there.has(last.counters) && (last.sequence < sequence || last.boot !== this.#boot))
        this.#last.delete(last.series)
  }

  sent(reading: Reading): void {
    const last = this.#last.get(reading.series)
    if (last?.sequence === reading.sequence) this.#last.set(last.series, { ...last, isSent: true })
  }

  /** The ledger has more of this series than was read: it goes on under another name. */
  setBack(reading: LastReading): void {
    this.#last.delete(reading.series)
    const series = seriesAfter(reading.series)
    this.#last.set(series, { ...reading, series })
  }

  #takeOne(counted: TransferReading, sequence: number, at: number): boolean {
    let series = counted.series
    let last = this.#last.get(series)
    const as = (): Reading => complete(counted, { series, sequence, at, boot: this.#boot }, last)
    let reading = as()
    while (last) {
      // Read before what is known already, by another reader.
      if (sequence <= last.sequence) return false
      const known = last
      if (!figures.some((figure) => reading[figure] < known[figure])) break
      series = seriesAfter(series)
      last = this.#last.get(series)
      reading = as()
    }
    const before = last
    const isNews = before
      ? figures.some((figure) => reading[figure] > before[figure])
      : figures.some((figure) => reading[figure] > 0)
    // What stays as it is keeps its sequence too, so that what was sent is known to be.
    if (isNews) this.#last.set(series, { ...reading, counters: counted.series, isSent: false })
    return isNews
  }
}

/** A counter that is missing is taken for what it read last. */
function complete(
  { machineId, directOut, directIn, gatewayOut, gatewayIn }: TransferReading,
  as: Pick<Reading, 'series' | 'sequence' | 'at' | 'boot'>,
  last: Reading | undefined,
): Reading {
  const bytes = (counted: Counted | undefined, before = 0) => counted?.bytes ?? before
  const packets = (counted: Counted | undefined, before = 0) => counted?.packets ?? before
  return {
    ...as,
    machineId,
    at: Math.max(as.at, last?.at ?? 0),
    directOutBytes: bytes(directOut, last?.directOutBytes),
    directOutPackets: packets(directOut, last?.directOutPackets),
    directInBytes: bytes(directIn, last?.directInBytes),
    directInPackets: packets(directIn, last?.directInPackets),
    gatewayOutBytes: bytes(gatewayOut, last?.gatewayOutBytes),
    gatewayOutPackets: packets(gatewayOut, last?.gatewayOutPackets),
    gatewayInBytes: bytes(gatewayIn, last?.gatewayInBytes),
    gatewayInPackets: packets(gatewayIn, last?.gatewayInPackets),
  }
}

/** @see RFC 9562, 5.8: a UUID of a kind of our own */
function seriesAfter(series: string): string {
  const hex = createHash('sha256').update(`set back: ${series}`).digest('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-8${hex.slice(13, 16)}-a${hex.slice(17, 20)}-${hex.slice(20, 32)}`
}
