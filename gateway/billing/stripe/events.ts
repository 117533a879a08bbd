/**
 * What Stripe tells. An event only says what to look at again: what it is worth is asked of Stripe when it is handled,
 * so events may come late, twice and in any order. One is
 *
 *   received   its signature was right: its number is kept, and Stripe is answered; a repeat ends here
 *   handled    what it is about was looked at, or is nothing of ours
 *   given up   after many attempts; what it was about is looked at all the same, now and then
 */
import type { Stripe } from 'stripe'
import type { Db, Sql } from '../../../migrations/connect.ts'
import { failureOf, isForAll, type Mode, type Payments } from './client.ts'
import { refreshCustomer } from './customers.ts'
import { refreshInvoice } from './invoices.ts'
import { isBusy, type Lease } from './lease.ts'
import { BUSY_S, waitSeconds } from './waiting.ts'

/** Stripe tries for three days. */
const KEPT = '30 days'
const ATTEMPTS_MOST = 20
const READ_AT_ONCE = 200
/** Things at once, as many as invoices. */
const LOOK_AT_ONCE = 6

/** What an event is about, as far as it is of use here. */
export type Told = {
  id: string
  livemode: boolean
  type: string
  /** number of an invoice or a customer */
  object: string | null
  paymentIntent: string | null
}

/** @returns undefined for an event that is of no use here */
export function readEvent({ id, livemode, type, data }: Stripe.Event): Told | undefined {
  const about: Record<string, unknown> = { ...data.object }
  const text = (value: unknown) => (typeof value === 'string' && value.length < 256 ? value : null)
  const told = { id, livemode, type, object: null, paymentIntent: null }
  if (type.startsWith('invoice.')) return { ...told, object: text(about.id) }
  if (type === 'customer.updated' || type === 'customer.deleted') return { ...told, object: text(about.id) }
  if (type.startsWith('payment_method.') || type === 'checkout.session.completed') {
    return { ...told, object: text(about.customer) }
  }
  if (type.startsWith('charge.') || type.startsWith('refund.')) {
    return { ...told, paymentIntent: text(about.payment_intent) }
  }
  return undefined
}

/** @returns false for a repeat */
export async function keepEvent(sql: Db, { id, livemode, type, object, paymentIntent }: Told): Promise<boolean> {
  const rows = await sql`
    insert into stripe_events (id, livemode, type, object, payment_intent)
    values (${id}, ${livemode}, ${type}, ${object}, ${paymentIntent}) on conflict do nothing returning id`
  return rows.length > 0
}

/**
 * Handles what waits, oldest first, and what more came about the same things.
 * @param turn of the round; when it is another's, the rest is left to them
 * @returns whether there was anything
 */
export async function handleEvents(
  payments: Payments,
  sql: Sql,
  mode: Mode,
  turn: Lease,
  failed: (error: unknown, event: string) => void,
): Promise<boolean> {
  const { livemode } = payments
  // Indexes: stripe_events_due, stripe_events_about.
  const events = await sql<Kept[]>`
    select id, livemode, type, object, payment_intent as "paymentIntent", attempts, now() as "readAt"
    from stripe_events
    where handled_at is null and next_attempt_at <= now() and attempts < ${ATTEMPTS_MOST} and livemode = ${livemode}
    order by received_at limit ${READ_AT_ONCE}`
  const look = async (told: readonly Kept[]) => await lookOnce(payments, sql, mode, told, failed)
  // An invoice and its payment are one thing, at which two would be in each other's way.
  for (const isObject of [true, false]) {
    const alike = events.filter(({ object }) => (object !== null) === isObject)
    const things = [...Map.groupBy(alike, aboutOf).values()]
    for (let from = 0; from < things.length; from += LOOK_AT_ONCE) {
      await turn.renew()
      const looks = await Promise.allSettled(things.slice(from, from + LOOK_AT_ONCE).map(look))
      for (const outcome of looks) if (outcome.status === 'rejected') throw outcome.reason
    }
  }
  if (events.length === 0) await sql`delete from stripe_events where received_at < now() - ${KEPT}::interval`
  return events.length > 0
}

type Kept = Told & { attempts: number; readAt: Date }

function aboutOf({ object, paymentIntent }: Told): string {
  return object ?? paymentIntent ?? ''
}

/**
 * Of many events about the same thing one look is enough, if it comes after all of them.
 * @param told all about one thing
 * @throws what concerns every call alike
 */
async function lookOnce(
  payments: Payments,
  sql: Sql,
  mode: Mode,
  told: readonly Kept[],
  failed: (error: unknown, event: string) => void,
): Promise<void> {
  const [first] = told
  if (!first) return
  const ids = told.map(({ id }) => id)
  try {
    await handle(payments, sql, mode, first)
    await sql`
      update stripe_events set handled_at = now(), problem = null
      where handled_at is null and livemode = ${first.livemode} and (id = any(${ids})
        or (coalesce(object, payment_intent) = ${aboutOf(first)} and received_at <= ${first.readAt}))`
  } catch (error) {
    if (isBusy(error)) {
      await sql`update stripe_events set next_attempt_at = now() + ${BUSY_S} * interval '1 s' where id = any(${ids})`
      return
    }
    failed(error, first.id)
    const failure = failureOf(error)
    const problem = failure?.message ?? (error instanceof Error ? error.message : 'unknown').slice(0, 300)
    await sql`update stripe_events set attempts = attempts + 1, problem = ${problem},
      next_attempt_at = now() + ${waitSeconds(first.attempts)} * interval '1 s' where id = any(${ids})`
    if (failure && isForAll(failure)) throw error
  }
}

async function handle(payments: Payments, sql: Sql, mode: Mode, { object, paymentIntent }: Told): Promise<void> {
  const { stripe, livemode } = payments
  if (object?.startsWith('cus_')) {
    const [row] = await sql<{ id: number }[]>`
      select account_id as id from stripe_customers where customer = ${object} and livemode = ${livemode}`
    if (row) await refreshCustomer(payments, sql, row.id)
    return
  }
  const ids = object !== null ? [object] : await invoicesOf(stripe, paymentIntent)
  const rows = await sql<{ invoice: number }[]>`
    select invoice from stripe_invoices where stripe_id = any(${ids}) and livemode = ${livemode}`
  for (const { invoice } of rows) await refreshInvoice(payments, sql, mode, invoice)
}

async function invoicesOf(stripe: Stripe, paymentIntent: string | null): Promise<string[]> {
  if (paymentIntent === null) return []
  const { data } = await stripe.invoicePayments.list({
    payment: { type: 'payment_intent', payment_intent: paymentIntent },
    limit: 100,
  })
  return data.map(({ invoice }) => (typeof invoice === 'string' ? invoice : invoice.id))
}
