/**
 * Berth's closed invoices at Stripe. One is
 *
 *   waiting         not there
 *   draft           there, perhaps without its lines; nothing is asked of anybody
 *   open            whole and final: Stripe collects it by the schedule that is set there, and at once when Berth asks
 *   paid            collected; refunds and disputes are seen on it
 *   void            taken back at Stripe, by the operator
 *   uncollectible   given up at Stripe, by the operator
 *
 * Nobody is charged twice: a step is taken only after looking at what there is at Stripe, so that one whose answer never
 * came is not repeated; a repeat that is on its way at the same moment has the same idempotency key; and an invoice is
 * looked for by its mark before one is made, so that not even a database that came back from a backup sends it again.
 * Whoever is at an invoice holds it by a lease (lease.ts) until what came of it is written.
 */
import type { Stripe } from 'stripe'
import type { Db, Sql } from '../../../migrations/connect.ts'
import type { StripeStatus } from '../../../migrations/schema.ts'
import { sayMonth } from '../calendar.ts'
import { type Invoice, readCredits, readInvoice } from '../invoices.ts'
import { readPriceList } from '../terms.ts'
import { failureOf, keyOf, type Mode, type Payments } from './client.ts'
import { ensureCustomer, refreshCustomer } from './customers.ts'
import { Lease, leaseOfInvoice } from './lease.ts'
import { centsOf, stripeLines } from './lines.ts'
import { lookAt } from './looking.ts'
import { keepSeen, type Seen } from './seen.ts'
import { waitSeconds } from './waiting.ts'

/** What keeps an invoice from Stripe and needs the operator. `message` is one sentence for them. */
export class PaymentError extends Error {
  override readonly name = 'PaymentError'
}

export type Row = {
  invoice: number
  accountId: number
  stripeId: string | null
  status: StripeStatus
  generation: number
  attempts: number
  wishes: number
  paymentsAsked: number
  paidCents: number
  refundedCents: number
  carriedCents: number
  disputed: boolean
  lostCents: number
  failure: string | null
  url: string | null
  totalCents: number
}

async function readRow(db: Db, number: number, livemode: boolean): Promise<Row> {
  const [row] = await db<Row[]>`
    select s.invoice, i.account_id as "accountId", stripe_id as "stripeId", status, generation, attempts, wishes,
      payments_asked as "paymentsAsked", paid_cents as "paidCents", refunded_cents as "refundedCents",
      carried_cents as "carriedCents", disputed, lost_cents as "lostCents", failure, url,
      total_micros / 10000 as "totalCents"
    from stripe_invoices s join invoices i on i.number = s.invoice
    where s.invoice = ${number} and livemode = ${livemode}`
  if (!row) throw new PaymentError(`invoice ${number} is not for Stripe`)
  return row
}

/**
 * Brings an invoice to Stripe, from wherever it is on the way there.
 * @throws PaymentError; errors of Stripe's
 */
