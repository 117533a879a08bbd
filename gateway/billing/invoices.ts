/**
 * Invoices. One account and month has at most one; it is written once, whole, in one transaction, and nothing of it ever
 * changes. What comes to light later (a server that could not reach the database for hours) is a correction on the next
 * one: the month is computed again, and the lines say what was missing.
 *
 * Amounts of lines are whole millionths. What is left after credits is paid in cents, so one line rounds it.
 */
import type { Db, Sql } from '../../migrations/connect.ts'
import type { Buyer, InvoiceLineKind, Party } from '../../migrations/schema.ts'
import { noteEvent } from '../accounts/events.ts'
import { tellAccounts } from '../accounts/notices.ts'
import { divideHalfEven, sum } from './arithmetic.ts'
import { firstDay, type Month, monthOf, sayMonth } from './calendar.ts'
import { invoiceLetter, type Where } from './invoice-letter.ts'
import { CENT, sayMoney } from './money.ts'
import { kept, readSeller } from './parties.ts'
import { type Line, totalOf } from './pricing.ts'
import { type PriceList, readSubscriber, type Subscriber } from './terms.ts'
import { monthLines, type Source } from './usage.ts'

export type InvoiceLine = {
  kind: InvoiceLineKind
  class: string
  /** before the invoice's own: a correction, its figures are what was missing */
  month: Month
  plan: string | null
  rateId: number | null
  quantity: bigint
  included: bigint
  machines: readonly (readonly [machineId: number, quantity: bigint])[]
  days: readonly (readonly [day: string, quantity: bigint])[]
  creditId: number | null
  amount: bigint
}

export type Invoice = {
  number: number
  accountId: number
  month: Month
  closedAt: Date
  total: bigint
  /** as they were then; null where nothing was set, and on invoices from before anything could be */
  seller: Party | null
  buyer: Buyer | null
}

export type Closing = {
  list: PriceList
  now: Date
  /** corrections are looked for in months for which facts came in since then */
  lateSince: Date
  where?: Where | undefined
}

/**
 * Writes an account's invoice of a month, if there is anything on it. Done twice it is done once.
 * @returns its number
 */
export async function closeMonth(
  sql: Sql,
  accountId: number,
  month: Month,
  { list, now, lateSince, where }: Closing,
): Promise<number | undefined> {
  return await sql.begin(async (tx) => {
    // Asked at once and answered in this order: whoever else closes for this account, or spends its credits, waits at
    // the first.
    const [[account], [there], subscriber, late, credits, seller] = await Promise.all([
      tx<{ email: string | null; details: Party | null }[]>`
        select email, billing_details as details from accounts where id = ${accountId} for no key update`,
      tx<{ number: number }[]>`
        select number from invoices where account_id = ${accountId} and month = ${firstDay(month)}::date`,
      readSubscriber(tx, accountId),
      lateMonths(tx, accountId, month, lateSince),
      creditsLeft(tx, accountId),
      readSeller(tx),
    ])
    if (there) return there.number
    const lines = (await chargedLines(tx, month, subscriber, list)).map(asInvoiceLine)
    for (const earlier of late) lines.push(...(await corrections(tx, earlier, subscriber, list)))
    if (lines.length === 0) return undefined
    lines.push(...(await settlement(tx, accountId, month, totalOf(lines), credits)))
    const total = totalOf(lines)
    const machineIds = [...new Set(lines.flatMap(({ machines }) => machines.map(([machineId]) => machineId)))]
    const buyer: Buyer = { ...account?.details, ...(account?.email == null ? {} : { email: account.email }) }
    // Last, because from here on whoever else wants a number waits.
    const [written] = await tx<{ number: number }[]>`
      with counter as (update invoice_counter set last = last + 1 returning last),
        invoice as (
          insert into invoices (number, account_id, month, closed_at, total_micros, seller, buyer, names)
          select last, ${accountId}, ${firstDay(month)}::date, ${now}, ${String(total)}::bigint,
            ${jsonOf(kept(seller))}::text::jsonb, ${jsonOf(kept(buyer))}::text::jsonb,
            (select coalesce(jsonb_object_agg(id::text, name), '{}') from machines where id = any(${machineIds}::integer[]))
            from counter returning number),
        lines as (
          insert into invoice_lines (invoice, position, kind, class, month, plan, rate_id, quantity, included, machines,
            days, credit_id, amount_micros)
          select number, l.* from invoice, jsonb_to_recordset(${JSON.stringify(lines.map(asRow))}::text::jsonb) as l(
            position integer, kind text, class text, month date, plan text, rate_id integer, quantity numeric,
            included numeric, machines jsonb, days jsonb, credit_id integer, amount_micros bigint))
      select number from invoice`
    if (!written) throw new Error('there is no counter of invoices')
    const { number } = written
    const detail = { number, month, total: sayMoney(total) }
    await Promise.all([
      noteEvent(tx, { accountId, actor: 'gateway', kind: 'invoice.closed', detail }),
      tellAccounts(tx, [{ accountId, ...invoiceLetter(number, month, total, where) }]),
    ])
    return number
  })
}

