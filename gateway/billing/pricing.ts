/**
 * From what was used in a month and the terms it was used under to the lines of an invoice.
 *
 * A line is one account, kind, class, rate and month. It is rounded once; what falls to a day or a machine is its share of
 * the line by what was used, so that shares sum to the line however they are taken. What a plan includes is taken off
 * the quantity before, of several classes off the first ones first.
 */
import type { RateKind } from '../../migrations/schema.ts'
import { divideHalfEven, shares, sum } from './arithmetic.ts'
import { type Day, daysIn, type Month } from './calendar.ts'
import { KIND_OF, METERS, type Quantities, unitOf } from './meters.ts'
import type { Rate, Term, Terms } from './terms.ts'

export type MonthUsage = {
  /** sums over the days of one part of the month; `part` is the index in `Terms.starts` */
  machines: readonly { part: number; machineId: number; quantities: Quantities }[]
  days: readonly { day: Day; quantities: Quantities }[]
}

export type Line = {
  kind: RateKind
  class: string
  month: Month
  plan: string
  /** false: what it would cost */
  charged: boolean
  rate: Rate
  /** in the units of METERS; of a fee days */
  quantity: bigint
  /** of the quantity, without charge */
  included: bigint
  /** 10^-6 USD */
  amount: bigint
  /** what each used, none zero; empty for a fee */
  machines: readonly (readonly [machineId: number, quantity: bigint])[]
  days: readonly (readonly [day: Day, quantity: bigint])[]
}

/** @returns lines with something in them, fees first, then in the order of METERS */
export function linesOf(terms: Terms, usage: MonthUsage): Line[] {
  const { month, fees, starts } = terms
  const lines: Line[] = []
  for (const { plan, charged, rate, days } of fees) {
    const quantity = BigInt(days.length)
    const amount = divideHalfEven(rate.micros * quantity, unitOf('fee', month))
    if (amount === 0n) continue
    lines.push({
      ...{ kind: 'fee', class: '', month, plan, charged, rate, quantity, included: 0n, amount, machines: [] },
      days: days.map((day) => [day, 1n] as const),
    })
  }
  const parts = new Map(starts.map((start, index) => [index, start]))
  const includedLeft = new Map(terms.usage.map((term) => [term, includedOf(term, month)]))
  for (const [index, meter] of METERS.entries()) {
    const { kind, class: className } = KIND_OF[meter]
    for (const term of terms.usage) {
      if (term.kind !== kind) continue
      const inTerm = new Set(term.days)
      const used = new Map<number, bigint>()
      for (const { part, machineId, quantities } of usage.machines) {
        const quantity = quantities[index] ?? 0n
        if (quantity === 0n || !inTerm.has(parts.get(part) ?? '')) continue
        used.set(machineId, (used.get(machineId) ?? 0n) + quantity)
      }
      const quantity = sum(used.values())
      if (quantity === 0n) continue
      const left = includedLeft.get(term) ?? 0n
      const included = left < quantity ? left : quantity
      includedLeft.set(term, left - included)
      lines.push({
        ...{ kind, class: className, month, plan: term.plan, charged: term.charged, rate: term.rate },
        ...{ quantity, included, amount: amountOf(term.rate, month, quantity - included) },
        machines: [...used].sort(([a], [b]) => a - b),
        days: usage.days
          .filter(({ day, quantities }) => inTerm.has(day) && quantities[index] !== 0n)
          .map(({ day, quantities }) => [day, quantities[index] ?? 0n] as const)
          .sort(([a], [b]) => (a < b ? -1 : 1)),
      })
    }
  }
  return lines
}

/** The one place where a fraction of a millionth is rounded. */
export function amountOf(rate: Pick<Rate, 'kind' | 'micros'>, month: Month, quantity: bigint): bigint {
  return divideHalfEven(quantity * rate.micros, unitOf(rate.kind, month))
}

/** A plan that holds for a part of the month includes that part of a month's amounts. */
function includedOf({ rate, kind, days }: Term, month: Month): bigint {
  return divideHalfEven(rate.included * unitOf(kind, month) * BigInt(days.length), BigInt(daysIn(month)))
}

/** What of a line falls to each machine, in the line's order. */
export function machineShares(line: Pick<Line, 'amount' | 'machines'>): [machineId: number, amount: bigint][] {
  if (line.machines.length === 0) return []
  const amounts = shares(
    line.amount,
    line.machines.map(([, quantity]) => quantity),
  )
  return line.machines.map(([machineId], index) => [machineId, amounts[index] ?? 0n])
}

export function dayShares(line: Pick<Line, 'amount' | 'days'>): [day: Day, amount: bigint][] {
  const amounts = shares(
    line.amount,
    line.days.map(([, quantity]) => quantity),
  )
  return line.days.map(([day], index) => [day, amounts[index] ?? 0n])
}

/** What of fees falls to days after this one: the whole month's stands on the invoice from its first day on. */
export function feeAhead(lines: Iterable<Pick<Line, 'kind' | 'amount' | 'days'>>, today: Day): bigint {
  const fees = [...lines].filter(({ kind }) => kind === 'fee')
  return sum(fees.flatMap((line) => dayShares(line).flatMap(([day, amount]) => (day > today ? [amount] : []))))
}

/**
 * What of a line counts towards a limit on each day: a fee whole on its first, for from then on it stands on the invoice,
 * and what is used as it is used.
 */
export function limitShares(line: Pick<Line, 'kind' | 'amount' | 'days'>): [day: Day, amount: bigint][] {
  const [first] = line.days
  return line.kind === 'fee' && first ? [[first[0], line.amount]] : dayShares(line)
}

/** What counts towards a limit so far: all that is charged, but for fees of plans that are to begin. */
export function countedOf(lines: Iterable<Pick<Line, 'kind' | 'charged' | 'amount' | 'days'>>, today: Day): bigint {
  const begun = [...lines].filter(({ kind, days: [first] }) => kind !== 'fee' || !first || first[0] <= today)
  return totalOf(begun.filter(({ charged }) => charged))
}

export function totalOf(lines: Iterable<Pick<Line, 'amount'>>): bigint {
  return sum([...lines].map(({ amount }) => amount))
}
