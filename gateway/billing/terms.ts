/** Under which plan an account was on each day of a month, and at which rates. */
import type { Db } from '../../migrations/connect.ts'
import type { RateKind } from '../../migrations/schema.ts'
import { addMonths, type Day, dayOf, daysBetween, firstDay, type Month } from './calendar.ts'
import { RATE_KINDS, USAGE_KINDS, type UsageKind } from './meters.ts'

/** The plan of an account that none was given to. */
export const FIRST_PLAN = 'house'
/** Whose rates a plan has that has none of its own for something. */
export const DEFAULT_RATES = 'usage'

/** Days from the first to before the second; null: without an end on that side. */
type Between = { from: Day | null; to: Day | null }

export type Rate = Between & {
  id: number
  plan: string
  kind: RateKind
  /** 10^-6 USD for one unit */
  micros: bigint
  /** units a month without charge */
  included: bigint
}

export type PriceList = {
  rates: readonly Rate[]
  /** plan to whether anything is charged */
  charged: ReadonlyMap<string, boolean>
  /** plans of the accounts that none is named for */
  others: readonly (Between & { plan: string })[]
}

export type Subscriber = {
  accountId: number
  isOwner: boolean
  createdOn: Day
  plans: readonly (Between & { plan: string })[]
}

/** Days of a month that one rate of one plan was for. */
export type Term = { kind: RateKind; plan: string; charged: boolean; rate: Rate; days: Day[] }

export type Terms = {
  month: Month
  /** what there is a fee for; in order of time */
  fees: readonly Term[]
  /** in the order of USAGE_KINDS, then of time */
  usage: readonly Term[]
  /** first days of the parts of the month in which no term changes, the month's own first */
  starts: readonly Day[]
}

export async function readPriceList(db: Db): Promise<PriceList> {
  const [rates, plans, others] = await Promise.all([
    db<(Omit<Rate, 'micros' | 'included'> & { micros: number; included: number })[]>`
      select id, plan, kind, micros, included, ${bounds(db)} from rates order by id`,
    db<{ name: string; charged: boolean }[]>`select name, charged from plans`,
    // The index of account_plans_one_at_a_time begins with coalesce(account_id, 0).
    db<(Between & { plan: string })[]>`
      select plan, ${bounds(db)} from account_plans where coalesce(account_id, 0) = 0`,
  ])
  return {
    rates: rates.map((rate) => ({ ...rate, micros: BigInt(rate.micros), included: BigInt(rate.included) })),
    charged: new Map(plans.map(({ name, charged }) => [name, charged])),
    others: [...others],
  }
}

/** Ranges begin and end at midnight UTC, which constraints of their tables see to. */
function bounds(db: Db) {
  return db`to_char(lower(effective) at time zone 'utc', 'YYYY-MM-DD') as from,
    to_char(upper(effective) at time zone 'utc', 'YYYY-MM-DD') as to`
}

/** @throws RangeError for an account that there is not */
export async function readSubscriber(db: Db, accountId: number): Promise<Subscriber> {
  const [[account], plans] = await Promise.all([
    db<{ isOwner: boolean; createdAt: Date }[]>`
      select is_owner as "isOwner", created_at as "createdAt" from accounts where id = ${accountId}`,
    db<(Between & { plan: string })[]>`
      select plan, ${bounds(db)} from account_plans where coalesce(account_id, 0) = ${accountId}`,
  ])
  if (!account) throw new RangeError(`there is no account ${accountId}`)
  return { accountId, isOwner: account.isOwner, createdOn: dayOf(new Date(account.createdAt)), plans: [...plans] }
}

