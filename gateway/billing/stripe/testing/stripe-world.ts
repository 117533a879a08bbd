/** Invoices of February and a fake of Stripe's to send them to. */
import { pino } from 'pino'
import { Stripe } from 'stripe'
import { closeDueMonths } from '../../closing.ts'
import { type Ledger, span, testLedger } from '../../testing/ledger.ts'
import { API_VERSION, type Payments } from '../client.ts'
import { readCustomer } from '../customers.ts'
import { keepEvent, readEvent } from '../events.ts'
import { stripeRound } from '../service.ts'
import { FakeStripe } from './fake-stripe.ts'

export const silent = pino({ level: 'silent' })
export const { signal } = new AbortController()
const MARCH = new Date('2026-03-01T02:30:00Z')
export const EMAIL = 'ada@example.com'

export type World = {
  ledger: Ledger
  fake: FakeStripe
  payments: Payments
  /** accounts with an invoice of February, in order of their invoices' numbers */
  accounts: number[]
  round(options?: { log?: typeof silent; hearsEvents?: boolean }): Promise<boolean>
  /** what waits for a time to come is due, and whoever was killed has lost their lease */
  later(): Promise<void>
  rows(): Promise<{ invoice: number; status: string; failure: string | null; problem: string | null }[]>
  kinds(): Promise<string[]>
  /** Closes another one, with one line. @param cents its total */
  close(number: number, cents: number, n?: number): Promise<void>
  hear(type: string, object: Record<string, unknown>): Promise<boolean>
  [Symbol.asyncDispose](): Promise<void>
}

export async function world({ accounts: count = 1, since = '2026-01-01', timeout = 2000 } = {}): Promise<World> {
  const ledger = await testLedger()
  const fake = await FakeStripe.start()
  const { gateway, owner } = ledger
  const stripe = new Stripe(fake.apiKey, {
    ...{ apiVersion: API_VERSION, host: '127.0.0.1', port: fake.port, protocol: 'http' },
    ...{ timeout, maxNetworkRetries: 0, telemetry: false },
  })
  const payments: Payments = { stripe, livemode: false }
  const accounts: number[] = []
  for (let n = 0; n < count; n++) {
    const accountId = await ledger.account({
      plan: 'usage',
      since: '2026-02-01',
      email: n === 0 ? EMAIL : `p${n}@example.com`,
    })
    const machineId = await ledger.machine(accountId)
    const hours = 10 + n
    await ledger.spans([
      span(machineId, '2026-02-10T00:00:00Z', `2026-02-10T${hours}:00:07.123456Z`, { cpus: 3, diskBytes: 7 * 2 ** 30 }),
    ])
    accounts.push(accountId)
  }
  await closeDueMonths(gateway, MARCH, signal, silent)
  await owner`insert into stripe_modes (livemode, since) values (false, ${new Date(since)})`
  return {
    ...{ ledger, fake, payments, accounts },
    round: ({ log = silent, hearsEvents = true } = {}) =>
      stripeRound({ payments, sql: gateway, log, signal, hearsEvents }),
    async later() {
      await owner`update stripe_invoices set next_attempt_at = now(), refreshed_at = refreshed_at - interval '2 days'`
      await owner`update stripe_events set next_attempt_at = now()`
      await owner`update stripe_leases set until = now()`
    },
    rows: async () => [
      ...(await owner<{ invoice: number; status: string; failure: string | null; problem: string | null }[]>`
        select invoice, status, failure, problem from stripe_invoices order by invoice`),
    ],
    kinds: async () =>
      (
        await owner<
          { kind: string }[]
        >`select kind from events where kind like 'invoice.%' and kind <> 'invoice.closed' order by id`
      ).map(({ kind }) => kind),
    async close(number, cents, n = 0) {
      const month = `2025-${String(12 - (number % 12)).padStart(2, '0')}-01`
      const accountId = accounts[n] ?? 0
      await owner`insert into invoices (number, account_id, month, closed_at, total_micros)
        values (${number}, ${accountId}, ${month}::date, now(), ${cents * 10_000})`
      await owner`insert into invoice_lines (invoice, position, kind, month, plan, rate_id, quantity, amount_micros)
        values (${number}, 1, 'cpu', ${month}::date, 'usage', 1, 3600000000000, ${cents * 10_000})`
    },
    async hear(type, object) {
      const told = readEvent(JSON.parse(fake.event(type, object).body))
      return told !== undefined && (await keepEvent(gateway, told))
    },
    async [Symbol.asyncDispose]() {
      await fake[Symbol.asyncDispose]()
      await ledger[Symbol.asyncDispose]()
    },
  }
}

export const customerOf = async ({ ledger, accounts }: World, n = 0) =>
  (await readCustomer(ledger.gateway, accounts[n] ?? 0, false))?.customer ?? ''