export async function sendInvoice(payments: Payments, sql: Sql, mode: Mode, number: number): Promise<void> {
  const berths = await readInvoice(sql, number)
  if (!berths) throw new PaymentError(`there is no invoice ${number}`)
  const { invoice } = berths
  const customer = await ensureCustomer(payments, sql, mode, invoice.accountId)
  const { rates } = await readPriceList(sql)
  const reasons = new Map((await readCredits(sql, invoice.accountId)).map(({ id, reason }) => [id, reason]))
  const lines = stripeLines(invoice, berths.lines, rates, reasons)
  const { stripe, livemode } = payments
  await using lease = await Lease.take(sql, leaseOfInvoice(number, livemode))
  const row = await readRow(sql, number, livemode)
  const known = row.stripeId === null ? undefined : await knownInvoice(stripe, row.stripeId)
  let { generation } = row
  if (row.stripeId !== null && !known) {
    // A draft that was deleted at Stripe, which would still answer with it under the key that made it.
    generation++
    await lease.write(
      (tx) => tx`update stripe_invoices set generation = ${generation}, status = 'waiting', stripe_id = null
        where invoice = ${number} and livemode = ${livemode}`,
    )
  }
  const key = (step: string) => keyOf(mode, 'invoice', number, step, generation)
  let there = known ?? (await markedInvoice(stripe, markOf(mode, number), customer))
  if (!there) {
    await lease.renew()
    // Stripe refuses a repeat for another customer under the same key.
    there = await createInvoice(payments, sql, mode, { invoice, customer, key: key(`create-${customer}`) })
  }
  const { id } = there
  if (there.status === 'draft' && there.lines.data.length === 0) {
    await lease.renew()
    const asked = lines.map(({ cents, ...line }) => ({ amount: cents, ...line }))
    there = await stripe.invoices.addLines(id, { lines: asked }, key('lines'))
  }
  // Whatever was set up at Stripe, nobody pays what Berth's invoices do not say.
  if (there.status === 'draft' || there.status === 'open') {
    refuseOtherTotal(invoice, there)
    refuseOtherDebt(invoice, there, await carriedBefore(sql, row, livemode))
  }
  if (there.status === 'draft') {
    await lease.renew()
    there = await stripe.invoices.finalizeInvoice(id, { auto_advance: true }, key('finalize'))
  }
  const seen = await lookAt(stripe, there)
  await lease.write((tx) => keepSeen(tx, mode, row, seen))
}

type Creating = { invoice: Invoice; customer: string; key: Stripe.RequestOptions }

async function createInvoice(
  payments: Payments,
  sql: Sql,
  mode: Mode,
  { invoice: { number, month, accountId }, customer, key }: Creating,
): Promise<Stripe.Invoice> {
  try {
    return await payments.stripe.invoices.create(
      {
        ...{ customer, currency: 'usd', auto_advance: false, collection_method: 'charge_automatically' },
        // What else waits for the customer at Stripe is no part of Berth's invoice.
        ...{
          pending_invoice_items_behavior: 'exclude',
          description: `Invoice ${number}, ${sayMonth(month)} (UTC)`,
        },
        metadata: markOf(mode, number),
      },
      key,
    )
  } catch (error) {
    // Its customer was deleted at Stripe and no event said so: the next attempt makes another one.
    if (failureOf(error)?.code === 'resource_missing') await refreshCustomer(payments, sql, accountId)
    throw error
  }
}

function markOf({ installation }: Mode, number: number): Record<string, string> {
  return { berth: installation, berth_invoice: String(number) }
}

async function knownInvoice(stripe: Stripe, id: string): Promise<Stripe.Invoice | undefined> {
  try {
    const known = await stripe.invoices.retrieve(id)
    return 'deleted' in known ? undefined : known
  } catch (error) {
    if (failureOf(error)?.code !== 'resource_missing') throw error
    return undefined
  }
}

async function markedInvoice(
  stripe: Stripe,
  mark: Record<string, string>,
  customer: string,
): Promise<Stripe.Invoice | undefined> {
  const marked: Stripe.Invoice[] = []
  for await (const one of stripe.invoices.list({ customer, limit: 100 })) {
    if (Object.entries(mark).every(([name, value]) => one.metadata?.[name] === value)) marked.push(one)
  }
  // Were there two, the one that asks for money stays the only one that does: all others are drafts, and stay that.
  const rank = ({ status }: Stripe.Invoice) => (status === 'paid' ? 0 : status === 'draft' ? 2 : 1)
  return marked.sort((a, b) => rank(a) - rank(b) || a.created - b.created)[0]
}

function refuseOtherTotal(invoice: Invoice, there: Stripe.Invoice): void {
  const cents = centsOf(invoice)
  if (there.total === cents && there.currency === 'usd') return
  throw new PaymentError(
    `at Stripe invoice ${invoice.number} comes to ${sayCents(there.total)}, not ${sayCents(cents)}: it is left as it is; look for taxes, discounts or lines that were added there`,
  )
}

/**
 * What the account owes on Stripe's balance is charged with its next invoice. Stripe itself puts there what is below its
 * least charge (docs.stripe.com/currencies#minimum-and-maximum-charge-amounts); anything else is not Berth's.
 */
