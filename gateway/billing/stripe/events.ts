/**
 * What Stripe tells. An event only says what to look at again: what it is worth is asked of Stripe when it is handled,
 * so events may come late, twice and in any order. One is
 *
 *   received   its signature was right: its number is kept, and Stripe is answered; a repeat ends here
 *   handled    what it is about was looked at, or is nothing of ours
 *   given up   after many attempts; what it was about is looked at all the same, now and then
 */
import type { Stripe } from 'stripe'
import type { Sql } from '../../../migrations/connect.ts'
import type { Db } from '../terms.ts'
import { failureOf, isForAll, type Mode, type Payments } from './client.ts'
import { refreshCustomer } from './customers.ts'
import { refreshInvoice } from './invoices.ts'
import { waitSeconds } from './waiting.ts'

/** Stripe tries for three days. */
const KEPT = '30 days'
const ATTEMPTS_MOST = 20
const AT_ONCE = 50

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
 * Handles what waits, oldest first.
 * @returns whether there was anything
 */
export async function handleEvents(
  payments: Payments,
  sql: Sql,
  mode: Mode,
  failed: (error: unknown, event: string) => void,
): Promise<boolean> {
  const { livemode } = payments
  // Index: stripe_events_due.
  const events = await sql<(Told & { attempts: number })[]>`
    select id, livemode, type, object, payment_intent as "paymentIntent", attempts from stripe_events
    where handled_at is null and next_attempt_at <= now() and attempts < ${ATTEMPTS_MOST} and livemode = ${livemode}
    order by received_at limit ${AT_ONCE}`
  // Of many events about the same thing one look is enough, if it comes after all of them.
  const looked = new Set<string>()
  for (const event of events) {
    const about = event.object ?? event.paymentIntent ?? ''
    try {
      if (!looked.has(about)) await handle(payments, sql, mode, event)
      looked.add(about)
      await sql`update stripe_events set handled_at = now(), problem = null where id = ${event.id}`
    } catch (error) {
      failed(error, event.id)
      const problem = failureOf(error)?.message ?? (error instanceof Error ? error.message : 'unknown').slice(0, 300)
      await sql`update stripe_events set attempts = attempts + 1, problem = ${problem},
        next_attempt_at = now() + ${waitSeconds(event.attempts)} * interval '1 s' where id = ${event.id}`
      const failure = failureOf(error)
      if (failure && isForAll(failure)) throw error
    }
  }
  if (events.length === 0) await sql`delete from stripe_events where received_at < now() - ${KEPT}::interval`
  return events.length > 0
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
