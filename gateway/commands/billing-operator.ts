import type { RateKind } from '../../migrations/schema.ts'
import type { App } from '../app.ts'
import { announced, announcedCaps } from '../billing/announce.ts'
import { type Day, dayOf, startOfDay } from '../billing/calendar.ts'
import { RATE_KINDS, sayUnits, unitName } from '../billing/meters.ts'
import { parseMoney, sayExactly } from '../billing/money.ts'
import {
  type Caps,
  type Holder,
  readHolders,
  readPlans,
  removePlan,
  setPlan,
  setRate,
  soonest,
} from '../billing/plans.ts'
import { DEFAULT_RATES, FIRST_PLAN, type Held, heldRates, readPriceList } from '../billing/terms.ts'
import { sayCaps, sayPrice } from '../billing/words.ts'
import { noSuchPlan } from './billing.ts'
import { sayTold } from './billing-words.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { nearest } from './nearest.ts'
import { harmless, table } from './text.ts'
import { parseSize, sayList, shown } from './values.ts'

export const planNames: Completer = async ({ app }) => (await readPlans(app.sql)).map(({ name }) => name)

export const billingPlans = defineCommand({
  name: 'billing plans',
  group: 'operator',
  operator: true,
  summary: 'the plans there are: fee, rates of their own, caps',
  description: 'To see all rates of one: billing rates --plan NAME. To put somebody on it: account plan.',
  async run({ app }) {
    const list = await readPriceList(app.sql)
    const today = dayOf(new Date())
    const plans = (await readPlans(app.sql)).map((plan) => ({
      plan,
      // One that begins tomorrow is what the plan was made for.
      own: heldRates(list, plan.name, today).filter(({ rate }) => rate.plan === plan.name),
    }))
    const feesOf = (own: readonly Held[]) => own.filter(({ rate }) => rate.kind === 'fee')
    return {
      json: {
        currency: 'USD',
        plans: plans.map(({ plan, own }) => ({
          ...{ plan: plan.name, charged: plan.charged },
          fee_micros: Number(feesOf(own).find(({ isNow }) => isNow)?.rate.micros ?? 0n),
          fees_to_come: feesOf(own).flatMap(({ rate, from, isNow }) =>
            isNow ? [] : [{ fee_micros: Number(rate.micros), from }],
          ),
          rates_of_its_own: own.flatMap(({ rate, isNow }) => (isNow && rate.kind !== 'fee' ? [rate.kind] : [])),
          ...capsDocument(plan),
        })),
      },
      text: (view) =>
        table(
          plans,
          [
            { title: 'plan', value: ({ plan }) => plan.name },
            {
              title: 'fee',
              value: ({ plan, own }) => {
                if (!plan.charged) return 'nothing is charged'
                return feesOf(own).map(sayFee).join(', ') || 'none'
              },
              flexible: true,
            },
            {
              title: 'rates of its own',
              value: ({ own }) => {
                const usage = own.filter(({ rate }) => rate.kind !== 'fee')
                return usage.length > 0 ? sayList(usage.map(sayOwn)) : ''
              },
              flexible: true,
              optional: 1,
            },
            { title: 'up to', value: ({ plan }) => sayCaps(plan), flexible: true, optional: 2 },
          ],
          view,
        ),
    }
  },
})

/** Of all machines of an account together; null: as many as there may be. */
function capsDocument({ machinesMost, cpusMost, memoryBytesMost, diskBytesMost }: Caps) {
  return {
    ...{ machines_most: machinesMost, cpus_most: cpusMost },
    ...{ memory_bytes_most: memoryBytesMost, disk_bytes_most: diskBytesMost },
  }
}

/** `$20.00 per month`, `$30.00 per month from 2027-01-01` */
function sayFee({ rate, from, isNow }: Held): string {
  return `${sayPrice('fee', rate.micros)}${isNow ? '' : ` from ${from}`}`
}

/** `cpu`, `cpu from 2027-01-01` */
function sayOwn({ rate, from, isNow }: Held): string {
  return `${rate.kind}${isNow ? '' : ` from ${from}`}`
}

const COUNT_MOST = 999_999

