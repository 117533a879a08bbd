import type { RateKind } from '../../migrations/schema.ts'
import type { App } from '../app.ts'
import { announced, announcedCaps } from '../billing/announce.ts'
import { type Day, dayOf, startOfDay } from '../billing/calendar.ts'
import { RATE_KINDS, sayUnits, unitName } from '../billing/meters.ts'
import { parseMoney, sayExactly } from '../billing/money.ts'
import { type Caps, readPlans, setPlan, setRate, soonest } from '../billing/plans.ts'
import { FIRST_PLAN, rateOn, readPriceList } from '../billing/terms.ts'
import { sayCaps, sayPrice } from '../billing/words.ts'
import { noSuchPlan } from './billing.ts'
import { sayTold } from './billing-words.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { nearest } from './nearest.ts'
import { table } from './text.ts'
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
      fee: rateOn(list, plan.name, 'fee', today),
      own: RATE_KINDS.filter((kind) => kind !== 'fee' && rateOn(list, plan.name, kind, today)?.plan === plan.name),
    }))
    return {
      json: {
        currency: 'USD',
        plans: plans.map(({ plan, fee, own }) => ({
          ...{ plan: plan.name, charged: plan.charged, fee_micros: Number(fee?.micros ?? 0n), rates_of_its_own: own },
          ...{ machines_most: plan.machinesMost, cpus_most: plan.cpusMost },
          ...{ memory_bytes_most: plan.memoryBytesMost, disk_bytes_most: plan.diskBytesMost },
        })),
      },
      text: (view) =>
        table(
          plans,
          [
            { title: 'plan', value: ({ plan }) => plan.name },
            {
              title: 'fee',
              value: ({ plan, fee }) =>
                plan.charged ? (fee ? sayPrice('fee', fee.micros) : 'none') : 'nothing is charged',
            },
            {
              title: 'rates of its own',
              value: ({ own }) => (own.length ? sayList(own) : ''),
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

export const billingSetPlan = defineCommand({
  name: 'billing set-plan',
  group: 'operator',
  operator: true,
  summary: 'make a plan, or say what accounts on it may have',
  description:
    'Caps are for all machines of an account together, those that are off too, and hold from now on; machines that are there stay, and accounts that are on the plan or will be are told. A new plan has the rates of plan usage and no fee until billing set-rate says otherwise.',
  flags: {
    machines: { type: 'string', value: 'N|none', summary: 'machines at most' },
    cpu: { type: 'string', value: 'N|none', summary: 'vCPUs at most' },
    memory: { type: 'string', value: '64G|none', summary: 'memory at most' },
    disk: { type: 'string', value: '1T|none', summary: 'disk at most' },
  },
  arguments: { plan: { label: 'PLAN', complete: planNames } },
  examples: ['billing set-plan team --machines 20 --memory 64G'],
  async run({ app, caller }, { flags, args }) {
    if (!/^[a-z][a-z0-9-]{0,29}$/.test(args.plan) || ['others', 'default', 'none'].includes(args.plan)) {
      throw usageError(`a plan's name is up to 30 of a-z, 0-9 and -, not ${shown(args.plan)}`)
    }
    const count = (text: string, what: string) => {
      if (text === 'none') return null
      if (!/^\d{1,6}$/.test(text)) throw usageError(`${what} wants a whole number, or none, not ${shown(text)}`)
      return Number(text)
    }
    const size = (text: string, what: string) => (text === 'none' ? null : parseSize(text, what))
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
      json: { plan: args.plan, created: isNew, ...caps, told },
      text: isNew
        ? `plan ${args.plan} is there: ${rest}\nits rates: billing set-rate ${args.plan}; who is on it: account plan ACCOUNT ${args.plan}\n`
        : `plan ${args.plan}: ${rest}\n${sayTold(told)}`,
    }
  },
})

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
