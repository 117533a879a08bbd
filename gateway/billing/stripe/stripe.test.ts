import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { execPath } from 'node:process'
import { Writable } from 'node:stream'
import { pino } from 'pino'
import { Stripe } from 'stripe'
import { expect, it } from 'vitest'
import { closeDueMonths } from '../closing.ts'
import { readInvoice } from '../invoices.ts'
import { type Ledger, span, testLedger } from '../testing/ledger.ts'
import { API_VERSION, failureOf, modeOf, type Payments, withoutSecrets } from './client.ts'
import { openPage, readCustomer, refreshCustomer } from './customers.ts'
import { keepEvent, readEvent } from './events.ts'
import { payInvoice } from './invoices.ts'
import { readPayments } from './payments.ts'
import { stripeRound } from './service.ts'
import { type FakeFault, FakeStripe } from './testing/fake-stripe.ts'

const silent = pino({ level: 'silent' })
const { signal } = new AbortController()
const MARCH = new Date('2026-03-01T02:30:00Z')
const EMAIL = 'ada@example.com'

type World = {
  ledger: Ledger
  fake: FakeStripe
  payments: Payments
  /** accounts with an invoice of February, in order of their invoices' numbers */
  accounts: number[]
  round(options?: { log?: typeof silent; hearsEvents?: boolean }): Promise<boolean>
  /** what waits for a time to come is due */
  later(): Promise<void>
  rows(): Promise<{ invoice: number; status: string; failure: string | null; problem: string | null }[]>
  kinds(): Promise<string[]>
  hear(type: string, object: Record<string, unknown>): Promise<boolean>
  [Symbol.asyncDispose](): Promise<void>
}

