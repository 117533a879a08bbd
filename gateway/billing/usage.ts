/** What was used, from the rollup or from the facts themselves, and what of it falls into a range of time. */
import type { Db } from '../../migrations/connect.ts'
import { divideHalfEven, sum } from './arithmetic.ts'
import {
  addDays,
  addMonths,
  DAY_MS,
  type Day,
  dayOf,
  daysBetween,
  firstDay,
  type Month,
  monthOf,
  monthsBetween,
  startOfDay,
  startOfMonth,
} from './calendar.ts'
import { addQuantities, KIND_OF, METERS, type Meter, NO_USAGE, type Quantities } from './meters.ts'
import { dayShares, type Line, linesOf, type MonthUsage, machineShares } from './pricing.ts'
import { type PriceList, readPriceList, readSubscriber, type Subscriber, termsOf } from './terms.ts'

/** `ledger` computes from the facts and takes as long as there are of them; `rollup` reads what was added up. */
export type Source = 'rollup' | 'ledger'

type Used = Record<Meter, string>
/** A whole column a field: of a thousand rows a driver makes a thousand objects, and nine texts for each. */
type Columns = Record<Meter | 'key' | 'part', string | null>

const quantitiesOf = (row: Used): Quantities => METERS.map((meter) => BigInt(row[meter]))

function rowsOf(columns: Columns | undefined): { key: string; part: number; quantities: Quantities }[] {
  if (!columns?.key) return []
  const parts = columns.part?.split(',') ?? []
  const quantities = METERS.map((meter) => columns[meter]?.split(',') ?? [])
  return columns.key.split(',').map((key, row) => ({
    ...{ key, part: Number(parts[row]) },
    quantities: quantities.map((column) => BigInt(column[row] ?? 0)),
  }))
}

/**
 * An account's use between two days, by part of the month and machine, and by day.
 * @param starts as `Terms.starts`
 */
export async function readUsage(
  db: Db,
  accountId: number,
  { from, to, starts, source = 'rollup' }: { from: Day; to: Day; starts: readonly Day[]; source?: Source },
): Promise<MonthUsage> {
  const summed = db`sum(cpu) as cpu, sum(memory) as memory, sum(disk) as disk, sum(checkpoints) as checkpoints,
    sum(direct) as direct, sum(gateway) as gateway`
  const meters = db`cpu, memory, disk, checkpoints, direct, gateway`
  const within = db`account_id = ${accountId} and day >= ${from}::date and day < ${to}::date`
  const part = db`width_bucket(day, string_to_array(${starts.join(',')}, ',')::date[]) - 1`
  // The month of a machine is a row when all of it is priced alike. Indexes: the primary keys, in this order of columns.
  const isMonth =
    starts.length === 1 && from === firstDay(monthOf(from)) && to === firstDay(addMonths(monthOf(from), 1))
  const ofFacts = db`ledger_usage((select array_agg(id) from machines where account_id = ${accountId}), ${startOfDay(from)}, ${startOfDay(to)})`
  const ofMachines =
    source === 'ledger'
      ? db`select ${part} as part, machine_id as key, ${summed} from ${ofFacts} group by 1, 2`
      : isMonth
        ? db`select 0 as part, machine_id as key, ${meters}
            from usage_machine_months where account_id = ${accountId} and month = ${from}::date`
        : db`select ${part} as part, machine_id as key, ${summed} from usage_days where ${within} group by 1, 2`
  const ofDays =
    source === 'ledger'
      ? db`select 0 as part, to_char(day, 'YYYY-MM-DD') as key, ${summed} from ${ofFacts} group by day`
      : db`select 0 as part, to_char(day, 'YYYY-MM-DD') as key, ${meters} from usage_account_days where ${within}`
  const columns = db`string_agg(key::text, ',') as key, string_agg(part::text, ',') as part,
    string_agg(cpu::text, ',') as cpu, string_agg(memory::text, ',') as memory, string_agg(disk::text, ',') as disk,
    string_agg(checkpoints::text, ',') as checkpoints, string_agg(direct::text, ',') as direct,
    string_agg(gateway::text, ',') as gateway`
  // In one statement, so that both are of the same facts.
  const found = await db<(Columns & { of: string })[]>`
    select 'machines' as of, ${columns} from (${ofMachines}) as m
    union all select 'days', ${columns} from (${ofDays}) as d`
  const rows = (what: string) => rowsOf(found.find(({ of }) => of === what))
  return {
    machines: rows('machines').map(({ key, part, quantities }) => ({ part, machineId: Number(key), quantities })),
    days: rows('days').map(({ key, quantities }) => ({ day: key, quantities })),
  }
}

