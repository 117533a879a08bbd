import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../migrations/connect.ts'
import type { Log } from '../log.ts'
import { closeDueMonths } from './closing.ts'
import { checkLimits } from './limits.ts'

/** Facts of running machines come in every few minutes; limits are looked at as often. */
const ROUND_MS = 300_000
/** Not while a gateway has its first connections to think of. */
const FIRST_ROUND_MS = 20_000

export type Billing = { close(): Promise<void> }

/** Closes months and watches limits, in one gateway of all at a time. */
export function startBilling({ sql, log }: { sql: Sql; log: Log }): Billing {
  const closing = new AbortController()
  const { signal } = closing
  const rounds = async () => {
    for (let waitMs = FIRST_ROUND_MS; !signal.aborted; waitMs = ROUND_MS) {
      await sleep(waitMs, undefined, { signal, ref: false }).catch(() => {})
      if (signal.aborted) return
      await billingRound({ sql, log, signal }).catch((error: unknown) => {
        if (!signal.aborted) log.warn({ err: error }, 'invoices and limits are looked at again later')
      })
    }
  }
  const running = rounds()
  return {
    async close() {
      closing.abort()
      await running
    },
  }
}

/**
 * One look, if no other gateway is at it.
 * @param options.now instead of the database's clock
 * @returns whether it was this one's turn
 */
export async function billingRound(options: { sql: Sql; log: Log; signal: AbortSignal; now?: Date }): Promise<boolean> {
  const { sql, log, signal } = options
  // A lock of a session: Postgres frees it when this process, or its connection, is gone.
  const session = await sql.reserve()
  try {
    const [turn] = await session<{ mine: boolean; now: Date }[]>`
      select pg_try_advisory_lock(hashtextextended('berth.billing', 0)) as mine, now() as now`
    if (!turn?.mine) return false
    try {
      const now = options.now ?? turn.now
      // Whatever is with the months, limits are looked at.
      await closeDueMonths(sql, now, signal, log).catch((error: unknown) => {
        if (!signal.aborted) log.error({ err: error }, 'months could not be closed, and are tried again')
      })
      await checkLimits(sql, now, signal, log)
      return true
    } finally {
      await session`select pg_advisory_unlock(hashtextextended('berth.billing', 0))`.catch(() => {})
    }
  } finally {
    session.release()
  }
}
