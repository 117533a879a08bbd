import type { App, Caller } from '../app.ts'
import {
  type Columns,
  GLANCE,
  type Measure,
  RANGES,
  type Range,
  readGlance,
  readSeries,
  readStates,
  type Series,
  type States,
} from '../load.ts'
import { isReady, type Machine } from '../machines.ts'
import { defineCommand, type Result } from './command.ts'
import { machineNames } from './complete.ts'
import { usageError } from './error.ts'
import { statusInWords, statusOf } from './machine-document.ts'
import { reachable } from './machine-steps.ts'
import { niceTop, sparkline } from './sparkline.ts'
import { type Column, fitted, table, type View, wrap } from './text.ts'
import { parseInstant } from './values.ts'

const NAMES = Object.keys(RANGES) as [Range, ...Range[]]

export const stat = defineCommand({
  name: 'stat',
  group: 'machines',
  onMachines: true,
  summary: 'what machines do: cpu, memory, disk, network',
  description:
    'Sampled every 10 s, kept so for a day, by 5 minutes for a month and by the hour for two years. cpu is what the server computes for the machine. memory is what is in use by its own word, held what it takes of its server. disk is what its programs ask for, network what its card carries. Without NAME, the last hour of all your machines; with --since, only what is known since then, of those of which anything is.',
  flags: {
    range: { type: 'string', choices: NAMES, summary: '24h unless given' },
    columns: { type: 'boolean', summary: 'with --json, a list for each measure instead of points, gaps as null' },
    since: {
      type: 'string',
      value: '2h',
      summary: 'how long ago at most, or from a day or instant on, in UTC; within the range',
    },
  },
  arguments: { name: { label: 'NAME', optional: true, complete: machineNames } },
  examples: ['stat demo', 'stat demo --range 7d', 'stat', 'stat demo --range 1h --columns --json'],
  async run({ app, caller }, { flags, args }) {
    const since = flags.since === undefined ? undefined : timeOf(flags.since)
    if (args.name === undefined) {
      if (flags.range ?? flags.columns)
        throw usageError('these flags are for one machine; without NAME stat shows the last hour of all', 'stat NAME')
      return await ofAll(app, caller, since)
    }
    const machine = await reachable(app, caller, args.name)
    const range = flags.range ?? '24h'
    const series = await readSeries(app.sql, machine.id, range, { since })
    const states = await readStates(app.sql, machine.id, series.from, series.to)
    return {
      json: document(machine, range, series, states, flags.columns === true),
      text: (view) => asText(machine, spanOf(range, since), series, states, view),
    }
  },
})

/** Programs give Unix seconds too. @throws CommandError (usage) */
function timeOf(text: string): Date {
  return /^\d{9,11}$/.test(text) ? new Date(Number(text) * 1000) : parseInstant(text, '--since', new Date())
}

/** Names are exe.dev's where it has one; its points are of those steps of which something is known. */
function document(machine: Machine, range: Range, series: Series, { states, starts }: States, asColumns: boolean) {
  const { at, columns, stepSeconds, from, to } = series
  const points = at.flatMap((time, index) =>
    columns.cpus[index] === null ? [] : [point(machine, time, columns, index)],
  )
  return {
    vm_name: machine.name,
    name: machine.name,
    status: statusOf(machine),
    range,
    from: from.toISOString(),
    to: to.toISOString(),
    step_seconds: stepSeconds,
    allocated_cpus: machine.cpus,
    memory_capacity_bytes: machine.memoryBytes,
    disk_capacity_bytes: machine.diskBytes,
    states: states.map((one) => ({ state: one.state, from: one.from.toISOString(), to: one.to.toISOString() })),
    starts: starts.map((time) => time.toISOString()),
    ...(asColumns ? { columns: { at, ...columns } } : { points: points.length > 0 ? points : null }),
  }
}

/** `_gb` are GiB; of a network `_mbps` are megabits, of a disk megabytes a second. */
function point(machine: Machine, at: number, columns: Columns, index: number) {
  const value = (measure: Measure, unit = 1) => {
    const found = columns[measure][index] ?? null
    return found === null ? null : Math.round((found / unit) * 10_000) / 10_000
  }
  const free = (columns.filesystem_bytes[index] ?? 0) - (columns.filesystem_used_bytes[index] ?? 0)
  const freeGib = columns.filesystem_bytes[index] === null ? null : Math.round((free / 2 ** 30) * 10_000) / 10_000
  return {
    timestamp: new Date(at * 1000).toISOString(),
    vm_name: machine.name,
    cpu_cores: value('cpu_cores'),
    cpu_nominal: value('cpus'),
    mem_used_bytes: value('memory_used_bytes'),
    mem_total_bytes: value('memory_limit_bytes'),
    mem_held_bytes: value('memory_held_bytes'),
    disk_size_gb: machine.diskBytes / 2 ** 30,
    disk_used_gb: value('filesystem_used_bytes', 2 ** 30),
    fs_used_gb: value('filesystem_used_bytes', 2 ** 30),
    fs_total_gb: value('filesystem_bytes', 2 ** 30),
    fs_free_gb: freeGib,
    fs_available_gb: freeGib,
    network_tx_mbps: value('network_out_bytes_per_second', 125_000),
    network_rx_mbps: value('network_in_bytes_per_second', 125_000),
    io_read_mbps: value('disk_read_bytes_per_second', 1_000_000),
    io_write_mbps: value('disk_written_bytes_per_second', 1_000_000),
  }
}

