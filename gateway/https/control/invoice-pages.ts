/** Invoices for people and for paper: the lines, and behind them the facts by machine and by day, to the millionth. */
import type { Party } from '../../../migrations/schema.ts'
import type { WebSession } from '../../accounts/web-sessions.ts'
import { sum } from '../../billing/arithmetic.ts'
import { addMonths, type Month, sayMonth, startOfMonth } from '../../billing/calendar.ts'
import { type InvoiceView, type Row, sharesOf } from '../../billing/invoice-document.ts'
import type { Invoice } from '../../billing/invoices.ts'
import { inUnits, unitName } from '../../billing/meters.ts'
import { sayExactly, sayMoney, sayRate } from '../../billing/money.ts'
import { partyLines } from '../../billing/parties.ts'
import type { Payment } from '../../billing/payments.ts'
import { sayPayment, sayWhat } from '../../billing/words.ts'
import { type Html, html } from '../pages/html.ts'
import { page, readSheet } from '../pages/page.ts'
import { type Installation, nameOf } from './pages.ts'

/** What these pages have beside the style of all. */
export const INVOICE_SHEET = readSheet('invoice.css')

export function invoicesPage(
  { domain, lobby }: Installation,
  session: WebSession | undefined,
  invoices: readonly Invoice[],
  payments: ReadonlyMap<number, Payment>,
): string {
  const state = (number: number) => {
    const payment = payments.get(number)
    return payments.size > 0 && html`<td>${payment && sayPayment(payment)}</td>`
  }
  return page({
    title: 'Invoices',
    domain,
    sheet: INVOICE_SHEET,
    corner: corner(session),
    body: html`<h1>Invoices</h1>
${
  invoices.length === 0
    ? html`<p>There is no invoice yet. A month is closed on the first of the next, in UTC.</p>`
    : html`<table>
<thead><tr><th scope="col" class="number">Number</th><th scope="col">Month (UTC)</th><th scope="col">Closed</th><th scope="col" class="number">Total</th>${payments.size > 0 && html`<th scope="col">State</th>`}</tr></thead>
<tbody>${invoices.map(
        ({ number, month, closedAt, total }) =>
          html`<tr><td class="number"><a href="/invoices/${number}">${number}</a></td><td>${sayMonth(month)}</td><td>${closedAt.toISOString().slice(0, 10)}</td><td class="number">${sayMoney(total)}</td>${state(number)}</tr>`,
      )}</tbody>
</table>`
}
<p class="aside"><a href="/billing">Billing</a> <span class="dim">In a terminal:</span> <code>${lobby} billing invoices</code></p>`,
  })
}

export function invoicePage(installation: Installation, session: WebSession | undefined, view: InvoiceView): string {
  const { invoice, email, payment, rows } = view
  const { number, month, total, closedAt } = invoice
  const whose = email ?? `account ${invoice.accountId}`
  const plans = [...new Set(rows.flatMap(({ line, isCorrection }) => (line.plan && !isCorrection ? [line.plan] : [])))]
  return page({
    title: `Invoice ${number}`,
    domain: installation.domain,
    sheet: INVOICE_SHEET,
    corner: corner(session),
    body: html`<h1>Invoice ${number}</h1>
<dl>
${partyRow('From', invoice.seller)}
<dt>For</dt><dd>${partyOf(invoice.buyer)}${whose}${email !== null && html` <span class="dim">(account ${invoice.accountId})</span>`}</dd>
<dt>Period</dt><dd>${sayPeriod(month)}</dd>
<dt>Closed</dt><dd>${closedAt.toISOString().slice(0, 16).replace('T', ' ')} UTC</dd>
${plans.length > 0 && html`<dt>Plan</dt><dd>${plans.join(', ')}</dd>`}
<dt>Total</dt><dd><b>${sayMoney(total)}</b> <span class="dim">USD</span></dd>
${payment && html`<dt>State</dt><dd>${sayPayment(payment)}</dd>`}
</dl>
<p class="aside"><a href="/invoices/${number}.csv" download>CSV</a> <a href="/invoices/${number}.json" download>JSON</a> <a href="/invoices">All invoices</a> <a href="/billing">Billing</a> <span class="dim">In a terminal:</span> <code>${installation.lobby} billing invoices ${number}</code></p>
${wide('Lines of the invoice', linesTable(invoice, rows))}
<h2>Facts by machine</h2>
${machinesTables(view)}
<h2>Facts by day</h2>
${daysTable(rows)}
<h2>How this is computed</h2>
<p>Each line is one kind, class, rate and month (${sayMonth(month)}, in UTC). Its amount is rounded once, half to even, to the millionth of a dollar; what falls to machines and days are shares of it by what they used, and sum to it. The invoice is paid in cents, so one line rounds it. A GiB-month is one GiB (2<sup>30</sup> bytes) for all of a calendar month in UTC; a GB is 10<sup>9</sup> bytes. What comes to light after a month was closed is a correction on a later invoice. Invoices are never changed, and can be computed again from the facts at any time.</p>`,
  })
}

