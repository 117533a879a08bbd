/**
 * What a machine does, as plots over an hour to a year that share their crosshair, live at their end; behind each of
 * them a table with the same figures.
 */
import { signal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import { ExecError, exec } from '../api/exec.ts'
import { appended, isEmpty, newest, PERIODS, type Range, type Stat, type Values } from '../load/series.ts'
import { exactly, type Kind, niceTop, onAxis, readable, unitFor } from '../load/units.ts'
import { Failed } from './Failed.tsx'
import { Plot, type PlotLine } from './Plot.tsx'
import { Skeleton } from './Skeleton.tsx'
import { Table } from './Table.tsx'
import { Ago } from './time.tsx'
import { lazily, sayBytes } from './words.ts'

/** Whoever looks at a month of one machine wants to see the month of the next. */
const range = signal<Range>('1h')

export function MachineLoad({ name }: { name: string }) {
  const { stat, error, failedAtMs, again } = useStat(name, range.value)
  const [pointed, setPointed] = useState<number | null>(null)
  return (
    <div class="load">
      <div class="title">
        <h2>Load</h2>
        <fieldset class="periods">
          <legend class="hidden">Period</legend>
          {PERIODS.map((period) => (
            <label key={period.range}>
              <input
                type="radio"
                name="period"
                checked={range.value === period.range}
                onChange={() => {
                  range.value = period.range
                  setPointed(null)
                }}
              />
              {period.label}
            </label>
          ))}
        </fieldset>
      </div>
      {!stat && !error && <Skeleton lines={8} label="Loading what it does" />}
      {!stat && error && <Failed error={error} wayOn={{ label: 'Try again', act: again }} />}
      {stat && failedAtMs !== undefined && (
        <p class="dim" role="status">
          Not live: these are figures as of <Ago at={failedAtMs} />. They are asked for again.
        </p>
      )}
      {stat && isEmpty(stat) && (
        <p class="dim">No figures of this time. They come every 10 s while it runs, 20 s after its start at first.</p>
      )}
      {stat && !isEmpty(stat) && <Plots stat={stat} pointed={pointed} onPoint={setPointed} />}
    </div>
  )
}

type Asked = { stat: Stat | undefined; error: ExecError | undefined; failedAtMs: number | undefined; again: () => void }

/** The whole period at first, then what is new of it, as long as somebody looks. */
function useStat(name: string, period: Range): Asked {
  const [shown, setShown] = useState<{ key: string; stat?: Stat; error?: ExecError; failedAtMs?: number }>({ key: '' })
  const [turn, setTurn] = useState(0)
  const key = `${name} ${period}`
  const had = useRef(shown)
  had.current = shown
  useEffect(() => {
    const left = new AbortController()
    const { everyMs } = PERIODS.find((one) => one.range === period) ?? { everyMs: 60_000 }
    let heardAtMs = 0
    let isAsking = false
    const ask = async () => {
      if (isAsking || document.visibilityState === 'hidden') return
      isAsking = true
      const known = had.current.key === key ? had.current.stat : undefined
      // The last two steps were not over when they were told.
      const since = known?.columns.at.at(-2)
      const words = [
        'stat',
        name,
        '--range',
        period,
        '--columns',
        ...(since === undefined ? [] : ['--since', String(since)]),
      ]
      try {
        const told = await exec<Stat>(words, { signal: left.signal })
        heardAtMs = Date.now()
        setShown({ key, stat: known ? appended(known, told) : told })
      } catch (error) {
        if (left.signal.aborted) return
        const failure =
          error instanceof ExecError ? error : new ExecError(String(error), { code: 'exec.failed', status: 0 })
        setShown(known ? { key, stat: known, failedAtMs: heardAtMs || Date.now() } : { key, error: failure })
      } finally {
        isAsking = false
      }
    }
    void ask()
    const timer = setInterval(ask, everyMs)
    document.addEventListener('visibilitychange', ask)
    return () => {
      left.abort()
      clearInterval(timer)
      document.removeEventListener('visibilitychange', ask)
    }
  }, [key, turn])
  const { stat, error, failedAtMs } = shown.key === key ? shown : {}
  return { stat, error, failedAtMs, again: () => setTurn(turn + 1) }
}

const asSeconds = (time: string) => Date.parse(time) / 1000

function Plots({
  stat,
  pointed,
  onPoint,
}: {
  stat: Stat
  pointed: number | null
  onPoint: (index: number | null) => void
}) {
  const { columns } = stat
  const of = (name: string): Values => columns[name] ?? []
  const filled = newest(of('filesystem_used_bytes'))
  const size = newest(of('filesystem_bytes'))
  const sleeps = stat.states.filter(({ state }) => state === 'asleep')
  const common = { stat, pointed, onPoint }
  const rate = (name: string) => of(`${name}_bytes_per_second`)
  const notes = [
    ...(sleeps.length > 0 ? ['Shaded: it slept.'] : []),
    ...(stat.starts.length > 0 ? ['Dotted: it was started, or woke.'] : []),
    `Each point is ${sayStep(stat.step_seconds)}; times are of ${zone()}.`,
  ]
  return (
    <>
      <div class="plots">
        <OnePlot
          {...common}
          title="CPU"
          kind="cpus"
          top={largest([of('cpus')])}
          lines={[
            { label: 'in use', values: of('cpu_cores'), color: '--accent' },
            ...(stat.step_seconds > 10
              ? [{ label: 'busiest 10 s', values: of('cpu_cores_most'), color: '--dim' as const, dashed: true }]
              : []),
          ]}
        />
        <OnePlot
          {...common}
          title="Memory"
          kind="memory"
          top={largest([of('memory_limit_bytes')])}
          lines={[
            { label: 'in use', values: of('memory_used_bytes'), color: '--accent', filled: true },
            { label: 'on its server', values: of('memory_held_bytes'), color: '--dim', dashed: true },
          ]}
        />
        <OnePlot
          {...common}
          title="Disk"
          kind="rate"
          beside={filled !== null && size !== null && size > 0 && `${sayBytes(filled)} of ${sayBytes(size)} filled`}
          lines={[
            { label: 'read', values: rate('disk_read'), color: '--accent' },
            { label: 'written', values: rate('disk_written'), color: '--wait', dashed: true },
          ]}
        />
        <OnePlot
          {...common}
          title="Network"
          kind="rate"
          lines={[
            { label: 'sent', values: rate('network_out'), color: '--accent' },
            { label: 'received', values: rate('network_in'), color: '--wait', dashed: true },
          ]}
        />
      </div>
      <p class="dim">{notes.join(' ')}</p>
    </>
  )
}

type OnePlotProps = {
  stat: Stat
  title: string
  kind: Kind
  lines: readonly PlotLine[]
  /** default: what its lines reach */
  top?: number
  beside?: ComponentChildren
  pointed: number | null
  onPoint: (index: number | null) => void
}

function OnePlot({ stat, title, kind, lines, top, beside, pointed, onPoint }: OnePlotProps) {
  const { at } = stat.columns
  const reached = largest(lines.map(({ values }) => values))
  // Hypervisors take something beside their machines, above all where they emulate them: by quarters of the limit.
  const axis = top ? (top * Math.ceil(Math.max(4, (reached / top) * 4))) / 4 : niceTop(reached)
  const unit = unitFor(kind, axis)
  const sleeps = stat.states.filter(({ state }) => state === 'asleep')
  const shown = (line: PlotLine) => (pointed === null ? newest(line.values) : (line.values[pointed] ?? null))
  const when = pointed === null ? 'now' : sayPointed(at[pointed] ?? 0, stat.step_seconds)
  const summary = lines.map(
    (line) =>
      `${line.label} ${readable(newest(line.values), unit)} now, ${readable(largest([line.values]), unit)} at most`,
  )
  return (
    <section aria-label={title}>
      <div class="heading">
        <h3>{title}</h3>
        {beside && <span class="dim">{beside}</span>}
        <span class="when dim">{when}</span>
      </div>
      <ul class="values">
        {lines.map((line) => (
          <li key={line.label} class={line.color.slice(2)} title={exactly(shown(line), kind)}>
            {line.label} {readable(shown(line), unit)}
          </li>
        ))}
      </ul>
      <Plot
        label={`${title}: ${summary.join('; ')}`}
        at={at}
        lines={lines}
        top={axis}
        say={(value) => onAxis(value, unit)}
        parts={kind === 'memory' && top ? Math.round((axis / top) * 4) : undefined}
        shaded={sleeps.map(({ from, to }) => [asSeconds(from), asSeconds(to)])}
        marks={stat.starts.map(asSeconds)}
        group={`load-${stat.vm_name}`}
        onPoint={onPoint}
      />
      <Figures title={title} at={at} lines={lines} kind={kind} stepSeconds={stat.step_seconds} />
    </section>
  )
}

/** The same in rows, the newest first; what nobody saw is left out. */
function Figures({
  title,
  at,
  lines,
  kind,
  stepSeconds,
}: {
  title: string
  at: readonly number[]
  lines: readonly PlotLine[]
  kind: Kind
  stepSeconds: number
}) {
  const [isOpen, setOpen] = useState(false)
  const rows = isOpen
    ? at
        .map((time, index) => ({ time, index }))
        .filter(({ index }) => lines.some(({ values }) => (values[index] ?? null) !== null))
        .reverse()
    : []
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>{title} as a table</summary>
      {isOpen && (
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by keyboard
        <section class="scrolled" aria-label={`Figures of ${title}`} tabIndex={0}>
          <Table
            caption={`${title}, the newest first`}
            rows={rows}
            limit={1000}
            keyOf={({ time }) => time}
            columns={[
              { title: 'Time', head: true, value: ({ time }) => sayTime(time, stepSeconds) },
              ...lines.map((line) => ({
                title: line.label,
                right: true,
                value: ({ index }: { index: number }) => exactly(line.values[index] ?? null, kind),
              })),
            ]}
          />
        </section>
      )}
    </details>
  )
}

