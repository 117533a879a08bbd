/** How usage, prices and payments are put into words and CSV, in commands, pages, mails and at Stripe alike. */
import type { InvoiceLineKind, RateKind } from '../../migrations/schema.ts'
import { harmless } from '../commands/text.ts'
import { sayBytes } from '../commands/values.ts'
import type { Month } from './calendar.ts'
import { inUnits, sayUnits, unitName } from './meters.ts'
import { sayMoney, sayRate } from './money.ts'
import type { Noted, Payment } from './payments.ts'
import type { Caps } from './plans.ts'

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
  return kind === 'fee' ? '' : sayUnits(kind, inUnits(kind, quantity, month))
}

/** `$0.04 per vCPU-hour` */
export function sayPrice(kind: RateKind, micros: bigint): string {
  return `${sayRate(micros)} per ${unitName(kind)}`
}

/** What a plan has room for, all machines of an account together; empty: for anything. */
export function sayCaps({ machinesMost, cpusMost, memoryBytesMost, diskBytesMost }: Caps): string {
  return [
    ...(machinesMost === null ? [] : [machinesMost === 1 ? 'one machine' : `${machinesMost} machines`]),
    ...(cpusMost === null ? [] : [cpusMost === 1 ? 'one vCPU' : `${cpusMost} vCPUs`]),
    ...(memoryBytesMost === null ? [] : [`${sayBytes(memoryBytesMost)} memory`]),
    ...(diskBytesMost === null ? [] : [`${sayBytes(diskBytesMost)} disk`]),
  ].join(', ')
}

/** Rows with the names of their fields above them (RFC 4180, but lines end as everywhere else). */
export function csv(fields: readonly string[], rows: readonly (readonly string[])[]): string {
  const cell = (text: string) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)
  return [fields, ...rows].map((row) => `${row.map(cell).join(',')}\n`).join('')
}

/**
 * Free text for a cell of CSV. One that begins as a formula does, a spreadsheet computes, with what it may reach: with an
 * apostrophe before it, it is text there. Numbers are not for this: a negative one begins as a formula does.
 * @see https://owasp.org/www-community/attacks/CSV_Injection
 */
export function csvText(text: string): string {
  return /^[=+\-@\t\r\n]/.test(text) ? `'${text}` : text
}

/** `paid, $4.00 given back`, `not paid: your card was declined`, `paid on 2026-11-20 (transfer 4711)` */
export function sayPayment({
  status,
  failure,
  paid,
  carried,
  refunded,
  disputed,
  lost,
  problem,
  noted,
}: Payment): string {
  const words = {
    waiting: problem === null ? 'on its way to Stripe' : 'not at Stripe yet',
    draft: problem === null ? 'on its way to Stripe' : 'not at Stripe yet',
    open: failure === null ? 'open' : `not paid: ${harmless(failure)}`,
    paid: paid === 0n && carried > 0n ? 'to be paid with the next one' : 'paid',
    ...{ void: 'taken back', uncollectible: 'given up' },
  }
  return [
    noted ? sayNoted(noted) : words[status],
    ...(status === 'open' && paid > 0n ? [`${sayMoney(paid)} of it paid`] : []),
    ...(carried < 0n ? [`with ${sayMoney(-carried)} of earlier ones`] : []),
    ...(refunded > 0n ? [`${sayMoney(refunded)} given back`] : []),
    ...(disputed ? ['disputed'] : []),
    ...(lost > 0n ? [`${sayMoney(lost)} lost to a dispute`] : []),
  ].join(', ')
}

/** `paid on 2026-11-20 (transfer 4711)` */
export function sayNoted({ on, note }: Noted): string {
  return `paid on ${on}${note === null ? '' : ` (${harmless(note).replaceAll('\n', ' ')})`}`
}