export const billingSetPlan = defineCommand({
  name: 'billing set-plan',
  group: 'operator',
  operator: true,
  summary: 'make a plan, or say what accounts on it may have',
  description:
    'Caps are for all machines of an account together, those that are off too, and hold from now on; machines that are there stay, and accounts that are on the plan or will be are told. A new plan has the rates of plan usage and no fee until billing set-rate says otherwise. One that was made by mistake goes with billing remove-plan.',
  flags: {
    machines: { type: 'string', value: 'N|none', summary: 'machines at most' },
    cpu: { type: 'string', value: 'N|none', summary: 'vCPUs at most' },
    memory: { type: 'string', value: '64G|none', summary: 'memory at most' },
    disk: { type: 'string', value: '1T|none', summary: 'disk at most' },
  },
  arguments: { plan: { label: 'PLAN', complete: planNames } },
  examples: ['billing set-plan team --machines 20 --memory 64G'],
  async run({ app, caller }, { flags, args }) {
    if (!/^[a-z][a-z0-9-]{0,29}$/.test(args.plan)) {
      throw usageError(`a plan's name is up to 30 of a-z, 0-9 and - after a letter, not ${shown(args.plan)}`)
    }
    if (['others', 'default', 'none'].includes(args.plan)) {
      throw usageError(`no plan is called ${args.plan}: that is a word of other commands`, 'choose another name')
    }
    const count = (text: string, what: string) => {
      if (text === 'none') return null
      if (!/^\d+$/.test(text)) throw usageError(`${what} wants a whole number, or none, not ${shown(text)}`)
      if (Number(text) > COUNT_MOST) throw usageError(`${what} is at most ${COUNT_MOST}, or none, not ${shown(text)}`)
      return Number(text)
    }
    const size = (text: string, what: string) => {
      if (text === 'none') return null
      if (!/\d *[kmgt]/i.test(text)) throw usageError(`${what} wants a size such as 64G, or none, not ${shown(text)}`)
      return parseSize(text, what)
    }
    const caps: Partial<Caps> = {
      ...(flags.machines === undefined ? {} : { machinesMost: count(flags.machines, '--machines') }),
      ...(flags.cpu === undefined ? {} : { cpusMost: count(flags.cpu, '--cpu') }),
      ...(flags.memory === undefined ? {} : { memoryBytesMost: size(flags.memory, '--memory') }),
      ...(flags.disk === undefined ? {} : { diskBytesMost: size(flags.disk, '--disk') }),
    }
    const { outcome: isNew, told } = await app.sql.begin(async (tx) => {
      await recordEvent(tx, caller, 'billing.plan_set', null, { plan: args.plan, ...caps })
      return await announcedCaps(tx, args.plan, () => setPlan(tx, args.plan, caps))
    })
    const plan = (await readPlans(app.sql)).find(({ name }) => name === args.plan)
    const most = plan ? sayCaps(plan) : ''
    const rest = most ? `up to ${most}` : 'no caps'
    return {
      json: { plan: args.plan, created: isNew, ...(plan ? capsDocument(plan) : {}), told },
      text: isNew
        ? `plan ${args.plan} is there: ${rest}\nits rates: billing set-rate ${args.plan}; who is on it: account plan ACCOUNT ${args.plan}\n`
        : `plan ${args.plan}: ${rest}\n${sayTold(told)}`,
    }
  },
})

export const billingRemovePlan = defineCommand({
  name: 'billing remove-plan',
  group: 'operator',
  operator: true,
  summary: 'remove a plan that nobody was ever on, with its rates',
  description: `A plan that an account was on for a day stays for ever, since what was used on it is computed by it; so do ${FIRST_PLAN} and ${DEFAULT_RATES}, where accounts begin and whose rates others have. Whoever is only to come to it is put on another first.`,
  arguments: { plan: { label: 'PLAN', complete: planNames } },
  examples: ['billing remove-plan taem'],
  async run({ app, caller }, { args }) {
    const plan = await knownPlan(app, args.plan)
    if (plan === FIRST_PLAN || plan === DEFAULT_RATES) {
      const because = plan === FIRST_PLAN ? 'accounts begin on it' : 'other plans have its rates'
      throw new CommandError('plan.in_use', 1, `plan ${plan} stays: ${because}`, {
        wayOn:
          plan === FIRST_PLAN ? 'account plan others PLAN puts accounts on another' : 'billing set-rate changes it',
      })
    }
    await app.sql.begin(async (tx) => {
      // Nobody is put on it meanwhile.
      await tx`select from plans where name = ${plan} for update`
      const [holder] = (await readHolders(tx, plan)).sort((a, b) => Number(a.isToCome) - Number(b.isToCome))
      if (holder) throw isHeld(plan, holder)
      if (!(await removePlan(tx, plan))) throw noSuchPlan(plan)
      await recordEvent(tx, caller, 'billing.plan_removed', null, { plan })
    })
    return { json: { plan, removed: true }, text: `plan ${plan} is gone, with its rates\n` }
  },
})

