/** An invoice as it is shown: with names, rates and words. The same for the command, the page, CSV and JSON. */
import type { Db } from '../../migrations/connect.ts'
import type { Party } from '../../migrations/schema.ts'
import { harmless } from '../commands/text.ts'
import type { StripeSettings } from '../settings.ts'
import { addMonths, firstDay, sayMonth } from './calendar.ts'
import { type Invoice, type InvoiceLine, readCredits, readInvoice } from './invoices.ts'
import { inUnits, unitName } from './meters.ts'
import { plainAmount } from './money.ts'
import { partyLines } from './parties.ts'
import { type Payment, readPayments } from './payments.ts'
import { dayShares, machineShares } from './pricing.ts'
import { isLive } from './stripe/client.ts'
import { readUnsent, sendCommand } from './stripe/payments.ts'
import { type Rate, readPriceList } from './terms.ts'
import { csv, csvText, sayPayment, sayWhat } from './words.ts'

export type Row = {
  line: InvoiceLine
  /** undefined for credits and rounding */
  rate: Rate | undefined
  isCorrection: boolean
  /** `vCPU`, `credit: the outage of Tuesday` */
  what: string
}

export type InvoiceView = {
  invoice: Invoice
  /** as it was when the invoice was closed, where that was kept */
  email: string | null
  /** undefined where it is not collected by this Berth, nor noted as paid, or nothing is to be paid */
  payment: Payment | undefined
  rows: Row[]
  /** of the machines on its lines, as they were called when it was closed */
  names: ReadonlyMap<number, string>
}

type Stripe = StripeSettings | undefined

/** @returns undefined where there is no such invoice; whose it is, the caller looks at */
export async function readInvoiceView(db: Db, stripe: Stripe, number: number): Promise<InvoiceView | undefined> {
  const found = await readInvoice(db, number)
  if (!found) return undefined
  const { invoice, lines, names } = found
  const { rates } = await readPriceList(db)
  const reasons = new Map((await readCredits(db, invoice.accountId)).map(({ id, reason }) => [id, reason]))
  const [account] = await db<{ email: string | null }[]>`select email from accounts where id = ${invoice.accountId}`
  return {
    ...{ invoice, email: invoice.buyer?.email ?? account?.email ?? null },
    payment: (await paymentsOfInvoices(db, stripe, invoice.accountId)).get(number),
    rows: lines.map((line) => rowOf(line, invoice, rates, reasons)),
    names,
  }
}

function rowOf(line: InvoiceLine, invoice: Invoice, rates: readonly Rate[], reasons: Map<number, string>): Row {
  const isCorrection = line.month !== invoice.month
  const what =
    line.kind === 'credit'
      ? `credit: ${harmless(reasons.get(line.creditId ?? 0) ?? '').replaceAll('\n', ' ')}`
      : `${sayWhat(line)}${isCorrection ? `, ${sayMonth(line.month)}` : ''}`
  return { line, rate: rates.find(({ id }) => id === line.rateId), isCorrection, what }
}

/** What became of an account's invoices, by their numbers; where no payments are taken of those that are noted as paid. */
export async function paymentsOfInvoices(db: Db, stripe: Stripe, accountId: number): Promise<Map<number, Payment>> {
  const payments = await readPayments(db, stripe ? isLive(stripe) : null, accountId)
  return new Map(payments.map((payment) => [payment.invoice, payment]))
}

/** Those of an account's invoices that the operator has to send to Stripe. */
export async function unsentInvoices(db: Db, stripe: Stripe, accountId: number): Promise<Set<number>> {
  if (!stripe) return new Set()
  return new Set((await readUnsent(db, isLive(stripe), accountId)).flatMap(({ numbers }) => numbers))
}

/** How it stands, for the operator. */
export function sayUnsent({ number, month }: Invoice): string {
  return `not at Stripe, being closed before that was switched on: ${sendCommand({ month, numbers: [number] })}`
}

/** @param unsent it waits for the operator to send it, who is asking */
export function invoiceHead(invoice: Invoice, payment: Payment | undefined, unsent = false) {
  const { number, month, closedAt, total } = invoice
  const about = payment
    ? { status: payment.status, refunded_micros: Number(payment.refunded), words: sayPayment(payment) }
    : { status: 'unsent', refunded_micros: 0, words: sayUnsent(invoice) }
  return {
    ...{ number, month, closed_at: closedAt.toISOString(), total_micros: Number(total) },
    ...(payment || unsent ? { payment: about } : {}),
  }
}

/** What falls to machines and days; a correction may take from one and give to another, and has no shares. */
export function sharesOf({ line, rate, isCorrection }: Row): {
  machines: [machineId: number, amount: bigint][]
  days: [day: string, amount: bigint][]
} {
  if (!rate || isCorrection) return { machines: [], days: [] }
  return { machines: machineShares(line), days: dayShares(line) }
}

/** @param unsent as for `invoiceHead` */
export function invoiceDocument({ invoice, email, payment, rows, names }: InvoiceView, unsent = false) {
  return {
    ...invoiceHead(invoice, payment, unsent),
    period: {
      from: `${firstDay(invoice.month)}T00:00:00.000Z`,
      to: `${firstDay(addMonths(invoice.month, 1))}T00:00:00.000Z`,
    },
    ...{ currency: 'USD', account: invoice.accountId, email },
    ...(namesParties(invoice) ? { seller: partyDocument(invoice.seller), buyer: partyDocument(invoice.buyer) } : {}),
    machine_names: Object.fromEntries(names),
    lines: rows.map((row) => {
      const { line, rate, isCorrection, what } = row
      return {
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
      }
    }),
  }
}

/** Whether it says more of who sells and buys than whose account it is. */
export function namesParties({ seller, buyer }: Invoice): boolean {
  return [seller, buyer].some((party) => party !== null && partyLines(party).length > 0)
}

function partyDocument(party: Party | null) {
  return { name: party?.name ?? null, address: party?.address ?? null, tax_id: party?.tax_id ?? null }
}

const texts = (pairs: InvoiceLine['machines'] | InvoiceLine['days']) =>
  pairs.map(([key, quantity]) => [key, String(quantity)])

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

/** Where an invoice names them, in each row, so that rows of many invoices can stand in one sheet. */
const PARTY_FIELDS = ['seller', 'seller_address', 'seller_tax_id', 'buyer', 'buyer_address', 'buyer_tax_id']

/** By machine, whose amounts sum to the lines, which sum to the invoice. */
export function invoiceCsv({ invoice, rows, names }: InvoiceView): string {
  const { seller, buyer } = invoice
  const parties = namesParties(invoice)
    ? [seller, buyer].flatMap((party) => [party?.name, party?.address, party?.tax_id].map((one) => csvText(one ?? '')))
    : []
  return csv(
    [...FIELDS, ...(parties.length > 0 ? PARTY_FIELDS : [])],
    rows.flatMap((row) => {
      const { line, rate } = row
      const head = [String(invoice.number), line.month, line.kind, line.class]
      const price = rate ? plainAmount(rate.micros) : ''
      const amounts = new Map(sharesOf(row).machines)
      if (!rate || amounts.size === 0) {
        return [[...head, '', '', rate ? unitName(rate.kind) : '', '', price, plainAmount(line.amount), ...parties]]
      }
      return line.machines.map(([machineId, quantity]) => [
        ...[...head, String(machineId), names.get(machineId) ?? '', unitName(rate.kind)],
        ...[inUnits(rate.kind, quantity, line.month, 9), price, plainAmount(amounts.get(machineId) ?? 0n)],
        ...parties,
      ])
    }),
  )
}
