import type { Db } from '../../migrations/connect.ts'
import { dayOf, monthOf, sayMonth } from '../billing/calendar.ts'
import { creditBalance, readCredits } from '../billing/invoices.ts'
import { checkLimit, type Limit, readLimits, setLimit, spentIn } from '../billing/limits.ts'
import { RATE_KINDS, sayUnits, unitName } from '../billing/meters.ts'
import { parseMoney, sayMoney, sayRate } from '../billing/money.ts'
import { type Change, changeDocument, changesOf, outlookOf, sayChange } from '../billing/outlook.ts'
import { readPlans } from '../billing/plans.ts'
import { countedOf, feeAhead, totalOf } from '../billing/pricing.ts'
import { heldRates, planOn, type Rate, rateOn, readPriceList, readSubscriber } from '../billing/terms.ts'
import { readMonth } from '../billing/usage.ts'
import { sayCaps, sayPrice } from '../billing/words.ts'
import { sayAhead } from './billing-words.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { definitions, harmless, table, wrap } from './text.ts'
import { shown } from './values.ts'

export const billingPlan = defineCommand({
  name: 'billing plan',
  group: 'you',
  summary: 'your plan, what this month costs so far, limit and credit',
  async run({ app, caller }) {
    const { sql } = app
    const now = new Date()
    const [list, subscriber] = [await readPriceList(sql), await readSubscriber(sql, caller.accountId)]
    const name = planOn(subscriber, list, dayOf(now))
    const plan = (await readPlans(sql)).find((one) => one.name === name)
    const lines = await readMonth(sql, caller.accountId, monthOf(now))
    const ahead = feeAhead(lines, dayOf(now))
    const [total, spent] = [totalOf(lines), totalOf(lines.filter(({ charged }) => charged))]
    const counted = countedOf(lines, dayOf(now))
    const limits = await readLimits(sql, caller.accountId)
    const credit = creditBalance(await readCredits(sql, caller.accountId))
    const rates = currentRates(list, name, now)
    const changes = changesOf(outlookOf(subscriber, list, dayOf(now)))
    const untilCharged = changes.find(({ charged }) => charged)?.from
    const isOver = await isOverLimit(sql, caller.accountId)
    const fee = rates.find(({ kind }) => kind === 'fee')
    const charges = plan?.charged === true
    const caps = plan ? sayCaps(plan) : ''
    return {
      json: {
        ...{ plan: name, charged: charges, currency: 'USD', month: monthOf(now) },
        ...{ spent_micros: Number(spent), total_micros: Number(total), credit_micros: Number(credit) },
        fee_micros: Number(fee?.micros ?? 0n),
        included: Object.fromEntries(
          rates.filter(({ kind }) => kind !== 'fee').map((r) => [r.kind, Number(r.included)]),
        ),
        caps: {
          ...{ machines: plan?.machinesMost ?? null, cpus: plan?.cpusMost ?? null },
          ...{ memory_bytes: plan?.memoryBytesMost ?? null, disk_bytes: plan?.diskBytesMost ?? null },
        },
        limits: limits.map(limitDocument),
        over_limit: isOver,
        takes_payments: app.settings.stripe !== undefined,
        fee_ahead_micros: Number(ahead),
        changes: changes.map(changeDocument),
      },
      text: (view) =>
        definitions(
          [
            [
              'plan',
              `${name}${charges ? '' : `: nothing is charged${untilCharged === undefined ? '' : ` before ${untilCharged}`}`}`,
            ],
            ...(fee ? [['fee', sayPrice('fee', fee.micros)] as const] : []),
            ...(caps ? [['up to', caps] as const] : []),
            [
              'this month',
              `${charges || spent > 0n ? sayMoney(spent) : `it would cost ${sayMoney(total)}`} for ${sayMonth(monthOf(now))} so far, in UTC${sayAhead(ahead)}`,
            ],
            ...limits.map(
              (limit) =>
                [
                  'limit',
                  `${sayLimit(limit)}${isOver && limit.hard && counted >= limit.micros ? '; it is reached: nothing wakes or starts' : ''}`,
                ] as const,
            ),
            ...(credit > 0n ? [['credit', `${sayMoney(credit)} left`] as const] : []),
            ...changes.map((change) => ['next', sayChange(change)] as const),
          ],
          view,
          0,
        ),
    }
  },
})

