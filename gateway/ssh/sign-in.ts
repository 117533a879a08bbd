import type { Sql } from '../../migrations/connect.ts'
import { LOBBY_NAMES } from '../accounts/names.ts'
import type { Caller } from '../app.ts'
import { askAgain } from '../fault.ts'

/** What one query at sign-in tells about a key and the name that was typed. */
export type SignIn = {
  keyId: number
  fingerprint: string
  accountId: number
  isOwner: boolean
  suspended: boolean
  /** the machine of that name, when this account may reach it */
  machineId: number | null
  /** the name is recorded for this account */
  recorded: boolean
}

/** The user name of an SSH connection, taken apart: `user+name` names a login user of the machine. */
export type TypedName = { machineName: string; guestUser: string | undefined }

/** Login users that useradd would take; anything else could only be a slip or an attempt at something. */
const GUEST_USER = /^[a-z_][a-z0-9_.-]{0,31}$/i

function parseTypedName(typed: string): TypedName {
  const plus = typed.lastIndexOf('+')
  if (plus <= 0) return { machineName: typed, guestUser: undefined }
  const guestUser = typed.slice(0, plus)
  const machineName = typed.slice(plus + 1)
  return GUEST_USER.test(guestUser) ? { machineName, guestUser } : { machineName: typed, guestUser: undefined }
}

/**
 * Who a key belongs to and where the typed name leads, in one round trip.
 * Indexes: keys_public_key_key, accounts_pkey, machine_names_pkey, machines_pkey, lobby_names_pkey.
 * @param blob the key's wire form
 * @returns undefined for a key that no account has
 */
export async function lookUp(sql: Sql, blob: Buffer, typed: string): Promise<SignIn | undefined> {
  const { machineName } = parseTypedName(typed)
  const ask = () => sql<SignIn[]>`
    select k.id as "keyId", k.fingerprint, k.account_id as "accountId", a.is_owner as "isOwner",
      a.suspended_at is not null as suspended,
      (select m.id from machine_names n join machines m on m.id = n.machine_id
        where n.name = ${machineName} and m.account_id = k.account_id and m.observed_state <> 'gone') as "machineId",
      exists (select from lobby_names l where l.name = ${typed} and l.account_id = k.account_id) as recorded
    from keys k join accounts a on a.id = k.account_id where k.public_key = ${blob}`
  return (await askAgain(ask))[0]
}

/** Where a connection leads once its key is known. */
export type Route =
  | { to: 'machine'; machineId: number; machineName: string; guestUser: string | undefined }
  | { to: 'lobby' }
  /** a name that is nothing: the lobby on a terminal, an error without */
  | { to: 'unknown'; name: string }
  | { to: 'suspended' }

export function routeOf(signIn: SignIn, typed: string): Route {
  if (signIn.suspended) return { to: 'suspended' }
  if (signIn.machineId !== null) {
    return { to: 'machine', machineId: signIn.machineId, ...parseTypedName(typed) }
  }
  if (signIn.recorded || LOBBY_NAMES.some((name) => name === typed)) return { to: 'lobby' }
  return { to: 'unknown', name: parseTypedName(typed).machineName }
}

/** @param address IP address of the client */
export function callerOf({ accountId, isOwner, keyId, fingerprint }: SignIn, typed: string, address: string): Caller {
  return { accountId, isOwner, keyId, fingerprint, address, via: 'ssh', sshName: typed }
}
