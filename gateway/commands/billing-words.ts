/** How usage and money are put into words, tables and CSV. */
import type { InvoiceLineKind, RateKind } from '../../migrations/schema.ts'
import type { Month } from '../billing/calendar.ts'
import { inUnits, unitName } from '../billing/meters.ts'
import { sayRate } from '../billing/money.ts'

const WHAT: Record<string, string> = {
  cpu: 'vCPU',
  memory: 'memory',
  'disk provisioned': 'disk',
  'disk checkpoints': 'checkpoints',
  'transfer direct': 'transfer, direct',
  'transfer gateway': 'transfer, gateway',
  fee: 'fee of the plan',
  rounding: 'rounding to cents',
  carried: 'kept as credit',
}

/** `disk`, `transfer, direct`: a line's kind and class as people read it. */
export function sayWhat({ kind, class: className }: { kind: InvoiceLineKind; class: string }): string {
  return WHAT[[kind, className].filter(Boolean).join(' ')] ?? kind
}

/** `123.456 vCPU-hours` */
export function sayQuantity(kind: RateKind, quantity: bigint, month: Month): string {
  if (kind === 'fee') return ''
  const unit = unitName(kind)
  return `${inUnits(kind, quantity, month)} ${unit === 'GB' ? unit : `${unit}s`}`
}

/** `$0.04 per vCPU-hour` */
export function sayPrice(kind: RateKind, micros: bigint): string {
  return `${sayRate(micros)} per ${unitName(kind)}`
}

/** Rows with the names of their fields above them (RFC 4180, but lines end as everywhere else). */
export function csv(fields: readonly string[], rows: readonly (readonly string[])[]): string {
  const cell = (text: string) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)
  return [fields, ...rows].map((row) => `${row.map(cell).join(',')}\n`).join('')
}
