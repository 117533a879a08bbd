/**
 * A clock that ticks once a second for everything that has a deadline. Thousands of connections with a timer each
 * would cost more than the sweep over them, and no deadline here is finer than a second.
 */
export class Clock {
  /** monotonic milliseconds as of the last tick */
  nowMs = performance.now()
  readonly #listeners = new Set<() => void>()
  readonly #timer: NodeJS.Timeout

  constructor(tickMs = 1000) {
    this.#timer = setInterval(() => {
      this.nowMs = performance.now()
      for (const listener of this.#listeners) listener()
    }, tickMs)
    this.#timer.unref()
  }

  /** @returns stops calling */
  onTick(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  close(): void {
    clearInterval(this.#timer)
    this.#listeners.clear()
  }
}