async function world({ accounts: count = 1, since = '2026-01-01', timeout = 2000 } = {}): Promise<World> {
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

const customerOf = async ({ ledger, accounts }: World, n = 0) =>
  (await readCustomer(ledger.gateway, accounts[n] ?? 0, false))?.customer ?? ''

it('a closed invoice comes to Stripe once, with its lines to the cent and its total, final, under keys of our records', async () => {
  await using w = await world()
  await w.round()
  await w.round()
  const there = w.fake.invoiceOf(1)
  const ours = await readInvoice(w.ledger.gateway, 1)
  // 30.0059... vCPU-hours at $0.04 are $1.200237 and so on: each line to the cent, and what is missing to the total.
  expect(ours?.lines.map(({ kind, amount }) => [kind, amount])).toEqual([
    ['cpu', 1_200_237n],
    ['memory', 60_012n],
    ['disk', 8_335n],
    ['rounding', 1_416n],
  ])
  expect(there.lines.data.map(({ amount, description }) => [amount, description])).toEqual([
    [120, 'vCPU: 30.006 vCPU-hours ($1.200237)'],
    [6, 'memory: 10.002 GiB-hours ($0.060012)'],
    [1, 'disk: 0.104 GiB-months ($0.008335)'],
  ])
  expect(there).toMatchObject({ status: 'open', total: 127, currency: 'usd', metadata: { berth_invoice: '1' } })
  expect(await w.rows()).toMatchObject([{ invoice: 1, status: 'open', problem: null }])
  expect(w.fake.customers.get(there.customer)).toMatchObject({
    email: EMAIL,
    metadata: { berth_account: String(w.accounts[0]) },
  })
  const { installation } = await modeOf(w.ledger.gateway, false)
  const made = w.fake.calls.filter(({ method, path }) => method === 'POST' && !/customers\/cus/.test(path))
  expect(made.map(({ key }) => key)).toEqual([
    `berth-${installation}-account-${w.accounts[0]}-customer-0`,
    `berth-${installation}-invoice-1-create-0`,
    `berth-${installation}-invoice-1-lines-0`,
    `berth-${installation}-invoice-1-finalize-0`,
  ])
  expect(await w.kinds()).toEqual(['invoice.sent'])
})

it('an invoice that was closed before Stripe was switched on, and one of nothing, are not sent', async () => {
  await using w = await world({ since: '2026-06-01' })
  await w.round()
  expect(await w.rows()).toEqual([])
  expect(w.fake.calls).toEqual([])
})

const FAULTS: FakeFault[] = ['before', 'after', 'hang', 'held', 'fails', 'away', 'many']
it.each(FAULTS)(
  'whatever call fails, here by %s, it is taken up again, and there is one customer, one invoice, one payment',
  async (fault) => {
    await using w = await world({ timeout: 300 })
    // The search is late: what was made a moment ago it does not know.
    const failed = new Map<string, number>()
    for (let isDone = false; !isDone; ) {
      let failing = ''
      w.fake.fault = ({ method, path }) => {
        const step = `${method} ${path.replace(/(cus|in|pi)_\w+/, 'ID')}`
        const times = failed.get(step) ?? 0
        // The library itself tries once more when a connection breaks.
        if (times === 2 || (failing !== '' && failing !== step)) return undefined
        failing = step
        failed.set(step, times + 1)
        return fault
      }
      await w.round().catch(() => {})
      const [row] = await w.rows()
      const customer = await customerOf(w)
      if (row?.status === 'open' && !w.fake.methods.has(customer)) w.fake.giveCard(customer)
      if (row?.status === 'open') {
        await refreshCustomer(w.payments, w.ledger.gateway, w.accounts[0] ?? 0).catch(() => {})
      }
      await w.later()
      isDone = failing === '' && row?.status === 'paid'
    }
    expect([...failed.keys()].filter((step) => step.startsWith('POST'))).toEqual([
      'POST /v1/customers',
      'POST /v1/customers/ID',
      'POST /v1/invoices',
      'POST /v1/invoices/ID/add_lines',
      'POST /v1/invoices/ID/finalize',
      'POST /v1/invoices/ID/pay',
    ])
    expect(await w.rows()).toMatchObject([{ status: 'paid', problem: null }])
    expect(w.fake.invoicesOf(1)).toHaveLength(1)
    expect(w.fake.customers.size).toBe(1)
    expect(w.fake.invoiceOf(1).lines.data).toHaveLength(3)
    expect(w.fake.taken).toEqual([{ invoice: w.fake.invoiceOf(1).id, cents: 127 }])
  },
  120_000,
)

it('killed after Stripe did a step and before it was written down, at each of them, a gateway does none twice', async () => {
  await using w = await world()
  const script = new URL('testing/stripe-process.ts', import.meta.url).pathname
  const args = [script, w.ledger.database.url, w.fake.env.BERTH_STRIPE_HOST ?? '', w.fake.apiKey]
  const killedAt: string[] = []
  const untilKilled = async () => {
    const child = spawn(execPath, args, { stdio: 'inherit' })
    const gone = once(child, 'exit')
    w.fake.fault = ({ method, path }) => {
      const step = path.replace(/.*_fake\d+/, '')
      if (method !== 'POST' || child.killed || killedAt.includes(step)) return undefined
      killedAt.push(step)
      child.kill('SIGKILL')
      return 'hang'
    }
    const [status] = await gone
    await w.later()
    return status === null
  }
  while (await untilKilled()) {}
  expect(await w.rows()).toMatchObject([{ status: 'open' }])
  w.fake.giveCard(await customerOf(w))
  await w.ledger.owner`update stripe_invoices set collect = true`
  expect(await untilKilled()).toBe(true)
  expect(await untilKilled()).toBe(false)
  expect(await w.rows()).toMatchObject([{ status: 'paid' }])
  expect(killedAt).toEqual(['/v1/customers', '', '/v1/invoices', '/add_lines', '/finalize', '/pay'])
  expect([w.fake.customers.size, w.fake.invoices.size]).toEqual([1, 1])
  expect(w.fake.invoiceOf(1).lines.data).toHaveLength(3)
  expect(w.fake.taken).toEqual([{ invoice: w.fake.invoiceOf(1).id, cents: 127 }])
}, 300_000)

it('after a day Stripe has forgotten the keys, and an older database came back: what is there is found by its mark', async () => {
  await using w = await world()
  w.fake.fault = ({ path }) => (path.endsWith('/add_lines') ? 'before' : undefined)
  await w.round().catch(() => {})
  expect(w.fake.invoiceOf(1).status).toBe('draft')
  w.fake.fault = () => undefined
  w.fake.nextDay()
  await w.ledger.owner`delete from stripe_invoices`
  await w.ledger.owner`delete from stripe_customers`
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'open' }])
  w.fake.nextDay()
  await w.ledger.owner`delete from stripe_invoices`
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'open' }])
  expect([w.fake.customers.size, w.fake.invoices.size]).toEqual([1, 1])
  expect(w.fake.invoiceOf(1).lines.data).toHaveLength(3)
})

it('what Stripe keeps as an error under a key is asked again under another one', async () => {
  await using w = await world()
  for (const step of [/customers$/, /invoices$/, /add_lines$/, /finalize$/]) {
    let failed = 0
    w.fake.fault = ({ method, path }) => (method === 'POST' && step.test(path) && failed++ === 0 ? 'fails' : undefined)
    for (let round = 0; round < 3; round++) {
      await w.round().catch(() => {})
      await w.later()
    }
    w.fake.fault = () => undefined
  }
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'open', problem: null }])
  expect([w.fake.customers.size, w.fake.invoices.size]).toEqual([1, 1])
})

