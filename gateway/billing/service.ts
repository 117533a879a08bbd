import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../migrations/connect.ts'
import type { App } from '../app.ts'
import { controlUrl } from '../commands/web-links.ts'
import type { Log } from '../log.ts'
import { type Clocks, provenMonths } from './clock.ts'
import { closeDueMonths, dueMonths } from './closing.ts'
import type { Where } from './invoice-letter.ts'
import { checkLimits, type LookedAt } from './limits.ts'

/** How late at most a limit is looked at when facts have come in. */
const ROUND_MS = 60_000
/** Not while a gateway has its first connections to think of. */
const FIRST_ROUND_MS = 20_000

export type Billing = { close(): Promise<void> }

/** Closes months and watches limits, in one gateway of all at a time. */
export function startBilling({ sql, log, settings }: Pick<App, 'sql' | 'log' | 'settings'>): Billing {
  const closing = new AbortController()
  const { signal } = closing
  const lookedAt: LookedAt = new Map()
  const where: Where = {
    ...(settings.https.length > 0 ? { controlUrl: controlUrl(settings) } : {}),
    collects: settings.stripe !== undefined,
  }
  const rounds = async () => {
    for (let waitMs = FIRST_ROUND_MS; !signal.aborted; waitMs = ROUND_MS) {
      await sleep(waitMs, undefined, { signal, ref: false }).catch(() => {})
      if (signal.aborted) return
      await billingRound({ sql, log, signal, lookedAt, where }).catch((error: unknown) => {
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
 * @param options.own instead of this process's
 * @returns whether it was this one's turn
 */
export async function billingRound(options: {
  sql: Sql
  log: Log
  signal: AbortSignal
  now?: Date
  own?: Date
  lookedAt?: LookedAt
  where?: Where
}): Promise<boolean> {
  const { sql, log, signal, lookedAt, where } = options
  // A lock of a session: Postgres frees it when this process, or its connection, is gone.
  const session = await sql.reserve()
  try {
    const [turn] = await session<{ mine: boolean; now: Date }[]>`
      select pg_try_advisory_lock(hashtextextended('berth.billing', 0)) as mine, now() as now`
    if (!turn?.mine) return false
    try {
      const now = options.now ?? turn.now
      // Whatever is with the months, limits are looked at.
      const own = options.own ?? options.now ?? new Date()
      await closeProven({ sql, signal, log, where }, { database: now, own }).catch((error: unknown) => {
        if (!signal.aborted) log.error({ err: error }, 'months could not be closed, and are tried again')
      })
      await checkLimits(sql, now, signal, log, lookedAt)
      return true
    } finally {
      await session`select pg_advisory_unlock(hashtextextended('berth.billing', 0))`.catch(() => {})
    }
  } finally {
    session.release()
  }
}

type Round = { sql: Sql; log: Log; signal: AbortSignal; where: Where | undefined }

async function closeProven({ sql, log, signal, where }: Round, clocks: Clocks): Promise<void> {
  const due = await dueMonths(sql, clocks.database)
  const proven = await provenMonths(sql, due, clocks)
  // By a clock that is not believed nothing that failed is tried again either, but for what the operator's word is of.
  if (proven.length === 0 && due.length > 0) return
  await closeDueMonths(sql, clocks.database, signal, log, where, proven)
}
