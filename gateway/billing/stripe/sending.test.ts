import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { execPath } from 'node:process'
import { Writable } from 'node:stream'
import { pino } from 'pino'
import { Stripe } from 'stripe'
import { expect, it } from 'vitest'
import { readInvoice } from '../invoices.ts'
import { setBuyer } from '../parties.ts'
import { readPayments } from '../payments.ts'
import { API_VERSION, failureOf, modeOf, withoutSecrets } from './client.ts'
import { refreshCustomer } from './customers.ts'
import { stripeRound } from './service.ts'
import type { FakeFault } from './testing/fake-stripe.ts'
import { customerOf, EMAIL, signal, silent, world } from './testing/stripe-world.ts'

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
    `berth-${installation}-invoice-1-create-${there.customer}-0`,
    `berth-${installation}-invoice-1-lines-0`,
    `berth-${installation}-invoice-1-finalize-0`,
  ])
  expect(await w.kinds()).toEqual(['invoice.sent'])
})

it('Stripe is told the name and address that an account gave, with the next invoice, and once', async () => {
  await using w = await world()
  const { gateway } = w.ledger
  const [accountId = 0] = w.accounts
  await setBuyer(gateway, accountId, { name: 'Example Ltd' })
  await w.round()
  const there = async () => w.fake.customers.get(await customerOf(w))
  const updates = () =>
    w.fake.calls.filter(({ method, path }) => method === 'POST' && /customers\/cus/.test(path)).length
  expect(await there()).toMatchObject({ name: 'Example Ltd', email: EMAIL })
  expect(await there()).not.toHaveProperty('address')
  expect(updates()).toBe(1)
  await w.close(2, 300)
  await w.round()
  expect(updates()).toBe(1)
  await setBuyer(gateway, accountId, { name: 'Example Ltd', address: '1 High Street, Anytown' })
  await w.close(3, 400)
  await w.round()
  expect(await there()).toMatchObject({ name: 'Example Ltd', address: { line1: '1 High Street, Anytown' } })
  expect(updates()).toBe(2)
  // What people say at Stripe, and what they take back here, changes nothing there.
  Object.assign((await there()) ?? {}, { address: { line1: '1 High Street', city: 'Anytown' } })
  await setBuyer(gateway, accountId, { address: '1 High Street, Anytown' })
  await w.close(4, 500)
  await w.round()
  await refreshCustomer(w.payments, gateway, accountId)
  expect(await there()).toMatchObject({ name: 'Example Ltd', address: { line1: '1 High Street', city: 'Anytown' } })
  expect(updates()).toBe(2)
  // A customer that was deleted there: the next one is told all of it.
  Object.assign((await there()) ?? {}, { deleted: true })
  await setBuyer(gateway, accountId, { name: 'Example & Sons', address: '1 High Street, Anytown' })
  await w.close(5, 600)
  await w.round()
  expect(await there()).toMatchObject({ name: 'Example & Sons', address: { line1: '1 High Street, Anytown' } })
  expect((await w.rows()).map(({ status, problem }) => [status, problem])).toEqual(Array(5).fill(['open', null]))
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

it('killed after Stripe did a step and before it was written down, twice in a row where money is, a gateway does none twice', async () => {
  await using w = await world()
  const script = new URL('testing/stripe-process.ts', import.meta.url).pathname
  const args = [script, w.ledger.database.url, w.fake.env.BERTH_STRIPE_HOST ?? '', w.fake.apiKey]
  const killedAt: string[] = []
  const untilKilled = async () => {
    const child = spawn(execPath, args, { stdio: 'inherit' })
    const gone = once(child, 'exit')
    w.fake.fault = ({ method, path }) => {
      const step = path.replace(/.*_fake\d+/, '')
      const times = killedAt.filter((one) => one === step).length
      const looksAfterPaying = path === '/v1/invoice_payments' && w.fake.taken.length > 0
      const most = method === 'GET' ? Number(looksAfterPaying) : step === '/v1/invoices' || step === '/pay' ? 2 : 1
      if (child.killed || times >= most) return undefined
      killedAt.push(step)
      child.kill('SIGKILL')
      // At the first of two Stripe has not begun.
      return times + 1 < most ? 'held' : 'hang'
    }
    const [status] = await gone
    // Its leases are there until they lapse.
    if (status === null) expect(await w.round()).toBe(false)
    await w.later()
    return status === null
  }
  const untilDone = async () => {
    while (await untilKilled()) {}
  }
  await untilDone()
  expect(await w.rows()).toMatchObject([{ status: 'open' }])
  w.fake.giveCard(await customerOf(w))
  await w.ledger.owner`update stripe_invoices set collect = true`
  await untilDone()
  expect(await w.rows()).toMatchObject([{ status: 'paid' }])
  expect(killedAt).toEqual([
    ...['/v1/customers', '', '/v1/invoices', '/v1/invoices', '/add_lines', '/finalize'],
    ...['/pay', '/pay', '/v1/invoice_payments'],
  ])
  expect([w.fake.customers.size, w.fake.invoices.size]).toEqual([1, 1])
  expect(w.fake.invoiceOf(1).lines.data).toHaveLength(3)
  expect(w.fake.taken).toEqual([{ invoice: w.fake.invoiceOf(1).id, cents: 127 }])
  expect(await w.ledger.owner`select about from stripe_leases`).toEqual([])
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

it('a customer that was deleted at Stripe, or is not known to its key, is made anew though no event said so', async () => {
  await using w = await world()
  await w.round()
  const before = await customerOf(w)
  w.fake.deleteCustomer(before)
  await w.close(2, 300)
  await w.round()
  expect((await w.rows())[1]?.problem).toMatch(/No such customer/)
  await w.later()
  await w.round()
  const after = await customerOf(w)
  expect(after).not.toBe(before)
  expect(w.fake.invoiceOf(2)).toMatchObject({ status: 'open', customer: after, total: 300 })
  expect((await w.rows())[1]).toMatchObject({ status: 'open', problem: null })
  // The key is another account's of Stripe by now.
  w.fake.customers.delete(after)
  await w.close(3, 400)
  await w.round()
  await w.later()
  await w.round()
  expect(w.fake.invoiceOf(3)).toMatchObject({ status: 'open', total: 400 })
})

it('what is below Stripe’s least charge is charged with the next one, and what others put on that balance is not', async () => {
  await using w = await world()
  await w.round()
  await w.close(2, 30)
  await w.round()
  await w.close(3, 200)
  await w.round()
  const customer = await customerOf(w)
  w.fake.giveCard(customer)
  for (const number of [1, 3]) w.fake.collect(w.fake.invoiceOf(number).id)
  await w.later()
  await w.ledger.owner`update stripe_invoices set refreshed_at = refreshed_at - interval '8 days'`
  await w.round()
  expect(await readPayments(w.ledger.gateway, false, w.accounts[0] ?? 0)).toMatchObject([
    { invoice: 3, status: 'paid', total: 2_000_000n, paid: 2_300_000n, carried: -300_000n },
    { invoice: 2, status: 'paid', total: 300_000n, paid: 0n, carried: 300_000n },
    { invoice: 1, status: 'paid', total: 1_270_000n, paid: 1_270_000n, carried: 0n },
  ])
  expect(w.fake.taken.map(({ cents }) => cents)).toEqual([127, 230])
  expect(await w.kinds()).toEqual([
    ...['invoice.sent', 'invoice.sent', 'invoice.put_off', 'invoice.sent', 'invoice.paid', 'invoice.paid'],
  ])
  Object.assign(w.fake.customers.get(customer) ?? {}, { balance: 500 })
  await w.close(4, 100)
  await w.round()
  expect(w.fake.invoiceOf(4).status).toBe('draft')
  expect((await w.rows())[3]?.problem).toMatch(
    /^at Stripe \$5\.00 more would be charged with invoice 4, of which Berth's invoices say \$0\.00: it is left/,
  )
  // What the operator gave there makes it less.
  Object.assign(w.fake.customers.get(customer) ?? {}, { balance: -40 })
  w.fake.invoiceOf(4).starting_balance = -40
  await w.later()
  await w.round()
  expect(w.fake.invoiceOf(4)).toMatchObject({ status: 'open', total: 100, amount_due: 60 })
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
