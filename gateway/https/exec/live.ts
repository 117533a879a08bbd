import type { App } from '../../app.ts'
import { goodGrants } from './holder.ts'

/** News come in bursts. */
const GATHER_MS = 20
/** After a failed look it is tried again: what was taken away must not live on because Postgres was busy. */
const AGAIN_MS = 500

type Run = { grant: string; revoke(): void }

/** The lines that run: those whose token, key or account was taken away are ended within a second. */
export class LiveRuns {
  readonly #app: Pick<App, 'sql' | 'news' | 'log'>
  readonly #runs = new Set<Run>()
  readonly #stop: (() => void)[]
  #generation = 0
  #timer: NodeJS.Timeout | undefined

  constructor(app: Pick<App, 'sql' | 'news' | 'log'>) {
    this.#app = app
    const look = () => {
      this.#generation++
      this.#lookIn(GATHER_MS)
    }
    this.#stop = [app.news.on('grants', look), app.news.on('keys', look), app.news.onRescan(look)]
  }

  /** What was read while something was taken away is read again: what is added right after it misses no news. */
  async stable<T>(read: () => Promise<T>): Promise<T> {
    for (;;) {
      const generation = this.#generation
      const value = await read()
      if (generation === this.#generation) return value
    }
  }

  /** @returns to be called when it has ended */
  add(run: Run): () => void {
    this.#runs.add(run)
    return () => this.#runs.delete(run)
  }

  close(): void {
    clearTimeout(this.#timer)
    for (const stop of this.#stop) stop()
  }

  #lookIn(ms: number): void {
    if (this.#runs.size > 0) this.#timer ??= setTimeout(() => void this.#look(), ms)
  }

  async #look(): Promise<void> {
    this.#timer = undefined
    const runs = [...this.#runs]
    try {
      const good = await goodGrants(this.#app.sql, [...new Set(runs.map(({ grant }) => grant))])
      for (const run of runs) if (!good.has(run.grant)) run.revoke()
    } catch (error) {
      this.#app.log.warn({ err: error }, 'could not check running lines against their tokens')
      this.#lookIn(AGAIN_MS)
    }
  }
}
