import type { Db } from '../../../migrations/connect.ts'
import type { StripeStatus } from '../../../migrations/schema.ts'
import { tellAccounts } from '../../accounts/notices.ts'
import { sayMonth } from '../calendar.ts'
import { CENT, sayMoney } from '../money.ts'
import type { Mode } from './client.ts'
import type { Row } from './invoices.ts'

/** An invoice as Stripe had it when it was looked at. */
export type Seen = {
  stripeId: string
  status: StripeStatus
  url: string | null
  paidCents: number
  /** of the total, put off to the next invoice; negative: of earlier ones, charged with this */
  carriedCents: number
  refundedCents: number
  /** it is not decided yet */
  disputed: boolean
  /** given to who disputed it */
  lostCents: number
  /** why the last payment was not had; null once there is one */
  failure: string | null
  /** a payment that takes its time */
  isUnderWay: boolean
}

/** Writes down what was seen; what is new of it goes into the audit trail, and a payment that was refused is told. */
export async function keepSeen(tx: Db, { livemode }: Mode, before: Row, seen: Seen): Promise<void> {
  const { stripeId, status, url, paidCents, carriedCents, refundedCents, disputed, lostCents, failure } = seen
  await tx`
    update stripe_invoices set stripe_id = ${stripeId}, status = ${status}, url = ${url}, paid_cents = ${paidCents},
      carried_cents = ${carriedCents}, refunded_cents = ${refundedCents}, disputed = ${disputed},
      lost_cents = ${lostCents}, failure = ${failure}, problem = null, attempts = 0, next_attempt_at = now(),
      refreshed_at = now()
    where invoice = ${before.invoice} and livemode = ${livemode}`
  for (const { kind, amountCents, because } of newsOf(before, seen)) {
    const detail = {
      invoice: before.invoice,
      amount: sayMoney(BigInt(amountCents) * CENT),
      ...(because ? { because } : {}),
    }
    await tx`insert into events (account_id, actor, kind, detail)
      values (${before.accountId}, 'gateway', ${kind}, ${tx.json(detail)})`
  }
  if (failure !== null && failure !== before.failure && status === 'open') await tellOfFailure(tx, before, failure)
}

type PaymentNews = { kind: string; amountCents: number; because?: string }

function newsOf(before: Row, seen: Seen): PaymentNews[] {
  const news: PaymentNews[] = []
  const amountCents = before.totalCents
  const wasThere = before.status !== 'waiting' && before.status !== 'draft'
  if (!wasThere && seen.status !== 'draft') news.push({ kind: 'invoice.sent', amountCents })
  if (seen.failure !== null && seen.failure !== before.failure) {
    news.push({ kind: 'invoice.payment_failed', amountCents, because: seen.failure })
  }
  const isPaid = seen.status === 'paid'
  if (seen.status !== before.status && (isPaid || seen.status === 'void' || seen.status === 'uncollectible')) {
    // What is below Stripe's least charge is paid with the next one.
    const isPutOff = isPaid && seen.paidCents === 0 && seen.carriedCents > 0
    if (isPutOff) news.push({ kind: 'invoice.put_off', amountCents: seen.carriedCents })
    else news.push({ kind: `invoice.${seen.status}`, amountCents: isPaid ? seen.paidCents : amountCents })
  }
  const refundedCents = seen.refundedCents - before.refundedCents
  if (refundedCents > 0) news.push({ kind: 'invoice.refunded', amountCents: refundedCents })
  // A bank may send it back.
  if (refundedCents < 0) news.push({ kind: 'invoice.refund_failed', amountCents: -refundedCents })
  if (seen.disputed && !before.disputed) news.push({ kind: 'invoice.disputed', amountCents })
  if (seen.lostCents > before.lostCents) {
    news.push({ kind: 'invoice.dispute_lost', amountCents: seen.lostCents - before.lostCents })
  } else if (before.disputed && !seen.disputed) news.push({ kind: 'invoice.dispute_won', amountCents })
  return news
}

async function tellOfFailure(tx: Db, { invoice, accountId, totalCents }: Row, failure: string): Promise<void> {
  const [about] = await tx<{ month: string }[]>`
    select to_char(month, 'YYYY-MM') as month from invoices where number = ${invoice}`
  if (!about) return
  const amount = sayMoney(BigInt(totalCents) * CENT)
  const body = [
    `Invoice ${invoice} of ${amount}, for ${sayMonth(about.month)} (UTC), could not be collected: ${failure}`,
    'To give something else to pay with: billing method --add. To try again: billing pay.',
  ]
  await tellAccounts(tx, [{ accountId, subject: `invoice ${invoice} is not paid`, body: `${body.join('\n\n')}\n` }])
}