/** Everybody's, by number. */
export async function readSubscribers(db: Db): Promise<Subscriber[]> {
  const [accounts, plans] = await Promise.all([
    db<{ id: number; isOwner: boolean; createdAt: Date }[]>`
      select id, is_owner as "isOwner", created_at as "createdAt" from accounts order by id`,
    db<(Between & { plan: string; accountId: number })[]>`
      select account_id as "accountId", plan, ${bounds(db)} from account_plans where account_id is not null order by id`,
  ])
  const own = Map.groupBy(plans, ({ accountId }) => accountId)
  return accounts.map(({ id, isOwner, createdAt }) => ({
    ...{ accountId: id, isOwner, createdOn: dayOf(createdAt) },
    plans: (own.get(id) ?? []).map(({ from, to, plan }) => ({ from, to, plan })),
  }))
}

export function planOn(subscriber: Subscriber, { others }: PriceList, day: Day): string {
  const holds = ({ from, to }: Between) => (from === null || from <= day) && (to === null || day < to)
  const own = subscriber.plans.find(holds)
  if (own) return own.plan
  return (subscriber.isOwner ? undefined : others.find(holds)?.plan) ?? FIRST_PLAN
}

/** @returns undefined where a plan has no fee; a kind of usage always has a rate */
export function rateOn({ rates }: PriceList, plan: string, kind: RateKind, day: Day): Rate | undefined {
  const of = (name: string) =>
    rates.find(
      (rate) =>
        rate.plan === name &&
        rate.kind === kind &&
        (rate.from === null || rate.from <= day) &&
        (rate.to === null || day < rate.to),
    )
  return of(plan) ?? (kind === 'fee' ? undefined : of(DEFAULT_RATES))
}

/** A rate for as long as a plan has it: one of the default's ends where the plan's own begins. */
export type Held = Between & { rate: Rate; isNow: boolean }

/** @returns what a plan asks for from that day on, first what it does on it, then what is to come in order of time */
export function heldRates(list: PriceList, plan: string, today: Day): Held[] {
  const bounds = new Set(list.rates.flatMap(({ from, to }) => [from, to]))
  const days = [today, ...[...bounds].filter((day) => day !== null && day > today).sort()] as Day[]
  const held = RATE_KINDS.flatMap((kind) => {
    const steps: Held[] = []
    for (const day of days) {
      const rate = rateOn(list, plan, kind, day)
      const last = steps.at(-1)
      if (last?.to === null && last.rate.id === rate?.id) continue
      if (last?.to === null) last.to = day
      if (rate) steps.push({ rate, from: day === today ? rate.from : day, to: null, isNow: day === today })
    }
    return steps
  })
  const turn = ({ isNow, from }: Held) => (isNow || from === null ? '' : from)
  return held.sort((a, b) => (turn(a) === turn(b) ? 0 : turn(a) < turn(b) ? -1 : 1))
}

/**
 * What an account's month is priced by, to the month's end: what is known of the days to come counts.
 * @throws Error where there is no rate for a kind of usage
 */
export function termsOf(month: Month, subscriber: Subscriber, list: PriceList): Terms {
  const terms = new Map<string, Term>()
  const starts: Day[] = []
  let before = ''
  for (const day of daysBetween(firstDay(month), firstDay(addMonths(month, 1)))) {
    const plan = planOn(subscriber, list, day)
    const charged = list.charged.get(plan) ?? false
    const keys: string[] = []
    for (const kind of RATE_KINDS) {
      const rate = rateOn(list, plan, kind, day)
      // Nobody pays a fee for days before there was an account.
      if (kind === 'fee' && (!rate || day < subscriber.createdOn)) continue
      if (!rate) throw new Error(`there is no rate for ${kind} on ${day}`)
      const key = `${kind} ${plan} ${rate.id}`
      if (kind !== 'fee') keys.push(key)
      const term = terms.get(key)
      if (term) term.days.push(day)
      else terms.set(key, { kind, plan, charged, rate, days: [day] })
    }
    const now = keys.join(',')
    if (now !== before) starts.push(day)
    before = now
  }
  const all = [...terms.values()]
  return {
    month,
    fees: all.filter(({ kind }) => kind === 'fee'),
    usage: USAGE_KINDS.flatMap((kind: UsageKind) => all.filter((term) => term.kind === kind)),
    starts,
  }
}
