import type { App, Caller } from '../app.ts'
import { dayOf, sayMonth } from '../billing/calendar.ts'
import { type Invoice, type InvoiceLine, readCredits, readInvoice, readInvoices } from '../billing/invoices.ts'
import { inUnits, unitName } from '../billing/meters.ts'
import { plainAmount, sayExactly, sayMoney, sayRate } from '../billing/money.ts'
import { machineShares } from '../billing/pricing.ts'
import { type Rate, readPriceList } from '../billing/terms.ts'
import { csv, sayQuantity, sayWhat } from './billing-words.ts'
import type { Completer, Result } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { harmless, table, type View } from './text.ts'
import { shown } from './values.ts'
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
    if (flags.csv) {
      const text = csv(
        ['number', 'month', 'closed_at', 'total_usd'],
        invoices.map((one) => [
          ...[String(one.number), one.month],
          ...[one.closedAt.toISOString(), plainAmount(one.total)],
        ]),
      )
      return { json: { csv: text }, text }
    }
    return {
      json: { currency: 'USD', invoices: invoices.map(invoiceDocument) },
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
              ],
              view,
            ),
    }
  },
})

function invoiceDocument({ number, month, closedAt, total }: Invoice) {
  return { number, month, closed_at: closedAt.toISOString(), total_micros: Number(total) }
}

async function oneInvoice(app: App, caller: Caller, typed: string, asCsv: boolean): Promise<Result> {
  if (!/^\d{1,9}$/.test(typed)) throw usageError(`${shown(typed)} is no number of an invoice`, 'billing invoices')
  const found = await readInvoice(app.sql, Number(typed))
  // The operator answers for all of them.
  if (!found || (found.invoice.accountId !== caller.accountId && !caller.isOwner)) {
    throw new CommandError('invoice.not_found', 3, `no invoice ${typed}`, { wayOn: 'billing invoices lists yours' })
  }
  const { invoice, lines } = found
  const { rates } = await readPriceList(app.sql)
  const reasons = new Map((await readCredits(app.sql, invoice.accountId)).map(({ id, reason }) => [id, reason]))
  const rows = lines.map((line) => rowOf(line, invoice, rates, reasons))
  const names = await namesOf(app, invoice.accountId)
  const [account] = await app.sql<
    { email: string | null }[]
  >`select email from accounts where id = ${invoice.accountId}`
  const whose = account?.email ?? `account ${invoice.accountId}`
  if (asCsv) {
    const text = invoiceCsv(invoice, rows, names)
    return { json: { csv: text }, text }
  }
  return {
    json: {
      ...{ ...invoiceDocument(invoice), currency: 'USD', account: invoice.accountId, email: account?.email ?? null },
      lines: rows.map(({ line, rate, isCorrection, what }) => ({
        ...{ kind: line.kind, class: line.class, month: line.month, what, correction: isCorrection, plan: line.plan },
        ...(rate
          ? {
              ...{ rate_micros: Number(rate.micros), unit: unitName(rate.kind) },
              quantity: inUnits(rate.kind, line.quantity, line.month, 6),
              included: inUnits(rate.kind, line.included, line.month, 6),
              // The facts: what of the ledger, by machine and by day, in microseconds times vCPUs or bytes, and bytes.
              exact_quantity: String(line.quantity),
              facts: { machines: texts(line.machines), days: texts(line.days) },
            }
          : {}),
        amount_micros: Number(line.amount),
      })),
    },
    text: (view) => invoiceText(invoice, whose, rows, view),
  }
}

const texts = (pairs: InvoiceLine['machines'] | InvoiceLine['days']) =>
  pairs.map(([key, quantity]) => [key, String(quantity)])

type Row = { line: InvoiceLine; rate: Rate | undefined; isCorrection: boolean; what: string }

function rowOf(line: InvoiceLine, invoice: Invoice, rates: readonly Rate[], reasons: Map<number, string>): Row {
  const isCorrection = line.month !== invoice.month
  const what =
    line.kind === 'credit'
      ? `credit: ${harmless(reasons.get(line.creditId ?? 0) ?? '').replaceAll('\n', ' ')}`
      : `${sayWhat(line)}${isCorrection ? `, ${sayMonth(line.month)}` : ''}`
  return { line, rate: rates.find(({ id }) => id === line.rateId), isCorrection, what }
}

function invoiceText(invoice: Invoice, whose: string, rows: readonly Row[], view: View): string {
  const { style } = view
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
  const closed = `closed ${invoice.closedAt.toISOString().slice(0, 16).replace('T', ' ')} UTC`
  return `${head}\n${style.dim(closed)}\n\n${body}`
}

async function namesOf(app: App, accountId: number): Promise<Map<number, string>> {
  const rows = await app.sql<
    { id: number; name: string }[]
  >`select id, name from machines where account_id = ${accountId}`
  return new Map(rows.map(({ id, name }) => [id, name]))
}

/** By machine, whose amounts sum to the lines, which sum to the invoice. */
function invoiceCsv(invoice: Invoice, rows: readonly Row[], names: Map<number, string>): string {
  const FIELDS = [
    'invoice',
    'month',
    'kind',
    'class',
    'machine_id',
    'machine',
    'unit',
    'quantity',
    'rate_usd',
    'amount_usd',
  ]
  return csv(
    FIELDS,
    rows.flatMap(({ line, rate }) => {
      const head = [String(invoice.number), line.month, line.kind, line.class]
      const price = rate ? plainAmount(rate.micros) : ''
      // Corrections may take from one machine and give to another: they have no shares.
      const isShared = rate && line.machines.length > 0 && line.month === invoice.month
      if (!isShared) return [[...head, '', '', rate ? unitName(rate.kind) : '', '', price, plainAmount(line.amount)]]
      const amounts = new Map(machineShares(line))
      return line.machines.map(([machineId, quantity]) => [
        ...[...head, String(machineId), names.get(machineId) ?? '', unitName(rate.kind)],
        ...[inUnits(rate.kind, quantity, line.month, 9), price, plainAmount(amounts.get(machineId) ?? 0n)],
      ])
    }),
  )
}
