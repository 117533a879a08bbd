/**
 * What a month will have cost at its end, by plan, rates and what there is now. It is the same computation as the
 * invoice's, over what was used and what would be, if
 *
 *   - machines that run go on running to the end of the month, in the size they have, and the others stay as they are;
 *   - disks and checkpoints stay as large as they are;
 *   - each machine that runs goes on sending as it did in the last week (or since it was made, if that is less);
 *   - plans and rates become what they are known to become.
 *
 * Nobody can promise that, so whoever shows the figure shows the assumptions too.
 */
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
  monthOf,
  startOfMonth,
} from './calendar.ts'
import { addQuantities, METERS, NO_USAGE, type Quantities } from './meters.ts'
import { type Change, changesOf, outlookOf } from './outlook.ts'
import { dayShares, type Line, limitShares, linesOf, type MonthUsage } from './pricing.ts'
import { readPriceList, readSubscriber, termsOf } from './terms.ts'
import { readUsage } from './usage.ts'

export type Forecast = {
  /** midnight UTC at which the month ends */
  until: Date
  /** of the whole month, what was used and what would be */
  lines: Line[]
  total: bigint
  charged: bigint
  /** machines that run, and are taken to go on */
  running: number
  /** machines that cost disk alone, and are taken to stay so */
  resting: number
  /** plans and rates from a day on that are to come in the month */
  changes: Change[]
}

/** What a machine is now, and what its network does. */
type Now = {
  id: number
  isRunning: boolean
  cpus: bigint
  memoryBytes: bigint
  diskBytes: bigint
  checkpointBytes: bigint
  /** to where its time is in the ledger */
  countedTo: Date
  /** what left it in the last week, and of which days that is, from 1 to 7 */
  direct: bigint
  gateway: bigint
  weekMs: number
}

const MICROS_A_MS = 1000n
const WEEK_DAYS = 7
const SHORTEST_WEEK_MS = DAY_MS

/** @param now a moment of the month that is forecast */
export async function readForecast(db: Db, accountId: number, now: Date): Promise<Forecast> {
  const month = monthOf(now)
  const [list, subscriber] = [await readPriceList(db), await readSubscriber(db, accountId)]
  const terms = termsOf(month, subscriber, list)
  const [from, to] = [firstDay(month), firstDay(addMonths(month, 1))]
  const used = await readUsage(db, accountId, { from, to, starts: terms.starts })
  const machines = await machinesNow(db, accountId, now)
  const until = startOfMonth(addMonths(month, 1))
  const lines = linesOf(terms, withFuture(used, machines, terms.starts, until))
  return {
    ...{ until, lines, total: sum(lines.map(({ amount }) => amount)) },
    charged: sum(lines.filter(({ charged }) => charged).map(({ amount }) => amount)),
    running: machines.filter(({ isRunning }) => isRunning).length,
    resting: machines.filter(({ isRunning }) => !isRunning).length,
    changes: changesOf(outlookOf(subscriber, list, dayOf(now))).filter((change) => change.from < to),
  }
}

/**
 * What falls to each day, in order; they sum to the lines.
 * @param sharesOf a line's
 */
export function daysOf(
  lines: readonly Line[],
  sharesOf: (line: Line) => [day: Day, amount: bigint][] = dayShares,
): [day: Day, amount: bigint][] {
  const days = new Map<Day, bigint>()
  for (const line of lines) {
    for (const [day, amount] of sharesOf(line)) days.set(day, (days.get(day) ?? 0n) + amount)
  }
  return [...days].sort(([a], [b]) => (a < b ? -1 : 1))
}

/**
 * The first day at whose end so much will have been charged, as limits count it.
 * @returns undefined when the month ends before
 */
export function dayOfReaching({ lines }: Pick<Forecast, 'lines'>, micros: bigint): Day | undefined {
  let spent = 0n
  for (const [day, amount] of daysOf(
    lines.filter(({ charged }) => charged),
    limitShares,
  )) {
    spent += amount
    if (spent >= micros) return day
  }
  return undefined
}

/** What has to come true for it, in sentences without a full stop. */
export function assumptionsOf({ running, resting, changes }: Forecast): string[] {
  const s = (count: number) => (count === 1 ? 's' : '')
  const machines = (count: number) => (count === 1 ? 'the machine' : `the ${count} machines`)
  return [
    ...(running > 0 ? [`${machines(running)} that run${s(running)} now run${s(running)} on until then`] : []),
    ...(resting > 0 ? [`${machines(resting)} that rest${s(resting)} (asleep or off) stay${s(resting)} so`] : []),
    ...(running + resting > 0 ? ['disks and checkpoints stay as large as they are'] : []),
    ...(running > 0 ? ['as much is sent as in the last 7 days'] : []),
    ...(running + resting === 0 ? ['no machine is made'] : []),
    ...changes.map(({ from, plan, isOfPlan }) =>
      isOfPlan ? `plan ${plan} holds from ${from} on, as was set` : `other rates hold from ${from} on, as was set`,
    ),
  ]
}

