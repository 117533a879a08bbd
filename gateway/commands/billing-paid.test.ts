import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Caller } from '../app.ts'
import { paymentsOfInvoices } from '../billing/invoice-document.ts'
import { readInvoices } from '../billing/invoices.ts'
import { notePayment } from '../billing/payments.ts'
import { modeOf, paymentsOf } from '../billing/stripe/client.ts'
import { enlistInvoice } from '../billing/stripe/payments.ts'
import { stripeRound } from '../billing/stripe/service.ts'
import { FakeStripe } from '../billing/stripe/testing/fake-stripe.ts'
import { invoicesPage } from '../https/control/invoice-pages.ts'
import { startWorld, type World } from './testing/world.ts'

const { signal } = new AbortController()

describe('payments that the operator notes', () => {
  let fake: FakeStripe
  let world: World
  let ada: Caller
  beforeAll(async () => {
    fake = await FakeStripe.start()
    world = await startWorld({ env: fake.env })
    ada = await world.account()
    const { sql } = world.gateway
    await sql`insert into stripe_modes (livemode, since) values (false, '2026-01-01'), (true, '2026-01-01')`
    // The first is of before Stripe, of the fourth nothing is to be paid.
    for (const [number, month, micros] of [
      [1, '2025-11-01', 4_940_000],
      [2, '2026-03-01', 5_000_000],
      [3, '2026-04-01', 6_000_000],
      [4, '2026-05-01', 0],
    ] as const) {
      await sql`insert into invoices (number, account_id, month, closed_at, total_micros)
        values (${number}, ${ada.accountId}, ${month}, ${month}::date + interval '1 month', ${micros})`
      await sql`insert into invoice_lines (invoice, position, kind, month, plan, rate_id, quantity, amount_micros)
        values (${number}, 1, 'cpu', ${month}, 'usage', 1, 1, ${micros})`
    }
  })
  afterAll(async () => {
    await world?.[Symbol.asyncDispose]()
    await fake?.[Symbol.asyncDispose]()
  })

  const run = (line: string, caller = world.owner) => world.run(line, { caller })
  const document = async (line: string, caller = world.owner) => (await world.json(line, { caller })).document
  const round = async () =>
    await stripeRound({
      ...{ payments: await paymentsOf(world.app.settings), sql: world.app.sql, signal, hearsEvents: true },
      log: { warn() {}, error() {} } as never,
    })
  const records = () => world.gateway.sql`select invoice, undoes, note from noted_payments order by id`

  it('stand on the invoice without Stripe too, once, until they are taken back by another record', async () => {
    const { settings } = world.app
    const { stripe } = settings
    settings.stripe = undefined
    try {
      const before = await world.gateway.sql`select * from invoices where number = 1`
      expect((await run('billing invoices', ada)).stdout).not.toContain('state')
      const noted = 'invoice 1, $4.94, is noted as paid on 2025-12-20 (transfer 4711)'
      expect((await run("billing paid 1 --on 2025-12-20 --note 'transfer 4711'")).stdout).toBe(`${noted}\n`)
      for (const again of ['billing paid 1', "billing paid 1 --on 2025-12-20 --note 'transfer 4711'"]) {
        expect(await run(again)).toMatchObject({ status: 0, stdout: `${noted} already\n` })
      }
      for (const other of ['billing paid 1 --on 2025-12-21', 'billing paid 1 --note cash']) {
        expect(await run(other)).toMatchObject({
          status: 1,
          stderr: expect.stringMatching(/transfer 4711\) already\n.*billing paid 1 --undo\n$/),
        })
      }
      expect(await records()).toEqual([{ invoice: 1, undoes: null, note: 'transfer 4711' }])
      // Whoever pays sees it wherever they look.
      const words = 'paid on 2025-12-20 (transfer 4711)'
      expect((await run('billing invoices', ada)).stdout).toMatch(
        / 1 +November 2025 +\S+ +\$4\.94 +paid on 2025-12-20 \(/,
      )
      expect((await run('billing invoices --csv', ada)).stdout).toContain(words)
      expect((await run('billing invoices 1', ada)).stdout).toMatch(/\nstate +paid on 2025-12-20 \(transfer 4711\)\n/)
      expect(await document('billing invoices', ada)).toMatchObject({
        invoices: [{ number: 4 }, { number: 3 }, { number: 2 }, { number: 1, payment: { status: 'paid', words } }],
      })
      expect(await document('billing payments', ada)).toMatchObject({
        test: false,
        payments: [
          {
            ...{ invoice: 1, status: 'paid', paid_micros: 4_940_000, total_micros: 4_940_000 },
            noted: { on: '2025-12-20', note: 'transfer 4711' },
          },
        ],
      })
      expect((await run('billing payments --all')).stdout).toMatch(
        / 1 +\d+ +November 2025 +\$4\.94 +paid on 2025-12-20 /,
      )
      const page = invoicesPage(
        { domain: 'example.com', lobby: 'ssh example.com' } as never,
        undefined,
        await readInvoices(world.app.sql, ada.accountId),
        await paymentsOfInvoices(world.app.sql, undefined, ada.accountId),
      )
      expect(page).toContain(`<td>${words}</td>`)
      expect((await run('audit --kind invoice', ada)).stdout.replaceAll(/\s+/g, ' ')).toMatch(
        /invoice\.paid .*on 2025-12-20/,
      )
      expect((await run("billing paid 1 --undo --note 'it was for another'")).stdout).toBe(
        `invoice 1 is not noted as ${words} any more\n`,
      )
      expect(await run('billing paid 1 --undo')).toMatchObject({
        status: 0,
        stdout: 'invoice 1 is not noted as paid\n',
      })
      expect((await run('audit --kind invoice', ada)).stdout).toMatch(/invoice\.payment_undone/)
      expect((await run('billing invoices', ada)).stdout).not.toContain('state')
      expect(await document('billing paid 1 --on 2026-01-02')).toEqual({
        ...{ invoice: 1, paid: true, changed: true, on: '2026-01-02', note: null },
      })
      expect(await records()).toMatchObject([
        { undoes: null },
        { undoes: 1, note: 'it was for another' },
        { undoes: null },
      ])
      expect(await world.gateway.sql`select * from invoices where number = 1`).toEqual(before)
    } finally {
      settings.stripe = stripe
    }
  })

  it('and what Stripe collects are never of the same invoice', async () => {
    const { sql } = world.app
    // Before Stripe has it, it is kept from there.
    await run('billing paid 2')
    await round()
    expect([...fake.invoices.values()].map(({ metadata }) => metadata?.berth_invoice)).toEqual(['3'])
    expect((await run('billing runs')).stdout).not.toContain('billing send')
    expect(await run('billing send 2')).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^invoice 2 is noted as paid on \S+\n.*billing paid 2 --undo\n$/),
    })
    expect(await run('billing paid 3')).toMatchObject({
      status: 1,
      stderr: "invoice 3 is Stripe's to collect\nmark it as paid outside of Stripe there, and it shows here\n",
    })
    await world.gateway.sql`update stripe_invoices set status = 'paid' where invoice = 3`
    expect((await run('billing paid 3')).stderr).toMatch(/^invoice 3 was paid by Stripe\n/)
    await world.gateway.sql`update stripe_invoices set status = 'void' where invoice = 3`
    expect(await run('billing paid 3')).toMatchObject({ status: 0 })
    expect(await document('billing invoices 3', ada)).toMatchObject({ payment: { status: 'paid' } })
    expect((await run('billing pay', ada)).stdout).toBe('nothing is to be paid\n')
    // Taken back, it is like any other.
    await run('billing paid 2 --undo')
    await round()
    expect(fake.invoiceOf(2)).toMatchObject({ status: 'open' })
    // Whoever forgets to look is refused by the database, and of two at once the second.
    await modeOf(sql, true)
    await run('billing paid 1 --undo')
    await sql
      .begin(async (tx) => {
        await notePayment(tx, 1, { on: '2026-01-03', note: null }, world.owner.accountId)
        const sending = enlistInvoice(sql, true, 1)
        const waits = () => world.gateway.sql`select from pg_locks where locktype = 'advisory' and not granted`
        await expect.poll(async () => (await waits()).length, { timeout: 60_000 }).toBe(1)
        return [sending]
      })
      .then(async ([sending]) => expect(await sending).toBe(false))
    await expect(notePayment(sql, 1, { on: '2026-01-03', note: null }, 1)).rejects.toThrow(/noted as paid already/)
    await run('billing paid 1 --undo')
    expect(await enlistInvoice(sql, true, 1)).toBe(true)
    await expect(notePayment(sql, 1, { on: '2026-01-03', note: null }, 1)).rejects.toThrow(/Stripe's to collect/)
    await expect(sql`update noted_payments set note = 'x'`).rejects.toThrow(/permission denied/)
    await expect(world.gateway.sql`delete from noted_payments`).rejects.toThrow(/append only/)
  })

  it.each([
    ['billing paid', 2, /NUMBER/],
    ['billing paid x', 2, /no number/],
    ['billing paid 77', 3, /^no invoice 77\n/],
    ['billing paid 4', 1, /nothing is to be paid/],
    ['billing paid 2 --on tomorrow', 2, /a day such as/],
    ['billing paid 2 --on 2026-02-30', 2, /a day such as/],
    ['billing paid 2 --on 2999-01-01', 2, /at the latest/],
    ['billing paid 2 --on 2016-04-01', 2, /2026-03-01 at the soonest/],
    ["billing paid 2 --note ' '", 2, /--note is empty\nleave it out/],
    [`billing paid 2 --note ${'x'.repeat(201)}`, 2, /characters/],
    ['billing paid 2 --undo --on 2026-04-01', 2, /--on belongs/],
    ['billing paid 4 --undo', 1, /never noted/],
  ])('%s', async (line, status, sentence) => {
    const ran = await run(line)
    expect([ran.status, ran.stderr]).toEqual([status, expect.stringMatching(sentence)])
    expect((await run(line, ada)).status).toBe(4)
  })
})
