import { setTimeout as sleep } from 'node:timers/promises'
import type { Sql } from '../../../migrations/connect.ts'
import type { App } from '../../app.ts'
import type { Log } from '../../log.ts'
import { failureOf, isForAll, type Mode, modeOf, type Payments, paymentsOf } from './client.ts'
import { handleEvents } from './events.ts'
import { PaymentError, payInvoice, refreshInvoice, sendInvoice } from './invoices.ts'
import { isBusy, Lease, leaseOfRounds } from './lease.ts'
import { BUSY_S, waitSeconds } from './waiting.ts'

const ROUND_MS = 60_000
/** Not while a gateway has its first connections to think of. */
const FIRST_ROUND_MS = 20_000
const STOP_MS = 3_000
/** Invoices at once, with three calls a second each: Stripe takes 25 in test mode, and people call too. */
const AT_ONCE = 6
/** An event may have been lost: what is open is looked at so often all the same. */
const OPEN_EVERY = '6 hours'
/** Where no events come, refunds and disputes are found by looking; where they come, those that were lost. */
const PAID_EVERY = '1 day'
const PAID_EVERY_HEARD = '7 days'
const PAID_FOR = '180 days'

export type StripeService = { close(): Promise<void> }

/** Sends invoices and looks at what Stripe told, in one gateway of all at a time. */
export function startStripe({
  sql,
  log,
  settings,
  news,
}: Pick<App, 'sql' | 'log' | 'settings' | 'news'>): StripeService {
  const closing = new AbortController()
  const { signal } = closing
  let wake = new AbortController()
  const stop = [news.on('stripe', () => wake.abort()), news.onRescan(() => wake.abort())]
  const rounds = async () => {
    await sleep(FIRST_ROUND_MS, undefined, { signal, ref: false }).catch(() => {})
    while (!signal.aborted) {
      wake = new AbortController()
      try {
        const payments = await paymentsOf(settings)
        await stripeRound({
          payments,
          sql,
          log,
          signal,
          hearsEvents: (settings.stripe?.webhookSecrets.length ?? 0) > 0,
        })
      } catch (error) {
        if (!signal.aborted) tell(log, error, {}, 'Stripe is asked again later')
      }
      const waiting = AbortSignal.any([signal, wake.signal])
      await sleep(ROUND_MS, undefined, { signal: waiting, ref: false }).catch(() => {})
    }
  }
  const running = rounds()
  return {
    async close() {
      for (const end of stop) end()
      closing.abort()
      // What is being asked of Stripe is asked again by whoever comes next, with the same keys.
      await Promise.race([running, sleep(STOP_MS, undefined, { ref: false })])
    },
  }
}

export type RoundOptions = {
  payments: Payments
  sql: Sql
  log: Log
  signal: AbortSignal
  hearsEvents: boolean
}

/**
 * Does all that is due, if no other gateway is at it.
 * @returns whether it was this one's turn
 */
export async function stripeRound({ payments, sql, log, signal, hearsEvents }: RoundOptions): Promise<boolean> {
  await using turn = await Lease.tryTake(sql, leaseOfRounds(payments.livemode))
  if (!turn) return false
  const mode = await modeOf(sql, payments.livemode)
  await enlist(sql, mode)
  const round = { payments, sql, log, mode }
  try {
    for (let isMore = true; isMore && !signal.aborted; ) {
      const handled = await handleEvents(payments, sql, mode, turn, (error, event) =>
        tell(log, error, { event }, 'an event of Stripe’s is looked at again later'),
      )
      await turn.renew()
      const done = await lookAtDue(round, hearsEvents)
      isMore = handled || done
    }
  } catch (error) {
    // Stripe was so slow that another gateway has begun a round: the rest is theirs.
    if (!isBusy(error)) throw error
  }
  return true
}

