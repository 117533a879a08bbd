/**
 * Whoever is to pay otherwise than before is told when it is decided, and so before the midnight from which it is so: a plan
 * of their own, the plan of all that have none, the rates of a plan they are or will be on, how much of anything it is for.
 */
import type { Db } from '../../migrations/connect.ts'
import { type Message, tellAccounts } from '../accounts/notices.ts'
import { type Day, dayOf } from './calendar.ts'
import { sayUnits } from './meters.ts'
import { type Change, chargeableChanges, differ, outlookOf, type Step } from './outlook.ts'
import { type Caps, readPlans } from './plans.ts'
import { type PriceList, type Rate, readPriceList, readSubscribers, type Subscriber } from './terms.ts'
import { sayCaps, sayPrice } from './words.ts'

type Outlook = [Step, ...Step[]]

/**
 * Makes a change of plans or rates, and tells those whom it is to cost more or less.
 * @returns how many were told
 */
export async function announced(tx: Db, change: () => Promise<unknown>): Promise<number> {
  // Of two changes at once each is told once, against what was before it.
  await tx`select pg_advisory_xact_lock(hashtextextended('berth.announced', 0))`
  const today = dayOf((await tx<{ now: Date }[]>`select now() as now`)[0]?.now ?? new Date())
  const listBefore = await readPriceList(tx)
  const before = new Map((await readSubscribers(tx)).map((one) => [one.accountId, one]))
  await change()
  const list = await readPriceList(tx)
  const outlook = { before: remembering(listBefore, today), after: remembering(list, today) }
  const rooms = new Map((await readPlans(tx)).map((plan) => [plan.name, sayCaps(plan)]))
  const told = (await readSubscribers(tx)).flatMap((subscriber) => {
    const [was, now] = [outlook.before(before.get(subscriber.accountId) ?? subscriber), outlook.after(subscriber)]
    return differ(was, now) ? [{ accountId: subscriber.accountId, ...letter(now, rooms) }] : []
  })
  await tellAccounts(tx, told)
  return told.length
}

/** Most accounts have no plan of their own, and so the same outlook. */
function remembering(list: PriceList, today: Day): (subscriber: Subscriber) => Outlook {
  const known = new Map<string, Outlook>()
  return (subscriber) => {
    const key = JSON.stringify([subscriber.isOwner, subscriber.plans])
    const outlook = known.get(key) ?? outlookOf(subscriber, list, today)
    known.set(key, outlook)
    return outlook
  }
}

/** @param rooms what plans have room for, by their names */
function letter(outlook: Outlook, rooms: ReadonlyMap<string, string>): Message {
  const changes = chargeableChanges(outlook)
  const [first] = changes
  const [now] = outlook
  if (!first) {
    const body = `What was to change does not: you stay on plan ${now.plan}, ${now.charged ? 'at the rates you know' : 'where nothing is charged'}.\n\nTo see it: billing plan. What things cost: billing rates.\n`
    return { subject: `you stay on plan ${now.plan}, and nothing changes`, body }
  }
  const subject = !first.isOfPlan
    ? `the rates of plan ${first.plan} change on ${first.from}`
    : first.charged && !first.was.charged
      ? `from ${first.from} on what your machines use is charged, by plan ${first.plan}`
      : `from ${first.from} on you are on plan ${first.plan}`
  const rest = 'Until then all is as it was. Days begin at midnight UTC.'
  return {
    subject,
    body: `${changes.map((change) => sayChange(change) + sayRoomOf(change, rooms)).join('\n')}\n${rest}\n\nTo see it: billing plan. What things cost: billing rates.\n`,
  }
}

function sayChange({ from, plan, isOfPlan, was, step }: Change): string {
  if (!step.charged) return `From ${from} on you are on plan ${plan}, where nothing is charged.\n`
  const rates = step.rates.flatMap((rate) => {
    const known = was.charged ? was.rates.find(({ kind }) => kind === rate.kind) : undefined
    const isSame = known && known.micros === rate.micros && known.included === rate.included
    return isSame ? [] : [`  ${rate.kind}: ${sayTerms(rate)}${known ? `, until then ${sayTerms(known)}` : ''}\n`]
  })
  const head = isOfPlan
    ? `From ${from} on you are on plan ${plan}, where ${was.charged ? 'what differs is' : 'what your machines use is charged'}:`
    : `From ${from} on plan ${plan} asks for:`
  return `${rates.length > 0 ? head : `From ${from} on you are on plan ${plan}, at the rates you know.`}\n${rates.join('')}`
}

/** Whoever comes to a plan is told of its caps with it: they hold from the same midnight on. */
function sayRoomOf({ plan, isOfPlan }: Change, rooms: ReadonlyMap<string, string>): string {
  const room = isOfPlan ? rooms.get(plan) : undefined
  return room ? `It is for ${room}, all machines of an account together; what is there stays.\n` : ''
}

function sayTerms({ kind, micros, included }: Rate): string {
  return `${sayPrice(kind, micros)}${included > 0n ? `, ${sayUnits(kind, included)} a month included` : ''}`
}

/** Gives a plan other caps, and tells those who are on it or will be. @returns how many, and what came of the change */
export async function announcedCaps<T>(
  tx: Db,
  plan: string,
  change: () => Promise<T>,
): Promise<{ outcome: T; told: number }> {
  const capsOf = async () => (await readPlans(tx)).find(({ name }) => name === plan)
  const before = await capsOf()
  const outcome = await change()
  const now = await capsOf()
  if (!before || !now || sayRoom(before) === sayRoom(now)) return { outcome, told: 0 }
  const [list, today] = [await readPriceList(tx), dayOf(new Date())]
  const outlook = remembering(list, today)
  const onIt = (await readSubscribers(tx)).filter((one) => outlook(one).some((step) => step.plan === plan))
  const body = `From now on plan ${plan} is for ${sayRoom(now)}, all machines of an account together; until now it was for ${sayRoom(before)}. What is there stays.\n\nTo see it: billing plan.\n`
  await tellAccounts(
    tx,
    onIt.map(({ accountId }) => ({ accountId, subject: `plan ${plan} is for ${sayRoom(now)} now`, body })),
  )
  return { outcome, told: onIt.length }
}

function sayRoom(caps: Caps): string {
  return sayCaps(caps) || 'any number of machines of any size'
}
