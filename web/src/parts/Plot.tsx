import { useEffect, useRef } from 'preact/hooks'
import uPlot from 'uplot'
import 'uplot/dist/uPlot.min.css'
import '../style/plot.css'
import { lazily } from './words.ts'

export type PlotLine = {
  label: string
  values: readonly (number | null)[]
  /** a variable of style/tokens.css */
  color: '--accent' | '--wait' | '--dim'
  dashed?: boolean
  /** down to the axis */
  filled?: boolean
}

export type PlotProps = {
  /** what it shows, in words: for a screen reader, which has a table for the rest */
  label: string
  /** Unix seconds, even steps */
  at: readonly number[]
  lines: readonly PlotLine[]
  /** of the vertical axis, which begins at 0 */
  top: number
  say: (value: number) => string
  /** how many even parts the axis has; default: by tens */
  parts?: number | undefined
  /** between two Unix seconds, behind the lines */
  shaded: readonly (readonly [from: number, to: number])[]
  /** Unix seconds, as dotted lines */
  marks: readonly number[]
  /** plots of one group share their crosshair */
  group: string
  /** the step that is pointed at, by any plot of the group; null: none */
  onPoint: (index: number | null) => void
}

const HEIGHT = 160

/** Thin lines over time: gaps as gaps, the crosshair by mouse, finger and arrow keys. Colours follow the scheme. */
export function Plot(props: PlotProps) {
  const place = useRef<HTMLDivElement>(null)
  const plot = useRef<uPlot | undefined>(undefined)
  const latest = useRef(props)
  latest.current = props
  const shape = props.lines.map(({ label, color, dashed, filled }) => `${label}${color}${dashed}${filled}`).join()

  useEffect(() => {
    const home = place.current
    if (!home) return
    const made = new uPlot(optionsOf(latest, home.clientWidth), dataOf(latest.current), home)
    plot.current = made
    const resized = new ResizeObserver(() => {
      if (home.clientWidth > 0 && home.clientWidth !== made.width)
        made.setSize({ width: home.clientWidth, height: HEIGHT })
    })
    resized.observe(home)
    const scheme = matchMedia('(prefers-color-scheme: dark)')
    const redraw = () => made.redraw(false, true)
    scheme.addEventListener('change', redraw)
    return () => {
      scheme.removeEventListener('change', redraw)
      resized.disconnect()
      made.destroy()
      plot.current = undefined
    }
  }, [shape, props.group])

  useEffect(() => {
    plot.current?.setData(dataOf(props))
  }, [props.at, props.top, shape])

  const onKeyDown = (event: KeyboardEvent) => {
    const made = plot.current
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10 }[event.key]
    if (!made || (step === undefined && event.key !== 'Escape')) return
    event.preventDefault()
    if (step === undefined) {
      made.setCursor({ left: -10, top: -10 })
      return
    }
    const { at } = latest.current
    const index = Math.min(Math.max((made.cursor.idx ?? at.length) + step, 0), at.length - 1)
    made.setCursor({ left: made.valToPos(at[index] ?? 0, 'x'), top: 0 })
  }
  // biome-ignore lint/a11y/noNoninteractiveTabindex: arrow keys move its crosshair
  return <div ref={place} class="plot" role="img" aria-label={props.label} tabIndex={0} onKeyDown={onKeyDown} />
}

function dataOf({ at, lines }: PlotProps): uPlot.AlignedData {
  return [[...at], ...lines.map(({ values }) => [...values])]
}

type Latest = { readonly current: PlotProps }

function optionsOf(latest: Latest, width: number): uPlot.Options {
  const { group, lines, parts } = latest.current
  const axis = { stroke: () => color('--dim'), font: `12px ${fontFamily()}` }
  const grid = { stroke: () => color('--line'), width: 1 }
  return {
    width: Math.max(width, 100),
    height: HEIGHT,
    padding: [8, 16, 0, 0],
    legend: { show: false },
    cursor: {
      sync: { key: group },
      drag: { x: false, y: false },
      y: false,
      points: {
        size: 6,
        width: 1,
        stroke: (_, series) => color(lines[series - 1]?.color ?? '--accent'),
        fill: () => color('--back'),
      },
    },
    scales: {
      x: { time: true },
      y: { range: () => [0, latest.current.top] },
    },
    axes: [
      {
        ...axis,
        grid: { show: false },
        ticks: { ...grid, size: 4 },
        size: 28,
        space: 72,
        values: (_, splits, _axis, _space, step) => sayTimes(splits, step),
      },
      {
        ...axis,
        grid,
        ticks: { show: false },
        size: 68,
        space: 28,
        ...(parts === undefined ? {} : { splits: () => evenly(latest.current.top, parts) }),
        values: (_, splits) => splits.map(latest.current.say),
      },
    ],
    series: [
      {},
      ...lines.map((line) => ({
        label: line.label,
        stroke: () => color(line.color),
        width: 1,
        ...(line.dashed ? { dash: [4, 3] } : {}),
        ...(line.filled ? { fill: () => `color-mix(in srgb, ${color(line.color)} 16%, transparent)` } : {}),
        points: { show: true, size: 3, filter: (made: uPlot, index: number) => alone(made.data[index] ?? []) },
      })),
    ],
    hooks: {
      drawClear: [(made) => drawBehind(made, latest.current)],
      setCursor: [(made) => latest.current.onPoint(made.cursor.idx ?? null)],
    },
  }
}

/** Where a line has no length: between two gaps. */
function alone(values: ArrayLike<number | null | undefined>): number[] {
  const isKnown = (index: number) => (values[index] ?? null) !== null
  return Array.from(values, (_, index) => index).filter(
    (index) => isKnown(index) && !isKnown(index - 1) && !isKnown(index + 1),
  )
}

function evenly(top: number, parts: number): number[] {
  return Array.from({ length: parts + 1 }, (_, index) => (top * index) / parts)
}

function drawBehind(made: uPlot, { shaded, marks }: PlotProps): void {
  const { ctx, bbox } = made
  const place = (at: number) => Math.min(Math.max(made.valToPos(at, 'x', true), bbox.left), bbox.left + bbox.width)
  ctx.save()
  ctx.fillStyle = color('--shade')
  for (const [from, to] of shaded) {
    const left = place(from)
    ctx.fillRect(left, bbox.top, place(to) - left, bbox.height)
  }
  ctx.strokeStyle = color('--dim')
  ctx.lineWidth = devicePixelRatio
  ctx.setLineDash([devicePixelRatio, 3 * devicePixelRatio])
  for (const at of marks) {
    const left = Math.round(place(at)) + 0.5
    ctx.beginPath()
    ctx.moveTo(left, bbox.top)
    ctx.lineTo(left, bbox.top + bbox.height)
    ctx.stroke()
  }
  ctx.restore()
}

function color(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim()
}

function fontFamily(): string {
  return getComputedStyle(document.body).fontFamily
}

const ofDay = lazily(() => new Intl.DateTimeFormat(undefined, { hour: '2-digit', minute: '2-digit', hourCycle: 'h23' }))
const ofYear = lazily(() => new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short' }))

/** In the person's time zone; midnight is a date. */
function sayTimes(splits: readonly number[], stepSeconds: number): string[] {
  return splits.map((at) => {
    const time = new Date(at * 1000)
    const isMidnight = time.getHours() === 0 && time.getMinutes() === 0
    return stepSeconds >= 86_400 || isMidnight ? ofYear().format(time) : ofDay().format(time)
  })
}
