import { figure, sayCount } from '../parts/words.ts'

/** What an axis counts in. */
export type Unit = { name: string; size: number }

const KINDS: Record<'cpus' | 'memory' | 'rate', readonly Unit[]> = {
  cpus: [{ name: 'vCPU', size: 1 }],
  memory: [
    { name: 'GiB', size: 2 ** 30 },
    { name: 'MiB', size: 2 ** 20 },
  ],
  rate: [
    { name: 'GB/s', size: 1e9 },
    { name: 'MB/s', size: 1e6 },
    { name: 'kB/s', size: 1e3 },
    { name: 'B/s', size: 1 },
  ],
}

export type Kind = keyof typeof KINDS

/** The largest unit that the top of an axis has one of. */
export function unitFor(kind: Kind, top: number): Unit {
  const units = KINDS[kind]
  return units.find(({ size }) => top >= size) ?? units.at(-1) ?? { name: '', size: 1 }
}

/** To three digits, as an axis has it. */
export function onAxis(value: number, unit: Unit): string {
  return `${figure(value / unit.size)} ${unit.name}`
}

/** As exactly as it is known: processors to a ten-thousandth, bytes to the byte. */
export function exactly(value: number | null, kind: Kind): string {
  if (value === null) return 'not known'
  if (kind === 'cpus') return `${Number(value.toFixed(4))} vCPU`
  return `${sayCount(Math.round(value))} ${kind === 'memory' ? 'B' : 'B/s'}`
}

/** In the axis' unit, to five digits. */
export function readable(value: number | null, unit: Unit): string {
  return value === null ? 'not known' : `${Number((value / unit.size).toPrecision(5))} ${unit.name}`
}

/** The next of 1, 2 or 5 times a power of ten that is no less. */
export function niceTop(value: number): number {
  if (!(value > 0)) return 1
  const power = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 5].find((one) => one * power >= value * (1 - 1e-9)) ?? 10) * power
}
