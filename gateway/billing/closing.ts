/**
 * The first of the month in UTC, two hours after midnight: the month before is closed, account by account.
 *
 * One gateway does it, whichever has the lock; Postgres frees the lock of one that dies. An account's invoice is one
 * transaction, and a run is gone through again until it has come to its end, so a kill at any moment leaves each account
 * with its invoice or without, never with two, and no number unused. Months that nobody closed, because nothing ran, are
 * closed in order. Whether it is as late as the clock says is looked at before (clock.ts).
 *
 * An account whose invoice cannot be closed is noted (failures.ts), and the run goes on to its end without it. It is
 * tried again at later looks, alone; its months after that wait for it, for credits and corrections go from one to the next.
 */
import type { Db, Sql } from '../../migrations/connect.ts'
import type { Log } from '../log.ts'
import { addMonths, firstDay, type Month, monthOf, monthsBetween, sayMonth, startOfMonth } from './calendar.ts'
import { forgetFailure, noteFailure, noteWaiting, readFailures } from './failures.ts'
import type { Where } from './invoice-letter.ts'
import { type Closing, closeMonth } from './invoices.ts'
import { readPriceList } from './terms.ts'

/** Servers write down the last minutes of a month in the first ones of the next; what is later than this is corrected. */
const CLOSES_AFTER_MS = 2 * 3_600_000
/** While the database writes one account's invoice the next is computed; more would be in the way of who signs in. */
const ACCOUNTS_AT_ONCE = 3
/** Longer than any transaction that appends facts. */
const APPEND_MS = 3_600_000

/**
 * Closes the months that have ended and are not closed.
 * @param now a moment of the database's clock
 * @param where what accounts are told of where their invoice is
 * @param months of those that are due
 * @returns numbers of the invoices that were written, or were there already
 */
export async function closeDueMonths(
  sql: Sql,
  now: Date,
  signal: AbortSignal,
  log: Log,
  where?: Where,
  months?: readonly Month[],
): Promise<number[]> {
  const numbers: number[] = []
  const run = { sql, now, signal, log, where }
  for (const month of months ?? (await dueMonths(sql, now))) {
    const closed = await closeAll(run, month)
    if (closed === undefined) return numbers
    numbers.push(...closed)
  }
  numbers.push(...(await closeFailed(run)))
  return numbers
}

type Run = { sql: Sql; now: Date; signal: AbortSignal; log: Log; where: Where | undefined }

/** Months that have ended by this clock and were not closed, in order. */
export async function dueMonths(db: Db, now: Date): Promise<Month[]> {
  const [row] = await db<{ closed: string | null; first: string | null }[]>`
    select (select to_char(max(month), 'YYYY-MM') from invoice_runs where finished_at is not null) as closed,
      (select to_char(min(coalesce(lower(effective), accounts.created_at)) at time zone 'utc', 'YYYY-MM')
        from account_plans join plans on plans.name = plan left join accounts on accounts.id = account_id
        where charged) as first`
  const next = row?.closed ? addMonths(row.closed, 1) : row?.first
  return next ? monthsBetween(next, monthOf(new Date(now.getTime() - CLOSES_AFTER_MS))) : []
}