function isHeld(plan: string, { accountId, email, from, isToCome }: Holder): CommandError {
  const who = accountId === null ? 'every account that no plan is named for' : harmless(email ?? `account ${accountId}`)
  if (isToCome) {
    const named = accountId === null ? 'others' : harmless(email ?? String(accountId))
    return new CommandError('plan.in_use', 1, `${who} is on plan ${plan} from ${from} on`, {
      wayOn: `put them on another first: account plan ${named} PLAN`,
    })
  }
  return new CommandError('plan.in_use', 1, `${who} was on plan ${plan}, and what was used then is computed by it`, {
    wayOn: `it stays, and nobody has to be on it; what it has room for and costs: billing set-plan, billing set-rate`,
  })
}

const MOST_INCLUDED = 1_000_000_000

export const billingSetRate = defineCommand({
  name: 'billing set-rate',
  group: 'operator',
  operator: true,
  summary: 'what something costs on a plan, from a day to come on',
  description:
    'KIND is fee (a month), cpu (a vCPU-hour), memory (a GiB-hour), disk (a GiB-month) or transfer (a GB). A rate that was in force stays what it was: bills can be computed again at any time. It is for whole days in UTC, from tomorrow on at the soonest, and takes the place of what else was to come. Accounts for which something that is charged changes are told, by mail too.',
  flags: {
    included: {
      type: 'integer',
      min: 0,
      max: MOST_INCLUDED,
      summary: 'units a month without charge; none unless given',
    },
    from: { type: 'string', value: '2027-01-01', summary: 'first day of it, in UTC; tomorrow unless given' },
  },
  arguments: {
    plan: { label: 'PLAN', complete: planNames },
    kind: { label: 'KIND', complete: () => [...RATE_KINDS] },
    amount: { label: 'AMOUNT' },
  },
  examples: ['billing set-rate team fee 20 --from 2027-01-01', 'billing set-rate team cpu 0.03 --included 500'],
  async run({ app, caller }, { flags, args }) {
    const plan = await knownPlan(app, args.plan)
    const kind = kindOf(args.kind)
    const micros = parseMoney(args.amount, 'AMOUNT')
    if (kind === 'fee' && flags.included)
      throw usageError('a fee includes nothing of itself', 'give --included with cpu, memory, disk or transfer')
    if (plan === FIRST_PLAN) {
      throw usageError(
        `on plan ${FIRST_PLAN} nothing is charged, so it has no rates`,
        'billing set-rate usage shows there too',
      )
    }
    const from = await dayToCome(app, flags.from)
    const included = BigInt(flags.included ?? 0)
    const told = await app.sql.begin(async (tx) => {
      const detail = { plan, kind, rate: sayExactly(micros), included: Number(included), from }
      await recordEvent(tx, caller, 'billing.rate_set', null, detail)
      return await announced(tx, () => setRate(tx, { plan, kind, micros, included, from }))
    })
    return {
      json: { plan, kind, unit: unitName(kind), rate_micros: Number(micros), included: Number(included), from, told },
      text: `plan ${plan}: ${kind} is ${sayPrice(kind, micros)} from ${from} on, in UTC${included > 0n ? `, ${sayUnits(kind, included)} a month included` : ''}\n${sayTold(told)}`,
    }
  },
})

/** @throws CommandError 'plan.not_found' (3) */
export async function knownPlan(app: App, name: string): Promise<string> {
  if ((await readPlans(app.sql)).some((plan) => plan.name === name)) return name
  throw noSuchPlan(name)
}

function kindOf(typed: string): RateKind {
  const kind = RATE_KINDS.find((one) => one === typed)
  if (kind) return kind
  const near = nearest(typed, RATE_KINDS)
  throw usageError(
    `KIND is one of ${sayList(RATE_KINDS, 8, 'or')}, not ${shown(typed)}`,
    near && `did you mean ${near}`,
  )
}

/**
 * A day that can still be decided on; tomorrow unless one is given.
 * @throws CommandError (usage)
 */
export async function dayToCome(app: App, typed: string | undefined): Promise<Day> {
  const first = await soonest(app.sql)
  if (typed === undefined) return first
  const isDay = /^\d{4}-\d{2}-\d{2}$/.test(typed) && !Number.isNaN(startOfDay(typed).getTime())
  if (!isDay || dayOf(startOfDay(typed)) !== typed)
    throw usageError(`--from wants a day such as ${first}, not ${shown(typed)}`)
  if (typed < first) throw usageError(`--from is ${first} at the soonest: what a day costs is settled when it begins`)
  return typed
}
