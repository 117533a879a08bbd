import type { Sql } from '../../migrations/connect.ts'
import { DEFAULT_MACHINES_MOST } from './admission.ts'
import type { Completer } from './command.ts'
import { CommandError } from './error.ts'
import { harmless } from './text.ts'
import { shown } from './values.ts'

export type Account = {
  id: number
  email: string | null
  isOwner: boolean
  suspendedAt: Date | null
  machinesMost: number | null
  machines: number
  createdAt: Date
  plan: string
  isOverLimit: boolean
}

const accountNames: Completer = async ({ app }) =>
  (await allAccounts(app.sql)).map(({ id, email }) => email ?? String(id))

export const ACCOUNT = { label: 'ACCOUNT', complete: accountNames } as const

/**
 * The account that is called so, by its id or e-mail address.
 * @throws CommandError 'account.not_found' (3)
 */
export async function accountNamed(tx: Pick<Sql, 'unsafe'>, typed: string): Promise<Account> {
  // Indexes: the primary key, accounts_email_key. No address is a number.
  const isId = /^[1-9]\d{0,8}$/.test(typed)
  const [found] = isId
    ? await accountsWhere(tx, 'accounts.id = $2', [Number(typed)])
    : await accountsWhere(tx, 'email = $2', [typed.toLowerCase()])
  if (found) return found
  throw new CommandError('account.not_found', 3, `no account ${shown(typed)}`, { wayOn: 'account ls lists them' })
}

/**
 * The same, for a change that none of the operator's is there for.
 * @throws CommandError 'account.not_found' (3); 'not_allowed' (4) for the operator's own
 */
export async function guest(tx: Pick<Sql, 'unsafe'>, typed: string): Promise<Account> {
  const found = await accountNamed(tx, typed)
  if (found.isOwner) {
    throw new CommandError('not_allowed', 4, `${nameOf(found)} runs this installation`, {
      wayOn: 'an operator is neither limited, charged nor suspended',
    })
  }
  return found
}

export async function allAccounts(tx: Pick<Sql, 'unsafe'>): Promise<Account[]> {
  return await accountsWhere(tx, 'true', [])
}

async function accountsWhere(tx: Pick<Sql, 'unsafe'>, which: string, values: (number | string)[]): Promise<Account[]> {
  return await tx.unsafe<Account[]>(
    `select accounts.id, email, is_owner as "isOwner", suspended_at as "suspendedAt", accounts.created_at as "createdAt",
       case when is_owner then null else coalesce(max_machines, $1) end as "machinesMost",
       over_limit_at is not null as "isOverLimit",
       coalesce((select plan from account_plans where coalesce(account_id, 0) = accounts.id and effective @> now()),
         case when not is_owner then (select plan from account_plans where account_id is null and effective @> now()) end,
         'house') as plan,
       (select count(*)::int from machines where account_id = accounts.id
          and desired_state not in ('trashed', 'gone') and observed_state <> 'gone') as machines
     from accounts where ${which} order by accounts.id`,
    [DEFAULT_MACHINES_MOST, ...values],
  )
}

export function nameOf({ id, email }: Account): string {
  return email === null ? `account ${id}` : harmless(email)
}

export function standing({ isOwner, suspendedAt, isOverLimit }: Account): string {
  if (isOwner) return 'operator'
  if (suspendedAt) return 'suspended'
  return isOverLimit ? 'over its limit' : ''
}
