import type { StripeStatus } from '../../../migrations/schema.ts'
import { sayMonth } from '../calendar.ts'
import { sayMoney } from '../money.ts'
import type { Db } from '../terms.ts'
import type { Mode } from './client.ts'
import type { Row } from './invoices.ts'
import { CENT_MICROS } from './lines.ts'

/** An invoice as Stripe had it when it was looked at. */
export type Seen = {
  stripeId: string
  status: StripeStatus
  url: string | null
  paidCents: number
  refundedCents: number
  disputed: boolean
  /** why the last payment was not had; null once there is one */
  failure: string | null
}

/** Writes down what was seen; what is new of it goes into the audit trail, and a payment that was refused into a mail. */
export async function keepSeen(tx: Db, { livemode }: Mode, before: Row, seen: Seen): Promise<void> {
  const { stripeId, status, url, paidCents, refundedCents, disputed, failure } = seen
  await tx`
    update stripe_invoices set stripe_id = ${stripeId}, status = ${status}, url = ${url}, paid_cents = ${paidCents},
      refunded_cents = ${refundedCents}, disputed = ${disputed}, failure = ${failure}, problem = null, attempts = 0,
      next_attempt_at = now(), refreshed_at = now()
    where invoice = ${before.invoice} and livemode = ${livemode}`
  for (const { kind, amountCents, because } of newsOf(before, seen)) {
    const detail = {
      invoice: before.invoice,
      amount: sayMoney(BigInt(amountCents) * CENT_MICROS),
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
  if (
    seen.status !== before.status &&
    (seen.status === 'paid' || seen.status === 'void' || seen.status === 'uncollectible')
  ) {
    news.push({ kind: `invoice.${seen.status}`, amountCents: seen.status === 'paid' ? seen.paidCents : amountCents })
  }
  if (seen.refundedCents > before.refundedCents) {
    news.push({ kind: 'invoice.refunded', amountCents: seen.refundedCents - before.refundedCents })
  }
  if (seen.disputed && !before.disputed) news.push({ kind: 'invoice.disputed', amountCents })
  return news
}

async function tellOfFailure(tx: Db, { invoice, accountId, totalCents }: Row, failure: string): Promise<void> {
  const [about] = await tx<{ email: string | null; month: string }[]>`
    select email, to_char(month, 'YYYY-MM') as month from accounts a join invoices i on i.account_id = a.id
    where a.id = ${accountId} and i.number = ${invoice}`
  if (!about?.email) return
  const amount = sayMoney(BigInt(totalCents) * CENT_MICROS)
  const body = [
    `Invoice ${invoice} of ${amount}, for ${sayMonth(about.month)} (UTC), could not be collected: ${failure}`,
    'To give something else to pay with: billing method --add. To try again: billing pay.',
  ]
  await tx`insert into mails (recipient, subject, body)
    values (${about.email}, ${`Berth: invoice ${invoice} is not paid`}, ${`${body.join('\n\n')}\n`})`
}
