/** How many machines may be between power-on and readiness at once; the others wait in the order they came. */
export class Slots {
  readonly #most: number
  readonly #waiting: { resolve(): void }[] = []
  #taken = 0
  #freedAt = Number.NEGATIVE_INFINITY

  constructor(most: number) {
    this.#most = most
  }

  /** Whether any machine is coming up, or came up less than `sinceMs` ago. */
  busyWithin(sinceMs: number): boolean {
    return this.#taken > 0 || performance.now() - this.#freedAt < sinceMs
  }

  /** Whether the next machine has to wait. */
  get full(): boolean {
    return this.#taken >= this.#most
  }

  /** @returns a slot; dispose of it when the start has come to its end. @throws the signal's reason */
  async acquire(signal: AbortSignal): Promise<Disposable> {
    signal.throwIfAborted()
    if (this.#taken < this.#most) this.#taken++
    else {
      const { promise, resolve, reject } = Promise.withResolvers<void>()
      const entry = { resolve }
      const onAbort = () => {
        const at = this.#waiting.indexOf(entry)
        // Not waiting any more: the slot was handed over in this very moment and is taken with it.
        if (at < 0) return
        this.#waiting.splice(at, 1)
        reject(signal.reason)
      }
      this.#waiting.push(entry)
      signal.addEventListener('abort', onAbort, { once: true })
      try {
        await promise
      } finally {
        signal.removeEventListener('abort', onAbort)
      }
    }
    let held = true
    return {
      [Symbol.dispose]: () => {
        if (!held) return
        held = false
        this.#freedAt = performance.now()
        const next = this.#waiting.shift()
        if (next) next.resolve()
        else this.#taken--
      },
    }
  }
}
