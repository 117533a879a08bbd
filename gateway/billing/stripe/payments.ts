/** What is kept of how invoices stand at Stripe, for the operator. */
import type { Db } from '../../../migrations/connect.ts'
import type { StripeStatus } from '../../../migrations/schema.ts'
import type { Month } from '../calendar.ts'

export type Problem = { invoice: number; accountId: number; problem: string }

/** What keeps invoices from Stripe, oldest first: what came since does not hide those that wait longest. */
export async function readProblems(db: Db, livemode: boolean, limit: number): Promise<Problem[]> {
  return await db<Problem[]>`
    select s.invoice, i.account_id as "accountId", problem
    from stripe_invoices s join invoices i on i.number = s.invoice
    where livemode = ${livemode} and problem is not null order by s.invoice limit ${limit}`
}

export type Counts = Record<StripeStatus, number> & { problems: number; events: number; lastEventAt: Date | null }

/** How things stand at Stripe, over all accounts. */
export async function countPayments(db: Db, livemode: boolean): Promise<Counts> {
  const counts: Counts = {
    ...{ waiting: 0, draft: 0, open: 0, paid: 0, void: 0, uncollectible: 0 },
    ...{ problems: 0, events: 0, lastEventAt: null },
  }
  const rows = await db<{ status: StripeStatus; count: number; problems: number }[]>`
    select status, count(*)::integer as count, count(problem)::integer as problems from stripe_invoices
    where livemode = ${livemode} group by status`
  for (const { status, count, problems } of rows) {
    counts[status] = count
    counts.problems += problems
  }
  const [events] = await db<{ waiting: number; last: Date | null }[]>`
    select count(*) filter (where handled_at is null)::integer as waiting, max(received_at) as last
    from stripe_events where livemode = ${livemode}`
  return { ...counts, events: events?.waiting ?? 0, lastEventAt: events?.last ?? null }
}

/** Invoices of a month that were closed before Stripe was switched on, with something to pay: Berth does not send them by itself. */
export type Unsent = { month: Month; count: number; total: bigint; numbers: number[] }

/** Newest month first. */
export async function readUnsent(db: Db, livemode: boolean, accountId: number | null = null): Promise<Unsent[]> {
  const rows = await db<(Omit<Unsent, 'total'> & { total: number })[]>`
    select to_char(month, 'YYYY-MM') as month, count(*)::integer as count, sum(total_micros)::bigint as total,
      array_agg(number order by number) as numbers
    from invoices i
    where total_micros > 0 and (${accountId}::integer is null or account_id = ${accountId})
      and closed_at < coalesce((select since from stripe_modes where livemode = ${livemode}), now())
      and not exists (select from stripe_invoices s where s.invoice = i.number and livemode = ${livemode})
      and not exists (select from standing_payments p where p.invoice = i.number)
    group by month order by month desc`
  return rows.map((row) => ({ ...row, total: BigInt(row.total) }))
}

/** More are sent by their month. */
const NUMBERS_MOST = 8

/** `billing send 12 13`, `billing send --month 2026-10`: what sends them. */
export function sendCommand({ month, numbers }: Pick<Unsent, 'month' | 'numbers'>): string {
  return `billing send ${numbers.length > NUMBERS_MOST ? `--month ${month}` : numbers.join(' ')}`
}

/**
 * Sends an invoice that was closed before Stripe was switched on.
 * @returns false when it is on its way already, or was paid otherwise
 */
export async function enlistInvoice(db: Db, livemode: boolean, number: number): Promise<boolean> {
  const rows = await db`
    insert into stripe_invoices (invoice, livemode) values (${number}, ${livemode}) on conflict do nothing returning invoice`
  return rows.length > 0
}
