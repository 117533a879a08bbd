import { request } from 'node:https'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Caller } from '../app.ts'
import { paymentsOf } from '../billing/stripe/client.ts'
import { sendCommand } from '../billing/stripe/payments.ts'
import { stripeRound } from '../billing/stripe/service.ts'
import { FakeStripe } from '../billing/stripe/testing/fake-stripe.ts'
import { startWorld, type World } from './testing/world.ts'

const { signal } = new AbortController()

describe('payments', () => {
  let fake: FakeStripe
  let world: World
  let ada: Caller
  let bob: Caller
  beforeAll(async () => {
    fake = await FakeStripe.start()
    world = await startWorld({ https: true, env: fake.env })
    ada = await world.account()
    bob = await world.account()
    const { sql } = world.gateway
    await sql`insert into stripe_modes (livemode, since) values (false, '2026-01-01')`
    const close = async (number: number, accountId: number, closedAt: string) => {
      await sql`insert into invoices (number, account_id, month, closed_at, total_micros)
        values (${number}, ${accountId}, ${closedAt}::timestamptz::date, ${closedAt}, 4940000)`
      await sql`insert into invoice_lines (invoice, position, kind, month, plan, rate_id, quantity, amount_micros)
        values (${number}, 1, 'cpu', ${closedAt}::timestamptz::date, 'usage', 1, 444600000000, 4940000)`
    }
    await close(1, ada.accountId, '2025-12-01')
    await close(2, ada.accountId, '2026-03-01')
    await close(3, bob.accountId, '2026-03-01')
  })
  afterAll(async () => {
    await world?.[Symbol.asyncDispose]()
    await fake?.[Symbol.asyncDispose]()
  })

  const { log } = { log: { warn() {}, error() {} } as never }
  const round = async () =>
    await stripeRound({
      ...{ payments: await paymentsOf(world.app.settings), sql: world.app.sql, log, signal, hearsEvents: true },
    })
  const run = (line: string, caller = ada) => world.run(line, { caller })
  const document = async (line: string, caller = ada) => (await world.json(line, { caller })).document

  async function post(body: string, signature: string | undefined, method = 'POST') {
    const [listener] = world.gateway.https?.server.addresses ?? []
    const headers = {
      'content-type': 'application/json',
      ...(signature === undefined ? {} : { 'stripe-signature': signature }),
    }
    const options = { host: '127.0.0.1', port: listener?.port, servername: 'localhost', rejectUnauthorized: false }
    return await new Promise<{ status: number | undefined; text: string }>((resolve, reject) => {
      const sent = request({ ...options, method, path: '/webhooks/stripe', headers: { ...headers, host: 'localhost' } })
      sent.on('error', reject)
      sent.on('response', (response) => {
        let text = ''
        response.on('data', (chunk) => {
          text += chunk
        })
        response.on('end', () => resolve({ status: response.statusCode, text }))
      })
      sent.end(body)
    })
  }
  const events = async () =>
    (await world.gateway.sql<{ id: string }[]>`select id from stripe_events`).map(({ id }) => id)

  it('shows what is open, and the page to pay on where nothing was given', async () => {
    expect((await run('billing payments')).stdout).toBe('nothing was to be paid yet\n')
    expect((await run('billing method')).stdout).toMatch(
      /^paid with +nothing yet; billing method --add\ntest +Stripe is in test mode/,
    )
    await round()
    expect(await document('billing payments')).toMatchObject({
      currency: 'USD',
      test: true,
      payments: [
        { invoice: 2, month: '2026-03', total_micros: 4_940_000, status: 'open', paid_micros: 0, failure: null },
      ],
    })
    const { status, stdout, stderr } = await run('billing pay')
    expect(await document('billing pay')).toMatchObject({
      payments: [{ invoice: 2, status: 'open' }],
      ...{ error: expect.stringMatching(/^invoice 2 is not paid: /), code: 'payment.open' },
      way_on: expect.stringContaining("Stripe's page"),
    })
    expect([status, stdout]).toEqual([1, 'invoice 2, March 2026: $4.94, open\n'])
    expect(stderr).toMatch(
      /invoice 2 is not paid: nothing was given to pay with\npay on Stripe's page: https:\/\/invoice\.stripe\.example\//,
    )
    expect(fake.taken).toEqual([])
  })

  it('gives a page to pay with something, pays what is open with it, and says what was refused', async () => {
    const { url } = await document('billing method --add')
    expect(url).toMatch(/^https:\/\/checkout\.stripe\.example\//)
    expect((await run('billing method --manage')).stdout).toMatch(/^https:\/\/billing\.stripe\.example\/\d+\n$/)
    expect((await run('billing method --add --manage')).status).toBe(2)
    const session = [...fake.sessions.values()].at(-1)
    expect(session).toMatchObject({ success_url: expect.stringMatching(/^https:\/\/localhost(:\d+)?\/billing$/) })
    fake.completeSession(session?.id ?? '', '4242')
    expect((await run('billing method')).stdout).toMatch(/^paid with +visa ending in 4242, good until 2030-03\n/)
    fake.declines = 'Your card has insufficient funds.'
    const refused = await run('billing pay 2')
    expect([refused.status, refused.stderr]).toEqual([
      1,
      expect.stringMatching(/invoice 2 is not paid: Your card has insufficient funds\./),
    ])
    expect((await run('billing payments')).stdout).toMatch(
      / 2 +March 2026 +\$4\.94 +not paid: Your card has insufficient funds\.\n/,
    )
    fake.declines = undefined
    expect(await run('billing pay')).toMatchObject({ status: 0, stdout: 'invoice 2, March 2026: $4.94, paid\n' })
    expect((await run('billing pay')).stdout).toBe('nothing is to be paid\n')
    expect(fake.taken).toHaveLength(1)
    expect((await run('audit')).stdout).toMatch(/invoice/)
  })

  it('shows what was paid in part, put off, disputed and lost', async () => {
    const { sql } = world.gateway
    const state = async () => (await run('billing payments')).stdout.trimEnd().split(/ {2,}/).at(-1)
    const set = async (values: Record<string, unknown>) => {
      await sql`update stripe_invoices set ${sql(values)} where invoice = 2`
      return await state()
    }
    expect(await set({ status: 'open', paid_cents: 100 })).toBe('open, $1.00 of it paid')
    expect(await set({ status: 'paid', paid_cents: 0, carried_cents: 30 })).toBe('to be paid with the next one')
    expect(await set({ paid_cents: 524, carried_cents: -30 })).toBe('paid, with $0.30 of earlier ones')
    expect(await set({ carried_cents: 0, refunded_cents: 200, disputed: true })).toBe(
      'paid, $2.00 given back, disputed',
    )
    expect(await set({ refunded_cents: 0, disputed: false, lost_cents: 494 })).toBe('paid, $4.94 lost to a dispute')
    expect(await document('billing payments')).toMatchObject({
      payments: [{ lost_micros: 4_940_000, carried_micros: 0, paid_micros: 5_240_000 }],
    })
    expect(await set({ paid_cents: 494, lost_cents: 0 })).toBe('paid')
  })

  it('says when Stripe does not answer, and keeps to what it knew', async () => {
    await world.gateway.sql`update stripe_customers set refreshed_at = now() - interval '1 day'`
    fake.fault = () => 'away'
    expect((await run('billing method')).stdout).toMatch(
      /visa ending in 4242.*\n.*\nas of +.*ago: Stripe refuses: Stripe is not itself today\n/,
    )
    expect(await run('billing method --add')).toMatchObject({
      status: 5,
      stderr: expect.stringContaining('nothing is done twice'),
    })
    fake.fault = () => undefined
  })

  it('nobody sees or pays another’s, and the operator sees and sends all', async () => {
    for (const line of ['billing payments --all', 'billing stripe', 'billing send 1']) {
      expect(await run(line)).toMatchObject({ status: 4, stdout: '' })
    }
    expect((await run('billing payments --all')).stderr).toMatch(/\nto see yours: billing payments\n$/)
    expect(await run('billing pay 3')).toMatchObject({ status: 3, stderr: expect.stringMatching(/^no invoice 3\n/) })
    expect(await run('billing pay 1')).toMatchObject({
      status: 3,
      stderr: expect.stringMatching(/^of invoice 1 nothing is to be paid here\n/),
    })
    expect(await document('billing payments --all', world.owner)).toMatchObject({
      payments: [{ invoice: 3, account: bob.accountId }, { invoice: 2 }],
    })
    // Where the operator looks it is said what was not sent, with the command that does it.
    expect((await run('billing runs', world.owner)).stdout).toMatch(
      /\nclosed before Stripe was switched on, and not sent there by themselves\nDecember 2025: one invoice, \$4\.94: billing send 1\n$/,
    )
    expect(await document('billing runs', world.owner)).toMatchObject({
      not_sent: [{ month: '2025-12', invoices: 1, total_micros: 4_940_000, way_on: 'billing send 1' }],
    })
    expect((await run('billing stripe', world.owner)).stdout).toMatch(/\nnot sent +one of before; billing runs has/)
    const unsent = 'not at Stripe, being closed before that was switched on: billing send 1'
    expect((await run('billing invoices 1', world.owner)).stdout.replaceAll(/\s+/g, ' ')).toContain(`state ${unsent}`)
    expect(await document('billing invoices 1', world.owner)).toMatchObject({
      payment: { status: 'unsent', words: unsent },
    })
    expect((await run('billing invoices')).stdout).not.toContain('send')
    expect(await document('billing invoices 1')).not.toHaveProperty('payment')
    for (const [line, status] of [
      ['billing send', 2],
      ['billing send 1 --month 2025-12', 2],
      ['billing send --month december', 2],
      ['billing send --month 2025-11', 3],
      ['billing send 1 77', 3],
      ['billing send x', 2],
    ] as const) {
      expect((await run(line, world.owner)).status, line).toBe(status)
    }
    expect(sendCommand({ month: '2025-12', numbers: [1, 2, 3] })).toBe('billing send 1 2 3')
    expect(sendCommand({ month: '2025-12', numbers: [1, 2, 3, 4, 5, 6, 7, 8, 9] })).toBe('billing send --month 2025-12')
    expect(await document('billing send --month 2025-12', world.owner)).toEqual({ invoices: [1], sending: [1] })
    await world.gateway.sql`delete from stripe_invoices where invoice = 1`
    expect((await run('billing send 1', world.owner)).stdout).toBe('invoice 1 goes to Stripe within a minute\n')
    expect((await run('billing runs', world.owner)).stdout).not.toContain('Stripe')
    expect((await run('billing send 1', world.owner)).stdout).toMatch(/is there already/)
    await round()
    expect(fake.invoiceOf(1)).toMatchObject({ status: 'open', total: 494 })
    const { status, stdout } = await run('billing stripe', world.owner)
    expect(status).toBe(0)
    expect(stdout).toMatch(
      /^mode +test: no money moves\nsince +2026-01-01 00:00 UTC.*\ninvoices +0 on the way, 2 open, 1 paid, 0 taken back/,
    )
    expect(stdout).not.toMatch(/whsec|sk_test/)
  })

  it('an event is taken with the right signature over its very bytes, now, once, and of this mode', async () => {
    const { id, body, signature } = fake.event('invoice.paid', { id: fake.invoiceOf(2).id })
    expect(await post(body, undefined)).toMatchObject({ status: 400 })
    expect(
      await post(
        body,
        signature.replace(/.$/, (last) => (last === '0' ? '1' : '0')),
      ),
    ).toMatchObject({ status: 400 })
    // The same document in other bytes.
    expect(await post(JSON.stringify(JSON.parse(body)), signature)).toMatchObject({ status: 400 })
    expect(await post(`${body} `, signature)).toMatchObject({ status: 400 })
    const other = fake.event('invoice.paid', {}, { secret: 'whsec_another' })
    expect(await post(other.body, other.signature)).toMatchObject({ status: 400 })
    const old = fake.event('invoice.paid', {}, { at: new Date(Date.now() - 330_000) })
    expect(await post(old.body, old.signature)).toMatchObject({ status: 400 })
    expect(await post('x'.repeat(600_000), signature)).toMatchObject({ status: 413 })
    expect(await post('', undefined, 'GET')).toMatchObject({ status: 405 })
    expect(await events()).toEqual([])
    expect(await post(body, signature)).toEqual({ status: 200, text: '{"received":true}\n' })
    expect(await post(body, signature)).toEqual({ status: 200, text: '{"received":true}\n' })
    const live = fake.event('invoice.paid', {}, { livemode: true })
    expect(await post(live.body, live.signature)).toMatchObject({ status: 200 })
    const useless = fake.event('product.created', { id: 'prod_1' })
    expect(await post(useless.body, useless.signature)).toMatchObject({ status: 200 })
    expect(await events()).toEqual([id])
  })

  it('what keeps an invoice from Stripe is named, however many came since, and a list that is cut says so', async () => {
    const { sql } = world.gateway
    const newest = 'the newest 1000; there are more, and billing invoices NUMBER says'
    expect((await run('billing payments --all', world.owner)).stdout).not.toContain(newest)
    await sql`insert into invoices (number, account_id, month, closed_at, total_micros)
      select 1000 + n, ${bob.accountId}, date '2100-01-01' + n * interval '1 month', now(), 4940000 from generate_series(1, 1100) n`
    await sql`insert into stripe_invoices (invoice, livemode, stripe_id, status)
      select number, false, 'in_' || number, 'paid' from invoices where number > 1000`
    await sql`update stripe_invoices set problem = 'Stripe does not know its customer' where invoice = 1`
    const one = await run('billing stripe', world.owner)
    expect([one.status, one.stderr]).toEqual([1, expect.stringMatching(/^one invoice is kept from Stripe\n/)])
    expect(one.stdout).toMatch(/\ninvoice 1 +Stripe does not know its customer\n$/)
    await sql`update stripe_invoices set problem = 'later' where invoice between 1076 and 1100`
    const many = await run('billing stripe', world.owner)
    expect([many.status, many.stderr]).toEqual([1, expect.stringMatching(/^26 invoices are kept from Stripe\n/)])
    expect(many.stdout).toMatch(
      /\ninvoice 1 +Stripe does.*\ninvoice 1076 +later\n(.*\n)*invoice 1094 +later\n +and 6 more\n$/,
    )
    const { problem_count: count, problems } = await document('billing stripe', world.owner)
    expect(count).toBe(26)
    expect(problems).toHaveLength(20)
    const { cut, payments } = await document('billing payments --all', world.owner)
    expect(cut).toBe(true)
    expect(payments).toHaveLength(1000)
    expect((await run('billing payments --all', world.owner)).stdout.replaceAll(/\s+/g, ' ')).toContain(newest)
    expect(await document('billing payments')).toMatchObject({ cut: false })
  })

  it('where Stripe is not configured, each command says so and the webhook is not there', async () => {
    const { settings } = world.app
    const { stripe } = settings
    settings.stripe = undefined
    try {
      for (const line of ['billing method', 'billing pay', 'billing payments']) {
        expect(await run(line)).toMatchObject({
          status: 1,
          stderr: 'this Berth takes no payments\nthe operator switches Stripe on with BERTH_STRIPE_KEY\n',
        })
      }
      expect(await post('{}', 't=1,v1=0')).toMatchObject({ status: 404 })
    } finally {
      settings.stripe = stripe
    }
  })
})
