import { useSignal } from '@preact/signals'
import { useLayoutEffect, useRef } from 'preact/hooks'
import { isPhone } from '../../parts/media.ts'
import { sayMoney } from '../../parts/words.ts'

export type DayCost = {
  day: string
  micros: number
  /** of which so much is a forecast */
  aheadMicros: number
}

const HEIGHTS = { desktop: 200, phone: 160 }
const EDGE = { top: 16, right: 8, bottom: 24, left: 56 }

/**
 * What each day cost, with what the days to come would as outlines. The table behind it says the same for whoever cannot
 * see it, so to a screen reader it is one picture with a name. It is drawn as wide as the page is, in pixels: letters that
 * were scaled could not be read on a narrow one.
 */
export function DayBars({ days, label }: { days: readonly DayCost[]; label: string }) {
  const picture = useRef<SVGSVGElement>(null)
  const width = useSignal(0)
  useLayoutEffect(() => {
    const drawn = picture.current
    if (!drawn) return
    const measure = () => {
      width.value = Math.round(drawn.getBoundingClientRect().width)
    }
    measure()
    const observer = new ResizeObserver(measure)
    observer.observe(drawn)
    return () => observer.disconnect()
  }, [width])
  const WIDTH = Math.max(200, width.value)
  const HEIGHT = isPhone.value ? HEIGHTS.phone : HEIGHTS.desktop
  const most = days.reduce((top, { micros }) => Math.max(top, micros), 0)
  const top = niceCeiling(most)
  const [plotWidth, plotHeight] = [WIDTH - EDGE.left - EDGE.right, HEIGHT - EDGE.top - EDGE.bottom]
  const step = plotWidth / Math.max(1, days.length)
  const y = (micros: number) => EDGE.top + plotHeight * (1 - micros / top)
  const barWidth = Math.max(2, Math.min(24, step - 4))
  const every = Math.ceil(days.length / (WIDTH < 600 ? 8 : 16))
  return (
    <svg ref={picture} class="bars" role="img" aria-label={label} height={HEIGHT} viewBox={`0 0 ${WIDTH} ${HEIGHT}`}>
      {[0, top / 2, top].map((micros) => (
        <g key={micros}>
          <line class="grid" x1={EDGE.left} x2={WIDTH - EDGE.right} y1={y(micros)} y2={y(micros)} />
          <text class="right" x={EDGE.left - 8} y={y(micros) + 4}>
            {sayAxis(micros, top)}
          </text>
        </g>
      ))}
      {days.map(({ day, micros, aheadMicros }, index) => {
        const x = EDGE.left + index * step + (step - barWidth) / 2
        const was = micros - aheadMicros
        return (
          <g key={day}>
            <title>{`${day} (UTC): ${sayMoney(micros)}${aheadMicros > 0 ? `, ${sayMoney(aheadMicros)} of it forecast` : ''}`}</title>
            <rect class="hit" x={EDGE.left + index * step} y={EDGE.top} width={step} height={plotHeight} />
            {aheadMicros > 0 && (
              <rect class="ahead" x={x + 0.5} y={y(micros)} width={barWidth - 1} height={y(was) - y(micros)} />
            )}
            <rect class="was" x={x} y={y(was)} width={barWidth} height={y(0) - y(was)} />
            {index % every === 0 && (
              <text class="middle" x={x + barWidth / 2} y={HEIGHT - 8}>
                {Number(day.slice(8))}
              </text>
            )}
          </g>
        )
      })}
    </svg>
  )
}

/** The least 1, 2 or 5 times a power of ten that is not below. */
function niceCeiling(micros: number): number {
  if (micros <= 0) return 1_000_000
  const power = 10 ** Math.floor(Math.log10(micros))
  return ([1, 2, 5, 10].find((factor) => factor * power >= micros) ?? 10) * power
}

function sayAxis(micros: number, top: number): string {
  const dollars = micros / 1e6
  if (top >= 10e6) return `$${dollars.toLocaleString('en', { maximumFractionDigits: 1 })}`
  return `$${dollars.toFixed(top >= 1e6 ? 2 : 3)}`
}
