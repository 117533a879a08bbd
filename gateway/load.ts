import type { Sql } from '../migrations/connect.ts'
import type { LoadState } from '../migrations/schema.ts'

/** What machines did, as vmhosts have sampled it: series of even steps, gaps as null. Index: the primary keys. */

export const RANGES = {
  '1h': { seconds: 3_600, stepSeconds: 10, from: 'samples' },
  '24h': { seconds: 86_400, stepSeconds: 120, from: 'samples' },
  '7d': { seconds: 7 * 86_400, stepSeconds: 900, from: 300 },
  '30d': { seconds: 30 * 86_400, stepSeconds: 3_600, from: 3_600 },
  '1y': { seconds: 365 * 86_400, stepSeconds: 43_200, from: 3_600 },
} as const satisfies Record<string, { seconds: number; stepSeconds: number; from: 'samples' | 300 | 3_600 }>

export type Range = keyof typeof RANGES

/** Averages of a step, and `_most`, its busiest ten seconds. Processors, bytes, bytes a second. */
const MEASURES = [
  'cpu_cores',
  'cpu_cores_most',
  'cpus',
  'memory_used_bytes',
  'memory_used_bytes_most',
  'memory_held_bytes',
  'memory_held_bytes_most',
  'memory_limit_bytes',
  'disk_read_bytes_per_second',
  'disk_read_bytes_per_second_most',
  'disk_written_bytes_per_second',
  'disk_written_bytes_per_second_most',
  'network_out_bytes_per_second',
  'network_out_bytes_per_second_most',
  'network_in_bytes_per_second',
  'network_in_bytes_per_second_most',
  'filesystem_used_bytes',
  'filesystem_bytes',
] as const

export type Measure = (typeof MEASURES)[number]
/** As long as `at`; null: nobody saw that. */
export type Columns = Record<Measure, (number | null)[]>

export type Series = {
  /** of the first step; the last one, which `to` ends, is not over yet */
  readonly from: Date
  readonly to: Date
  readonly stepSeconds: number
  /** when each step begins, in seconds since 1970 */
  readonly at: number[]
  readonly columns: Columns
}

type Row = Record<Measure, number | null> & { at: number; ms: number }

/** @param since the first step wanted, where not all of the range is */
export async function readSeries(
  sql: Sql,
  machineId: number,
  range: Range,
  { now = new Date(), since }: { now?: Date; since?: Date | undefined } = {},
): Promise<Series> {
  const { seconds, stepSeconds, from: source } = RANGES[range]
  const end = Math.floor(now.getTime() / 1000 / stepSeconds) * stepSeconds + stepSeconds
  const wanted = since ? Math.floor(since.getTime() / 1000 / stepSeconds) * stepSeconds : 0
  const begin = Math.min(Math.max(end - seconds, wanted), end)
  const [from, to] = [new Date(begin * 1000), new Date(end * 1000)]
  const rows =
    source === 'samples'
      ? await sql<Row[]>`
          select extract(epoch from date_bin(make_interval(secs => ${stepSeconds}), at, '1970-01-01 00:00Z'))::int as at,
            sum(ms)::int as ms, sum(cpu_ms)::float8 / sum(ms) as cpu_cores, max(cpu_ms::float8 / ms) as cpu_cores_most,
            max(cpus) as cpus, avg(memory_used_bytes)::float8 as memory_used_bytes,
            max(memory_used_bytes) as memory_used_bytes_most, avg(memory_held_bytes)::float8 as memory_held_bytes,
            max(memory_held_bytes) as memory_held_bytes_most, max(memory_limit_bytes) as memory_limit_bytes,
            ${rates(sql, (name) => sql`max(${sql(`${name}_bytes`)} * 1000.0 / ${sql(clockOf(name))})::float8`)},
            max(filesystem_used_bytes) as filesystem_used_bytes, max(filesystem_bytes) as filesystem_bytes
          from load_samples where machine_id = ${machineId} and at >= ${from} and at < ${to} group by 1 order by 1`
      : await sql<Row[]>`
          select extract(epoch from date_bin(make_interval(secs => ${stepSeconds}), at, '1970-01-01 00:00Z'))::int as at,
            sum(ms)::int as ms, sum(cpu_ms)::float8 / sum(ms)::float8 as cpu_cores, max(cpu_most)::float8 as cpu_cores_most,
            max(cpus) as cpus, sum(memory_used_sum)::float8 / nullif(sum(memory_used_samples), 0) as memory_used_bytes,
            max(memory_used_most) as memory_used_bytes_most,
            sum(memory_held_sum)::float8 / sum(samples) as memory_held_bytes,
            max(memory_held_most) as memory_held_bytes_most, max(memory_limit_bytes) as memory_limit_bytes,
            ${rates(sql, (name) => sql`max(${sql(`${name}_most`)})::float8`)},
            max(filesystem_used_bytes) as filesystem_used_bytes, max(filesystem_bytes) as filesystem_bytes
          from load_sums where machine_id = ${machineId} and step_seconds = ${source} and at >= ${from} and at < ${to}
          group by 1 order by 1`
  return { from, to, stepSeconds, ...laidOut(rows, begin, end, stepSeconds) }
}

