import { sayBytes, sayMicros, sayMoney } from '../../parts/words.ts'

/** What the billing commands answer with `--json`, as far as pages read it; amounts are millionths of a dollar. */

export type Cells = {
  amount_micros: number
  cpu_micros: number
  memory_micros: number
  disk_micros: number
  transfer_micros: number
  fee_micros: number
}

export type UsageLine = {
  month: string
  kind: string
  class: string
  /** `transfer, direct` */
  what: string
  plan: string
  charged: boolean
  rate_micros: number
  unit: string
  quantity: string
  included: string
  amount_micros: number
}

export type Limit = { set_by: 'account' | 'operator'; amount_micros: number; hard: boolean }

export type Forecast = {
  until: string
  total_micros: number
  charged_micros: number
  assumes: string[]
  days: { day: string; amount_micros: number }[]
  limits: (Limit & { reached_on: string | null })[]
}

export type Usage = {
  from: string
  to: string
  total_micros: number
  charged_micros: number
  /** of the total: the plan's fee for days to come */
  fee_ahead_micros: number
  lines: UsageLine[]
  machines: (Cells & { machine_id: number | null; vm_name: string })[]
  days: (Cells & { day: string })[]
  forecast?: Forecast
}

export type Plan = {
  plan: string
  charged: boolean
  month: string
  spent_micros: number
  total_micros: number
  credit_micros: number
  fee_micros: number
  included: Record<string, number>
  caps: { machines: number | null; cpus: number | null; memory_bytes: number | null; disk_bytes: number | null }
  limits: Limit[]
  over_limit: boolean
  /** this Berth collects what is to be paid */
  takes_payments: boolean
  /** of what was spent and of the total: the plan's fee for days to come */
  fee_ahead_micros: number
  changes: Change[]
}

/** What is to come. */
export type Change = { from: string; plan: string; charged: boolean /** the same plan */; rates_alone: boolean }

export type Notice = { id: number; subject: string; body: string; at: string; read_at: string | null }

export type Invoices = {
  invoices: {
    number: number
    month: string
    closed_at: string
    total_micros: number
    /** where this Berth collects it */
    payment?: { status: string; words: string }
  }[]
}

export type Credits = {
  balance_micros: number
  credits: { id: number; amount_micros: number; left_micros: number; reason: string; granted_at: string }[]
}

export type Rates = {
  plan: string
  charged: boolean
  rates: { kind: string; unit: string; rate_micros: number; included: number; from: string | null }[]
}

/** `plan usage: what is used is charged` */
export function sayChange({ plan, charged, rates_alone: isOfRates }: Change, wasCharged: boolean): string {
  if (isOfRates) return `other rates of plan ${plan}`
  return `plan ${plan}${charged === wasCharged ? '' : charged ? ': what is used is charged' : ': nothing is charged'}`
}

/** `November 2026` of `2026-11`. */
export function sayMonth(month: string): string {
  const at = Date.parse(`${month}-01T00:00:00Z`)
  return new Intl.DateTimeFormat('en', { month: 'long', year: 'numeric', timeZone: 'UTC' }).format(at)
}

/** `2026-11-23 14:05` of an instant, in UTC, which is said beside it. */
export const sayInstant = (iso: string): string => iso.slice(0, 16).replace('T', ' ')

/** `500 vCPU-hours`, `1 vCPU-hour`, `10 GB` */
export function sayUnits(count: string, unit: string): string {
  return `${count} ${unit === 'GB' || count === '1' ? unit : `${unit}s`}`
}

/** `20 machines, one vCPU, 64 GiB memory`; empty: room for anything. */
export function sayCaps({ machines, cpus, memory_bytes: memory, disk_bytes: disk }: Plan['caps']): string {
  return [
    ...(machines === null ? [] : [machines === 1 ? 'one machine' : `${machines} machines`]),
    ...(cpus === null ? [] : [cpus === 1 ? 'one vCPU' : `${cpus} vCPUs`]),
    ...(memory === null ? [] : [`${sayBytes(memory)} memory`]),
    ...(disk === null ? [] : [`${sayBytes(disk)} disk`]),
  ].join(', ')
}

/** `$0.04`, `$0.006`, of what somebody has set: as many digits as it has, and never less than cents. */
export function sayRate(micros: number): string {
  return micros % 10_000 === 0 ? sayMoney(micros) : sayMicros(micros).replace(/0+$/, '')
}
