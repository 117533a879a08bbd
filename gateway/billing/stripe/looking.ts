/** What there is at Stripe of an invoice: its state, its payments, and what became of those. */
import type { Stripe } from 'stripe'
import type { StripeStatus } from '../../../migrations/schema.ts'
import { failureOf, withoutSecrets } from './client.ts'
import type { Seen } from './seen.ts'

/** What people should know of an invoice, its payments and what became of those. */
export async function lookAt(stripe: Stripe, invoice: Stripe.Invoice): Promise<Seen> {
  const seen: Seen = {
    ...{ stripeId: invoice.id, status: statusOf(invoice), url: invoice.hosted_invoice_url ?? null },
    ...{ paidCents: invoice.amount_paid, carriedCents: carriedCents(invoice), refundedCents: 0 },
    ...{ disputed: false, lostCents: 0, failure: null, isUnderWay: false },
  }
  if (seen.status === 'draft') return seen
  for await (const { payment } of stripe.invoicePayments.list({ invoice: invoice.id, limit: 100 })) {
    const { charge, failure, isUnderWay } = await chargeOf(stripe, payment)
    seen.isUnderWay ||= isUnderWay
    seen.failure = failure ?? seen.failure
    if (!charge) continue
    seen.refundedCents += charge.amount_refunded
    if (!charge.disputed) continue
    const { isOpen, lostCents } = await disputeOf(stripe, charge)
    seen.disputed ||= isOpen
    seen.lostCents += lostCents
  }
  // Of an older attempt, or one that another made good.
  if (seen.status !== 'open' || seen.isUnderWay) seen.failure = null
  return seen
}

function statusOf({ status }: Stripe.Invoice): StripeStatus {
  return STATUSES.find((one) => one === status) ?? 'open'
}

const STATUSES = ['draft', 'open', 'paid', 'void', 'uncollectible'] as const satisfies readonly StripeStatus[]

/** Of the total what Stripe put off to the account's next invoice; negative: what it charges of earlier ones with this. */
function carriedCents({ status, starting_balance: before, ending_balance: after }: Stripe.Invoice): number {
  // What a void one had taken from the balance is there again.
  if (after === null || status === 'void') return 0
  return Math.max(0, after) - Math.max(0, before)
}

type Looked = { charge?: Stripe.Charge; failure?: string; isUnderWay: boolean }

async function chargeOf(
  stripe: Stripe,
  { payment_intent: intent, charge }: Stripe.InvoicePayment.Payment,
): Promise<Looked> {
  if (intent !== undefined) {
    const found = await stripe.paymentIntents.retrieve(typeof intent === 'string' ? intent : intent.id, {
      expand: ['latest_charge'],
    })
    const { last_payment_error: error, latest_charge: latest, status } = found
    return {
      ...(typeof latest === 'object' && latest !== null ? { charge: latest } : {}),
      ...(error ? { failure: withoutSecrets(error.message ?? error.code ?? 'it was refused') } : {}),
      isUnderWay: status === 'processing',
    }
  }
  if (charge === undefined) return { isUnderWay: false }
  return { charge: await stripe.charges.retrieve(typeof charge === 'string' ? charge : charge.id), isUnderWay: false }
}

/** A charge stays `disputed` for good; how a dispute ended it says itself. */
async function disputeOf(stripe: Stripe, { id }: Stripe.Charge): Promise<{ isOpen: boolean; lostCents: number }> {
  let isOpen = false
  let lostCents = 0
  try {
    for await (const { status, amount } of stripe.disputes.list({ charge: id, limit: 100 })) {
      if (status === 'lost') lostCents += amount
      else if (!SETTLED.has(status)) isOpen = true
    }
  } catch (error) {
    // A restricted key may not see disputes.
    if (failureOf(error)?.status !== 403) throw error
    isOpen = true
  }
  return { isOpen, lostCents }
}

const SETTLED: ReadonlySet<Stripe.Dispute.Status> = new Set(['won', 'warning_closed', 'prevented'])
