/**
 * A server that says nothing any more writes nothing either: nobody is notified when its lease runs out. While somebody
 * wants to know, the moment at which the next lease would is looked up, and what became of it then; those that renew
 * theirs, as they do all the time, are looked at once in the length of a lease.
 */
import type { App } from '../../app.ts'

/** A lease that runs out at this instant has run out a little later. */
const LATER_MS = 50
/** After a look that failed. */
const AGAIN_MS = 5_000
/** A timer for longer than that may as well look in between. */
const MOST_MS = 60_000

export class LeaseWatch {
  readonly #app: Pick<App, 'sql' | 'log'>
  readonly #onChange: () => void
  #timer: NodeJS.Timeout | undefined
  #isLooking = false
  /** rows have changed while they were looked at */
  #isOutdated = false
  #isWanted = false
  /** the servers whose lease has run out, as they were last seen; whoever looked before may have seen them alive */
  #silent = ''

  /** @param onChange a server went silent, or is heard again */
  constructor(app: Pick<App, 'sql' | 'log'>, onChange: () => void) {
    this.#app = app
    this.#onChange = onChange
  }

  /** Somebody wants to know; to be called again when rows of servers have changed. */
  watch(): void {
    this.#isWanted = true
    this.#isOutdated = this.#isLooking
    if (!this.#isLooking) void this.#look()
  }

  /** Nobody wants to know. */
  rest(): void {
    this.#isWanted = false
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#silent = ''
  }

  close(): void {
    this.rest()
  }

  async #look(): Promise<void> {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#isLooking = true
    let nextMs: number | undefined = AGAIN_MS
    try {
      const [row] = await this.#app.sql<{ silent: string; ms: number | null }[]>`
        select coalesce(string_agg(id::text, ' ' order by id) filter (where lease_expires_at <= now()), '') as silent,
          (extract(epoch from min(lease_expires_at) filter (where lease_expires_at > now()) - now()) * 1000)::float8 as ms
        from hosts`
      const { silent = '', ms = null } = row ?? {}
      const isNews = this.#isWanted && this.#silent !== silent
      this.#silent = silent
      // With none alive there is nothing to wait for: the first that comes back changes its row.
      nextMs = ms === null ? undefined : Math.min(MOST_MS, ms + LATER_MS)
      if (isNews) this.#onChange()
    } catch (error) {
      this.#app.log.warn({ err: error }, 'the leases of servers could not be read')
    }
    this.#isLooking = false
    if (!this.#isWanted) this.#silent = ''
    else if (this.#isOutdated) this.watch()
    else if (nextMs !== undefined) this.#timer = setTimeout(() => void this.#look(), nextMs).unref()
  }
}