const jsonOf = (value: unknown) => (value === null ? null : JSON.stringify(value))

async function chargedLines(db: Db, month: Month, subscriber: Subscriber, list: PriceList, source?: Source) {
  return (await monthLines(db, month, subscriber, list, source)).filter(({ charged }) => charged)
}

function asInvoiceLine(line: Line): InvoiceLine {
  const { kind, class: className, month, plan, quantity, included, machines, days, amount } = line
  return {
    kind,
    class: className,
    month,
    plan,
    rateId: line.rate.id,
    quantity,
    included,
    machines,
    days,
    creditId: null,
    amount,
  }
}

function asRow(line: InvoiceLine, index: number) {
  const texts = (pairs: InvoiceLine['machines'] | InvoiceLine['days']) =>
    pairs.map(([key, quantity]) => [key, String(quantity)])
  return {
    ...{ position: index + 1, kind: line.kind, class: line.class, month: firstDay(line.month), plan: line.plan },
    ...{ rate_id: line.rateId, quantity: String(line.quantity), included: String(line.included) },
    ...{ machines: texts(line.machines), days: texts(line.days) },
    ...{ credit_id: line.creditId, amount_micros: String(line.amount) },
  }
}

/** Months before this one for which facts came in since then. */
async function lateMonths(db: Db, accountId: number, before: Month, since: Date): Promise<Month[]> {
  const rows = await db<{ month: string }[]>`
    select to_char(month, 'YYYY-MM') as month from late_usage
    where account_id = ${accountId} and month < ${firstDay(before)}::date and at >= ${since} order by month`
  return rows.map(({ month }) => month)
}

async function corrections(tx: Db, month: Month, subscriber: Subscriber, list: PriceList): Promise<InvoiceLine[]> {
  const now = (await chargedLines(tx, month, subscriber, list)).map(asInvoiceLine)
  return differences(now, await billedLines(tx, subscriber.accountId, month))
}

/** All that was charged for a month, corrections added to what they correct. */
export async function billedLines(db: Db, accountId: number, month: Month): Promise<InvoiceLine[]> {
  const rows = await db<LineRow[]>`
    select l.* , to_char(l.month, 'YYYY-MM') as month_text from invoice_lines l join invoices i on i.number = l.invoice
    where i.account_id = ${accountId} and l.month = ${firstDay(month)}::date and l.rate_id is not null
    order by l.invoice, l.position`
  const billed = new Map<string, InvoiceLine>()
  for (const line of rows.map(fromRow)) {
    const before = billed.get(keyOf(line))
    billed.set(keyOf(line), before ? combined(before, line, 1n) : line)
  }
  return [...billed.values()]
}

/** What has to be added to the second to have the first; nothing where they agree. */
export function differences(now: readonly InvoiceLine[], billed: readonly InvoiceLine[]): InvoiceLine[] {
  const known = new Map(billed.map((line) => [keyOf(line), line]))
  const missing = now.map((line) => {
    const before = known.get(keyOf(line))
    known.delete(keyOf(line))
    return before ? combined(line, before, -1n) : line
  })
  const gone = [...known.values()].map((line) => combined({ ...line, ...NOTHING }, line, -1n))
  return [...missing, ...gone].filter(
    ({ amount, quantity, machines, days }) =>
      amount !== 0n || quantity !== 0n || machines.length > 0 || days.length > 0,
  )
}

const NOTHING = { quantity: 0n, included: 0n, amount: 0n, machines: [], days: [] } as const

function keyOf({ kind, class: className, plan, rateId }: InvoiceLine): string {
  return `${kind} ${className} ${plan} ${rateId}`
}

function combined(a: InvoiceLine, b: InvoiceLine, sign: 1n | -1n): InvoiceLine {
  return {
    ...a,
    quantity: a.quantity + sign * b.quantity,
    included: a.included + sign * b.included,
    amount: a.amount + sign * b.amount,
    machines: mergedPairs(a.machines, b.machines, sign),
    days: mergedPairs(a.days, b.days, sign),
  }
}

function mergedPairs<K extends number | string>(
  a: readonly (readonly [K, bigint])[],
  b: readonly (readonly [K, bigint])[],
  sign: bigint,
): [K, bigint][] {
  const merged = new Map<K, bigint>(a)
  for (const [key, quantity] of b) merged.set(key, (merged.get(key) ?? 0n) + sign * quantity)
  return [...merged].filter(([, quantity]) => quantity !== 0n).sort(([x], [y]) => (x < y ? -1 : 1))
}