/** What a plan asks for now, in the order of invoices; no fee where there is none. */
export function currentRates(list: Parameters<typeof rateOn>[0], plan: string, now: Date): Rate[] {
  return RATE_KINDS.flatMap((kind) => rateOn(list, plan, kind, dayOf(now)) ?? [])
}

export function sayLimit({ whose, micros, hard }: Limit): string {
  const of = whose === 'own' ? 'a month' : "a month, the operator's"
  return `${sayRate(micros)} ${of}; ${hard ? 'machines are paused there' : 'mail at 80 and 100 %, nothing else'}`
}

export function limitDocument({ whose, micros, hard }: Limit) {
  return { set_by: whose === 'own' ? 'account' : 'operator', amount_micros: Number(micros), hard }
}

async function isOverLimit(db: Db, accountId: number): Promise<boolean> {
  const [account] = await db<{ over: boolean }[]>`
    select over_limit_at is not null as over from accounts where id = ${accountId}`
  return account?.over === true
}

/** How late, and where never; for each command that sets one. */
export const LIMIT_ACTS =
  'What is spent is known as it is counted, every few minutes, and looked at once a minute: machines may run on for up to seven minutes, which is charged. A fee counts whole from the first day of its plan in the month on. Where nothing was charged in the month so far no limit is reached.'

/** Why no limit acts on an account as it is; undefined: they do, also for what was charged earlier in the month. */
export async function idleBecause(db: Db, accountId: number): Promise<string | undefined> {
  const now = new Date()
  const [list, subscriber] = [await readPriceList(db), await readSubscriber(db, accountId)]
  const plan = planOn(subscriber, list, dayOf(now))
  if (list.charged.get(plan) || (await spentIn(db, accountId, now)) > 0n) return undefined
  return `plan ${plan} charges nothing`
}

export const billingLimit = defineCommand({
  name: 'billing limit',
  group: 'you',
  summary: 'what a month may cost: mail at 80 and 100 %, and machines paused if you say so',
  description: `Without AMOUNT it shows what is set; none takes it away. With --hard machines that run are paused at the limit, with all that runs in them, and nothing wakes or starts one until the month is over or the limit higher. Nothing is deleted, and disks go on costing. ${LIMIT_ACTS}`,
  flags: { hard: { type: 'boolean', summary: 'pause the machines there' } },
  arguments: { amount: { label: 'AMOUNT', optional: true, complete: () => ['none'] } },
  examples: ['billing limit 50', 'billing limit 50 --hard', 'billing limit none'],
  async run({ app, caller }, { flags, args }) {
    const { sql } = app
    const wasOver = await isOverLimit(sql, caller.accountId)
    if (args.amount !== undefined) {
      const isNone = args.amount === 'none'
      const micros = isNone ? 0n : parseMoney(args.amount, 'AMOUNT')
      if (!isNone && micros === 0n) throw usageError('a limit is more than nothing', 'billing limit none')
      if (isNone && flags.hard) throw usageError('--hard belongs to an AMOUNT')
      const limit = isNone ? null : { micros, hard: flags.hard === true }
      await sql.begin(async (tx) => {
        await setLimit(tx, caller.accountId, 'own', limit)
        await recordEvent(tx, caller, 'account.limit_set', null, {
          amount: limit === null ? 'none' : sayRate(limit.micros),
          ...(limit ? { hard: limit.hard } : {}),
        })
      })
      await checkLimit(sql, caller.accountId, new Date())
    } else if (flags.hard) throw usageError('--hard belongs to an AMOUNT', 'billing limit 50 --hard')
    const limits = await readLimits(sql, caller.accountId)
    const idle = limits.length > 0 ? await idleBecause(sql, caller.accountId) : undefined
    const isOver = await isOverLimit(sql, caller.accountId)
    // What it does at this moment is not to be found out from a machine that is gone.
    const acts = isOver
      ? 'it is reached: machines that ran are paused, and nothing wakes or starts\n'
      : wasOver
        ? 'machines may run again; those that were paused: resume NAME\n'
        : ''
    return {
      json: {
        ...{ currency: 'USD', limits: limits.map(limitDocument), over_limit: isOver },
        ...(idle === undefined ? {} : { never_reached_because: idle }),
      },
      text: limits.length
        ? `${limits.map((limit) => `${sayLimit(limit)}\n`).join('')}${idle === undefined ? '' : `it is not reached: ${idle}\n`}${acts}`
        : `no limit is set\n${acts}`,
    }
  },
})

