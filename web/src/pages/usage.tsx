import './billing/billing.css'
import { useSignal, useSignalEffect } from '@preact/signals'
import { useRef } from 'preact/hooks'
import { costs } from '../api/live.ts'
import { useExec } from '../api/use-exec.ts'
import { CommandLine } from '../parts/CommandLine.tsx'
import { Empty } from '../parts/Empty.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Frame } from '../parts/Frame.tsx'
import { Money } from '../parts/figures.tsx'
import { Skeleton } from '../parts/Skeleton.tsx'
import { type Column, Table } from '../parts/Table.tsx'
import { sayMoney } from '../parts/words.ts'
import { query } from '../router.ts'
import { type Cells, type Forecast, sayInstant, sayMonth, sayRate, sayUnits, type Usage } from './billing/documents.ts'
import { Choice } from './usage/Choice.tsx'
import { DayBars, type DayCost } from './usage/DayBars.tsx'

const RANGES = [
  ['cycle', 'This month'],
  ['24h', '24 h'],
  ['7d', '7 days'],
  ['30d', '30 days'],
] as const
const BY = [
  ['machine', 'By machine'],
  ['kind', 'By kind'],
  ['day', 'By day'],
] as const

/** What was used and what it costs, by machine, kind and day, and what the month comes to. */
export function Page() {
  const range = chosen(RANGES, query.value.get('range'))
  const by = chosen(BY, query.value.get('by'))
  const words = ['billing', 'usage', ...(range === 'cycle' ? [] : ['--range', range])]
  const { value, error, reload } = useExec<Usage>(words, ['notices', 'day'])
  // The stream says each minute what machines have cost, when that changed.
  const first = useRef(true)
  useSignalEffect(() => {
    void costs.value
    if (!first.current) reload()
    first.current = false
  })
  return (
    <Frame title="Usage" wide actions={<Choice name="range" label="Time" choices={RANGES} chosen={range} />}>
      {value === undefined && error === undefined && <Skeleton lines={8} />}
      {error !== undefined && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value !== undefined && <Shown usage={value} range={range} by={by} words={words} />}
    </Frame>
  )
}

function chosen<T extends string>(choices: readonly (readonly [T, string])[], value: string | null): T {
  return (choices.find(([one]) => one === value) ?? choices[0])?.[0] as T
}

type Shown = { usage: Usage; range: (typeof RANGES)[number][0]; by: (typeof BY)[number][0]; words: readonly string[] }

function Shown({ usage, range, by, words }: Shown) {
  const { lines, total_micros: total, charged_micros: charged, fee_ahead_micros: feeAhead, forecast } = usage
  const isEmpty = lines.length === 0
  return (
    <>
      <section class="sums" aria-label="Sums">
        <p>
          <span class="sum">
            <Money micros={charged === 0 ? total : charged} />
          </span>{' '}
          {range === 'cycle' ? `for ${sayMonth(usage.from.slice(0, 7))} so far` : ''}
          {charged === 0 && total > 0 && ', if it were charged: your plan charges nothing'}
          {charged > 0 && charged !== total && `; ${sayMoney(total - charged)} more is not charged`}
          {feeAhead > 0 && `; ${sayMoney(feeAhead)} of it is the fee of days to come`}
        </p>
        <p class="dim">
          {sayInstant(usage.from)} to {sayInstant(usage.to)} UTC, counted every few minutes
        </p>
        {forecast !== undefined && forecast.total_micros > 0 && (
          <Ahead forecast={forecast} month={usage.from.slice(0, 7)} today={usage.to.slice(0, 10)} />
        )}
      </section>
      {isEmpty ? (
        <Empty words={words}>Nothing was used in this time. What things cost: Billing.</Empty>
      ) : (
        <>
          <DayBars days={dayCosts(usage)} label="Cost by day; the table by day has the figures" />
          <Choice name="by" label="Table" choices={BY} chosen={by} />
          {by === 'machine' && <Machines usage={usage} />}
          {by === 'day' && <Days usage={usage} />}
          {by === 'kind' && <Kinds usage={usage} />}
          <p class="dim same">The same in a terminal, also as CSV:</p>
          <CommandLine words={[...words, '--by', by]} />
        </>
      )}
    </>
  )
}

/** What the month comes to, and what has to come true for that. */
function Ahead({ forecast, month, today }: { forecast: Forecast; month: string; today: string }) {
  const { total_micros: total, charged_micros: charged, assumes, limits, until } = forecast
  return (
    <details class="ahead">
      <summary>
        About <b class="figure">{sayMoney(charged === 0 ? total : charged)}</b> by the end of {sayMonth(month)}
        {limits
          .filter(({ reached_on }) => reached_on !== null)
          .map((limit) => (
            <span key={limit.set_by} class="warn">
              {`; ${limit.set_by === 'operator' ? 'the operator’s' : 'your'} limit of ${sayRate(limit.amount_micros)} is reached ${sayReached(limit.reached_on, today)}`}
              {limit.hard && ', where machines are paused'}
            </span>
          ))}
      </summary>
      <p>Until {sayInstant(until)} UTC, if</p>
      <ul>
        {assumes.map((one) => (
          <li key={one}>{one}</li>
        ))}
      </ul>
    </details>
  )
}

/** A day that is over is none to look forward to. */
function sayReached(day: string | null, today: string): string {
  return day !== null && day < today ? 'already' : `on ${day}`
}

