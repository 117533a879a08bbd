import type { Sql } from '../../migrations/connect.ts'
import type { Caller } from '../app.ts'
import { limitSpending, sayLimited, spendingOf } from './account-billing.ts'
import { ACCOUNT, allAccounts, guest, nameOf, standing } from './account-find.ts'
import { DEFAULT_MACHINES_MOST } from './admission.ts'
import { LIMIT_ACTS } from './billing.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { harmless, table } from './text.ts'
import { sayWhen, shown } from './values.ts'

const MACHINES_MOST = 100_000

export const accountLs = defineCommand({
  name: 'account ls',
  group: 'operator',
  operator: true,
  summary: 'who has an account here, and how many machines',
  async run({ app }) {
    const accounts = await allAccounts(app.sql)
    return {
      json: {
        accounts: accounts.map((one) => ({
          id: one.id,
          email: one.email,
          owner: one.isOwner,
          suspended: one.suspendedAt !== null,
          machines: one.machines,
          machines_most: one.machinesMost,
          plan: one.plan,
          over_limit: one.isOverLimit,
          created_at: one.createdAt.toISOString(),
        })),
      },
      text: (view) =>
        table(
          accounts,
          [
            { title: 'id', value: (one) => String(one.id), right: true },
            { title: 'e-mail', value: (one) => harmless(one.email ?? '-'), flexible: true },
            {
              title: 'machines',
              value: (one) =>
                one.machinesMost === null ? String(one.machines) : `${one.machines} of ${one.machinesMost}`,
              right: true,
            },
            { title: 'plan', value: (one) => one.plan, optional: 2 },
            { title: 'standing', value: standing },
            { title: 'since', value: (one) => sayWhen(one.createdAt), optional: 1 },
          ],
          view,
        ),
    }
  },
})

export const accountLimit = defineCommand({
  name: 'account limit',
  group: 'operator',
  operator: true,
  summary: 'how many machines an account may have, and what it may spend',
  description: `Without this it is ${DEFAULT_MACHINES_MOST}; the operator's own account has no limit. Machines that are there stay. With --spend mails go out at 80 and 100 % of what a month may cost; with --hard machines are paused there, and nothing wakes or starts one until the month is over. ${LIMIT_ACTS}`,
  flags: {
    spend: { type: 'string', value: 'AMOUNT|none', summary: 'USD that a calendar month may cost' },
    hard: { type: 'boolean', summary: 'pause its machines there' },
  },
  arguments: { account: ACCOUNT, machines: { label: 'MACHINES', optional: true } },
  examples: ['account limit ada@example.com 25', 'account limit ada@example.com --spend 100 --hard'],
  async run({ app, caller }, { flags, args }) {
    const most = args.machines === undefined ? undefined : machinesOf(args.machines)
    const hard = flags.hard === true
    if (hard && (flags.spend ?? 'none') === 'none') throw usageError('--hard belongs to --spend AMOUNT')
    if (most === undefined && flags.spend === undefined) {
      throw usageError('nothing is given to limit', 'account limit ACCOUNT MACHINES, or --spend AMOUNT')
    }
    const spend = flags.spend === undefined ? undefined : { micros: spendingOf(flags.spend), hard }
    const account = await app.sql.begin(async (tx) => {
      const found = await guest(tx, args.account)
      if (most !== undefined) {
        await tx`update accounts set max_machines = ${most} where id = ${found.id}`
        await recordEvent(tx, caller, 'account.limited', null, { account: found.id, machines: most }, found.id)
      }
      if (spend) await limitSpending(tx, caller, found, spend)
      return found
    })
    const limited = spend ? await sayLimited(app.sql, account, spend.micros, hard) : ''
    const may = most === 1 ? 'one machine' : `${most} machines`
    const text = most === undefined ? '' : `${nameOf(account)} may have ${may}, and has ${account.machines}\n`
    return {
      json: {
        account: account.id,
        ...(most === undefined ? {} : { machines_most: most, machines: account.machines }),
        ...(spend ? { spend_micros: spend.micros === null ? null : Number(spend.micros), hard } : {}),
      },
      text: text + limited,
    }
  },
})

export const accountSuspend = defineCommand({
  name: 'account suspend',
  group: 'operator',
  operator: true,
  summary: 'let an account do nothing any more; its connections end',
  description: 'Its machines and disks stay as they are. account unsuspend takes it back.',
  arguments: { account: ACCOUNT },
  run: async ({ app, caller }, { args }) => await suspend(app.sql, caller, args.account, true),
})

export const accountUnsuspend = defineCommand({
  name: 'account unsuspend',
  group: 'operator',
  operator: true,
  summary: 'let a suspended account in again',
  arguments: { account: ACCOUNT },
  run: async ({ app, caller }, { args }) => await suspend(app.sql, caller, args.account, false),
})

function machinesOf(typed: string): number {
  const most = /^\d{1,6}$/.test(typed) ? Number(typed) : Number.NaN
  if (most <= MACHINES_MOST) return most
  throw new CommandError('usage', 2, `${shown(typed)} is not a number of machines`, {
    wayOn: `a whole number from 0 to ${MACHINES_MOST}`,
  })
}

async function suspend(sql: Sql, caller: Caller, typed: string, suspended: boolean) {
  const account = await sql.begin(async (tx) => {
    const found = await guest(tx, typed)
    if ((found.suspendedAt !== null) === suspended) return found
    await tx`update accounts set suspended_at = ${suspended ? new Date() : null} where id = ${found.id}`
    const kind = suspended ? 'account.suspended' : 'account.unsuspended'
    await recordEvent(tx, caller, kind, null, { account: found.id }, found.id)
    return found
  })
  const text = `${nameOf(account)} ${suspended ? 'is suspended; account unsuspend takes it back' : 'is let in again'}\n`
  return { json: { account: account.id, suspended }, text }
}
