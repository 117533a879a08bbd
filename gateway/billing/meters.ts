import type { RateKind } from '../../migrations/schema.ts'
import { decimal } from './arithmetic.ts'
import { daysIn, type Month } from './calendar.ts'

/** What is counted, as the columns of usage_days are called. Each is one kind and class of an invoice's lines. */
export const METERS = ['cpu', 'memory', 'disk', 'checkpoints', 'direct', 'gateway'] as const
export type Meter = (typeof METERS)[number]
/** One whole number for each meter, in their order: microseconds times vCPUs or bytes, and bytes. */
export type Quantities = readonly bigint[]

export type UsageKind = Exclude<RateKind, 'fee'>
export const USAGE_KINDS = ['cpu', 'memory', 'disk', 'transfer'] as const satisfies readonly UsageKind[]
export const RATE_KINDS = ['fee', ...USAGE_KINDS] as const satisfies readonly RateKind[]

export const KIND_OF: Record<Meter, { kind: UsageKind; class: string }> = {
  cpu: { kind: 'cpu', class: '' },
  memory: { kind: 'memory', class: '' },
  disk: { kind: 'disk', class: 'provisioned' },
  checkpoints: { kind: 'disk', class: 'checkpoints' },
  direct: { kind: 'transfer', class: 'direct' },
  gateway: { kind: 'transfer', class: 'gateway' },
}

const HOUR = 3_600_000_000n
const GIBIBYTE = 2n ** 30n

/** How much of a quantity is one of what a rate is for. A month has as many seconds as it has. */
export function unitOf(kind: RateKind, month: Month): bigint {
  switch (kind) {
    case 'fee':
      return BigInt(daysIn(month))
    case 'cpu':
      return HOUR
    case 'memory':
      return HOUR * GIBIBYTE
    case 'disk':
      return BigInt(daysIn(month)) * 24n * HOUR * GIBIBYTE
    case 'transfer':
      return 1_000_000_000n
  }
}

const UNIT_NAMES: Record<RateKind, string> = {
  fee: 'month',
  cpu: 'vCPU-hour',
  memory: 'GiB-hour',
  disk: 'GiB-month',
  transfer: 'GB',
}

export const unitName = (kind: RateKind): string => UNIT_NAMES[kind]

/** `500 vCPU-hours`, `1 vCPU-hour`, `10 GB` */
export function sayUnits(kind: RateKind, count: bigint | string): string {
  const unit = unitName(kind)
  return `${count} ${unit === 'GB' || String(count) === '1' ? unit : `${unit}s`}`
}

/** `12.345`, in the unit that its rate is for. */
export function inUnits(kind: RateKind, quantity: bigint, month: Month, digits = 3): string {
  return decimal(quantity, unitOf(kind, month), digits)
}

export const NO_USAGE: Quantities = METERS.map(() => 0n)

export function addQuantities(a: Quantities, b: Quantities): Quantities {
  return a.map((quantity, index) => quantity + (b[index] ?? 0n))
}
