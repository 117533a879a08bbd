import type { Sql } from '../../migrations/connect.ts'
import type { Caller } from '../app.ts'
import { DEFAULT_MACHINES_MOST } from './admission.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError } from './error.ts'
import { recordEvent, type Tx } from './machine-steps.ts'
import { harmless, table } from './text.ts'
import { sayWhen, shown } from './values.ts'

const MACHINES_MOST = 100_000

type Account = {
  id: number
  email: string | null
  isOwner: boolean
  suspendedAt: Date | null
  machinesMost: number | null
  machines: number
  createdAt: Date
}

const accountNames: Completer = async ({ app }) =>
  (await allAccounts(app.sql)).map(({ id, email }) => email ?? String(id))

const ACCOUNT = { label: 'ACCOUNT', complete: accountNames } as const

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
            { title: '', value: (one) => (one.isOwner ? 'operator' : one.suspendedAt ? 'suspended' : '') },
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
  summary: 'how many machines an account may have',
  description: `Without this it is ${DEFAULT_MACHINES_MOST}; the operator's own account has no limit. Machines that are there stay.`,
  arguments: { account: ACCOUNT, machines: { label: 'MACHINES' } },
  examples: ['account limit ada@example.com 25'],
  async run({ app, caller }, { args }) {
    const most = /^\d{1,6}$/.test(args.machines) ? Number(args.machines) : Number.NaN
    if (!(most <= MACHINES_MOST)) {
      throw new CommandError('usage', 2, `${shown(args.machines)} is not a number of machines`, {
        wayOn: `a whole number from 0 to ${MACHINES_MOST}`,
      })
    }
    const account = await app.sql.begin(async (tx) => {
      const found = await guest(tx, args.account)
      await tx`update accounts set max_machines = ${most} where id = ${found.id}`
      await recordEvent(tx, caller, 'account.limited', null, { account: found.id, machines: most })
      return found
    })
    const text = `${nameOf(account)} may have ${most === 1 ? 'one machine' : `${most} machines`}, and has ${account.machines}\n`
    return { json: { account: account.id, machines_most: most, machines: account.machines }, text }
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

async function suspend(sql: Sql, caller: Caller, typed: string, suspended: boolean) {
  const account = await sql.begin(async (tx) => {
    const found = await guest(tx, typed)
    if ((found.suspendedAt !== null) === suspended) return found
    await tx`update accounts set suspended_at = ${suspended ? new Date() : null} where id = ${found.id}`
    const kind = suspended ? 'account.suspended' : 'account.unsuspended'
    await recordEvent(tx, caller, kind, null, { account: found.id })
    return found
  })
  const text = `${nameOf(account)} ${suspended ? 'is suspended; account unsuspend takes it back' : 'is let in again'}\n`
  return { json: { account: account.id, suspended }, text }
}

/**
 * The account that is called so, by its id or e-mail address, locked for the change.
 * @throws CommandError 'account.not_found' (3); 'not_allowed' (4) for the operator's own
 */
async function guest(tx: Tx & Pick<Sql, 'unsafe'>, typed: string): Promise<Account> {
  const accounts = await allAccounts(tx)
  const found = accounts.find(
    ({ id, email }) => String(id) === typed || (email !== null && email === typed.toLowerCase()),
  )
  if (!found) {
    throw new CommandError('account.not_found', 3, `no account ${shown(typed)}`, { wayOn: 'account ls lists them' })
  }
  if (found.isOwner) {
    throw new CommandError('not_allowed', 4, `${nameOf(found)} runs this installation`, {
      wayOn: 'an operator is neither limited nor suspended',
    })
  }
  return found
}

async function allAccounts(tx: Tx): Promise<Account[]> {
  return await tx.unsafe<Account[]>(
    `select accounts.id, email, is_owner as "isOwner", suspended_at as "suspendedAt", accounts.created_at as "createdAt",
       case when is_owner then null else coalesce(max_machines, $1) end as "machinesMost",
       (select count(*)::int from machines where account_id = accounts.id
          and desired_state not in ('trashed', 'gone') and observed_state <> 'gone') as machines
     from accounts order by accounts.id`,
    [DEFAULT_MACHINES_MOST],
  )
}

function nameOf({ id, email }: Account): string {
  return email === null ? `account ${id}` : harmless(email)
}