/** The days there were, and of the month those to come. */
function dayCosts({ days, forecast, to }: Usage): DayCost[] {
  // A fee falls to days that are to come, too.
  const past = days.filter(({ day }) => day <= to.slice(0, 10))
  const was = new Map(past.map(({ day, amount_micros: micros }) => [day, micros]))
  const ahead = new Map(forecast?.days.map(({ day, amount_micros: micros }) => [day, micros]))
  const first = [...was.keys(), ...ahead.keys()].sort()[0]
  const last = [...was.keys(), ...ahead.keys()].sort().at(-1)
  if (first === undefined || last === undefined) return []
  const all: DayCost[] = []
  for (let at = Date.parse(first); at <= Date.parse(last); at += 86_400_000) {
    const day = new Date(at).toISOString().slice(0, 10)
    // A day that is over was what it was.
    const micros = Math.max(was.get(day) ?? 0, day < to.slice(0, 10) ? 0 : (ahead.get(day) ?? 0))
    all.push({ day, micros, aheadMicros: micros - (was.get(day) ?? 0) })
  }
  return all
}

const KINDS = [
  ['fee_micros', 'Fee'],
  ['cpu_micros', 'vCPU'],
  ['memory_micros', 'Memory'],
  ['disk_micros', 'Disk'],
  ['transfer_micros', 'Transfer'],
] as const

/** Kinds that cost nothing at all have no column. */
function cellColumns<T extends Cells>(rows: readonly T[]): { columns: Column<T>[]; foot: preact.ComponentChildren[] } {
  const sum = (key: keyof Cells) => rows.reduce((all, row) => all + row[key], 0)
  const shown = KINDS.filter(([key]) => sum(key) !== 0)
  return {
    columns: [
      ...shown.map(([key, title]) => ({ title, right: true, value: (row: T) => <Part micros={row[key]} /> })),
      { title: 'Cost', right: true, value: (row: T) => <Money micros={row.amount_micros} /> },
    ],
    foot: [...shown.map(([key]) => <Money key={key} micros={sum(key)} />), <Money micros={sum('amount_micros')} />],
  }
}

/** What costs nothing is not in the way of what does. */
function Part({ micros }: { micros: number }) {
  return micros === 0 ? <span class="dim">–</span> : <Money micros={micros} />
}

/** So many are drawn before somebody wants the rest: they are the dearest. */
const MACHINES_FIRST = 50

function Machines({ usage: { machines } }: { usage: Usage }) {
  const limit = useSignal(MACHINES_FIRST)
  const { columns, foot } = cellColumns(machines)
  const hidden = machines.length - limit.value
  return (
    <>
      <Table
        caption="Cost by machine, in US dollars"
        rows={machines}
        keyOf={({ machine_id: id }) => id ?? 0}
        columns={[
          { title: 'Machine', head: true, value: ({ vm_name: name }) => <span class="mono">{name}</span> },
          ...columns,
        ]}
        foot={[hidden > 0 ? 'Sum of all' : 'Sum', ...foot]}
        limit={limit.value}
      />
      {hidden > 0 && (
        <button
          type="button"
          class="plain"
          onClick={() => {
            limit.value = machines.length
          }}
        >
          {hidden === 1 ? 'Show one more' : `Show the other ${hidden}`}
        </button>
      )}
    </>
  )
}

function Days({ usage: { days } }: { usage: Usage }) {
  const { columns, foot } = cellColumns(days)
  return (
    <Table
      caption="Cost by day in UTC, in US dollars"
      rows={days}
      keyOf={({ day }) => day}
      columns={[{ title: 'Day (UTC)', head: true, value: ({ day }) => <span class="figure">{day}</span> }, ...columns]}
      foot={['Sum', ...foot]}
    />
  )
}

function Kinds({ usage: { lines, total_micros: total } }: { usage: Usage }) {
  const hasMonths = new Set(lines.map(({ month }) => month)).size > 1
  const hasPlans = new Set(lines.map(({ plan }) => plan)).size > 1
  return (
    <Table
      caption="Cost by kind, in US dollars"
      rows={lines}
      keyOf={(line) => `${line.month} ${line.kind} ${line.class} ${line.plan} ${line.rate_micros}`}
      columns={[
        { title: 'What', head: true, value: ({ what }) => what },
        ...(hasMonths ? [{ title: 'Month', value: (line: (typeof lines)[number]) => line.month }] : []),
        ...(hasPlans ? [{ title: 'Plan', value: (line: (typeof lines)[number]) => line.plan }] : []),
        {
          title: 'Quantity',
          right: true,
          value: ({ kind, quantity, unit }) => (kind === 'fee' ? '' : sayUnits(Number(quantity).toFixed(3), unit)),
        },
        {
          title: 'Included',
          right: true,
          wideOnly: true,
          value: ({ included }) => (Number(included) === 0 ? '' : Number(included).toFixed(3)),
        },
        { title: 'Rate', value: ({ rate_micros: rate, unit }) => `${sayRate(rate)} per ${unit}` },
        { title: 'Cost', right: true, value: (line) => <Money micros={line.amount_micros} /> },
      ]}
      foot={[
        'Sum',
        ...(hasMonths ? [''] : []),
        ...(hasPlans ? [''] : []),
        '',
        '',
        '',
        <Money key="total" micros={total} />,
      ]}
    />
  )
}
