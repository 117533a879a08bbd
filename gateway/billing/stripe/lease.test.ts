import { expect, it } from 'vitest'
import { connect } from '../../../migrations/connect.ts'
import { modeOf } from './client.ts'
import { openPage } from './customers.ts'
import { payInvoice } from './invoices.ts'
import { Lease } from './lease.ts'
import { stripeRound } from './service.ts'
import { customerOf, signal, silent, world } from './testing/stripe-world.ts'

it('while Stripe hangs for 40 people and a round, all the gateway’s other queries go on', async () => {
  await using w = await world({ timeout: 60_000 })
  const { owner, database } = w.ledger
  // As many connections as a gateway has.
  await using sql = Object.assign(
    connect({ url: database.url, role: 'berth_gateway', max: 16, applicationName: 'held' }),
    {
      [Symbol.asyncDispose]: () => sql.end({ timeout: 2 }),
    },
  )
  const people = await owner<{ id: number }[]>`
    insert into accounts (email) select 'q' || n || '@example.com' from generate_series(1, 40) n returning id`
  await owner`insert into stripe_customers (account_id, livemode, customer)
    select id, false, 'cus_' || id from accounts where email like 'q%'`
  const mode = await modeOf(sql, false)
  const all = Promise.withResolvers<void>()
  let held = 0
  w.fake.fault = () => {
    if (++held === people.length + 1) all.resolve()
    return 'held'
  }
  const asking = [
    ...people.map(({ id: accountId }) =>
      openPage(w.payments, sql, mode, { accountId, page: 'setup', back: 'https://berth.example/billing' }),
    ),
    stripeRound({ payments: w.payments, sql, log: silent, signal, hearsEvents: true }),
  ]
  const outcomes = Promise.allSettled(asking)
  await all.promise
  const others = await Promise.all(
    people.map(({ id }) => sql<{ email: string }[]>`select email from accounts where id = ${id}`),
  )
  expect(others.flat()).toHaveLength(40)
  expect(
    await owner`select state, query from pg_stat_activity
      where application_name = 'held' and datname = current_database() and state <> 'idle'`,
  ).toEqual([])
  await w.fake[Symbol.asyncDispose]()
  for (const { status } of await outcomes) expect(status).toBe('rejected')
  // What was held is given back, for the next attempt.
  expect(await owner`select about from stripe_leases`).toEqual([])
}, 60_000)

it('a lease is one’s alone until it is given back or lapses; who lost it takes no step and writes nothing', async () => {
  await using w = await world()
  const { gateway, owner } = w.ledger
  const touch = (lease: Lease, problem: string) =>
    lease.write((tx) => tx`insert into stripe_events (id, livemode, type) values (${problem}, false, 'x')`)
  const first = await Lease.take(gateway, 'invoice 1 test')
  await expect(Lease.take(gateway, 'invoice 1 test')).rejects.toMatchObject({ code: 'payment.busy', exit: 5 })
  expect(await Lease.tryTake(gateway, 'invoice 1 live')).toBeDefined()
  await touch(first, 'evt_first')
  // Held up for longer than it lasts, and nobody came: it is still its own.
  await owner`update stripe_leases set until = now()`
  await first.renew()
  await owner`update stripe_leases set until = now()`
  const second = await Lease.take(gateway, 'invoice 1 test')
  await expect(first.renew()).rejects.toMatchObject({ code: 'payment.busy' })
  await expect(touch(first, 'evt_late')).rejects.toMatchObject({ code: 'payment.busy' })
  // Whoever lost it does not give back what is another's.
  await first[Symbol.asyncDispose]()
  await touch(second, 'evt_second')
  await second[Symbol.asyncDispose]()
  await using third = await Lease.take(gateway, 'invoice 1 test')
  await third.renew()
  expect((await owner`select id from stripe_events order by id`).map(({ id }) => id)).toEqual([
    'evt_first',
    'evt_second',
  ])
})

it('one that is held up in the middle of a payment, whose lease another takes, charges with it once and writes over nothing', async () => {
  await using w = await world({ timeout: 60_000 })
  await w.round()
  const { gateway, owner } = w.ledger
  const mode = await modeOf(gateway, false)
  w.fake.giveCard(await customerOf(w))
  const [begun, go] = [Promise.withResolvers<void>(), Promise.withResolvers<undefined>()]
  w.fake.fault = ({ path }) => {
    if (!path.endsWith('/pay')) return undefined
    w.fake.fault = () => undefined
    begun.resolve()
    return go.promise
  }
  const late = payInvoice(w.payments, gateway, mode, 1)
  await begun.promise
  await expect(payInvoice(w.payments, gateway, mode, 1)).rejects.toMatchObject({ code: 'payment.busy' })
  await owner`update stripe_leases set until = now()`
  expect(await payInvoice(w.payments, gateway, mode, 1)).toMatchObject({ status: 'paid' })
  w.fake.refund(w.fake.invoiceOf(1).id, 27)
  go.resolve(undefined)
  await expect(late).rejects.toMatchObject({ code: 'payment.busy' })
  expect(w.fake.taken).toHaveLength(1)
  expect(await w.kinds()).toEqual(['invoice.sent', 'invoice.paid'])
  const keys = w.fake.calls.filter(({ path }) => path.endsWith('/pay')).map(({ key }) => key)
  expect(new Set(keys).size).toBe(1)
}, 60_000)
