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

/** `$0.04`, `$0.006`: as many digits as it has, and never less than cents. */
export function sayRate(micros: number): string {
  const text = (micros / 1e6).toFixed(6).replace(/0+$/, '')
  const digits = text.split('.')[1]?.length ?? 0
  return `$${digits < 2 ? (micros / 1e6).toFixed(2) : text}`
}