/** @returns undefined when it did not come to its end */
async function closeAll({ sql, now, signal, log, where }: Run, month: Month): Promise<number[] | undefined> {
  const startedAt = performance.now()
  await sql`insert into invoice_runs (month, started_at) values (${firstDay(month)}::date, ${now}) on conflict do nothing`
  const lateSince = await lateSinceOf(sql, month, now)
  const list = await readPriceList(sql)
  const failing = new Map((await readFailures(sql, 'invoice')).toReversed().map((one) => [one.accountId, one.month]))
  const numbers: number[] = []
  const accounts = (await accountsToClose(sql, month, lateSince)).values()
  const closeNext = async () => {
    for (const accountId of accounts) {
      if (signal.aborted) return
      const earlier = failing.get(accountId)
      if (earlier !== undefined) {
        await noteWaiting(sql, accountId, month, `waits for the invoice for ${sayMonth(earlier)}`, now)
      } else {
        const number = await closeOne(sql, accountId, month, { list, now, lateSince, where }, log)
        if (typeof number === 'number') numbers.push(number)
      }
    }
  }
  const ends = await Promise.allSettled(Array.from({ length: ACCOUNTS_AT_ONCE }, closeNext))
  for (const end of ends) if (end.status === 'rejected') throw end.reason
  if (signal.aborted) return undefined
  await sql`update invoice_runs set finished_at = now() where month = ${firstDay(month)}::date`
  log.info({ month, invoices: numbers.length, tookMs: Math.round(performance.now() - startedAt) }, 'a month was closed')
  return numbers
}

/** Those that failed and whose time has come, an account's months in order, and no further than the first that fails. */
async function closeFailed({ sql, now, signal, log, where }: Run): Promise<number[]> {
  const failures = await readFailures(sql, 'invoice')
  const isDue = new Set(
    failures
      .filter(
        ({ accountId, nextAttemptAt }, index) => nextAttemptAt <= now && failures[index - 1]?.accountId !== accountId,
      )
      .map(({ accountId }) => accountId),
  )
  if (isDue.size === 0) return []
  const list = await readPriceList(sql)
  const numbers: number[] = []
  for (const { accountId, month } of failures) {
    if (signal.aborted) break
    if (!isDue.has(accountId)) continue
    const lateSince = await lateSinceOf(sql, month, now)
    const number = await closeOne(sql, accountId, month, { list, now, lateSince, where }, log)
    if (number === 'failed') isDue.delete(accountId)
    else {
      await forgetFailure(sql, accountId, 'invoice', month)
      if (number !== undefined) numbers.push(number)
    }
  }
  return numbers
}

async function closeOne(
  sql: Sql,
  accountId: number,
  month: Month,
  closing: Closing,
  log: Log,
): Promise<number | undefined | 'failed'> {
  try {
    return await closeMonth(sql, accountId, month, closing)
  } catch (error) {
    await noteFailure(sql, { accountId, task: 'invoice', month }, error, closing.now)
    log.error({ err: error, account: accountId, month }, 'an invoice could not be closed and is tried again')
    return 'failed'
  }
}

/**
 * Facts that came in since then may be on no invoice yet: since the run before the last one. The last may have begun
 * by a clock that was ahead; months that are looked at twice give nothing the second time.
 */
export async function lateSinceOf(db: Db, month: Month, now: Date): Promise<Date> {
  const [before] = await db<{ at: Date | null }[]>`
    select least(started_at, ${now}) as at from invoice_runs where month < ${firstDay(month)}::date
    order by month desc offset 1 limit 1`
  return new Date(before?.at ? before.at.getTime() - APPEND_MS : 0)
}

/** Whoever may have something on an invoice, has none, and was not tried. */
async function accountsToClose(db: Db, month: Month, lateSince: Date): Promise<number[]> {
  const [from, to] = [startOfMonth(month), startOfMonth(addMonths(month, 1))]
  const rows = await db<{ id: number }[]>`
    select id from accounts a
    where not exists (select from invoices i where i.account_id = a.id and i.month = ${firstDay(month)}::date)
      and not exists (select from billing_failures f
        where f.account_id = a.id and f.task = 'invoice' and f.month = ${firstDay(month)}::date)
      and (a.id in (select p.account_id from account_plans p join plans on plans.name = p.plan
          where charged and effective && tstzrange(${from}, ${to}))
        or (not a.is_owner and exists (select from account_plans p join plans on plans.name = p.plan
          where charged and effective && tstzrange(${from}, ${to}) and p.account_id is null))
        or exists (select from late_usage l where l.account_id = a.id and l.at >= ${lateSince}
          and l.month < ${firstDay(month)}::date))
    order by id`
  return rows.map(({ id }) => id)
}