type Line = { label: string; spark: string; scale: string; now: string; average: string; most: string }

const LINES: readonly { label: string; measure: Measure; most: Measure; of?: Measure; unit?: 'GiB' | 'vCPU' }[] = [
  { label: 'cpu', measure: 'cpu_cores', most: 'cpu_cores_most', of: 'cpus', unit: 'vCPU' },
  {
    label: 'memory',
    measure: 'memory_used_bytes',
    most: 'memory_used_bytes_most',
    of: 'memory_limit_bytes',
    unit: 'GiB',
  },
  {
    label: 'held',
    measure: 'memory_held_bytes',
    most: 'memory_held_bytes_most',
    of: 'memory_limit_bytes',
    unit: 'GiB',
  },
  { label: 'disk read', measure: 'disk_read_bytes_per_second', most: 'disk_read_bytes_per_second_most' },
  { label: 'disk written', measure: 'disk_written_bytes_per_second', most: 'disk_written_bytes_per_second_most' },
  { label: 'sent', measure: 'network_out_bytes_per_second', most: 'network_out_bytes_per_second_most' },
  { label: 'received', measure: 'network_in_bytes_per_second', most: 'network_in_bytes_per_second_most' },
]

const IN_WORDS: Record<Range, string> = {
  '1h': 'the last hour',
  '24h': 'the last 24 hours',
  '7d': 'the last 7 days',
  '30d': 'the last 30 days',
  '1y': 'the last year',
}

/** What is left of a line when its words and figures have their place. */
const SPARK_LEAST = 16
const SPARK_MOST = 60
const OTHERS_COLUMNS = 54

/** `the last hour`, `the last hour since 2026-01-31 12:00 UTC` */
function spanOf(range: Range, since: Date | undefined): string {
  return since ? `${IN_WORDS[range]} since ${since.toISOString().slice(0, 16).replace('T', ' ')} UTC` : IN_WORDS[range]
}

/** @param span in words */
function asText(machine: Machine, span: string, series: Series, states: States, view: View): string {
  const { at, columns, stepSeconds } = series
  if (columns.cpus.every((value) => value === null)) {
    const runs = isReady(machine) || states.states.some(({ state }) => state === 'running')
    const why = runs
      ? 'figures come 20 s after it was first seen to run'
      : `it did not run; it is ${statusInWords(machine)}`
    return `${fitted(`no figures of ${machine.name} in ${span}: ${why}`, view).join('\n')}\n`
  }
  const width = evenWidth(at.length, Math.min(Math.max(view.columns - OTHERS_COLUMNS, SPARK_LEAST), SPARK_MOST))
  const asleep = states.states.filter(({ state }) => state === 'asleep')
  const sleeps = (index: number) => {
    const middle = ((at[index] ?? 0) + stepSeconds / 2) * 1000
    return asleep.some(({ from, to }) => from.getTime() <= middle && middle < to.getTime())
  }
  const gap = (index: number) => (sleeps(index) ? 'z' : ' ')
  const lines = LINES.map((one): Line => {
    const values = columns[one.measure]
    const peak = one.of ? largest(columns[one.of]) : niceTop(largest(values))
    const unit = unitOf(peak, one.unit)
    const top = one.unit === 'GiB' ? peak : Math.max(peak, one.of ? largest(values) : 0)
    const known = values.filter((value) => value !== null)
    const say = (value: number | null | undefined) =>
      value === null || value === undefined ? '' : digits(value / unit.size)
    return {
      label: one.label,
      spark: sparkline(values, top, width, gap),
      scale: known.length === 0 ? 'not known' : `0 to ${digits(top / unit.size)} ${unit.name}`,
      now: say(newest(values)),
      average: known.length === 0 ? '' : say(known.reduce((sum, value) => sum + value, 0) / known.length),
      most: known.length === 0 ? '' : say(largest(columns[one.most])),
    }
  })
  const each = sayBlock((stepSeconds * at.length) / width)
  const head = `${machine.name}, ${span} up to ${new Date().toISOString().slice(11, 16)} UTC; a block is ${each}`
  const legend = lines.some(({ spark }) => spark.includes('z')) ? ['z: asleep'] : []
  const blank = lines.some(({ spark }) => spark.includes(' ')) ? ['blank: off, or nobody looked'] : []
  const foot = [...legend, ...blank].join('; ')
  return [
    ...wrap(head, view.columns).map(view.style.dim),
    table(lines, TABLE, view).trimEnd(),
    ...(foot ? [view.style.dim(foot)] : []),
    '',
  ].join('\n')
}