it('an invoice that would come to another total at Stripe is not made final, and the operator is told', async () => {
  await using w = await world()
  w.fake.taxCents = 24
  await w.round()
  expect(w.fake.invoiceOf(1).status).toBe('draft')
  expect((await w.rows())[0]?.problem).toMatch(/comes to \$1\.51, not \$1\.27: it is left as it is/)
  w.fake.taxCents = 0
  w.fake.invoiceOf(1).total = 127
  await w.later()
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'open', problem: null }])
})

it('a draft that was deleted at Stripe is made anew, one that was taken back is not', async () => {
  await using w = await world()
  w.fake.fault = ({ path }) => (path.endsWith('/add_lines') ? 'away' : undefined)
  await w.round().catch(() => {})
  w.fake.fault = () => undefined
  const { id } = w.fake.invoiceOf(1)
  await w.ledger.owner`update stripe_invoices set stripe_id = ${id}, status = 'draft'`
  w.fake.invoices.delete(id)
  await w.later()
  await w.round()
  expect(w.fake.invoiceOf(1)).toMatchObject({ status: 'open' })
  w.fake.invoiceOf(1).status = 'void'
  await w.hear('invoice.voided', { id: w.fake.invoiceOf(1).id })
  await w.round()
  await w.later()
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'void' }])
  expect(w.fake.invoices.size).toBe(1)
})

it('events tell what to look at: late, twice or in the wrong order they come to the same', async () => {
  await using w = await world()
  await w.round()
  const { id, customer } = w.fake.invoiceOf(1)
  w.fake.giveCard(customer)
  w.fake.collect(id)
  const intent = w.fake.refund(id, 27)
  const charge = { id: 'ch_1', payment_intent: intent.id }
  const paid = JSON.parse(w.fake.event('invoice.paid', { id }).body)
  // The refund before the payment, the payment's failure after all, everything twice.
  expect(await w.hear('charge.refunded', charge)).toBe(true)
  await w.hear('invoice.payment_failed', { id })
  for (const repeat of [false, true]) {
    const told = readEvent(paid)
    expect(told && (await keepEvent(w.ledger.gateway, told))).toBe(!repeat)
  }
  await w.hear('invoice.finalized', { id })
  await w.round()
  const seen = await readPayments(w.ledger.gateway, false, w.accounts[0] ?? 0)
  expect(seen).toMatchObject([{ status: 'paid', paid: 1_270_000n, refunded: 270_000n, failure: null }])
  await w.hear('invoice.created', { id })
  w.fake.refund(id, 100)
  await w.hear('refund.created', { id: 're_2', payment_intent: intent.id })
  await w.round()
  expect(await readPayments(w.ledger.gateway, false, null)).toMatchObject([{ status: 'paid', refunded: 1_270_000n }])
  expect(await w.kinds()).toEqual(['invoice.sent', 'invoice.paid', 'invoice.refunded', 'invoice.refunded'])
  expect(w.fake.taken).toHaveLength(1)
  expect(await w.ledger.owner`select from stripe_events where handled_at is null`).toEqual([])
})

it('an event that comes while Stripe is away is handled when it is back', async () => {
  await using w = await world()
  await w.round()
  const { id, customer } = w.fake.invoiceOf(1)
  w.fake.giveCard(customer)
  w.fake.collect(id)
  await w.hear('invoice.paid', { id })
  w.fake.fault = () => 'before'
  await w.round().catch(() => {})
  w.fake.fault = () => undefined
  expect(await w.rows()).toMatchObject([{ status: 'open' }])
  await w.later()
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'paid' }])
})

it('without events, what became of an invoice is found by looking', async () => {
  await using w = await world()
  await w.round({ hearsEvents: false })
  const { id, customer } = w.fake.invoiceOf(1)
  w.fake.giveCard(customer)
  w.fake.collect(id)
  await w.round({ hearsEvents: false })
  expect(await w.rows()).toMatchObject([{ status: 'open' }])
  await w.later()
  await w.round({ hearsEvents: false })
  expect(await w.rows()).toMatchObject([{ status: 'paid' }])
})

it('what is given on Stripe’s page is what is paid with from then on, and what is open is collected', async () => {
  await using w = await world()
  await w.round()
  const { gateway } = w.ledger
  const [accountId = 0] = w.accounts
  const mode = await modeOf(gateway, false)
  const page = { accountId, page: 'setup' as const, back: 'https://berth.example/billing' }
  const url = await openPage(w.payments, gateway, mode, page)
  const [session] = w.fake.sessions.values()
  expect(url).toBe(`https://checkout.stripe.example/${session?.id}`)
  expect(session).toMatchObject({ mode: 'setup', customer: await customerOf(w), success_url: page.back })
  expect(await refreshCustomer(w.payments, gateway, accountId)).toMatchObject({
    method: null,
    setupSession: session?.id,
  })
  w.fake.completeSession(session?.id ?? '', '4242')
  await w.hear('checkout.session.completed', { id: session?.id, customer: await customerOf(w) })
  await w.round()
  expect(await readCustomer(gateway, accountId, false)).toMatchObject({
    method: { kind: 'card', brand: 'visa', last4: '4242', expires: '2030-03' },
    setupSession: null,
  })
  expect(await w.rows()).toMatchObject([{ status: 'paid' }])
  expect(w.fake.taken).toEqual([{ invoice: w.fake.invoiceOf(1).id, cents: 127 }])
  // Another card takes the place of the first, also when no event comes.
  await openPage(w.payments, gateway, mode, page)
  const second = [...w.fake.sessions.values()].at(-1)
  expect(second?.id).not.toBe(session?.id)
  w.fake.completeSession(second?.id ?? '', '0005')
  expect(await refreshCustomer(w.payments, gateway, accountId)).toMatchObject({ method: { last4: '0005' } })
})