/** A line each of what is known, with the last one ended too, for what stands below. */
function partyOf(party: Party | null): Html[] {
  return party === null ? [] : partyLines(party).map((line) => html`${line}<br>`)
}

function partyRow(term: string, party: Party | null): Html | false {
  const lines = partyOf(party)
  return lines.length > 0 && html`<dt>${term}</dt><dd>${lines}</dd>`
}

function corner(session: WebSession | undefined): Html | undefined {
  return session && html`<span>${nameOf(session)}</span>`
}

/** `1 February 2026, 00:00 to 1 March 2026, 00:00 (UTC)`: the second is the first instant that is not in it. */
function sayPeriod(month: Month): string {
  const begins = (one: Month) => `1 ${sayMonth(one)}, ${startOfMonth(one).toISOString().slice(11, 16)}`
  return `${begins(month)} to ${begins(addMonths(month, 1))} (UTC)`
}

/** A table that is wider than a phone scrolls by itself, by keyboard too. */
function wide(label: string, table: Html): Html {
  return html`<div class="wide" role="region" aria-label="${label}" tabindex="0">${table}</div>`
}

function linesTable({ total, month }: Invoice, rows: readonly Row[]): Html {
  const own = rows.filter(({ rate, isCorrection }) => rate && !isCorrection)
  const corrections = rows.filter(({ rate, isCorrection }) => rate && isCorrection)
  const settled = rows.filter(({ rate }) => !rate)
  const sumOf = (some: readonly Row[]) => sum(some.map(({ line }) => line.amount))
  const head = (title: string) => html`<tr class="group"><th scope="rowgroup" colspan="5">${title}</th></tr>`
  const subtotal = (title: string, amount: bigint) =>
    html`<tr class="sum"><th scope="row" colspan="4">${title}</th><td class="number">${sayExactly(amount)}</td></tr>`
  return html`<table class="lines">
<thead><tr><th scope="col">What</th><th scope="col" class="number">Quantity</th><th scope="col" class="number">Included</th><th scope="col">Rate</th><th scope="col" class="number">Amount, USD</th></tr></thead>
<tbody>${own.map(lineRow)}
${subtotal(`${sayMonth(month)}`, sumOf(own))}</tbody>
${corrections.length > 0 && html`<tbody>${head('Corrections of earlier months, by what was missing')}${corrections.map(lineRow)}${subtotal('Corrections', sumOf(corrections))}</tbody>`}
${settled.length > 0 && html`<tbody>${head('Credit and rounding')}${settled.map(lineRow)}</tbody>`}
<tbody><tr class="total"><th scope="row" colspan="4">Total</th><td class="number">${sayMoney(total)}</td></tr></tbody>
</table>`
}

function lineRow({ line, rate, what }: Row): Html {
  const { quantity, included, month, amount } = line
  const unit = rate && unitName(rate.kind)
  const of = (units: bigint) => (rate && rate.kind !== 'fee' ? inUnits(rate.kind, units, month, 6) : '')
  return html`<tr><th scope="row">${what}</th><td class="number">${of(quantity)}</td><td class="number">${included !== 0n && of(included)}</td><td class="rate">${rate && `${sayRate(rate.micros)} per ${unit}`}</td><td class="number">${sayExactly(amount)}</td></tr>`
}

