import type { App, Caller } from '../app.ts'
import { dayOf, sayMonth } from '../billing/calendar.ts'
import {
  type InvoiceView,
  invoiceCsv,
  invoiceDocument,
  invoiceHead,
  paymentsOfInvoices,
  readInvoiceView,
  sayUnsent,
  unsentInvoices,
} from '../billing/invoice-document.ts'
import { type Invoice, readInvoices } from '../billing/invoices.ts'
import { inUnits } from '../billing/meters.ts'
import { plainAmount, sayExactly, sayMoney, sayRate } from '../billing/money.ts'
import { partyLines } from '../billing/parties.ts'
import { csv, sayPayment, sayQuantity } from '../billing/words.ts'
import { invoiceNumber } from './billing-words.ts'
import type { Completer, Result } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError } from './error.ts'
import { definitions, harmless, table, type View } from './text.ts'
import { controlUrl } from './web-links.ts'
import { truncate } from './width.ts'

const invoiceNumbers: Completer = async ({ app, caller }) =>
  (await readInvoices(app.sql, caller.accountId)).map(({ number }) => String(number))

export const billingInvoices = defineCommand({
  name: 'billing invoices',
  group: 'you',
  summary: 'your invoices, or one of them line by line',
  description:
    'A month is closed on the first of the next, in UTC. Amounts of lines are exact to the millionth; the invoice is paid in cents. What came to light after a month was closed is a correction on the next invoice.',
  flags: { csv: { type: 'boolean', summary: 'comma-separated; of one invoice by machine' } },
  arguments: { number: { label: 'NUMBER', optional: true, complete: invoiceNumbers } },
  examples: ['billing invoices', 'billing invoices 12', 'billing invoices 12 --csv'],
  async run({ app, caller }, { flags, args }) {
    if (args.number !== undefined) return await oneInvoice(app, caller, args.number, flags.csv === true)
    const invoices = await readInvoices(app.sql, caller.accountId)
    const payments = await paymentsOfInvoices(app.sql, app.settings.stripe, caller.accountId)
    const unsent = caller.isOwner
      ? await unsentInvoices(app.sql, app.settings.stripe, caller.accountId)
      : new Set<number>()
    const stateOf = (one: Invoice) => {
      const payment = payments.get(one.number)
      if (payment) return sayPayment(payment)
      return unsent.has(one.number) ? sayUnsent(one) : ''
    }
    const hasStates = payments.size > 0 || unsent.size > 0
    if (flags.csv) {
      const text = csv(
        ['number', 'month', 'closed_at', 'total_usd', ...(hasStates ? ['state'] : [])],
        invoices.map((one) => [
          ...[String(one.number), one.month],
          ...[one.closedAt.toISOString(), plainAmount(one.total)],
          ...(hasStates ? [stateOf(one)] : []),
        ]),
      )
      return { json: { csv: text }, text }
    }
    return {
      json: {
        currency: 'USD',
        invoices: invoices.map((one) => invoiceHead(one, payments.get(one.number), unsent.has(one.number))),
      },
      text: (view) =>
        invoices.length === 0
          ? 'no invoice yet; a month is closed on the first of the next\n'
          : table(
              invoices,
              [
                { title: 'number', value: (one) => String(one.number), right: true },
                { title: 'month', value: (one) => sayMonth(one.month) },
                { title: 'closed', value: (one) => dayOf(one.closedAt) },
                { title: 'total', value: (one) => sayMoney(one.total), right: true },
                { title: 'state', value: stateOf, flexible: true },
              ],
              view,
            ),
    }
  },
})

async function oneInvoice(app: App, caller: Caller, typed: string, asCsv: boolean): Promise<Result> {
  const found = await readInvoiceView(app.sql, app.settings.stripe, invoiceNumber(typed))
  // The operator answers for all of them.
  if (!found || (found.invoice.accountId !== caller.accountId && !caller.isOwner)) {
    throw new CommandError('invoice.not_found', 3, `no invoice ${typed}`, { wayOn: 'billing invoices lists yours' })
  }
  if (asCsv) {
    const text = invoiceCsv(found)
    return { json: { csv: text }, text }
  }
  const url = app.settings.https.length > 0 ? `${controlUrl(app.settings)}/invoices/${found.invoice.number}` : null
  const { accountId, number } = found.invoice
  const isUnsent = caller.isOwner && (await unsentInvoices(app.sql, app.settings.stripe, accountId)).has(number)
  return {
    json: { ...invoiceDocument(found, isUnsent), url },
    text: (view) => invoiceText(found, isUnsent, url, view),
  }
}

function invoiceText(
  { invoice, email, payment, rows }: InvoiceView,
  isUnsent: boolean,
  url: string | null,
  view: View,
): string {
  const { style } = view
  const whose = email ?? `account ${invoice.accountId}`
  const cells = rows.map(({ line, rate, what }) => ({
    // Whole in JSON.
    what: line.kind === 'credit' ? truncate(what, 24) : what,
    quantity: rate ? sayQuantity(rate.kind, line.quantity, line.month) : '',
    included: rate && line.included !== 0n ? inUnits(rate.kind, line.included, line.month) : '',
    rate: rate ? sayRate(rate.micros) : '',
    amount: sayExactly(line.amount),
  }))
  const head = `${style.bold(`invoice ${invoice.number}`)}  ${sayMonth(invoice.month)}  ${harmless(whose)}`
  const body = table(
    [...cells, { what: 'total', quantity: '', included: '', rate: '', amount: sayMoney(invoice.total) }],
    [
      { title: 'what', value: (row) => row.what, flexible: true },
      { title: 'quantity', value: (row) => row.quantity, right: true },
      { title: 'included', value: (row) => row.included, right: true, optional: 2 },
      { title: 'rate', value: (row) => row.rate, right: true, optional: 1 },
      { title: 'amount', value: (row) => row.amount, right: true },
    ],
    view,
  )
  const parties = [
    ...(invoice.seller ? [['from', partyLines(invoice.seller).join(', ')] as const] : []),
    ...(invoice.buyer ? [['for', partyLines(invoice.buyer).join(', ')] as const] : []),
    ...(payment ? [['state', sayPayment(payment)] as const] : []),
    ...(isUnsent ? [['state', sayUnsent(invoice)] as const] : []),
  ].filter(([, words]) => words !== '')
  const facts = parties.map(([term, words]) => [term, harmless(words)] as const)
  const closed = `closed ${invoice.closedAt.toISOString().slice(0, 16).replace('T', ' ')} UTC`
  return `${head}\n${style.dim(closed)}\n${facts.length > 0 ? definitions(facts, view, 0) : ''}\n${body}${url === null ? '' : `${style.dim(`to print it: ${url}`)}\n`}`
}