/** Invoices of which something is to be paid, closed since Stripe was switched on, and not paid otherwise. */
async function enlist(sql: Sql, { livemode, since }: Mode): Promise<void> {
  await sql`
    insert into stripe_invoices (invoice, livemode)
    select number, ${livemode} from invoices
    where closed_at >= ${since} and total_micros > 0
      and not exists (select from stripe_invoices s where s.invoice = number and s.livemode = ${livemode})
      and not exists (select from standing_payments p where p.invoice = number)
    on conflict do nothing`
}

type Round = { payments: Payments; sql: Sql; log: Log; mode: Mode }
type Due = { invoice: number; status: string; collect: boolean; attempts: number }

/** @returns whether there was anything */
async function lookAtDue(round: Round, hearsEvents: boolean): Promise<boolean> {
  const unpaid = await dueUnpaid(round)
  // People wait for the others.
  const due = unpaid.length > 0 ? unpaid : await duePaid(round, hearsEvents ? PAID_EVERY_HEARD : PAID_EVERY)
  const outcomes = await Promise.allSettled(due.map((one) => lookAt(round, one)))
  for (const outcome of outcomes) if (outcome.status === 'rejected') throw outcome.reason
  return due.length > 0
}

async function dueUnpaid({ sql, mode }: Round): Promise<Due[]> {
  // Index: stripe_invoices_due.
  // One of an account at a time: its customer is made with the first, and what Stripe puts off goes to the next.
  return await sql<Due[]>`
    select * from (
      select distinct on (account_id) invoice, s.status, collect, attempts
      from stripe_invoices s join invoices i on i.number = s.invoice
      where livemode = ${mode.livemode} and next_attempt_at <= now() and (
        status in ('waiting', 'draft')
        or (status = 'open' and (collect or refreshed_at < now() - ${OPEN_EVERY}::interval)))
      order by account_id, invoice) as first_of_each
    order by invoice limit ${AT_ONCE}`
}

async function duePaid({ sql, mode }: Round, every: string): Promise<Due[]> {
  // Index: stripe_invoices_paid.
  return await sql<Due[]>`
    select invoice, s.status, collect, attempts
    from stripe_invoices s join invoices i on i.number = s.invoice
    where livemode = ${mode.livemode} and next_attempt_at <= now() and status = 'paid'
      and refreshed_at < now() - ${every}::interval and closed_at > now() - ${PAID_FOR}::interval
    order by refreshed_at limit ${AT_ONCE}`
}

/** @throws what concerns every call alike */
async function lookAt({ payments, sql, log, mode }: Round, { invoice, status, collect, attempts }: Due): Promise<void> {
  try {
    if (status === 'waiting' || status === 'draft') await sendInvoice(payments, sql, mode, invoice)
    else if (collect) await payInvoice(payments, sql, mode, invoice)
    else await refreshInvoice(payments, sql, mode, invoice)
  } catch (error) {
    if (isBusy(error)) {
      await sql`update stripe_invoices set next_attempt_at = now() + ${BUSY_S} * interval '1 s'
        where invoice = ${invoice} and livemode = ${mode.livemode}`
      return
    }
    const failure = failureOf(error)
    const known = failure?.message ?? (error instanceof Error ? error.message : 'unknown').slice(0, 300)
    await sql`
      update stripe_invoices set attempts = attempts + 1, problem = ${known},
        generation = generation + ${failure?.isKept ? 1 : 0},
        next_attempt_at = now() + ${waitSeconds(attempts)} * interval '1 s'
      where invoice = ${invoice} and livemode = ${mode.livemode}`
    tell(log, error, { invoice }, 'an invoice is taken to Stripe again later')
    if (failure && isForAll(failure)) throw error
  }
}

/** Errors of the library hold headers and objects: of those nothing is logged. */
function tell(log: Log, error: unknown, about: Record<string, unknown>, text: string): void {
  const failure = failureOf(error)
  if (failure) log.warn({ ...about, stripe: failure }, text)
  else if (error instanceof PaymentError) log.error({ ...about, reason: error.message }, text)
  else log.warn({ ...about, err: error }, text)
}
