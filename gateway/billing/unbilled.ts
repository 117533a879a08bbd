/**
 * Months that are over and should have an invoice, and have none: what no proof of the invoices that there are finds.
 *
 *   of an account   the month was closed, the facts or a plan's fee give something, and neither an invoice of it nor a
 *                   correction on a later one has it
 *   of everybody    the month was not closed at all
 */
import type { Db, Sql } from '../../migrations/connect.ts'
import { addMonths, DAY_MS, type Month } from './calendar.ts'
import { readWaiting } from './clock.ts'
import { dueMonths, lateSinceOf } from './closing.ts'
import { noteWaiting } from './failures.ts'
import { billedLines, differences, linesOfFacts } from './invoices.ts'
import { totalOf } from './pricing.ts'
import { readPriceList } from './terms.ts'

export type Unbilled = {
  accountId: number
  email: string | null
  month: Month
  /** what the facts give that is on no invoice */
  amount: bigint
  /**
   * late: facts came in after it was closed, and the next invoice corrects it; failed: it is tried again by itself;
   * missed: nothing comes of it by itself; partial: so too, and a later invoice has some of it
   */
  because: 'late' | 'failed' | 'missed' | 'partial'
}

/**
 * Computes what accounts without an invoice of a closed month would have on it, from the facts.
 * @param only that month @yields in order of months, then of accounts
 */
export async function* unbilledMonths(sql: Sql, signal: AbortSignal, only?: Month): AsyncGenerator<Unbilled> {
  const list = await readPriceList(sql)
  for (const { accountId, email, month, isLate, isFailing } of await withoutInvoice(sql, only)) {
    signal.throwIfAborted()
    const computed = await linesOfFacts(sql, accountId, month, list)
    const billed = await billedLines(sql, accountId, month)
    const missing = differences(computed, billed)
    if (missing.length === 0) continue
    const because = isLate ? 'late' : isFailing ? 'failed' : billed.length > 0 ? 'partial' : 'missed'
    yield { accountId, email, month, amount: totalOf(missing), because }
  }
}

/** Has months that were missed closed at the next look, and the account's later ones wait for it. @returns how many are new */
export async function closeMissed(tx: Db, missed: readonly Unbilled[], now: Date): Promise<number> {
  let asked = 0
  for (const { accountId, month, because } of missed) {
    if (because !== 'missed') continue
    if (await noteWaiting(tx, accountId, month, 'it was missed, and is closed by your word', now)) asked++
  }
  return asked
}

/** Longer than a closing takes, and than a gateway is away for. */
const LATE_MS = DAY_MS

/**
 * Months that were not closed, though they have been over for a day.
 * @returns undefined when there are none; because: why they wait, if that is known
 */
export async function unclosedMonths(sql: Sql): Promise<{ months: Month[]; because: string | undefined } | undefined> {
  const waiting = await readWaiting(sql)
  if (waiting) return waiting
  const [row] = await sql<{ now: Date }[]>`select now() as now`
  // By whichever clock it is earlier: one that is ahead accuses nobody.
  const now = Math.min(Date.now(), row?.now.getTime() ?? Date.now())
  const months = await dueMonths(sql, new Date(now - LATE_MS))
  return months.length > 0 ? { months, because: undefined } : undefined
}

type WithoutInvoice = { accountId: number; email: string | null; month: Month; isLate: boolean; isFailing: boolean }

/** Accounts that were on a plan that charges in a month that was closed, and have no invoice of it. */
async function withoutInvoice(sql: Sql, only: Month | undefined): Promise<WithoutInvoice[]> {
  const [newest] = await sql<{ month: Month | null }[]>`
    select to_char(max(month), 'YYYY-MM') as month from invoice_runs where finished_at is not null`
  if (!newest?.month) return []
  const lateSince = await lateSinceOf(sql, addMonths(newest.month, 1), new Date())
  // Indexes: the primary keys, and that of invoices by account and month.
  return await sql<WithoutInvoice[]>`
    select a.id as "accountId", email, to_char(month, 'YYYY-MM') as month,
      exists (select from late_usage l where l.account_id = a.id and l.month = r.month and l.at >= ${lateSince}) as "isLate",
      exists (select from billing_failures f
        where f.account_id = a.id and task = 'invoice' and f.month = r.month) as "isFailing"
    from invoice_runs r cross join accounts a
    where finished_at is not null ${only === undefined ? sql`` : sql`and to_char(month, 'YYYY-MM') = ${only}`}
      and not exists (select from invoices i where i.account_id = a.id and i.month = r.month)
      and exists (select from account_plans p join plans on plans.name = p.plan
        where charged and (p.account_id = a.id or (p.account_id is null and not is_owner))
          and effective && tstzrange(month::timestamp at time zone 'utc', (month + interval '1 month') at time zone 'utc'))
    order by r.month, a.id`
}