/** Credits, oldest first, and cents; what came out below zero becomes a credit. */
async function settlement(
  tx: Db,
  accountId: number,
  month: Month,
  total: bigint,
  credits: readonly CreditLeft[],
): Promise<InvoiceLine[]> {
  const line = (kind: InvoiceLineKind, amount: bigint, creditId: number | null): InvoiceLine => ({
    ...{ kind, class: '', month, plan: null, rateId: null, ...NOTHING },
    ...{ creditId, amount },
  })
  if (total < 0n) {
    const [credit] = await tx<{ id: number }[]>`
      insert into credits (account_id, micros, reason)
      values (${accountId}, ${String(-total)}::bigint, ${`left of the invoice for ${sayMonth(month)}`}) returning id`
    return [line('carried', -total, credit?.id ?? null)]
  }
  const lines: InvoiceLine[] = []
  let due = total
  for (const { id, left } of credits) {
    if (due === 0n) break
    let used = left
    if (used > due) used = due
    lines.push(line('credit', -used, id))
    due -= used
  }
  const rounding = divideHalfEven(due, CENT) * CENT - due
  if (rounding !== 0n) lines.push(line('rounding', rounding, null))
  return lines
}

type CreditLeft = { id: number; left: bigint }

/** Credits with something left, oldest first. */
async function creditsLeft(db: Db, accountId: number): Promise<CreditLeft[]> {
  const credits = await readCredits(db, accountId)
  return credits.filter(({ left }) => left > 0n)
}

export type Credit = { id: number; micros: bigint; left: bigint; reason: string; grantedAt: Date }

export async function readCredits(db: Db, accountId: number): Promise<Credit[]> {
  // Indexes credits_by_account and invoice_lines_by_credit.
  const rows = await db<{ id: number; micros: number; used: number; reason: string; granted_at: Date }[]>`
    select id, micros, reason, granted_at, coalesce((select -sum(amount_micros) from invoice_lines
      where credit_id = credits.id and kind = 'credit'), 0)::bigint as used
    from credits where account_id = ${accountId} order by id`
  return rows.map(({ id, micros, used, reason, granted_at }) => ({
    ...{ id, micros: BigInt(micros), left: BigInt(micros) - BigInt(used), reason },
    grantedAt: granted_at,
  }))
}

export function creditBalance(credits: readonly Credit[]): bigint {
  return sum(credits.map(({ left }) => left))
}

type InvoiceRow = {
  number: number
  account_id: number
  month_text: string
  closed_at: Date
  total_micros: number
  seller: Party | null
  buyer: Buyer | null
}

const asInvoice = (row: InvoiceRow): Invoice => ({
  ...{ number: row.number, accountId: row.account_id, month: row.month_text },
  ...{ closedAt: row.closed_at, total: BigInt(row.total_micros), seller: row.seller, buyer: row.buyer },
})

/** Newest first. */
export async function readInvoices(db: Db, accountId: number): Promise<Invoice[]> {
  const rows = await db<InvoiceRow[]>`
    select number, account_id, to_char(month, 'YYYY-MM') as month_text, closed_at, total_micros, seller, buyer
    from invoices where account_id = ${accountId} order by month desc`
  return rows.map(asInvoice)
}

export type WholeInvoice = {
  invoice: Invoice
  lines: InvoiceLine[]
  /** of the machines on its lines, as they were called when it was closed */
  names: ReadonlyMap<number, string>
}

export async function readInvoice(db: Db, number: number): Promise<WholeInvoice | undefined> {
  const [row] = await db<(InvoiceRow & { names: Record<string, string> })[]>`
    select *, to_char(month, 'YYYY-MM') as month_text from invoices where number = ${number}`
  if (!row) return undefined
  const lines = await db<LineRow[]>`
    select *, to_char(month, 'YYYY-MM') as month_text from invoice_lines where invoice = ${number} order by position`
  const names = new Map(Object.entries(row.names).map(([machineId, name]) => [Number(machineId), name]))
  return { invoice: asInvoice(row), lines: lines.map(fromRow), names }
}

type LineRow = {
  kind: InvoiceLineKind
  class: string
  month_text: string
  plan: string | null
  rate_id: number | null
  quantity: string
  included: string
  machines: [number, string][]
  days: [string, string][]
  credit_id: number | null
  amount_micros: number
}

function fromRow(row: LineRow): InvoiceLine {
  return {
    ...{ kind: row.kind, class: row.class, month: row.month_text, plan: row.plan, rateId: row.rate_id },
    ...{ quantity: BigInt(row.quantity), included: BigInt(row.included) },
    machines: row.machines.map(([machineId, quantity]) => [machineId, BigInt(quantity)]),
    days: row.days.map(([day, quantity]) => [day, BigInt(quantity)]),
    ...{ creditId: row.credit_id, amount: BigInt(row.amount_micros) },
  }
}

/** What the facts say now that a month costs, as an invoice would have it. */
export async function linesOfFacts(db: Db, accountId: number, month: Month, list: PriceList): Promise<InvoiceLine[]> {
  const subscriber = await readSubscriber(db, accountId)
  return (await chargedLines(db, monthOf(firstDay(month)), subscriber, list, 'ledger')).map(asInvoiceLine)
}