export async function monthLines(
  db: Db,
  month: Month,
  subscriber: Subscriber,
  list: PriceList,
  source: Source = 'rollup',
): Promise<Line[]> {
  const terms = termsOf(month, subscriber, list)
  const [from, to] = [firstDay(month), firstDay(addMonths(month, 1))]
  return linesOf(terms, await readUsage(db, subscriber.accountId, { from, to, starts: terms.starts, source }))
}

/** An account's month as it stands. */
export async function readMonth(db: Db, accountId: number, month: Month): Promise<Line[]> {
  const [from, to] = [firstDay(month), firstDay(addMonths(month, 1))]
  const [subscriber, list, usage] = await Promise.all([
    readSubscriber(db, accountId),
    readPriceList(db),
    readUsage(db, accountId, { from, to, starts: [from] }),
  ])
  const terms = termsOf(month, subscriber, list)
  const isOnePart = terms.starts.length === 1
  return linesOf(terms, isOnePart ? usage : await readUsage(db, accountId, { from, to, starts: terms.starts }))
}

/** What each machine has cost in a month: to be charged, or on a plan that charges nothing what it would. */
export async function machineCosts(db: Db, accountId: number, month: Month): Promise<Map<number, bigint>> {
  const costs = new Map<number, bigint>()
  for (const line of await readMonth(db, accountId, month)) {
    for (const [machineId, amount] of machineShares(line)) costs.set(machineId, (costs.get(machineId) ?? 0n) + amount)
  }
  return costs
}

/** A line as far as it falls into a range. */
export type RangeLine = Omit<Line, 'machines' | 'days'> & {
  machines: readonly { machineId: number; quantity: bigint; amount: bigint }[]
  days: readonly { day: Day; quantity: bigint; amount: bigint }[]
}

/**
 * What falls between two instants. Amounts are shares of the months' lines: first of their days, of a day that begins or
 * ends outside by what was used inside, then of the machines. Ranges that meet sum to their union.
 */
export async function readRange(db: Db, accountId: number, from: Date, to: Date): Promise<RangeLine[]> {
  const [list, subscriber] = await Promise.all([readPriceList(db), readSubscriber(db, accountId)])
  const lines: RangeLine[] = []
  const last = monthOf(new Date(to.getTime() - 1))
  for (const month of monthsBetween(monthOf(from), addMonths(last, 1))) {
    const since = new Date(Math.max(from.getTime(), startOfMonth(month).getTime()))
    const until = new Date(Math.min(to.getTime(), startOfMonth(addMonths(month, 1)).getTime()))
    lines.push(...(await partOfMonth(db, month, subscriber, list, since, until)))
  }
  return lines
}

async function partOfMonth(
  db: Db,
  month: Month,
  subscriber: Subscriber,
  list: PriceList,
  since: Date,
  until: Date,
): Promise<RangeLine[]> {
  const { accountId } = subscriber
  const terms = termsOf(month, subscriber, list)
  const ends = firstDay(addMonths(month, 1))
  const whole = await readUsage(db, accountId, { from: firstDay(month), to: ends, starts: terms.starts })
  const lines = linesOf(terms, whole)
  const isWhole = since <= startOfMonth(month) && until >= startOfDay(ends)
  if (isWhole) return lines.map((line) => inRange(line, line.days, line.machines, line.amount))
  const inside = await insideUsage(db, accountId, terms.starts, since, until)
  return lines.flatMap((line) => {
    const days = line.kind === 'fee' ? feeDays(line, since, until) : quantitiesOfDays(line, inside)
    const amounts = new Map(dayShares(line))
    const parts = days.map(({ day, before, quantity, ofDay }) => {
      // What falls to the day up to an instant, so that ranges that meet in it share it without a rest.
      const upTo = (used: bigint) => divideHalfEven((amounts.get(day) ?? 0n) * used, ofDay)
      return { day, quantity, amount: upTo(before + quantity) - upTo(before) }
    })
    const amount = sum(parts.map((part) => part.amount))
    const quantity = sum(parts.map((part) => part.quantity))
    if (quantity === 0n) return []
    const machines = line.kind === 'fee' ? [] : quantitiesOfMachines(line, inside, terms.starts)
    return [
      { ...inRange(line, [], machines, amount), quantity: line.kind === 'fee' ? line.quantity : quantity, days: parts },
    ]
  })
}

function inRange(line: Line, days: Line['days'], machines: Line['machines'], amount: bigint): RangeLine {
  const ofDays = days.length ? dayShares({ amount, days }) : []
  const ofMachines = machineShares({ amount, machines })
  return {
    ...line,
    amount,
    days: days.map(([day, quantity], index) => ({ day, quantity, amount: ofDays[index]?.[1] ?? 0n })),
    machines: machines.map(([machineId, quantity], index) => ({
      machineId,
      quantity,
      amount: ofMachines[index]?.[1] ?? 0n,
    })),
  }
}