function machinesTables({ rows, names }: InvoiceView): Html {
  type Part = { row: Row; quantity: bigint; amount: bigint | undefined }
  const machines = new Map<number, Part[]>()
  for (const row of rows) {
    const amounts = new Map(sharesOf(row).machines)
    for (const [machineId, quantity] of row.line.machines) {
      const parts = machines.get(machineId) ?? []
      parts.push({ row, quantity, amount: amounts.get(machineId) })
      machines.set(machineId, parts)
    }
  }
  if (machines.size === 0) return html`<p>No machine was used.</p>`
  const named = [...machines].map(([id, parts]) => ({ id, name: names.get(id) ?? `machine ${id}`, parts }))
  named.sort((a, b) => a.name.localeCompare(b.name, 'en') || a.id - b.id)
  const table = html`<table>
<thead><tr><th scope="col">Machine</th><th scope="col" class="number">Quantity</th><th scope="col">Unit</th><th scope="col" class="number">Amount, USD</th></tr></thead>
${named.map(
  ({ id, name, parts }) => html`<tbody>
<tr class="group"><th scope="rowgroup" colspan="3"><span class="mono">${name}</span> <span class="dim">no. ${id}</span></th><td class="number">${parts.some(({ amount }) => amount !== undefined) && sayExactly(sum(parts.map(({ amount }) => amount ?? 0n)))}</td></tr>
${parts.map(({ row, quantity, amount }) => {
  const { line, rate, what } = row
  // A kind whose rate changed within the month has a line of each.
  const isOneOfMany = rate && parts.some((other) => other.row !== row && other.row.what === what)
  return html`<tr><th scope="row" class="part">${what}${isOneOfMany && ` at ${sayRate(rate.micros)}`}</th><td class="number">${rate && inUnits(rate.kind, quantity, line.month, 6)}</td><td>${rate && unitName(rate.kind)}</td><td class="number">${amount === undefined ? '' : sayExactly(amount)}</td></tr>`
})}
</tbody>`,
)}
</table>`
  const hasCorrection = rows.some(({ isCorrection, line }) => isCorrection && line.machines.length > 0)
  return html`${wide('Facts by machine', table)}${hasCorrection && html`<p class="dim">What a correction says of a machine is what was missing; it may take from one and give to another, so that its amount has no shares.</p>`}`
}

/** What fell to each day of the month, corrections left out: they are of other months. */
function daysTable(rows: readonly Row[]): Html {
  const columns = new Map<string, Map<string, bigint>>()
  for (const row of rows) {
    const { days } = sharesOf(row)
    if (days.length === 0) continue
    const title = sayWhat(row.line)
    const column = columns.get(title) ?? new Map<string, bigint>()
    for (const [day, amount] of days) column.set(day, (column.get(day) ?? 0n) + amount)
    columns.set(title, column)
  }
  const days = [...new Set([...columns.values()].flatMap((column) => [...column.keys()]))].sort()
  if (days.length === 0) return html`<p>No day of the month cost anything.</p>`
  const cells = [...columns.values()]
  const bare = (amount: bigint) => sayExactly(amount).replace('$', '')
  const table = html`<table class="days">
<thead><tr><th scope="col">Day (UTC)</th>${[...columns.keys()].map((title) => html`<th scope="col" class="number">${title}</th>`)}<th scope="col" class="number">All, USD</th></tr></thead>
<tbody>${days.map(
    (day) =>
      html`<tr><th scope="row">${day}</th>${cells.map((column) => html`<td class="number">${column.has(day) && bare(column.get(day) ?? 0n)}</td>`)}<td class="number">${bare(sum(cells.map((column) => column.get(day) ?? 0n)))}</td></tr>`,
  )}
<tr class="sum"><th scope="row">Sum</th>${cells.map((column) => html`<td class="number">${bare(sum(column.values()))}</td>`)}<td class="number">${bare(sum(cells.map((column) => sum(column.values()))))}</td></tr></tbody>
</table>`
  return wide('Facts by day', table)
}
