import { addressGroup } from '../../ssh/limits.ts'

const MINUTE_MS = 60_000
const ADDRESSES_MOST = 10_000

/** So many attempts a minute from one address; of IPv6 the /64 that one customer has. */
export class Rate {
  readonly #most: number
  readonly #counts = new Map<string, number>()
  #sinceMs = performance.now()

  constructor(most: number) {
    this.#most = most
  }

  /** Whether the next attempt is one too many. */
  isOver(address: string): boolean {
    this.#forgetOld()
    return (this.#counts.get(addressGroup(address)) ?? 0) >= this.#most
  }

  /** Counts an attempt. @returns whether it is one too many */
  exceeded(address: string): boolean {
    this.#forgetOld()
    const key = addressGroup(address)
    const count = (this.#counts.get(key) ?? 0) + 1
    this.#counts.set(key, count)
    return count > this.#most
  }

  #forgetOld(): void {
    const nowMs = performance.now()
    if (nowMs - this.#sinceMs <= MINUTE_MS && this.#counts.size <= ADDRESSES_MOST) return
    this.#counts.clear()
    this.#sinceMs = nowMs
  }
}