it('a payment that is refused is kept with its reason and mailed once; asked for again it is a new one', async () => {
  await using w = await world()
  await w.round()
  const { gateway, owner } = w.ledger
  const mode = await modeOf(gateway, false)
  w.fake.giveCard(await customerOf(w))
  w.fake.declines = 'Your card was declined.'
  expect(await payInvoice(w.payments, gateway, mode, 1)).toMatchObject({
    status: 'open',
    failure: 'Your card was declined.',
  })
  expect(await payInvoice(w.payments, gateway, mode, 1)).toMatchObject({
    status: 'open',
    failure: 'Your card was declined.',
  })
  expect(await owner`select recipient, subject, body from mails`).toEqual([
    {
      recipient: EMAIL,
      subject: 'Berth: invoice 1 is not paid',
      body: 'Invoice 1 of $1.27, for February 2026 (UTC), could not be collected: Your card was declined.\n\nTo give something else to pay with: billing method --add. To try again: billing pay.\n',
    },
  ])
  w.fake.declines = undefined
  expect(await payInvoice(w.payments, gateway, mode, 1)).toMatchObject({ status: 'paid', failure: null })
  expect(await w.kinds()).toEqual(['invoice.sent', 'invoice.payment_failed', 'invoice.paid'])
  expect(w.fake.taken).toHaveLength(1)
})

it('asked to pay many times at once, and by its own schedule too, Stripe takes it once', async () => {
  await using w = await world()
  await w.round()
  const { gateway } = w.ledger
  const mode = await modeOf(gateway, false)
  w.fake.giveCard(await customerOf(w))
  const asked = Array.from({ length: 4 }, () => payInvoice(w.payments, gateway, mode, 1))
  const results = await Promise.allSettled(asked)
  for (const result of results) {
    if (result.status === 'rejected') expect(result.reason).toMatchObject({ code: 'payment.busy' })
    else expect(result.value).toMatchObject({ status: 'paid' })
  }
  await payInvoice(w.payments, gateway, mode, 1)
  expect(w.fake.taken).toHaveLength(1)
})

it('two gateways at once send each invoice once', async () => {
  await using w = await world({ accounts: 3 })
  const other = w.ledger.database.as('berth_gateway')
  const second = () => stripeRound({ payments: w.payments, sql: other, log: silent, signal, hearsEvents: true })
  await Promise.all([w.round(), second(), w.round(), second()])
  await w.round()
  expect((await w.rows()).map(({ status }) => status)).toEqual(['open', 'open', 'open'])
  expect(w.fake.invoices.size).toBe(3)
})

it('neither keys nor anything else secret is in the log, whatever goes wrong', async () => {
  await using w = await world()
  let text = ''
  const stream = new Writable({
    write(chunk, _encoding, done) {
      text += chunk
      done()
    },
  })
  const log = pino({ level: 'trace' }, stream) as typeof silent
  for (const fault of FAULTS) {
    w.fake.fault = ({ method }) => (method === 'POST' ? fault : undefined)
    await w.round({ log }).catch(() => {})
    await w.later()
  }
  w.fake.fault = () => undefined
  const wrong = new Stripe('sk_test_another00000000000000', {
    ...{ apiVersion: API_VERSION, host: '127.0.0.1', port: w.fake.port, protocol: 'http', maxNetworkRetries: 0 },
  })
  const payments = { stripe: wrong, livemode: false }
  await expect(stripeRound({ payments, sql: w.ledger.gateway, log, signal, hearsEvents: true })).rejects.toThrow()
  expect(text).toMatch(/is taken to Stripe again later/)
  expect(text).not.toMatch(/sk_test_\w|whsec_\w|Bearer|ada@example/)
  const refused = await wrong.customers.list().catch((error: unknown) => error)
  expect(failureOf(refused)).toMatchObject({ status: 401, message: 'Invalid API Key provided: sk_…' })
  expect(withoutSecrets('pi_1_secret_abc and whsec_12 \u001b[31mred')).toBe('pi_1_secret_… and whsec_… red')
})
