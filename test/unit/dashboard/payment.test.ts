import { pino } from 'pino'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { Caller } from '../../../gateway/app.ts'
import { paymentsOf } from '../../../gateway/billing/stripe/client.ts'
import { stripeRound } from '../../../gateway/billing/stripe/service.ts'
import { FakeStripe } from '../../../gateway/billing/stripe/testing/fake-stripe.ts'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

let fake: FakeStripe
let desk: Dashboard
let ada: Caller
beforeAll(async () => {
  fake = await FakeStripe.start()
  desk = await startDashboard({ env: fake.env })
  ada = await desk.world.account()
  const { sql } = desk.world.gateway
  await sql`insert into stripe_modes (livemode, since) values (false, '2026-01-01')`
  for (const [number, month] of [
    [1, '2026-02-01'],
    [2, '2026-03-01'],
  ] as const) {
    await sql`insert into invoices (number, account_id, month, closed_at, total_micros)
      values (${number}, ${ada.accountId}, ${month}::date, '2026-04-01', 4940000)`
    await sql`insert into invoice_lines (invoice, position, kind, month, plan, rate_id, quantity, amount_micros)
      values (${number}, 1, 'cpu', ${month}::date, 'usage', 1, 444600000000, 4940000)`
  }
  await round()
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
  await fake?.[Symbol.asyncDispose]()
})

const round = async () => {
  const { settings, sql } = desk.world.app
  const { signal } = new AbortController()
  const payments = await paymentsOf(settings)
  await stripeRound({ payments, sql, log: pino({ level: 'silent' }), signal, hearsEvents: true })
}

async function open(options: { phone?: boolean; scheme?: 'dark' } = {}): Promise<Page> {
  const page = await desk.open('/billing', { accountId: ada.accountId, ...options })
  await page.getByRole('table', { name: 'Payments' }).waitFor()
  return page
}

it('leads to a page of Stripe’s to give a card, pays what is open with it, and shows what was refused and given back', async () => {
  const page = await open()
  // Where the browser would go: to nobody's server.
  await page.route('https://checkout.stripe.example/**', (route) =>
    route.fulfill({ contentType: 'text/html', body: '<h1>Stripe</h1>' }),
  )
  await page.getByText('Nothing was given to pay with yet.').waitFor()
  expect(await page.getByRole('button', { name: /^Pay / }).count()).toBe(0)
  expect(await page.getByRole('link', { name: 'Pay there of invoice 1' }).getAttribute('href')).toMatch(
    /^https:\/\/invoice\.stripe\.example\//,
  )
  expect(await desk.faults(page)).toEqual([])
  await page.getByRole('button', { name: 'Give something to pay with' }).click()
  await page.getByRole('heading', { name: 'Stripe' }).waitFor()
  const session = [...fake.sessions.values()].at(-1)
  expect(page.url()).toBe(`https://checkout.stripe.example/${session?.id}`)
  fake.declines = 'Your card has insufficient funds.'
  fake.completeSession(session?.id ?? '', '4242')
  await page.goto(String(session?.success_url).replace(/localhost(:\d+)?/, new URL(desk.origin).host))
  await page.getByText('Paid with visa ending in 4242, good until 2030-03.').waitFor()
  await page.getByRole('button', { name: 'Pay 2 open invoices now' }).click()
  await page.getByRole('row', { name: /2 March 2026 \$4\.94 not paid Your card has insufficient funds\./ }).waitFor()
  const refused = page.locator('.run', { hasText: 'billing pay' }).first()
  await refused.getByText(/invoice \d is not paid: Your card has insufficient funds/).waitFor()
  await refused.getByText("pay on Stripe's page: https://").waitFor()
  expect(await desk.faults(page)).toEqual([])
  fake.declines = undefined
  await page.getByRole('button', { name: 'Pay 2 open invoices now' }).click()
  await page.getByRole('row', { name: /2 March 2026 \$4\.94 paid Receipt/ }).waitFor()
  expect(await page.locator('.run', { hasText: 'billing pay' }).first().textContent()).toContain('done')
  expect(fake.taken).toHaveLength(2)
  const intent = fake.refund(fake.invoiceOf(2).id, 194)
  const { sql } = desk.world.gateway
  await sql`insert into stripe_events (id, livemode, type, payment_intent) values ('evt_1', false, 'charge.refunded', ${intent.id})`
  await round()
  // By itself.
  await page.getByRole('row', { name: /2 March 2026 \$4\.94 paid, \$1\.94 given back/ }).waitFor()
  await desk.pictures(page, 'payment')
  desk.complaints.splice(0)
})

it('says when Stripe does not answer, and shows what was known', async () => {
  await desk.world.gateway.sql`update stripe_customers set refreshed_at = now() - interval '1 hour'`
  fake.fault = () => 'before'
  const page = await open()
  await page.getByText(/Stripe does not answer\. This was so 1 h ago/).waitFor()
  fake.fault = () => undefined
})

it('fits a phone in the dark', async () => {
  const page = await open({ phone: true, scheme: 'dark' })
  expect(await desk.faults(page)).toEqual([])
})

it('is not there where no payments are taken', async () => {
  const { settings } = desk.world.app
  const { stripe } = settings
  settings.stripe = undefined
  try {
    const page = await desk.open('/billing', { accountId: ada.accountId })
    await page.getByText('house').first().waitFor()
    expect(await page.getByRole('heading', { name: 'Payment' }).count()).toBe(0)
  } finally {
    settings.stripe = stripe
  }
})
