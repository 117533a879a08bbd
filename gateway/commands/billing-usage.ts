import type { App } from '../app.ts'
import { sum } from '../billing/arithmetic.ts'
import { addDays, addMonths, dayOf, monthOf, sayMonth, startOfDay, startOfMonth } from '../billing/calendar.ts'
import { assumptionsOf, dayOfReaching, daysOf, type Forecast, readForecast } from '../billing/forecast.ts'
import { type Limit, readLimits } from '../billing/limits.ts'
import { inUnits, unitName } from '../billing/meters.ts'
import { plainAmount, sayMoney, sayRate } from '../billing/money.ts'
import type { Line } from '../billing/pricing.ts'
import { type RangeLine, readRange } from '../billing/usage.ts'
import { csv, sayPrice, sayQuantity, sayWhat } from '../billing/words.ts'
import { limitDocument } from './billing.ts'
import { sayAhead } from './billing-words.ts'
import { defineCommand } from './command.ts'
import { type Column, table, type View, wrap } from './text.ts'
import { sayList } from './values.ts'

const RANGES = ['cycle', '24h', '7d', '30d'] as const
const BY = ['kind', 'machine', 'day'] as const

export const billingUsage = defineCommand({
  name: 'billing usage',
  group: 'you',
  summary: 'what was used and what it costs, by kind, machine or day',
  description:
    'A month is a calendar month in UTC, and so are days; 24h goes back from now, 7d and 30d are whole days, today among them. What runs is counted every few minutes. Machines and days are shares of the lines of the invoice, so they sum to it. For the month so far there is a forecast of its end too, with what it assumes.',
  flags: {
    range: { type: 'string', choices: RANGES, summary: 'cycle, the month so far, unless given' },
    by: { type: 'string', choices: BY, summary: 'kind unless given' },
    csv: { type: 'boolean', summary: 'comma-separated, for a spreadsheet' },
  },
  examples: ['billing usage', 'billing usage --range 7d --by day', 'billing usage --by machine --csv'],
  async run({ app, caller }, { flags }) {
    const by = flags.by ?? 'kind'
    const now = new Date()
    const { from, to, title } = rangeOf(flags.range ?? 'cycle', now)
    const lines = await readRange(app.sql, caller.accountId, from, to)
    const names = await machineNamesOf(app, caller.accountId)
    const total = sum(lines.map((line) => line.amount))
    const charged = sum(lines.filter((line) => line.charged).map((line) => line.amount))
    const isCycle = (flags.range ?? 'cycle') === 'cycle'
    const forecast = isCycle && !flags.csv ? await readForecast(app.sql, caller.accountId, now) : undefined
    const limits = forecast ? await readLimits(app.sql, caller.accountId) : []
    const feeToCome = sum(
      lines
        .filter(({ kind }) => kind === 'fee')
        .flatMap(({ days }) => days.flatMap(({ day, amount }) => (day > dayOf(now) ? [amount] : []))),
    )
    if (flags.csv) return { json: { csv: asCsv(by, lines, names) }, text: asCsv(by, lines, names) }
    return {
      json: {
        from: from.toISOString(),
        to: (to < now ? to : now).toISOString(),
        currency: 'USD',
        total_micros: Number(total),
        charged_micros: Number(charged),
        fee_ahead_micros: Number(feeToCome),
        lines: lines.map(lineDocument),
        machines: byMachine(lines, names).map(({ id, name, cells }) => ({
          machine_id: id,
          vm_name: name,
          ...cellsDocument(cells),
        })),
        days: byDay(lines).map(({ name, cells }) => ({ day: name, ...cellsDocument(cells) })),
        ...(forecast ? { forecast: forecastDocument(forecast, limits) } : {}),
      },
      text: (view) => {
        const ahead = forecast ? sayForecast(forecast, limits, now, view) : ''
        if (lines.length === 0) return `nothing was used in ${title}; rates: billing rates\n${ahead}`
        const head = `${title}, in UTC${charged === total ? '' : charged === 0n ? `: nothing is charged, this is what it would cost` : `: ${sayMoney(charged)} of it is charged`}${sayAhead(feeToCome)}`
        return `${wrap(head, view.columns).map(view.style.dim).join('\n')}\n${asTable(by, lines, names, total, view)}${ahead}`
      },
    }
  },
})

