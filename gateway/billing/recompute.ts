/** Proves invoices: every figure on them is computed again from the facts and the rates. */
import type { Db } from '../../migrations/connect.ts'
import { divideHalfEven, sum } from './arithmetic.ts'
import { addMonths, firstDay, type Month, startOfMonth } from './calendar.ts'
import { billedLines, differences, type Invoice, type InvoiceLine, linesOfFacts, readInvoice } from './invoices.ts'
import { unitOf } from './meters.ts'
import { CENT, sayExactly } from './money.ts'
import { amountOf, totalOf } from './pricing.ts'
import { type PriceList, type Rate, readPriceList } from './terms.ts'

export type Proof = {
  invoice: Invoice
  /** what the facts give for its month, corrections of it on later invoices included */
  billed: bigint
  computed: bigint
  /** facts that came in since: the next invoice will have a correction */
  pending: boolean
  /** sentences; none: it is proved */
  problems: string[]
}

/** Numbers that are missing although later ones were given, and the last one. */
export async function missingNumbers(db: Db): Promise<{ last: number; missing: number[] }> {
  const [counter] = await db<{ last: number }[]>`select last from invoice_counter`
  const last = counter?.last ?? 0
  const rows = await db<{ number: number }[]>`
    select n as number from generate_series(1, ${last}::integer) as n
    where not exists (select from invoices where number = n) order by n`
  return { last, missing: rows.map(({ number }) => number) }
}

/** @param only that one, if there is such an invoice @yields one proof an invoice, in order */
export async function* proveInvoices(db: Db, signal: AbortSignal, only?: number): AsyncGenerator<Proof> {
  const list = await readPriceList(db)
  const numbers = await db<{ number: number }[]>`
    select number from invoices ${only === undefined ? db`` : db`where number = ${only}`} order by number`
  for (const { number } of numbers) {
    signal.throwIfAborted()
    yield await proveInvoice(db, number, list)
  }
}

export async function proveInvoice(db: Db, number: number, list: PriceList): Promise<Proof> {
  const found = await readInvoice(db, number)
  if (!found) throw new RangeError(`there is no invoice ${number}`)
  const { invoice, lines, names } = found
  const { accountId, month } = invoice
  const problems = [
    ...[...sums(invoice, lines), ...settled(lines), ...unnamed(lines, names)],
    ...(await wrongCredits(db, accountId, number)),
    ...lines.flatMap((line) => alone(line, invoice, list)),
  ]
  const billed = await billedLines(db, accountId, month)
  const computed = await linesOfFacts(db, accountId, month, list)
  const wrong = differences(computed, billed)
  const pending = wrong.length > 0 && (await cameLate(db, accountId, month))
  if (!pending) problems.push(...wrong.map((line) => sayDifference(line, month)))
  const days = await wrongDays(db, accountId, month)
  if (days > 0)
    problems.push(`${days === 1 ? 'one sum' : `${days} sums`} of usage differ${days === 1 ? 's' : ''} from the facts`)
  return { invoice, billed: totalOf(billed), computed: totalOf(computed), pending, problems }
}

function sums({ total, number }: Invoice, lines: readonly InvoiceLine[]): string[] {
  const sumOfLines = totalOf(lines)
  return sumOfLines === total
    ? []
    : [`the lines of invoice ${number} sum to ${sayExactly(sumOfLines)}, not ${sayExactly(total)}`]
}

/** Credits, what was carried and the rounding follow from the lines of use. */
function settled(lines: readonly InvoiceLine[]): string[] {
  const ofKind = (kind: InvoiceLine['kind']) => totalOf(lines.filter((line) => line.kind === kind))
  const [credit, carried, rounding] = [ofKind('credit'), ofKind('carried'), ofKind('rounding')]
  const used = totalOf(lines.filter(({ rateId }) => rateId !== null))
  const due = used + credit
  const problems: string[] = []
  const expect = (what: string, is: bigint, expected: bigint) => {
    if (is !== expected) problems.push(`${what} is ${sayExactly(is)}, not ${sayExactly(expected)}`)
  }
  expect('what is carried', carried, used < 0n ? -used : 0n)
  if (lines.some(({ kind, amount }) => kind === 'credit' && amount >= 0n)) problems.push('a credit takes nothing off')
  if (credit !== 0n && due < 0n) problems.push(`credits take ${sayExactly(-due)} more than there is to pay`)
  else expect('the rounding', rounding, due < 0n ? 0n : divideHalfEven(due, CENT) * CENT - due)
  return problems
}

/** It is to show in years what it showed when it was sent, so what its machines are called stands on it. */
function unnamed(lines: readonly InvoiceLine[], names: ReadonlyMap<number, string>): string[] {
  const machines = new Set(lines.flatMap((line) => line.machines.map(([machineId]) => machineId)))
  return [...machines].filter((id) => !names.has(id)).map((id) => `it does not say what machine ${id} was called`)
}