/** Whole days come from the rollup, the pieces of days at either end from the facts. */
async function insideUsage(db: Db, accountId: number, starts: readonly Day[], since: Date, until: Date) {
  const firstWhole = since.getTime() % DAY_MS === 0 ? dayOf(since) : addDays(dayOf(since), 1)
  const pastWhole = dayOf(until)
  const whole = await readUsage(db, accountId, { from: firstWhole, to: pastWhole, starts })
  const machines = [...whole.machines]
  const days = new Map(whole.days.map(({ day, quantities }) => [day, quantities]))
  /** of days that begin outside, what was used there; undefined: what is not inside */
  const before = new Map<Day, Quantities | undefined>()
  for (const [begins, ends] of piecesOf(since, until)) {
    const day = dayOf(begins)
    const part = starts.findLastIndex((start) => start <= day)
    for (const used of await usageOfFacts(db, accountId, begins, ends)) {
      machines.push({ part, ...used })
      days.set(day, addQuantities(days.get(day) ?? NO_USAGE, used.quantities))
    }
    const midnight = startOfDay(day)
    if (begins <= midnight) continue
    const isRest = ends.getTime() % DAY_MS === 0
    const earlier = isRest ? undefined : await usageOfFacts(db, accountId, midnight, begins)
    before.set(
      day,
      earlier?.reduce((all, { quantities }) => addQuantities(all, quantities), NO_USAGE),
    )
  }
  return { machines, days, before }
}

async function usageOfFacts(db: Db, accountId: number, from: Date, to: Date) {
  const rows = await db<(Used & { machine_id: number })[]>`
    select machine_id, cpu::text, memory::text, disk::text, checkpoints::text, direct::text, gateway::text
    from ledger_usage((select array_agg(id) from machines where account_id = ${accountId}), ${from}, ${to})`
  return rows.map((row) => ({
    machineId: row.machine_id,
    quantities: quantitiesOf(row),
  }))
}

/** What of a range is no whole day: at most a piece at either end. */
function piecesOf(since: Date, until: Date): [Date, Date][] {
  const pieces: [Date, Date][] = []
  const firstMidnight = startOfDay(addDays(dayOf(since), 1))
  if (since.getTime() % DAY_MS !== 0) pieces.push([since, firstMidnight < until ? firstMidnight : until])
  const lastMidnight = startOfDay(dayOf(until))
  if (until > lastMidnight && lastMidnight >= since) pieces.push([lastMidnight, until])
  return pieces.filter(([begins, ends]) => begins < ends)
}

type Inside = Awaited<ReturnType<typeof insideUsage>>

/** Of a day: what was used before the range, in it, and in all. */
type DayPart = { day: Day; before: bigint; quantity: bigint; ofDay: bigint }

function quantitiesOfDays(line: Line, { days, before }: Inside): DayPart[] {
  const index = meterIndex(line)
  return line.days.flatMap(([day, ofDay]) => {
    const quantity = days.get(day)?.[index] ?? 0n
    const earlier = before.has(day) ? (before.get(day)?.[index] ?? ofDay - quantity) : 0n
    return quantity > 0n ? [{ day, before: earlier, quantity, ofDay }] : []
  })
}

function quantitiesOfMachines(line: Line, { machines }: Inside, starts: readonly Day[]): [number, bigint][] {
  const index = meterIndex(line)
  const days = new Set(line.days.map(([day]) => day))
  const parts = new Set(starts.flatMap((start, part) => (isPartOf(days, starts, start, part) ? [part] : [])))
  const used = new Map<number, bigint>()
  for (const { part, machineId, quantities } of machines) {
    const quantity = quantities[index] ?? 0n
    if (quantity > 0n && parts.has(part)) used.set(machineId, (used.get(machineId) ?? 0n) + quantity)
  }
  return [...used].sort(([a], [b]) => a - b)
}

/** Terms hold for whole parts, so one day of use in a part is enough to know it. */
function isPartOf(days: ReadonlySet<Day>, starts: readonly Day[], start: Day, part: number): boolean {
  const next = starts[part + 1] ?? firstDay(addMonths(monthOf(start), 1))
  return daysBetween(start, next).some((day) => days.has(day))
}

function meterIndex({ kind, class: className }: Line): number {
  return METERS.findIndex((meter) => KIND_OF[meter].kind === kind && KIND_OF[meter].class === className)
}

/** A fee is spread evenly, in milliseconds. */
function feeDays(line: Line, since: Date, until: Date): DayPart[] {
  return line.days.flatMap(([day]) => {
    const begins = startOfDay(day).getTime()
    const before = Math.min(DAY_MS, Math.max(0, since.getTime() - begins))
    const quantity = Math.min(DAY_MS, until.getTime() - begins) - before
    return quantity > 0 ? [{ day, before: BigInt(before), quantity: BigInt(quantity), ofDay: BigInt(DAY_MS) }] : []
  })
}
