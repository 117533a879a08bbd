import type { Db, Sql } from '../../migrations/connect.ts'
import { type Message, tellAccounts } from '../accounts/notices.ts'
import type { Caller } from '../app.ts'
import { announced } from '../billing/announce.ts'
import { checkLimit, setLimit } from '../billing/limits.ts'
import { parseMoney, sayRate } from '../billing/money.ts'
import { assignPlan } from '../billing/plans.ts'
import { ACCOUNT, type Account, guest, nameOf } from './account-find.ts'
import { idleBecause } from './billing.ts'
import { dayToCome, knownPlan, planNames } from './billing-operator.ts'
import { sayTold } from './billing-words.ts'
import { defineCommand } from './command.ts'
import { usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'

/** A plan for whoever has none of their own. */
const OTHERS = 'others'

export const accountPlan = defineCommand({
  name: 'account plan',
  group: 'operator',
  operator: true,
  summary: 'put an account on a plan, from a day to come on',
  description: `ACCOUNT is a number or an e-mail address; ${OTHERS} is every account that no plan was named for. Without a word of yours all are on plan house, where nothing is charged; your own always is. Whoever is to pay otherwise by it is told, by mail too where they have an address.`,
  flags: { from: { type: 'string', value: '2027-01-01', summary: 'first day of it, in UTC; tomorrow unless given' } },
  arguments: { account: ACCOUNT, plan: { label: 'PLAN', complete: planNames } },
  examples: ['account plan ada@example.com usage', 'account plan others usage --from 2027-01-01'],
  async run({ app, caller }, { flags, args }) {
    const plan = await knownPlan(app, args.plan)
    const from = await dayToCome(app, flags.from)
    const { who, told } = await app.sql.begin(async (tx) => {
      const account = args.account === OTHERS ? null : await guest(tx, args.account)
      const detail = { account: account?.id ?? OTHERS, plan, from }
      await recordEvent(tx, caller, 'account.plan_set', null, detail, account?.id)
      const count = await announced(tx, () => assignPlan(tx, { accountId: account?.id ?? null, plan, from }))
      return { who: account, told: count }
    })
    const name = who ? nameOf(who) : 'every account that no plan is named for'
    return {
      json: { account: who?.id ?? OTHERS, plan, from, told },
      text: `${name} is on plan ${plan} from ${from} on, in UTC\n${sayTold(told)}`,
    }
  },
})

export const accountCredit = defineCommand({
  name: 'account credit',
  group: 'operator',
  operator: true,
  summary: 'give an account credit; its next invoices take it',
  description: 'It stays until it is used, and is not taken back. The words after AMOUNT say what for, and are seen.',
  arguments: { account: ACCOUNT, amount: { label: 'AMOUNT' }, reason: { label: 'WHAT FOR', repeated: true } },
  examples: ["account credit ada@example.com 10 'the outage of Tuesday'"],
  async run({ app, caller }, { args }) {
    const micros = parseMoney(args.amount, 'AMOUNT')
    if (micros === 0n) throw usageError('credit is more than nothing')
    const reason = args.reason.join(' ').trim()
    if (reason === '') throw usageError('say what the credit is for, as whoever gets it will read it')
    if (reason.length > 200) throw usageError('what it is for is said in at most 200 characters')
    const { account, id } = await app.sql.begin(async (tx) => {
      const found = await guest(tx, args.account)
      const [credit] = await tx<{ id: number }[]>`
        insert into credits (account_id, micros, reason, granted_by)
        values (${found.id}, ${String(micros)}::bigint, ${reason}, ${caller.accountId}) returning id`
      const detail = { account: found.id, amount: sayRate(micros), reason }
      await recordEvent(tx, caller, 'account.credited', null, detail, found.id)
      return { account: found, id: credit?.id }
    })
    return {
      json: { account: account.id, credit: id, amount_micros: Number(micros), reason },
      text: `${nameOf(account)} has ${sayRate(micros)} of credit more\n`,
    }
  },
})

/** @returns null: no limit @throws CommandError (usage) */
export function spendingOf(typed: string): bigint | null {
  const micros = typed === 'none' ? null : parseMoney(typed, '--spend')
  if (micros === 0n) throw usageError('a limit is more than nothing', '--spend none')
  return micros
}

/** What `account limit --spend` writes; the limit is looked at by `sayLimited`, when that is written. */
export async function limitSpending(
  tx: Db,
  caller: Caller,
  account: Account,
  { micros, hard }: { micros: bigint | null; hard: boolean },
): Promise<void> {
  await setLimit(tx, account.id, 'operator', micros === null ? null : { micros, hard })
  const amount = micros === null ? 'none' : sayRate(micros)
  await recordEvent(tx, caller, 'account.limited', null, { account: account.id, spend: amount, hard }, account.id)
  await tellAccounts(tx, [{ accountId: account.id, ...letter(micros, hard) }])
}

/** Looks at the new limit. @returns a sentence */
export async function sayLimited(sql: Sql, account: Account, micros: bigint | null, hard: boolean): Promise<string> {
  const isOver = await checkLimit(sql, account.id, new Date())
  if (micros === null) return `${nameOf(account)} has no limit of yours on what a month may cost\n`
  const there = hard ? 'its machines are paused there' : 'it is mailed at 80 and 100 %'
  const idle = await idleBecause(sql, account.id)
  const text = `${nameOf(account)} may spend ${sayRate(micros)} a month; ${there}\n`
  if (isOver) return `${text}it is over its limit: its machines are paused\n`
  return `${text}${idle === undefined ? '' : `it is not reached: ${idle}\n`}`
}

function letter(micros: bigint | null, hard: boolean): Message {
  if (micros === null) {
    const body = 'What your machines may cost is not limited by the operator any more; a limit of your own stays.\n'
    return { subject: "the operator's limit on your month is taken away", body: `${body}\nTo see it: billing plan.\n` }
  }
  const then = hard
    ? 'Machines that run are paused there, with all that runs in them, and nothing wakes or starts one until the month is over or the limit higher. Nothing is deleted.'
    : 'Nothing is paused there: you are told at 80 and at 100 %.'
  const subject = `the operator has set a limit of ${sayRate(micros)} on your month`
  return { subject, body: `${then} Months are those of UTC.\n\nTo see it: billing plan.\n` }
}