function largest(all: readonly Values[]): number {
  let most = 0
  for (const values of all) for (const value of values) if (value !== null && value > most) most = value
  return most
}

const ofDay = { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' } as const
const zone = lazily(() => Intl.DateTimeFormat().resolvedOptions().timeZone)
const format = (options: Intl.DateTimeFormatOptions) => lazily(() => new Intl.DateTimeFormat(undefined, options))
const pointedAt = {
  seconds: format({ ...ofDay, second: '2-digit' }),
  minutes: format({ ...ofDay, day: 'numeric', month: 'short' }),
}
const inTable = {
  seconds: format({ dateStyle: 'medium', timeStyle: 'medium', hourCycle: 'h23' }),
  minutes: format({ dateStyle: 'medium', timeStyle: 'short', hourCycle: 'h23' }),
}

/** As long as there is but one day in sight, nobody asks which. */
function sayPointed(at: number, stepSeconds: number): string {
  return pointedAt[stepSeconds < 60 ? 'seconds' : 'minutes']().format(at * 1000)
}

function sayTime(at: number, stepSeconds: number): string {
  return inTable[stepSeconds < 60 ? 'seconds' : 'minutes']().format(at * 1000)
}

function sayStep(seconds: number): string {
  if (seconds < 60) return `${seconds} s`
  return seconds < 3_600 ? `${seconds / 60} min` : `${seconds / 3_600} h`
}
