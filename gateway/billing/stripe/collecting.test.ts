import { expect, it } from 'vitest'
import { readNotices } from '../../accounts/notices.ts'
import { modeOf } from './client.ts'
import { openPage, readCustomer, refreshCustomer } from './customers.ts'
import { payInvoice } from './invoices.ts'
import { customerOf, EMAIL, type World, world } from './testing/stripe-world.ts'

const refusals = async ({ ledger, accounts }: World) =>
  (await readNotices(ledger.gateway, accounts[0] ?? 0))
    .map(({ subject }) => subject)
    .filter((subject) => subject.endsWith('is not paid'))

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

it('a payment that is refused is kept with its reason and told once; asked for again it is a new one', async () => {
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
  expect(await owner`select recipient, subject, body from mails where subject like '%is not paid'`).toEqual([
    {
      recipient: EMAIL,
      subject: 'Berth: invoice 1 is not paid',
      body: 'Invoice 1 of $1.27, for February 2026 (UTC), could not be collected: Your card was declined.\n\nTo give something else to pay with: billing method --add. To try again: billing pay.\n',
    },
  ])
  expect(await refusals(w)).toEqual(['invoice 1 is not paid'])
  w.fake.declines = undefined
  expect(await payInvoice(w.payments, gateway, mode, 1)).toMatchObject({ status: 'paid', failure: null })
  expect(await w.kinds()).toEqual(['invoice.sent', 'invoice.payment_failed', 'invoice.paid'])
  expect(w.fake.taken).toHaveLength(1)
})

it('an account without an address is told of a payment that was refused too', async () => {
  await using w = await world()
  const { gateway, owner } = w.ledger
  await owner`update accounts set email = null`
  await w.round()
  w.fake.giveCard(await customerOf(w))
  w.fake.declines = 'Your card was declined.'
  await payInvoice(w.payments, gateway, await modeOf(gateway, false), 1)
  expect(await refusals(w)).toEqual(['invoice 1 is not paid'])
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

it('a page that Stripe failed to make, and would for a day, is another one when it is asked for again', async () => {
  await using w = await world()
  await w.round()
  const { gateway } = w.ledger
  const [accountId = 0] = w.accounts
  const mode = await modeOf(gateway, false)
  for (const page of ['setup', 'portal'] as const) {
    const ask = () => openPage(w.payments, gateway, mode, { accountId, page, back: 'https://berth.example/billing' })
    let failed = 0
    w.fake.fault = ({ method }) => (method === 'POST' && failed++ === 0 ? 'fails' : undefined)
    await expect(ask()).rejects.toThrow()
    // Stripe repeats what it kept, once.
    await expect(ask()).rejects.toThrow()
    expect(await ask()).toMatch(/^https:/)
  }
})

it('a payment that fails at Stripe itself is asked for again later, and not at once for ever', async () => {
  await using w = await world()
  await w.round()
  w.fake.giveCard(await customerOf(w))
  await w.ledger.owner`update stripe_invoices set collect = true`
  w.fake.fault = ({ path }) => (path.endsWith('/pay') ? 'fails' : undefined)
  const asked = () => w.fake.calls.filter(({ path }) => path.endsWith('/pay'))
  for (let round = 0; round < 4; round++) {
    const before = asked().length
    await w.round().catch(() => {})
    expect(asked().length - before).toBeLessThanOrEqual(1)
    await w.later()
  }
  expect(new Set(asked().map(({ key }) => key)).size).toBeGreaterThan(1)
  w.fake.fault = () => undefined
  await w.round()
  await w.later()
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'paid', problem: null }])
  expect(w.fake.taken).toHaveLength(1)
})

it('a payment that takes its days is open and no failure, however often it is asked for', async () => {
  await using w = await world()
  await w.round()
  const { gateway, owner } = w.ledger
  const mode = await modeOf(gateway, false)
  w.fake.giveCard(await customerOf(w))
  w.fake.takesDays = true
  for (let time = 0; time < 2; time++) {
    expect(await payInvoice(w.payments, gateway, mode, 1)).toMatchObject({ status: 'open', failure: null })
  }
  expect(await owner`select subject from mails where subject like '%is not paid'`).toEqual([])
  w.fake.arrive(w.fake.invoiceOf(1).id)
  await w.hear('invoice.paid', { id: w.fake.invoiceOf(1).id })
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'paid' }])
  expect(await w.kinds()).toEqual(['invoice.sent', 'invoice.paid'])
})

it('what is given while Stripe is at a payment with something else is tried after it', async () => {
  await using w = await world()
  await w.round()
  const { gateway } = w.ledger
  const [accountId = 0] = w.accounts
  const mode = await modeOf(gateway, false)
  const customer = await customerOf(w)
  w.fake.giveCard(customer, '0002')
  await refreshCustomer(w.payments, gateway, accountId)
  w.fake.declines = 'Your card was declined.'
  const [begun, go] = [Promise.withResolvers<void>(), Promise.withResolvers<undefined>()]
  w.fake.fault = ({ path }) => {
    if (!path.endsWith('/pay')) return undefined
    begun.resolve()
    return go.promise
  }
  const paying = payInvoice(w.payments, gateway, mode, 1)
  await begun.promise
  w.fake.giveCard(customer, '4242')
  expect(await refreshCustomer(w.payments, gateway, accountId)).toMatchObject({ method: { last4: '4242' } })
  go.resolve(undefined)
  expect(await paying).toMatchObject({ status: 'open', failure: 'Your card was declined.' })
  w.fake.declines = undefined
  await w.round()
  expect(await w.rows()).toMatchObject([{ status: 'paid', failure: null }])
})