async function machinesNow(db: Db, accountId: number, now: Date): Promise<Now[]> {
  type Row = {
    id: number
    isRunning: boolean
    cpus: number
    memory: number
    disk: number
    checkpoints: number
    countedTo: Date | null
    createdAt: Date
    direct: string
    gateway: string
  }
  const weekBegan = addDays(dayOf(now), 1 - WEEK_DAYS)
  // The size that it runs with may be another than it is to have. Indexes: machines_by_account and primary keys.
  const rows = await db<Row[]>`
    select m.id, m.observed_state = 'running' as "isRunning", coalesce(m.observed_cpus, m.cpus) as cpus,
      coalesce(m.observed_memory_bytes, m.memory_bytes) as memory,
      case when m.observed_state in ('creating', 'failed') then coalesce(last.disk_bytes, 0) else m.disk_bytes end as disk,
      coalesce(last.checkpoint_bytes, 0) as checkpoints, last.ended_at as "countedTo", m.created_at as "createdAt",
      coalesce(week.direct, 0)::text as direct, coalesce(week.gateway, 0)::text as gateway
    from machines m
    left join lateral (select disk_bytes, checkpoint_bytes, ended_at from machine_spans s where s.machine_id = m.id
      order by started_at desc limit 1) last on true
    left join (select machine_id, sum(direct) as direct, sum(gateway) as gateway from usage_days
      where account_id = ${accountId} and day >= ${weekBegan}::date and day <= ${dayOf(now)}::date
      group by machine_id) week on week.machine_id = m.id
    where m.account_id = ${accountId} and m.observed_state not in ('gone', 'trashed')
      and m.desired_state not in ('gone', 'trashed')
    order by m.id`
  const weekBeganMs = new Date(`${weekBegan}T00:00:00Z`).getTime()
  return rows.map((row) => ({
    ...{ id: row.id, isRunning: row.isRunning, cpus: BigInt(row.cpus), memoryBytes: BigInt(row.memory) },
    ...{ diskBytes: BigInt(row.disk), checkpointBytes: BigInt(row.checkpoints) },
    // A machine that was just made has no facts, and a clock may be behind the last of them.
    countedTo: row.countedTo ?? now,
    ...{ direct: BigInt(row.direct), gateway: BigInt(row.gateway) },
    weekMs: Math.max(SHORTEST_WEEK_MS, now.getTime() - Math.max(weekBeganMs, row.createdAt.getTime())),
  }))
}

/** What was used, and to it what each machine would use from where its facts end to the end of the month. */
function withFuture(used: MonthUsage, machines: readonly Now[], starts: readonly Day[], until: Date): MonthUsage {
  const ofMachines = new Map(
    used.machines.map(({ part, machineId, quantities }) => [`${part} ${machineId}`, { part, machineId, quantities }]),
  )
  const ofDays = new Map(used.days.map(({ day, quantities }) => [day, quantities]))
  const monthBegan = startOfMonth(monthOf(new Date(until.getTime() - 1)))
  for (const machine of machines) {
    // The facts of a server that is away may end long ago; they will come.
    const from = new Date(Math.max(machine.countedTo.getTime(), monthBegan.getTime()))
    for (const { day, ms } of daysUntil(from, until)) {
      const quantities = useIn(machine, ms)
      const part = starts.findLastIndex((start) => start <= day)
      const key = `${part} ${machine.id}`
      const before = ofMachines.get(key)?.quantities ?? NO_USAGE
      ofMachines.set(key, { part, machineId: machine.id, quantities: addQuantities(before, quantities) })
      ofDays.set(day, addQuantities(ofDays.get(day) ?? NO_USAGE, quantities))
    }
  }
  return {
    machines: [...ofMachines.values()],
    days: [...ofDays].map(([day, quantities]) => ({ day, quantities })),
  }
}

function daysUntil(from: Date, until: Date): { day: Day; ms: number }[] {
  if (from >= until) return []
  return daysBetween(dayOf(from), dayOf(until)).map((day) => {
    const begins = new Date(`${day}T00:00:00Z`).getTime()
    return { day, ms: begins + DAY_MS - Math.max(begins, from.getTime()) }
  })
}

/** In the order of METERS. */
function useIn(machine: Now, ms: number): Quantities {
  const micros = BigInt(ms) * MICROS_A_MS
  const sent = (bytes: bigint) => divideHalfEven(bytes * BigInt(ms), BigInt(Math.round(machine.weekMs)))
  const use: Record<(typeof METERS)[number], bigint> = {
    cpu: machine.isRunning ? micros * machine.cpus : 0n,
    memory: machine.isRunning ? micros * machine.memoryBytes : 0n,
    disk: micros * machine.diskBytes,
    checkpoints: micros * machine.checkpointBytes,
    direct: machine.isRunning ? sent(machine.direct) : 0n,
    gateway: machine.isRunning ? sent(machine.gateway) : 0n,
  }
  return METERS.map((meter) => use[meter])
}