export const billingCredits = defineCommand({
  name: 'billing credits',
  group: 'you',
  summary: 'credit you were given, and what is left of it',
  description: 'Invoices take the oldest first.',
  async run({ app, caller }) {
    const credits = await readCredits(app.sql, caller.accountId)
    return {
      json: {
        currency: 'USD',
        balance_micros: Number(creditBalance(credits)),
        credits: credits.map((credit) => ({
          ...{ id: credit.id, amount_micros: Number(credit.micros), left_micros: Number(credit.left) },
          ...{ reason: credit.reason, granted_at: credit.grantedAt.toISOString() },
        })),
      },
      text: (view) =>
        credits.length === 0
          ? 'no credit\n'
          : table(
              credits,
              [
                { title: 'id', value: (credit) => String(credit.id), right: true },
                { title: 'given', value: (credit) => dayOf(credit.grantedAt) },
                { title: 'for', value: (credit) => harmless(credit.reason).replaceAll('\n', ' '), flexible: true },
                { title: 'amount', value: (credit) => sayMoney(credit.micros), right: true },
                { title: 'left', value: (credit) => sayMoney(credit.left), right: true },
              ],
              view,
            ),
    }
  },
})

export const billingRates = defineCommand({
  name: 'billing rates',
  group: 'you',
  summary: 'what things cost on your plan, and what is to change',
  description:
    'vCPU and memory count while a machine runs, disk always but in the trash, checkpoints by what they alone hold, transfer by what leaves the machine. A GiB-month is a GiB for a whole calendar month in UTC, a GB is 10^9 bytes.',
  flags: {
    plan: { type: 'string', value: 'NAME', summary: 'of a plan that you will be on; the operator sees them all' },
  },
  examples: ['billing rates'],
  async run({ app, caller }, { flags }) {
    const now = new Date()
    const list = await readPriceList(app.sql)
    // Whoever is to be on another sees what it asks for before it does.
    const steps = outlookOf(await readSubscriber(app.sql, caller.accountId), list, dayOf(now))
    const [{ plan: own }] = steps
    const plan = flags.plan ?? own
    const isTheirs = steps.some((step) => step.plan === plan)
    const changes = plan === own ? changesOf(steps).filter(({ isOfPlan }) => isOfPlan) : []
    if (!list.charged.has(plan) || !(isTheirs || caller.isOwner)) throw noSuchPlan(plan)
    const rows = heldRates(list, plan, dayOf(now))
    return {
      json: {
        ...{ plan, charged: list.charged.get(plan), currency: 'USD' },
        rates: rows.map(({ rate, from, to }) => ({
          ...{ kind: rate.kind, unit: unitName(rate.kind), rate_micros: Number(rate.micros) },
          ...{ included: Number(rate.included), from, to },
        })),
        changes: changes.map(changeDocument),
      },
      text: (view) =>
        `${list.charged.get(plan) ? '' : `${view.style.dim(`plan ${plan}: nothing is charged, and this is what it would be`)}\n`}${table(
          rows,
          [
            { title: 'what', value: ({ rate }) => rate.kind },
            { title: 'rate', value: ({ rate }) => sayPrice(rate.kind, rate.micros) },
            {
              title: 'included a month',
              value: ({ rate }) => (rate.included === 0n ? '' : sayUnits(rate.kind, rate.included)),
            },
            { title: 'from', value: ({ from, isNow }) => (isNow ? '' : (from ?? '')) },
            { title: 'until', value: ({ to }) => to ?? '' },
          ],
          view,
        )}${changes.map((one) => `${wrap(toCome(one), view.columns).join('\n')}\n`).join('')}`,
    }
  },
})

function toCome(change: Change): string {
  return `${sayChange(change)}; what that asks for: billing rates --plan ${change.plan}`
}

export function noSuchPlan(name: string): CommandError {
  return new CommandError('plan.not_found', 3, `no plan called ${shown(name)}`, {
    wayOn: 'billing plan shows yours; the operator lists them with: billing plans',
  })
}
