type Ask<Result> = { now: Promise<Result>; next: Promise<Result> | undefined }

/**
 * Work of which one run serves everybody who asked before it began. Who asks while one is on its way waits for the next, which
 * they share: what that one saw may be older than what made them ask.
 */
export class Joined<Key, Result> {
  readonly #asks = new Map<Key, Ask<Result>>()

  /**
   * @param run is given what the run gave that was on its way, where there was one that did not fail
   * @returns what a run gave that began no sooner than this call; rejects as it does
   */
  ask(key: Key, run: (before?: Result) => Promise<Result>): Promise<Result> {
    const ask = this.#asks.get(key)
    if (ask) {
      const again = (before?: Result) => this.ask(key, () => run(before))
      ask.next ??= ask.now.then(again, () => again())
      return ask.next
    }
    const now = run().finally(() => this.#asks.delete(key))
    this.#asks.set(key, { now, next: undefined })
    return now
  }
}
