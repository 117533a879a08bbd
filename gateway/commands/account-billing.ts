import { checkLimit, setLimit } from '../billing/limits.ts'
import { parseMoney, sayMoney } from '../billing/money.ts'
import { assignPlan } from '../billing/plans.ts'
import { ACCOUNT, type Account, guest, nameOf } from './account-find.ts'
import { dayToCome, knownPlan, planNames } from './billing-operator.ts'
import type { Context } from './command.ts'
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
  description: `ACCOUNT is a number or an e-mail address; ${OTHERS} is every account that no plan was named for. Without a word of yours all are on plan house, where nothing is charged; your own always is.`,
  flags: { from: { type: 'string', value: '2027-01-01', summary: 'first day of it, in UTC; tomorrow unless given' } },
  arguments: { account: ACCOUNT, plan: { label: 'PLAN', complete: planNames } },
  examples: ['account plan ada@example.com usage', 'account plan others usage --from 2027-01-01'],
  async run({ app, caller }, { flags, args }) {
    const plan = await knownPlan(app, args.plan)
    const from = await dayToCome(app, flags.from)
    const who = await app.sql.begin(async (tx) => {
      const account = args.account === OTHERS ? null : await guest(tx, args.account)
      await assignPlan(tx, { accountId: account?.id ?? null, plan, from })
      await recordEvent(
        tx,
        caller,
        'account.plan_set',
        null,
        { account: account?.id ?? OTHERS, plan, from },
        account?.id,
      )
      return account
    })
    const name = who ? nameOf(who) : 'every account that no plan is named for'
    return {
      json: { account: who?.id ?? OTHERS, plan, from },
      text: `${name} is on plan ${plan} from ${from} on, in UTC\n`,
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
    if (reason === '' || reason.length > 200) throw usageError('what for is said in at most 200 characters')
    const { account, id } = await app.sql.begin(async (tx) => {
      const found = await guest(tx, args.account)
      const [credit] = await tx<{ id: number }[]>`
        insert into credits (account_id, micros, reason, granted_by)
        values (${found.id}, ${String(micros)}::bigint, ${reason}, ${caller.accountId}) returning id`
      const detail = { account: found.id, amount: sayMoney(micros), reason }
      await recordEvent(tx, caller, 'account.credited', null, detail, found.id)
      return { account: found, id: credit?.id }
    })
    return {
      json: { account: account.id, credit: id, amount_micros: Number(micros), reason },
      text: `${nameOf(account)} has ${sayMoney(micros)} of credit more\n`,
    }
  },
})

/** What `account limit --spend` does. @returns a sentence */
export async function limitSpending(
  { app, caller }: Context,
  account: Account,
  typed: string,
  hard: boolean,
): Promise<{ micros: bigint | null; text: string }> {
  const micros = typed === 'none' ? null : parseMoney(typed, '--spend')
  if (micros === 0n) throw usageError('a limit is more than nothing', '--spend none')
  await app.sql.begin(async (tx) => {
    await setLimit(tx, account.id, 'operator', micros === null ? null : { micros, hard })
    const amount = micros === null ? 'none' : sayMoney(micros)
    await recordEvent(tx, caller, 'account.limited', null, { account: account.id, spend: amount, hard }, account.id)
  })
  await checkLimit(app.sql, account.id, new Date())
  if (micros === null) return { micros, text: `${nameOf(account)} has no limit of yours on what a month may cost\n` }
  const there = hard ? 'its machines are paused there' : 'it is mailed at 80 and 100 %'
  return { micros, text: `${nameOf(account)} may spend ${sayMoney(micros)} a month; ${there}\n` }
}