function refuseOtherDebt(invoice: Invoice, there: Stripe.Invoice, carriedCents: number): void {
  if (there.starting_balance <= Math.max(0, carriedCents)) return
  throw new PaymentError(
    `at Stripe ${sayCents(there.starting_balance)} more would be charged with invoice ${invoice.number}, of which Berth's invoices say ${sayCents(Math.max(0, carriedCents))}: it is left as it is; look for a balance that was set there`,
  )
}

/** @returns cents of the account's other invoices that Stripe has put off */
async function carriedBefore(db: Db, { invoice, accountId }: Row, livemode: boolean): Promise<number> {
  const [row] = await db<{ cents: number }[]>`
    select coalesce(sum(carried_cents), 0)::bigint as cents
    from stripe_invoices s join invoices i on i.number = s.invoice
    where i.account_id = ${accountId} and livemode = ${livemode} and s.invoice <> ${invoice}`
  return row?.cents ?? 0
}

function sayCents(cents: number): string {
  return `${cents < 0 ? '-' : ''}$${(Math.abs(cents) / 100).toFixed(2)}`
}

/**
 * Looks at what became of an invoice.
 * @throws CommandError 'payment.busy'; errors of Stripe's
 */
export async function refreshInvoice(
  { stripe, livemode }: Payments,
  sql: Sql,
  mode: Mode,
  number: number,
): Promise<void> {
  await using lease = await Lease.take(sql, leaseOfInvoice(number, livemode))
  const row = await readRow(sql, number, livemode)
  if (row.stripeId === null) return
  const seen = await lookAt(stripe, await stripe.invoices.retrieve(row.stripeId))
  await lease.write((tx) => keepSeen(tx, mode, row, seen))
}

/**
 * Has Stripe collect an open invoice now, with what the account pays with.
 * @returns what became of it; a payment that was refused is no error but its `failure`
 * @throws CommandError 'payment.busy'; errors of Stripe's
 */
export async function payInvoice(
  { stripe, livemode }: Payments,
  sql: Sql,
  mode: Mode,
  number: number,
): Promise<Seen | undefined> {
  await using lease = await Lease.take(sql, leaseOfInvoice(number, livemode))
  const row = await readRow(sql, number, livemode)
  if (row.stripeId === null) return undefined
  const { stripeId: id, wishes, attempts } = row
  let asked = row.paymentsAsked
  let there = await stripe.invoices.retrieve(id)
  let refusal: string | undefined
  let isAskedAgain = false
  if (there.status === 'open') {
    await lease.renew()
    try {
      there = await stripe.invoices.pay(id, {}, keyOf(mode, 'invoice', number, 'pay', asked))
    } catch (error) {
      const failure = failureOf(error)
      const isRefusal = failure?.type === 'StripeCardError' || failure?.type === 'StripeInvalidRequestError'
      // Without an answer it is not known what became of it: the same key asks again, or hears the answer.
      if (!failure || !(isRefusal || failure.isKept)) throw error
      if (isRefusal) refusal = failure.message
      isAskedAgain = !isRefusal
      there = await stripe.invoices.retrieve(id)
    }
    asked++
  }
  const seen = await lookAt(stripe, there)
  // A debit of an account takes its bank days, in which Stripe refuses another one: that is no failure.
  if (seen.status === 'open' && !seen.isUnderWay) seen.failure ??= refusal ?? null
  await lease.write(async (tx) => {
    await keepSeen(tx, mode, row, seen)
    // Something to pay with that was given meanwhile is still to be tried.
    await tx`
      update stripe_invoices set payments_asked = ${asked}, collect = wishes <> ${wishes} or ${isAskedAgain},
        attempts = ${isAskedAgain ? attempts + 1 : 0},
        next_attempt_at = now() + ${isAskedAgain ? waitSeconds(attempts) : 0} * interval '1 s'
      where invoice = ${number} and livemode = ${livemode}`
  })
  return seen
}