/** Of credits that an invoice takes from or leaves: more taken than there was, another account's, another sum than was left. */
async function wrongCredits(db: Db, accountId: number, invoice: number): Promise<string[]> {
  // Index invoice_lines_by_credit.
  const rows = await db<{ id: number; micros: number; used: number; carried: number | null; own: boolean }[]>`
    select id, micros, account_id = ${accountId} as own,
      coalesce((select -sum(amount_micros) from invoice_lines where credit_id = credits.id and kind = 'credit'), 0)::bigint as used,
      (select sum(amount_micros)::bigint from invoice_lines where credit_id = credits.id and kind = 'carried') as carried
    from credits where id in (select credit_id from invoice_lines where invoice = ${invoice}) order by id`
  return rows.flatMap(({ id, micros, used, carried, own }) => [
    ...(own ? [] : [`credit ${id} is another account's`]),
    ...(BigInt(used) > BigInt(micros)
      ? [`${sayExactly(BigInt(used))} of credit ${id} are taken, which is of ${sayExactly(BigInt(micros))}`]
      : []),
    ...(carried !== null && BigInt(carried) !== BigInt(micros)
      ? [`credit ${id} is of ${sayExactly(BigInt(micros))}, and ${sayExactly(BigInt(carried))} were left`]
      : []),
  ])
}

/** What can be seen of a line without its facts. Those of corrections are differences of two lines. */
function alone(line: InvoiceLine, { month }: Invoice, list: PriceList): string[] {
  if (line.rateId === null || line.month !== month) return []
  const name = [line.kind, line.class].filter(Boolean).join(' ')
  const rate: Rate | undefined = list.rates.find(({ id }) => id === line.rateId)
  if (!rate) return [`${name}: there is no rate ${line.rateId}`]
  const problems: string[] = []
  const amount = amountOf(rate, month, line.quantity - line.included)
  if (amount !== line.amount)
    problems.push(`${name}: its rate gives ${sayExactly(amount)}, not ${sayExactly(line.amount)}`)
  const ofDays = sum(line.days.map(([, quantity]) => quantity))
  if (ofDays !== line.quantity) problems.push(`${name}: its days sum to ${ofDays} of ${line.quantity}`)
  if (line.kind === 'fee') return problems
  const ofMachines = sum(line.machines.map(([, quantity]) => quantity))
  if (ofMachines !== line.quantity) problems.push(`${name}: its machines sum to ${ofMachines} of ${line.quantity}`)
  return problems
}

function sayDifference(line: InvoiceLine, month: Month): string {
  const name = [line.kind, line.class].filter(Boolean).join(' ')
  const by = line.amount >= 0n ? 'more' : 'less'
  const amount = sayExactly(line.amount < 0n ? -line.amount : line.amount)
  const units =
    line.quantity === 0n ? '' : `, ${line.quantity} of ${unitOf(line.kind as Rate['kind'], month)} more in use`
  return `${name}: the facts give ${amount} ${by}${units}`
}

async function cameLate(db: Db, accountId: number, month: Month): Promise<boolean> {
  const [row] = await db<{ late: boolean }[]>`
    select l.at >= (select max(closed_at) from invoices where account_id = ${accountId}) - interval '1 hour' as late
    from late_usage l where l.account_id = ${accountId} and l.month = ${firstDay(month)}::date`
  return row?.late ?? false
}

/** Rows of the rollup that are not what the facts sum to, and further sums that are not what those sum to. */
async function wrongDays(db: Db, accountId: number, month: Month): Promise<number> {
  const [from, to] = [startOfMonth(month), startOfMonth(addMonths(month, 1))]
  const [row] = await db<{ count: number }[]>`
    with kept as (select day, machine_id, cpu, memory, disk, checkpoints, direct, gateway from usage_days
        where account_id = ${accountId} and day >= ${firstDay(month)}::date and day < ${firstDay(addMonths(month, 1))}::date
          and cpu + memory + disk + checkpoints + direct + gateway <> 0),
      facts as (select day, machine_id, cpu, memory, disk, checkpoints, direct, gateway
        from ledger_usage((select array_agg(id) from machines where account_id = ${accountId}), ${from}, ${to})
        where cpu + memory + disk + checkpoints + direct + gateway <> 0)
    select count(distinct (day, machine_id))::integer as count from (
      (select * from kept except select * from facts) union all (select * from facts except select * from kept)) as wrong`
  const [sums] = await db<{ count: number }[]>`
    select wrong_usage_sums(${accountId}, ${firstDay(month)}::date, ${firstDay(addMonths(month, 1))}::date) as count`
  return (row?.count ?? 0) + (sums?.count ?? 0)
}
