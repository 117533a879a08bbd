/**
 * The time that the ledger is kept in: it never runs backwards, and goes as fast as time does, whatever is done to the
 * server's clock. It follows the kernel's monotonic clock from one vmhost to the next, and is compared with the wall
 * clock every now and then:
 *
 * - the wall clock was put forward by more than a second: the ledger's time jumps with it, and the time between, which
 *   never was, is nobody's;
 * - it was put back by up to a day: the ledger's time stays ahead of it until the server boots again after that time. What
 *   was written of the hours that come twice is there already;
 * - it was put back by more: it had been wrong, and the ledger's time goes back with it.
 */

/** As it is kept from one vmhost to the next. */
export type KeptTime = {
  /** id of the host's boot */
  readonly boot: string
  /** milliseconds since that boot */
  readonly monotonicMs: number
  /** milliseconds since 1970 */
  readonly at: number
}

export type Clocks = { wallMs(): number; monotonicMs(): number; boot: string }

/** A step of this size is no drift, and makes no bill wrong. */
const stepMs = 1_000
const mostAheadMs = 86_400_000

export class MeterClock {
  readonly #clocks: Clocks
  #at: number
  #monotonicMs: number

  constructor(clocks: Clocks, kept?: KeptTime) {
    this.#clocks = clocks
    const [wall, monotonic] = [clocks.wallMs(), clocks.monotonicMs()]
    const isSameBoot = kept?.boot === clocks.boot && kept.monotonicMs <= monotonic
    const went = kept && (isSameBoot ? kept.at + monotonic - kept.monotonicMs : kept.at)
    this.#monotonicMs = monotonic
    // A step while no vmhost was there is found by `adjust`, and since another boot nobody knows how much time went by.
    this.#at = went === undefined || (!isSameBoot && (went < wall || went > wall + mostAheadMs)) ? wall : went
  }

  /** Milliseconds since 1970, whole. */
  now(): number {
    return Math.floor(this.#at + this.#clocks.monotonicMs() - this.#monotonicMs)
  }

  /** Compares with the wall clock. @returns where the ledger's time jumped, if it did */
  adjust(): { readonly from: number; readonly to: number } | undefined {
    const from = this.now()
    const to = this.#clocks.wallMs()
    if (to <= from && to >= from - mostAheadMs) return undefined
    this.#at = to
    this.#monotonicMs = this.#clocks.monotonicMs()
    return Math.abs(to - from) > stepMs ? { from, to } : undefined
  }

  kept(): KeptTime {
    const { boot } = this.#clocks
    return { boot, monotonicMs: Math.floor(this.#clocks.monotonicMs()), at: this.now() }
  }
}

/** @param boot id of the host's boot */
export function systemClocks(boot: string): Clocks {
  return { wallMs: Date.now, monotonicMs: () => Number(process.hrtime.bigint()) / 1e6, boot }
}
