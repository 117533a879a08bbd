/** What `stat` says of one machine and of all, and how what is new of it is put to what there was. */

export const PERIODS = [
  { range: '1h', label: 'Hour', everyMs: 10_000 },
  { range: '24h', label: 'Day', everyMs: 60_000 },
  { range: '7d', label: 'Week', everyMs: 300_000 },
  { range: '30d', label: 'Month', everyMs: 300_000 },
  { range: '1y', label: 'Year', everyMs: 300_000 },
] as const

export type Range = (typeof PERIODS)[number]['range']

/** A value a step; null: nobody saw it. */
export type Values = readonly (number | null)[]

export type StateSpan = { state: 'running' | 'asleep' | 'stopped' | 'failed'; from: string; to: string }

export type Stat = {
  vm_name: string
  from: string
  to: string
  step_seconds: number
  allocated_cpus: number
  memory_capacity_bytes: number
  states: readonly StateSpan[]
  starts: readonly string[]
  columns: Readonly<Record<string, Values>> & { at: readonly number[] }
}

/** @param newer what was asked for since a step of `older`, of the same range */
export function appended(older: Stat, newer: Stat): Stat {
  const [begins] = newer.columns.at
  if (begins === undefined) return older
  const length = older.columns.at.length
  const kept = older.columns.at.filter((at) => at < begins).length
  // The period moves on: what came at its end goes at its beginning.
  const column = (name: string) =>
    [...(older.columns[name] ?? []).slice(0, kept), ...(newer.columns[name] ?? [])].slice(-length)
  const columns = Object.fromEntries(Object.keys(newer.columns).map((name) => [name, column(name)]))
  const at = column('at') as number[]
  const from = new Date((at[0] ?? begins) * 1000).toISOString()
  const before = older.states
    .filter((span) => span.from < newer.from && span.to > from)
    .map((span) => ({ ...span, from: later(span.from, from), to: earlier(span.to, newer.from) }))
  return {
    ...newer,
    from,
    states: joined([...before, ...newer.states]),
    starts: [...older.starts.filter((start) => start >= from && start < newer.from), ...newer.starts],
    columns: { ...columns, at },
  }
}

/** Of two times in ISO 8601. */
function later(a: string, b: string): string {
  return [a, b].sort()[1] ?? a
}

function earlier(a: string, b: string): string {
  return [a, b].sort()[0] ?? a
}

function joined(spans: readonly StateSpan[]): StateSpan[] {
  const all: StateSpan[] = []
  for (const span of spans) {
    const last = all.at(-1)
    if (last?.state === span.state && last.to === span.from) all[all.length - 1] = { ...last, to: span.to }
    else all.push(span)
  }
  return all
}

/** Whether anything is known at all. */
export function isEmpty({ columns }: Stat): boolean {
  return (columns.cpu_cores ?? []).every((value) => value === null)
}

/** The newest of the last three steps: one has only just begun, and one may be on its way here. */
export function newest(values: Values | undefined): number | null {
  return values?.slice(-3).findLast((value) => value !== null) ?? null
}

/** The last hour of all machines, as `stat` has it; with `--since`, of those of which something is known since. */
export type GlanceDocument = {
  from: string
  to: string
  step_seconds: number
  vms: readonly { id: number; cpu_cores: Values | null }[]
}

export type Glances = {
  /** the end of the last step, which is not over yet; Unix seconds */
  readonly to: number
  readonly stepSeconds: number
  /** how many steps each has */
  readonly length: number
  /** processors in use, by the machine's number; none of which nothing is known */
  readonly of: ReadonlyMap<number, Values>
}

/**
 * @param older what was known before `newer`, which was asked for since then; undefined: nothing, and it is all
 * @returns the values of a machine of which there is nothing new are the same array
 */
export function followed(older: Glances | undefined, newer: GlanceDocument): Glances {
  const [from, to] = [Date.parse(newer.from) / 1000, Date.parse(newer.to) / 1000]
  const { step_seconds: stepSeconds } = newer
  const count = Math.max(0, Math.round((to - from) / stepSeconds))
  const length = older?.length ?? count
  // So many of the known steps are told once more; below 0 there are some between that nobody was told of.
  const overlap = older ? Math.round((older.to - from) / stepSeconds) : 0
  const unknown = (steps: number) => Array.from({ length: Math.max(0, steps) }, () => null)
  const told = new Map(newer.vms.map(({ id, cpu_cores }) => [id, cpu_cores]))
  const of = new Map<number, Values>()
  for (const id of new Set([...(older?.of.keys() ?? []), ...told.keys()])) {
    const was = older?.of.get(id) ?? unknown(length)
    const kept = was.slice(0, Math.max(0, length - Math.max(0, overlap)))
    const values = [...kept, ...unknown(-overlap), ...(told.get(id) ?? unknown(count))].slice(-length)
    if (values.every((value) => value === null)) continue
    of.set(id, values.every((value, index) => value === was[index]) ? was : values)
  }
  return { to, stepSeconds, length, of }
}