function rangeOf(range: (typeof RANGES)[number], now: Date): { from: Date; to: Date; title: string } {
  const tomorrow = startOfDay(addDays(dayOf(now), 1))
  const month = monthOf(now)
  switch (range) {
    case 'cycle':
      return { from: startOfMonth(month), to: startOfMonth(addMonths(month, 1)), title: `${sayMonth(month)} so far` }
    case '24h':
      return { from: new Date(now.getTime() - 86_400_000), to: tomorrow, title: 'the last 24 hours' }
    case '7d':
      return { from: startOfDay(addDays(dayOf(now), -6)), to: tomorrow, title: 'the last 7 days' }
    case '30d':
      return { from: startOfDay(addDays(dayOf(now), -29)), to: tomorrow, title: 'the last 30 days' }
  }
}

/** Machines that are no more, or in the trash, are still on the bill. */
async function machineNamesOf(app: App, accountId: number): Promise<Map<number, string>> {
  const rows = await app.sql<{ id: number; name: string; away: boolean }[]>`
    select id, name, desired_state in ('trashed', 'gone') or observed_state = 'gone' as away
    from machines where account_id = ${accountId}`
  return new Map(rows.map(({ id, name, away }) => [id, away ? `${name} (deleted)` : name]))
}

function forecastDocument(forecast: Forecast, limits: readonly Limit[]) {
  return {
    ...{ until: forecast.until.toISOString(), currency: 'USD' },
    ...{ total_micros: Number(forecast.total), charged_micros: Number(forecast.charged) },
    assumes: assumptionsOf(forecast),
    lines: forecast.lines.map(lineDocument),
    days: daysOf(forecast.lines).map(([day, amount]) => ({ day, amount_micros: Number(amount) })),
    limits: limits.map((limit) => ({
      ...limitDocument(limit),
      reached_on: dayOfReaching(forecast, limit.micros) ?? null,
    })),
  }
}

/** Nothing where the month is as good as over, or nothing is there to cost. */
function sayForecast(forecast: Forecast, limits: readonly Limit[], now: Date, view: View): string {
  const { total, charged, until } = forecast
  if (total === 0n) return ''
  const verb = charged === 0n ? 'would have cost' : 'will have cost'
  const of = charged === 0n ? total : charged
  const head = `by the end of ${sayMonth(monthOf(now))} it ${verb} about ${sayMoney(of)}, if`
  const reached = limits.flatMap((limit) => {
    const day = dayOfReaching(forecast, limit.micros)
    if (day === undefined || day < dayOf(now)) return []
    const whose = limit.whose === 'own' ? 'your limit' : "the operator's limit"
    const then = limit.hard ? ', where machines are paused' : ''
    return [`${whose} of ${sayRate(limit.micros)} is reached on ${day}${then}`]
  })
  const text = `${head} ${sayList(assumptionsOf(forecast), 8)} (until ${until.toISOString().slice(0, 16).replace('T', ' ')} UTC)`
  const lines = [text, ...reached].flatMap((one) => wrap(one, view.columns)).map(view.style.dim)
  return `\n${lines.join('\n')}\n`
}

function lineDocument(line: RangeLine | Line) {
  const { kind, month, rate } = line
  return {
    month,
    ...{ kind, class: line.class, what: sayWhat(line), plan: line.plan, charged: line.charged },
    ...{ rate_micros: Number(rate.micros), unit: unitName(kind) },
    ...{ quantity: inUnits(kind, line.quantity, month, 6), included: inUnits(kind, line.included, month, 6) },
    amount_micros: Number(line.amount),
  }
}

type Cells = { cpu: bigint; memory: bigint; disk: bigint; transfer: bigint; fee: bigint }
type Row = { id: number | null; name: string; cells: Cells }

const NOTHING: Cells = { cpu: 0n, memory: 0n, disk: 0n, transfer: 0n, fee: 0n }
const totalOf = (cells: Cells) => sum(Object.values(cells))
const cellsDocument = (cells: Cells) => ({
  amount_micros: Number(totalOf(cells)),
  ...Object.fromEntries(Object.entries(cells).map(([kind, amount]) => [`${kind}_micros`, Number(amount)])),
})

/** The dearest first; fees, which are no machine's, last. */
function byMachine(lines: readonly RangeLine[], names: Map<number, string>): Row[] {
  const rows = new Map<number | null, Row>()
  const add = (id: number | null, name: string, kind: keyof Cells, amount: bigint) => {
    const row = rows.get(id) ?? { id, name, cells: { ...NOTHING } }
    row.cells[kind] += amount
    rows.set(id, row)
  }
  for (const { kind, machines, amount } of lines) {
    if (kind === 'fee') add(null, '(the plan)', kind, amount)
    for (const one of machines)
      add(one.machineId, names.get(one.machineId) ?? `machine ${one.machineId}`, kind, one.amount)
  }
  const cost = (row: Row) => (row.id === null ? -1n : totalOf(row.cells))
  return [...rows.values()].sort((a, b) => Number(cost(b) - cost(a)) || a.name.localeCompare(b.name))
}

