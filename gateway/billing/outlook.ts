/** What an account is under from today on, as far as it is decided: its plan and rates, and from which day they are others. */
import type { Day } from './calendar.ts'
import { RATE_KINDS } from './meters.ts'
import { type PriceList, planOn, type Rate, rateOn, type Subscriber } from './terms.ts'

export type Step = {
  /** first day of it; of the first step today */
  from: Day
  plan: string
  /** false: what its rates say is what it would cost */
  charged: boolean
  /** in the order of RATE_KINDS */
  rates: readonly Rate[]
}

/** @returns at least one step, each other than the one before it, in order of time */
export function outlookOf(subscriber: Subscriber, list: PriceList, today: Day): [Step, ...Step[]] {
  const stepOn = (from: Day): Step => {
    const plan = planOn(subscriber, list, from)
    const rates = RATE_KINDS.flatMap((kind) => rateOn(list, plan, kind, from) ?? [])
    return { from, plan, charged: list.charged.get(plan) ?? false, rates }
  }
  const bounds = [...subscriber.plans, ...list.others, ...list.rates].flatMap(({ from, to }) => [from, to])
  const days = new Set(bounds.filter((day) => day !== null && day > today)) as Set<Day>
  const steps: [Step, ...Step[]] = [stepOn(today)]
  for (const day of [...days].sort()) {
    const step = stepOn(day)
    const before = steps.at(-1)
    if (before && sayAll(before) !== sayAll(step)) steps.push(step)
  }
  return steps
}

export type Change = { from: Day; plan: string; charged: boolean; was: Step; step: Step; isOfPlan: boolean }

/** The steps to come, with what each takes the place of. */
export function changesOf([first, ...others]: readonly [Step, ...Step[]]): Change[] {
  return others.map((step, index) => {
    const was = others[index - 1] ?? first
    return { from: step.from, plan: step.plan, charged: step.charged, was, step, isOfPlan: step.plan !== was.plan }
  })
}

/** Of those the ones that somebody pays otherwise for, or would if they did not look: a plan, or rates that are charged. */
export function chargeableChanges(steps: readonly [Step, ...Step[]]): Change[] {
  return changesOf(steps).filter(({ was, step }) => sayCharged(was) !== sayCharged(step))
}

/** Whether somebody who knew the first has to be told of the second. */
export function differ(known: readonly [Step, ...Step[]], now: readonly [Step, ...Step[]]): boolean {
  const say = (steps: readonly [Step, ...Step[]]) =>
    chargeableChanges(steps)
      .map(({ from, step }) => `${from} ${sayCharged(step)}`)
      .join('; ')
  return say(known) !== say(now)
}

/** `plan usage from 2026-11-24 on: what is used is charged`, for a list of what comes next. */
export function sayChange({ from, plan, charged, was, isOfPlan }: Change): string {
  if (!isOfPlan) return `other rates from ${from} on: billing rates`
  const turn = charged === was.charged ? '' : charged ? ': what is used is charged' : ': nothing is charged'
  return `plan ${plan} from ${from} on${turn}`
}

export function changeDocument({ from, plan, charged, isOfPlan }: Change) {
  return { from, plan, charged, rates_alone: !isOfPlan }
}

function sayAll({ plan, charged, rates }: Step): string {
  const all = rates.map(({ kind, micros, included }) => `${kind} ${micros} ${included}`)
  return [plan, charged, ...all].join(' ')
}

/** Rates of a plan that charges nothing cost nobody anything. */
function sayCharged(step: Step): string {
  return sayAll(step.charged ? step : { ...step, rates: [] })
}
