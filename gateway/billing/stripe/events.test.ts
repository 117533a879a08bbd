import { expect, it } from 'vitest'
import { readPayments } from '../payments.ts'
import { keepEvent, readEvent } from './events.ts'
import { world } from './testing/stripe-world.ts'

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

it('what events did not say, of an endpoint that was away, is found by looking', async () => {
  await using w = await world()
  // Closed half a year ago and less.
  await w.close(2, 300)
  await w.round()
  await w.later()
  await w.round()
  const { id, customer } = w.fake.invoiceOf(2)
  w.fake.giveCard(customer)
  w.fake.collect(id)
  await w.later()
  await w.round()
  w.fake.refund(id, 100)
  await w.later()
  await w.round()
  const seen = async () => (await readPayments(w.ledger.gateway, false, null))[0]
  expect(await seen()).toMatchObject({ invoice: 2, status: 'paid', refunded: 0n })
  await w.ledger.owner`update stripe_invoices set refreshed_at = refreshed_at - interval '8 days'`
  await w.round()
  expect(await seen()).toMatchObject({ invoice: 2, status: 'paid', refunded: 1_000_000n })
})

it('a dispute is shown until it is decided, then what was lost by it; a refund that a bank sent back is none', async () => {
  await using w = await world({ accounts: 2 })
  await w.round()
  const seen = async (number: number) =>
    (await readPayments(w.ledger.gateway, false, null)).find(({ invoice }) => invoice === number)
  for (const [number, outcome] of [
    [1, 'won'],
    [2, 'lost'],
  ] as const) {
    const { id, customer } = w.fake.invoiceOf(number)
    w.fake.giveCard(customer)
    w.fake.collect(id)
    const { intent, dispute } = w.fake.dispute(id)
    const object = { ...dispute, payment_intent: intent.id }
    await w.hear('charge.dispute.created', object)
    await w.round()
    expect(await seen(number)).toMatchObject({ status: 'paid', disputed: true, lost: 0n })
    dispute.status = outcome
    await w.hear('charge.dispute.closed', object)
    await w.round()
  }
  expect(await seen(1)).toMatchObject({ status: 'paid', disputed: false, lost: 0n })
  expect(await seen(2)).toMatchObject({ status: 'paid', disputed: false, lost: (await seen(2))?.total })
  const intent = w.fake.refund(w.fake.invoiceOf(1).id, 27)
  await w.hear('refund.created', { id: 're_1', payment_intent: intent.id })
  await w.round()
  w.fake.refund(w.fake.invoiceOf(1).id, -27)
  await w.hear('refund.failed', { id: 're_1', payment_intent: intent.id })
  await w.round()
  expect(await seen(1)).toMatchObject({ refunded: 0n })
  expect((await w.kinds()).filter((kind) => !/sent|paid/.test(kind))).toEqual([
    ...['invoice.disputed', 'invoice.dispute_won', 'invoice.disputed', 'invoice.dispute_lost'],
    ...['invoice.refunded', 'invoice.refund_failed'],
  ])
})

it('an event about what is not ours asks Stripe for nothing of it', async () => {
  await using w = await world()
  await w.round()
  const before = w.fake.calls.length
  await w.hear('invoice.paid', { id: 'in_of_another_installation' })
  await w.hear('customer.deleted', { id: 'cus_of_another_installation' })
  await w.hear('checkout.session.completed', { id: 'cs_1', customer: null })
  await w.hear('charge.refunded', { id: 'ch_1', payment_intent: null })
  await w.round()
  expect(w.fake.calls.slice(before)).toEqual([])
  expect(await w.ledger.owner`select from stripe_events where handled_at is null`).toEqual([])
})
