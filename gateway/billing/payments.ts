/**
 * How invoices were paid, or are to be: by Stripe, or otherwise as the operator notes it. What is noted is a record of its
 * own that changes no invoice, and is taken back by another one. An invoice that Stripe collects is not noted, and one that
 * is noted does not go to Stripe: the database sees to both.
 */
import type { Db } from '../../migrations/connect.ts'
import type { StripeStatus } from '../../migrations/schema.ts'
import type { Day, Month } from './calendar.ts'

export type Payment = {
  invoice: number
  accountId: number
  month: Month
  total: bigint
  status: StripeStatus
  paid: bigint
  /** of the total, put off by Stripe to the next invoice; negative: of earlier ones, charged with this */
  carried: bigint
  refunded: bigint
  /** by who paid it, and not decided yet */
  disputed: boolean
  /** given to who disputed it */
  lost: bigint
  /** why the last payment was not had */
  failure: string | null
  /** Stripe's page of it */
  url: string | null
  /** why it is not at Stripe, for the operator */
  problem: string | null
  refreshedAt: Date | null
  /** paid otherwise than by Stripe, as the operator noted it */
  noted: Noted | null
}

export type Noted = { on: Day; note: string | null }

type Amounts = 'total' | 'paid' | 'carried' | 'refunded' | 'lost'
type Row = Omit<Payment, Amounts | 'noted'> & Record<Amounts, number> & { on: Day | null; note: string | null }

/**
 * Newest first.
 * @param livemode of Stripe; null: none is asked to collect
 * @param accountId null: of all
 */
export async function readPayments(
  db: Db,
  livemode: boolean | null,
  accountId: number | null,
  limit = 1000,
): Promise<Payment[]> {
  const rows = await db<Row[]>`
    select i.number as invoice, i.account_id as "accountId", to_char(month, 'YYYY-MM') as month, total_micros as total,
      case when p.id is null then status else 'paid' end as status,
      case when p.id is null then paid_cents * 10000 else total_micros end as paid,
      case when p.id is null then carried_cents * 10000 else 0 end as carried,
      coalesce(refunded_cents * 10000, 0) as refunded, coalesce(disputed, false) as disputed,
      coalesce(lost_cents * 10000, 0) as lost,
      case when p.id is null then failure end as failure, case when p.id is null then url end as url,
      case when p.id is null then problem end as problem, refreshed_at as "refreshedAt",
      to_char(paid_on, 'YYYY-MM-DD') as on, p.note
    from invoices i left join stripe_invoices s on s.invoice = i.number and livemode = ${livemode}::boolean
      left join standing_payments p on p.invoice = i.number
    where (s.invoice is not null or p.id is not null) and (${accountId}::integer is null or i.account_id = ${accountId})
    order by i.number desc limit ${limit}`
  return rows.map(({ on, note, ...row }) => ({
    ...row,
    ...{ total: BigInt(row.total), paid: BigInt(row.paid), carried: BigInt(row.carried) },
    ...{ refunded: BigInt(row.refunded), lost: BigInt(row.lost) },
    noted: on === null ? null : { on, note },
  }))
}

export type Standing = Noted & { id: number }

/** What is noted of an invoice and was not taken back; until the transaction ends nobody else notes or sends anything. */
export async function standingPayment(tx: Db, invoice: number): Promise<Standing | undefined> {
  await tx`select pg_advisory_xact_lock(hashtextextended('berth.payments', 0))`
  const [standing] = await tx<Standing[]>`
    select id, to_char(paid_on, 'YYYY-MM-DD') as on, note from standing_payments where invoice = ${invoice}`
  return standing
}

/** How it stands at Stripe, where that is to collect it or has; undefined: it is not Stripe's. */
export async function stripesOwn(db: Db, livemode: boolean | null, invoice: number): Promise<StripeStatus | undefined> {
  const [row] = await db<{ status: StripeStatus }[]>`
    select status from stripe_invoices
    where invoice = ${invoice} and (livemode or livemode = ${livemode}::boolean) and status not in ('void', 'uncollectible')
    order by livemode desc limit 1`
  return row?.status
}

/** @param by number of the account whose doing it is */
export async function notePayment(tx: Db, invoice: number, { on, note }: Noted, by: number): Promise<void> {
  await tx`insert into noted_payments (invoice, paid_on, note, noted_by) values (${invoice}, ${on}::date, ${note}, ${by})`
}

/** Takes back what was noted. @param note why */
export async function undoPayment(
  tx: Db,
  invoice: number,
  { id }: Standing,
  note: string | null,
  by: number,
): Promise<void> {
  await tx`insert into noted_payments (invoice, undoes, note, noted_by) values (${invoice}, ${id}, ${note}, ${by})`
}
