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
 * Whoever is at an invoice has its row locked until what came of it is written.
 */
import type { Stripe } from 'stripe'
import type { Sql } from '../../../migrations/connect.ts'
import type { StripeStatus } from '../../../migrations/schema.ts'
import { sayMonth } from '../calendar.ts'
import { type Invoice, readCredits, readInvoice } from '../invoices.ts'
import { type Db, readPriceList } from '../terms.ts'
import { failureOf, keyOf, type Mode, type Payments, withoutSecrets } from './client.ts'
import { busy, ensureCustomer } from './customers.ts'
import { centsOf, stripeLines } from './lines.ts'
import { keepSeen, type Seen } from './seen.ts'

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
  paymentsAsked: number
  paidCents: number
  refundedCents: number
  disputed: boolean
  failure: string | null
  url: string | null
  totalCents: number
}

async function locked(tx: Db, number: number, livemode: boolean): Promise<Row> {
  const [row] = await tx<Row[]>`
    select s.invoice, i.account_id as "accountId", stripe_id as "stripeId", status, generation,
      payments_asked as "paymentsAsked", paid_cents as "paidCents", refunded_cents as "refundedCents", disputed, failure,
      url, total_micros / 10000 as "totalCents"
    from stripe_invoices s join invoices i on i.number = s.invoice
    where s.invoice = ${number} and livemode = ${livemode} for update of s skip locked`
  if (!row) throw busy()
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
  await sql.begin(async (tx) => {
    const row = await locked(tx, number, livemode)
    const known = row.stripeId === null ? undefined : await knownInvoice(stripe, row.stripeId)
    let { generation } = row
    if (row.stripeId !== null && !known) {
      // A draft that was deleted at Stripe, which would still answer with it under the key that made it.
      generation++
      await tx`update stripe_invoices set generation = ${generation} where invoice = ${number} and livemode = ${livemode}`
    }
    const key = (step: string) => keyOf(mode, 'invoice', number, step, generation)
    let there = known ?? (await markedInvoice(stripe, markOf(mode, number), customer))
    there ??= await stripe.invoices.create(
      {
        ...{ customer, currency: 'usd', auto_advance: false, collection_method: 'charge_automatically' },
        // What else waits for the customer at Stripe is no part of Berth's invoice.
        ...{
          pending_invoice_items_behavior: 'exclude',
          description: `Invoice ${number}, ${sayMonth(invoice.month)} (UTC)`,
        },
        metadata: markOf(mode, number),
      },
      key('create'),
    )
    const { id } = there
    if (there.status === 'draft' && there.lines.data.length === 0) {
      const asked = lines.map(({ cents, ...line }) => ({ amount: cents, ...line }))
      there = await stripe.invoices.addLines(id, { lines: asked }, key('lines'))
    }
    // Whatever was set up at Stripe, nobody pays what Berth's invoice does not say.
    if (there.status === 'draft' || there.status === 'open') refuseOtherTotal(invoice, there)
    if (there.status === 'draft')
      there = await stripe.invoices.finalizeInvoice(id, { auto_advance: true }, key('finalize'))
    await keepSeen(tx, mode, row, await lookAt(stripe, there))
  })
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
  await sql.begin(async (tx) => {
    const row = await locked(tx, number, livemode)
    if (row.stripeId === null) return
    await keepSeen(tx, mode, row, await lookAt(stripe, await stripe.invoices.retrieve(row.stripeId)))
  })
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
  return await sql.begin(async (tx) => {
    const row = await locked(tx, number, livemode)
    if (row.stripeId === null) return undefined
    const { stripeId: id } = row
    let asked = row.paymentsAsked
    let there = await stripe.invoices.retrieve(id)
    let refusal: string | undefined
    let isAskedAgain = false
    if (there.status === 'open') {
      try {
        there = await stripe.invoices.pay(id, {}, keyOf(mode, 'invoice', number, 'pay', asked))
      } catch (error) {
        const failure = failureOf(error)
        const isRefusal = failure?.type === 'StripeCardError' || failure?.type === 'StripeInvalidRequestError'
        // Without an answer it is not known what became of it: the same key asks again, or hears the answer.
        if (!failure || !(isRefusal || failure.isKept)) throw error
        refusal = failure.message
        isAskedAgain = !isRefusal
        there = await stripe.invoices.retrieve(id)
      }
      asked++
    }
    const looked = await lookAt(stripe, there)
    const seen =
      looked.status === 'open' && refusal !== undefined ? { ...looked, failure: looked.failure ?? refusal } : looked
    await keepSeen(tx, mode, row, seen)
    await tx`update stripe_invoices set payments_asked = ${asked}, collect = ${isAskedAgain}
      where invoice = ${number} and livemode = ${livemode}`
    return seen
  })
}

/** What people should know of an invoice, its payments and what became of those. */
async function lookAt(stripe: Stripe, invoice: Stripe.Invoice): Promise<Seen> {
  const seen: Seen = {
    ...{ stripeId: invoice.id, status: statusOf(invoice), url: invoice.hosted_invoice_url ?? null },
    ...{ paidCents: invoice.amount_paid, refundedCents: 0, disputed: false, failure: null },
  }
  if (seen.status === 'draft') return seen
  for await (const { payment } of stripe.invoicePayments.list({ invoice: invoice.id, limit: 100 })) {
    const charge = await chargeOf(stripe, payment, (failure) => {
      if (seen.status === 'open') seen.failure = failure
    })
    if (!charge) continue
    seen.refundedCents += charge.amount_refunded
    seen.disputed ||= charge.disputed
  }
  return seen
}

function statusOf({ status }: Stripe.Invoice): StripeStatus {
  return STATUSES.find((one) => one === status) ?? 'open'
}

const STATUSES = ['draft', 'open', 'paid', 'void', 'uncollectible'] as const satisfies readonly StripeStatus[]

async function chargeOf(
  stripe: Stripe,
  { payment_intent: intent, charge }: Stripe.InvoicePayment.Payment,
  failed: (message: string) => void,
): Promise<Stripe.Charge | undefined> {
  if (intent !== undefined) {
    const { last_payment_error: error, latest_charge: latest } = await stripe.paymentIntents.retrieve(
      typeof intent === 'string' ? intent : intent.id,
      { expand: ['latest_charge'] },
    )
    if (error) failed(withoutSecrets(error.message ?? error.code ?? 'it was refused'))
    return typeof latest === 'object' && latest !== null ? latest : undefined
  }
  if (charge === undefined) return undefined
  return await stripe.charges.retrieve(typeof charge === 'string' ? charge : charge.id)
}