const COUNTED = ['disk_read', 'disk_written', 'network_out', 'network_in'] as const

function clockOf(name: (typeof COUNTED)[number]): string {
  return name.startsWith('disk') ? 'disk_ms' : 'network_ms'
}

function rates(sql: Sql, most: (name: (typeof COUNTED)[number]) => ReturnType<Sql>) {
  return COUNTED.map(
    (name, index) => sql`${index > 0 ? sql`, ` : sql``}
      sum(${sql(`${name}_bytes`)})::float8 * 1000 / sum(${sql(clockOf(name))})::float8 as ${sql(`${name}_bytes_per_second`)},
      ${most(name)} as ${sql(`${name}_bytes_per_second_most`)}`,
  )
}

function laidOut(rows: readonly Row[], begin: number, end: number, stepSeconds: number) {
  const count = Math.max(0, Math.round((end - begin) / stepSeconds))
  const at = Array.from({ length: count }, (_, index) => begin + index * stepSeconds)
  const slots: (Row | undefined)[] = at.map(() => undefined)
  for (const row of rows) {
    const last = Math.round((row.at - begin) / stepSeconds)
    // A look that came late speaks of the step before it too.
    const spans = Math.max(1, Math.round(row.ms / 1000 / stepSeconds))
    for (let slot = last; slot > last - spans && slot >= 0 && !slots[slot]; slot--) slots[slot] = row
  }
  const column = (measure: Measure) => slots.map((row) => rounded(measure, row?.[measure] ?? null))
  const columns = Object.fromEntries(MEASURES.map((measure) => [measure, column(measure)])) as Columns
  return { at, columns }
}

/** What nobody can tell apart is not written out: documents are read over the net. */
function rounded(measure: Measure, value: number | null): number | null {
  if (value === null) return null
  return measure.startsWith('cpu_cores') ? Math.round(value * 10_000) / 10_000 : Math.round(value)
}

export type States = {
  /** one after the other; before the first nothing is known */
  readonly states: readonly { readonly state: LoadState; readonly from: Date; readonly to: Date }[]
  /** when it began to run: booted, or woke */
  readonly starts: readonly Date[]
}

const MARKS_MOST = 2_000

/** What state a machine was in between two instants; of the last 2,000 changes, should there be more. */
export async function readStates(sql: Sql, machineId: number, from: Date, to: Date): Promise<States> {
  const rows = await sql<{ state: LoadState; at: Date }[]>`
    (select state, at from load_marks where machine_id = ${machineId} and at < ${from} order by at desc limit 1)
    union all
    (select state, at from load_marks where machine_id = ${machineId} and at >= ${from} and at < ${to}
      order by at desc limit ${MARKS_MOST})
    order by at`
  const states: { state: LoadState; from: Date; to: Date }[] = []
  for (const { state, at } of rows) {
    const began = at < from ? from : at
    const last = states.at(-1)
    if (last) last.to = began
    if (last?.state !== state) states.push({ state, from: began, to })
    else last.to = to
  }
  const starts = rows.filter(({ state, at }) => state === 'running' && at >= from).map(({ at }) => at)
  return { states, starts }
}

export const GLANCE = { seconds: 3_600, stepSeconds: 300 } as const

export type Glance = {
  readonly from: Date
  readonly to: Date
  /** by machine; none of whom nothing is known */
  readonly machines: ReadonlyMap<number, { readonly cpu: (number | null)[]; readonly memory: (number | null)[] }>
}

/**
 * The last hour of many machines, in steps of 5 minutes: processors in use, and bytes of memory by the guest's word.
 * @param since the first step wanted, where not all of the hour is
 */
export async function readGlance(
  sql: Sql,
  machineIds: readonly number[],
  { now = new Date(), since }: { now?: Date; since?: Date | undefined } = {},
): Promise<Glance> {
  const { seconds, stepSeconds } = GLANCE
  const end = Math.floor(now.getTime() / 1000 / stepSeconds) * stepSeconds + stepSeconds
  const wanted = since ? Math.floor(since.getTime() / 1000 / stepSeconds) * stepSeconds : 0
  const begin = Math.min(Math.max(end - seconds, wanted), end)
  const [from, to] = [new Date(begin * 1000), new Date(end * 1000)]
  const rows = await sql<{ id: number; at: number; cpu: number; memory: number | null }[]>`
    select machine_id as id, extract(epoch from at)::int as at, cpu_ms::float8 / ms as cpu,
      memory_used_sum::float8 / nullif(memory_used_samples, 0) as memory
    from load_sums where machine_id = any(${machineIds as number[]}::int[]) and step_seconds = ${stepSeconds}
      and at >= ${from} and at < ${to}`
  const machines = new Map<number, { cpu: (number | null)[]; memory: (number | null)[] }>()
  const nothing = () => Array.from({ length: (end - begin) / stepSeconds }, () => null)
  for (const { id, at, cpu, memory } of rows) {
    const one = machines.get(id) ?? { cpu: nothing(), memory: nothing() }
    const slot = Math.round((at - begin) / stepSeconds)
    one.cpu[slot] = rounded('cpu_cores', cpu)
    one.memory[slot] = rounded('memory_used_bytes', memory)
    machines.set(id, one)
  }
  return { from, to, machines }
}