/** As wide as there is room, and a little less where every block is then of as many steps. */
function evenWidth(steps: number, most: number): number {
  for (let width = Math.min(most, steps); width > most * 0.7; width--) if (steps % width === 0) return width
  return Math.min(most, steps)
}

function sayBlock(seconds: number): string {
  if (seconds < 3_600) return `${digits(seconds / 60)} min`
  return seconds < 172_800 ? `${digits(seconds / 3_600)} h` : `${digits(seconds / 86_400)} days`
}

const TABLE: Column<Line>[] = [
  { title: '', value: ({ label }) => label },
  { title: '', value: ({ spark }) => spark, style: (text) => text },
  { title: 'scale', value: ({ scale }) => scale },
  { title: 'now', value: ({ now }) => now, right: true },
  { title: 'average', value: ({ average }) => average, right: true, optional: 1 },
  { title: 'most', value: ({ most }) => most, right: true },
]

function largest(values: readonly (number | null)[]): number {
  return values.reduce<number>((most, value) => Math.max(most, value ?? 0), 0)
}

/** As of the last three steps: one has only just begun, and one may be on its way here. */
function newest(values: readonly (number | null)[]): number | null {
  return values.slice(-3).findLast((value) => value !== null) ?? null
}

function unitOf(top: number, unit: 'GiB' | 'vCPU' | undefined): { name: string; size: number } {
  if (unit === 'vCPU') return { name: top === 1 ? 'vCPU' : 'vCPUs', size: 1 }
  if (unit === 'GiB') return top >= 2 ** 30 ? { name: 'GiB', size: 2 ** 30 } : { name: 'MiB', size: 2 ** 20 }
  const units = [
    { name: 'GB/s', size: 1e9 },
    { name: 'MB/s', size: 1e6 },
    { name: 'kB/s', size: 1e3 },
  ]
  return units.find(({ size }) => top >= size) ?? { name: 'B/s', size: 1 }
}

/** Three digits, and none behind the point that say nothing. */
function digits(value: number): string {
  if (value === 0) return '0'
  if (value < 0.01) return '<0.01'
  return String(Number(value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)))
}

/** @param since then only what is known since, of those machines of which anything is */
async function ofAll(app: App, caller: Caller, since: Date | undefined): Promise<Result> {
  const machines = await app.machines.list(caller)
  const glance = await readGlance(
    app.sql,
    machines.map(({ id }) => id),
    { since },
  )
  const rows = machines
    .map((machine) => ({ machine, seen: glance.machines.get(machine.id) }))
    .filter(({ seen }) => since === undefined || seen !== undefined)
  return {
    json: {
      from: glance.from.toISOString(),
      to: glance.to.toISOString(),
      step_seconds: GLANCE.stepSeconds,
      vms: rows.map(({ machine, seen }) => ({
        id: machine.id,
        vm_name: machine.name,
        status: statusOf(machine),
        allocated_cpus: machine.cpus,
        memory_capacity_bytes: machine.memoryBytes,
        cpu_cores: seen?.cpu ?? null,
        memory_used_bytes: seen?.memory ?? null,
      })),
    },
    text: (view) => {
      if (machines.length === 0) return 'no machine yet; to make one: new\n'
      if (rows.length === 0) return 'nothing is known of any machine since then\n'
      const head = wrap(`${since ? 'since then' : 'the last hour'}; a block is 5 min`, view.columns).map(view.style.dim)
      return `${head.join('\n')}\n${table(rows, GLANCE_TABLE, view)}`
    },
  }
}

type GlanceRow = { machine: Machine; seen: { cpu: (number | null)[]; memory: (number | null)[] } | undefined }

const GLANCE_TABLE: Column<GlanceRow>[] = [
  { title: 'name', value: ({ machine }) => machine.name, flexible: true },
  { title: 'status', value: ({ machine }) => statusInWords(machine), optional: 2 },
  { title: 'cpu', value: ({ machine, seen }) => (seen ? sparkline(seen.cpu, machine.cpus, 12) : '') },
  { title: 'now', value: ({ seen }) => sayNow(seen?.cpu, 1), right: true },
  { title: 'of', value: ({ machine, seen }) => (seen ? `${machine.cpus} vCPU` : ''), right: true, optional: 1 },
  { title: 'memory', value: ({ machine, seen }) => (seen ? sparkline(seen.memory, machine.memoryBytes, 12) : '') },
  { title: 'now', value: ({ seen }) => sayNow(seen?.memory, 2 ** 30), right: true },
  {
    title: 'of',
    value: ({ machine, seen }) => (seen ? `${digits(machine.memoryBytes / 2 ** 30)} GiB` : ''),
    right: true,
    optional: 1,
  },
]

function sayNow(values: readonly (number | null)[] | undefined, unit: number): string {
  const value = values ? newest(values) : null
  return value === null ? '' : digits(value / unit)
}
