/**
 * Berth's invoice as Stripe has it. Berth's amounts are millionths of a USD and an invoice's total is whole cents; every
 * amount of Stripe's is whole cents. So
 *
 *   each line          is Berth's line to the cent, half to even: what Berth's own lists show
 *   one line more      `rounding to cents` is what is missing to Berth's total, where anything is; it stands for Berth's
 *                      own rounding line and for what was rounded above it, a cent for every two lines at most
 *
 * The total is Berth's to the cent, always. Nothing is added to it at Stripe.
 */

import { harmless } from '../../commands/text.ts'
import { divideHalfEven, sum } from '../arithmetic.ts'
import { sayMonth } from '../calendar.ts'
import type { Invoice, InvoiceLine } from '../invoices.ts'
import { CENT, sayExactly } from '../money.ts'
import type { Rate } from '../terms.ts'
import { sayQuantity, sayWhat } from '../words.ts'

/** Stripe takes so many of one invoice; Berth has a few for each rate that held in its month. */
const LINES_MOST = 250
const DESCRIPTION_MOST = 500

export type StripeLine = { cents: number; description: string; metadata: Record<string, string> }

/** What is to be paid. */
export function centsOf({ total }: Pick<Invoice, 'total'>): number {
  return Number(total / CENT)
}

/** @param reasons of the credits that it takes */
export function stripeLines(
  invoice: Invoice,
  lines: readonly InvoiceLine[],
  rates: readonly Rate[],
  reasons: ReadonlyMap<number, string>,
): StripeLine[] {
  const charged = lines
    .map((line, index) => ({ line, position: index + 1 }))
    .filter(({ line }) => line.kind !== 'rounding')
  const most = LINES_MOST - 2
  const shown = charged.slice(0, most).map(({ line, position }) => ({
    cents: toCents(line.amount),
    description: describe(line, invoice, rates, reasons),
    metadata: { berth_line: String(position), berth_usd: sayExactly(line.amount) },
  }))
  const rest = charged.slice(most)
  if (rest.length > 0) {
    const amount = sum(rest.map(({ line }) => line.amount))
    shown.push({
      cents: toCents(amount),
      description: `${rest.length} lines more, which billing invoices ${invoice.number} has`,
      metadata: { berth_line: 'more', berth_usd: sayExactly(amount) },
    })
  }
  const rounding = centsOf(invoice) - shown.reduce((cents, line) => cents + line.cents, 0)
  if (rounding === 0) return shown
  return [...shown, { cents: rounding, description: 'rounding to cents', metadata: { berth_line: 'rounding' } }]
}

function toCents(micros: bigint): number {
  return Number(divideHalfEven(micros, CENT))
}

function describe(
  line: InvoiceLine,
  invoice: Invoice,
  rates: readonly Rate[],
  reasons: ReadonlyMap<number, string>,
): string {
  if (line.kind === 'credit')
    return `credit: ${oneLine(reasons.get(line.creditId ?? 0) ?? '')}`.slice(0, DESCRIPTION_MOST)
  const rate = rates.find(({ id }) => id === line.rateId)
  const of = line.month === invoice.month ? '' : `, ${sayMonth(line.month)}`
  const quantity = rate ? sayQuantity(rate.kind, line.quantity, line.month) : ''
  return `${sayWhat(line)}${of}${quantity && `: ${quantity}`} (${sayExactly(line.amount)})`
}

function oneLine(text: string): string {
  return harmless(text).replaceAll('\n', ' ')
}