function byDay(lines: readonly RangeLine[]): Row[] {
  const rows = new Map<string, Row>()
  for (const { kind, days } of lines) {
    for (const { day, amount } of days) {
      const row = rows.get(day) ?? { id: null, name: day, cells: { ...NOTHING } }
      row.cells[kind] += amount
      rows.set(day, row)
    }
  }
  return [...rows.values()].sort((a, b) => a.name.localeCompare(b.name))
}

function asTable(
  by: (typeof BY)[number],
  lines: readonly RangeLine[],
  names: Map<number, string>,
  total: bigint,
  view: View,
): string {
  if (by === 'kind') return kindTable(lines, total, view)
  const rows = by === 'day' ? byDay(lines) : byMachine(lines, names)
  const sums = rows.reduce<Cells>((all, { cells }) => added(all, cells), NOTHING)
  const money = (title: keyof Cells, optional: number): Column<Row> => ({
    title,
    value: ({ cells }) => (sums[title] === 0n ? '' : sayMoney(cells[title])),
    right: true,
    optional,
  })
  return table(
    [...rows, { id: null, name: 'total', cells: sums }],
    [
      { title: by, value: ({ name }) => name, flexible: true },
      money('fee', 1),
      money('cpu', 2),
      money('memory', 2),
      money('disk', 2),
      money('transfer', 2),
      { title: 'cost', value: ({ cells }) => sayMoney(totalOf(cells)), right: true },
    ],
    view,
  )
}

function added(a: Cells, b: Cells): Cells {
  return {
    ...{ cpu: a.cpu + b.cpu, memory: a.memory + b.memory, disk: a.disk + b.disk },
    ...{ transfer: a.transfer + b.transfer, fee: a.fee + b.fee },
  }
}

function kindTable(lines: readonly RangeLine[], total: bigint, view: View): string {
  const hasPlans = new Set(lines.map(({ plan }) => plan)).size > 1
  const hasMonths = new Set(lines.map(({ month }) => month)).size > 1
  const rows = lines.map((line) => ({
    what: sayWhat(line),
    month: hasMonths ? line.month : '',
    plan: hasPlans ? line.plan : '',
    quantity: sayQuantity(line.kind, line.quantity, line.month),
    rate: sayPrice(line.kind, line.rate.micros),
    cost: sayMoney(line.amount),
  }))
  return table(
    [...rows, { what: 'total', month: '', plan: '', quantity: '', rate: '', cost: sayMoney(total) }],
    [
      { title: 'what', value: (row) => row.what },
      { title: 'month', value: (row) => row.month },
      { title: 'plan', value: (row) => row.plan, optional: 2 },
      { title: 'quantity', value: (row) => row.quantity, right: true },
      { title: 'rate', value: (row) => row.rate, optional: 1 },
      { title: 'cost', value: (row) => row.cost, right: true },
    ],
    view,
  )
}

function asCsv(by: (typeof BY)[number], lines: readonly RangeLine[], names: Map<number, string>): string {
  const what = (line: RangeLine) => [line.kind, line.class, line.plan, line.charged ? 'yes' : 'no', unitName(line.kind)]
  const FIELDS = ['kind', 'class', 'plan', 'charged', 'unit']
  const used = (line: RangeLine, quantity: bigint) => inUnits(line.kind, quantity, line.month, 9)
  if (by === 'kind') {
    return csv(
      ['month', ...FIELDS, 'rate_usd', 'quantity', 'included', 'amount_usd'],
      lines.map((line) => [
        ...[line.month, ...what(line), plainAmount(line.rate.micros)],
        ...[used(line, line.quantity), used(line, line.included), plainAmount(line.amount)],
      ]),
    )
  }
  if (by === 'day') {
    return csv(
      ['day', ...FIELDS, 'quantity', 'amount_usd'],
      lines.flatMap((line) =>
        line.days.map(({ day, quantity, amount }) => [
          ...[day, ...what(line)],
          ...[line.kind === 'fee' ? '' : used(line, quantity), plainAmount(amount)],
        ]),
      ),
    )
  }
  return csv(
    ['month', 'machine_id', 'machine', ...FIELDS, 'quantity', 'amount_usd'],
    lines.flatMap((line) =>
      line.kind === 'fee'
        ? [[line.month, '', '', ...what(line), '', plainAmount(line.amount)]]
        : line.machines.map(({ machineId, quantity, amount }) => [
            ...[line.month, String(machineId), names.get(machineId) ?? '', ...what(line)],
            ...[used(line, quantity), plainAmount(amount)],
          ]),
    ),
  )
}
