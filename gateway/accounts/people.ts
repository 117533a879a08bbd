import type { Sql } from '../../migrations/connect.ts'
import { hashCode } from './invitations.ts'
import { insertKey, KeyError, MAX_KEYS } from './keys.ts'
import { recordName } from './names.ts'
import type { PublicKey } from './public-key.ts'

export class SignUpError extends Error {
  override readonly name = 'SignUpError'
  readonly code: 'signup.code' | 'signup.email' | 'signup.key' | 'signup.closed'

  constructor(code: SignUpError['code'], message: string) {
    super(message)
    this.code = code
  }
}

export type SignUp = {
  key: PublicKey
  /** the join code; undefined only where sign-up is open */
  code?: string
  email?: string
  /** a mailed code proved the address; without, it is only what was typed */
  emailProved?: boolean
  /** the SSH user name that was typed; it is recorded */
  sshName: string
  /** IP address, for the record */
  address: string
}

/** Two processes that see an empty installation at once agree by this lock who makes the owner. */
const OWNER_LOCK = 'berth.owner'

/**
 * Makes an account with its first key, and uses up the invitation, in one transaction: a code for one use makes one
 * account however many people type it at the same moment.
 * @throws SignUpError
 */
export async function signUp(sql: Sql, request: SignUp): Promise<{ accountId: number; isOwner: boolean }> {
  try {
    const made = await sql.begin(async (tx) => {
      let isOwner = false
      if (request.code !== undefined) {
        const used = await tx<{ makes_owner: boolean }[]>`
          update invitations set uses_left = uses_left - 1
          where code_hash = ${hashCode(request.code)} and uses_left > 0 and expires_at > now() returning makes_owner`
        if (!used[0]) throw new SignUpError('signup.code', 'that join code is not known, used up or too old')
        isOwner = used[0].makes_owner
      }
      await tx`select pg_advisory_xact_lock(hashtextextended(${OWNER_LOCK}, 0))`
      const hasOwner = (await tx`select from accounts where is_owner limit 1`).length > 0
      if (isOwner && hasOwner) throw new SignUpError('signup.code', 'that join code is not known, used up or too old')
      if (!isOwner && !hasOwner) {
        throw new SignUpError(
          'signup.closed',
          'nobody owns this installation yet; use the join code that its start printed',
        )
      }
      const accounts = await tx<{ id: number }[]>`
        insert into accounts (email, is_owner, email_proved_at)
        values (${request.email?.toLowerCase() ?? null}, ${isOwner},
          case when ${request.emailProved === true && request.email !== undefined} then now() end)
        on conflict (email) do nothing returning id`
      const accountId = accounts[0]?.id
      if (accountId === undefined) throw new SignUpError('signup.email', 'that address belongs to another account')
      await insertKey(tx, accountId, { key: request.key, comment: '' })
      await tx`
        insert into events (account_id, actor, address, via, kind, detail) values (${accountId}, ${`account:${accountId}`},
          ${request.address}, 'ssh', 'account.created', ${tx.json({ fingerprint: request.key.fingerprint, isOwner })})`
      return { accountId, isOwner }
    })
    await recordName(sql, made.accountId, request.sshName)
    return made
  } catch (error) {
    if (error instanceof KeyError && error.code === 'key.taken') {
      throw new SignUpError('signup.key', 'this key has an account already; connect again')
    }
    throw error
  }
}

/**
 * The first account, from the keys of whoever starts the installation. Does nothing when there is an account.
 * @param keys the first of them, if they are more than an account may have
 * @param names recorded as leading to the lobby, the starter's own last: the last ones are kept
 * @returns the owner's account, or undefined when there was one already
 */
export async function createOwner(
  sql: Sql,
  keys: { key: PublicKey; comment: string }[],
  names: string[],
): Promise<number | undefined> {
  // A shared server's authorized_keys may hold hundreds, which must not keep Berth from starting.
  const first = keys.slice(0, MAX_KEYS)
  const accountId = await sql.begin(async (tx) => {
    await tx`select pg_advisory_xact_lock(hashtextextended(${OWNER_LOCK}, 0))`
    if ((await tx`select from accounts limit 1`).length > 0) return undefined
    const accounts = await tx<{ id: number }[]>`insert into accounts (is_owner) values (true) returning id`
    const id = accounts[0]?.id
    if (id === undefined) return undefined
    for (const line of first) await insertKey(tx, id, line)
    await tx`
      insert into events (account_id, actor, kind, detail)
      values (${id}, 'gateway', 'account.created', ${tx.json({ isOwner: true, keys: first.length })})`
    return id
  })
  if (accountId !== undefined) for (const name of names) await recordName(sql, accountId, name)
  return accountId
}

/** Whether somebody owns the installation already; until then every sign-up needs the first join code. */
export async function hasOwner(sql: Sql): Promise<boolean> {
  return (await sql`select from accounts where is_owner limit 1`).length > 0
}

/** What is certainly no address is refused; whether it is one, only a mail can tell. */
export function isEmail(text: string): boolean {
  return text.length <= 254 && /^[^\s@"(),:;<>[\\\]\p{Cc}\p{Cf}]{1,64}@[a-z0-9-]+(\.[a-z0-9-]+)+$/iu.test(text)
}
