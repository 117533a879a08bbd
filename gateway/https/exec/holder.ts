/** Whose a token is, at the control host: there it runs commands, and at machines' hosts (access/grants.ts) it opens pages. */
import type { Sql } from '../../../migrations/connect.ts'
import { findSession, hashToken } from '../../accounts/web-sessions.ts'
import type { Caller } from '../../app.ts'
import { OFFLINE_PREFIX, OfflineTokenError, parseOfflineToken } from '../access/offline-token.ts'

export type Holder = {
  caller: Caller
  isSuspended: boolean
  /** the control host's own pages ask, by the cookie of whoever is signed in */
  isBrowser: boolean
  /** the row behind it: `token:<id>`, `session:<id>`, or `key:<id>:<Unix ms>` of a token that no row says the end of */
  grant: string
  /** Unix milliseconds */
  endsAtMs: number
}

/**
 * @param host the control host: a token that was minted offline must be for `v0@<host>`
 * @param address IP address of the client
 * @returns undefined for a token that is not, or no longer, good here
 */
export async function findHolder(
  sql: Sql,
  { token, host, address }: { token: string; host: string; address: string },
): Promise<Holder | undefined> {
  return token.startsWith(OFFLINE_PREFIX)
    ? await findOffline(sql, token, host, address)
    : await findStored(sql, token, address)
}

/**
 * Who is signed in at the control host in a browser: may do there what the account's key may do in the lobby.
 * @returns undefined for a session that is over, and for the reader of a mailbox, who has no account
 */
export async function holderOfSession(sql: Sql, cookie: string, address: string): Promise<Holder | undefined> {
  const session = await findSession(sql, cookie)
  if (!session || session.accountId === null) return undefined
  const { id, accountId, isOwner } = session
  return {
    grant: `session:${id}`,
    // Each use puts its end off.
    endsAtMs: Number.POSITIVE_INFINITY,
    isSuspended: false,
    isBrowser: true,
    caller: { accountId, isOwner, keyId: null, fingerprint: '', address, via: 'web', sshName: '', sessionId: id },
  }
}

async function findStored(sql: Sql, token: string, address: string): Promise<Holder | undefined> {
  type Row = {
    id: number
    accountId: number
    isOwner: boolean
    isSuspended: boolean
    machineId: number | null
    tag: string | null
    commands: string[] | null
    expiresAt: Date
    isStale: boolean
  }
  // Index: tokens_token_hash_key.
  const [row] = await sql<Row[]>`
    select t.id, t.account_id as "accountId", a.is_owner as "isOwner", a.suspended_at is not null as "isSuspended",
      t.machine_id as "machineId", t.tag, t.commands, t.expires_at as "expiresAt",
      t.last_used_at is null or t.last_used_at < now() - interval '1 minute' as "isStale"
    from tokens t join accounts a on a.id = t.account_id
    where t.token_hash = ${hashToken(token)} and t.expires_at > now()`
  if (!row) return undefined
  if (row.isStale) await sql`update tokens set last_used_at = now() where id = ${row.id}`
  return {
    grant: `token:${row.id}`,
    endsAtMs: row.expiresAt.getTime(),
    isSuspended: row.isSuspended,
    isBrowser: false,
    caller: {
      accountId: row.accountId,
      isOwner: row.isOwner,
      keyId: null,
      fingerprint: '',
      address,
      via: 'exec',
      sshName: '',
      scope: {
        tokenId: row.id,
        expiresAtMs: row.expiresAt.getTime(),
        commands: row.commands ?? undefined,
        machineId: row.machineId ?? undefined,
        tag: row.tag ?? undefined,
      },
    },
  }
}

async function findOffline(sql: Sql, token: string, host: string, address: string): Promise<Holder | undefined> {
  try {
    const unchecked = parseOfflineToken(token)
    if (unchecked.namespace !== `v0@${host}`) return undefined
    type Row = { keyId: number; fingerprint: string; accountId: number; isOwner: boolean; isSuspended: boolean }
    const [row] = await sql<Row[]>`
      select k.id as "keyId", k.fingerprint, a.id as "accountId", a.is_owner as "isOwner",
        a.suspended_at is not null as "isSuspended"
      from keys k join accounts a on a.id = k.account_id where k.public_key = ${unchecked.publicKey}`
    if (!row) return undefined
    const { expiresAtMs, commands } = unchecked.verify()
    const { keyId, fingerprint, accountId, isOwner, isSuspended } = row
    return {
      grant: `key:${keyId}:${expiresAtMs}`,
      endsAtMs: expiresAtMs,
      isSuspended,
      isBrowser: false,
      caller: {
        accountId,
        isOwner,
        keyId,
        fingerprint,
        address,
        via: 'exec',
        sshName: '',
        scope: { tokenId: undefined, expiresAtMs, commands, machineId: undefined, tag: undefined },
      },
    }
  } catch (error) {
    if (error instanceof OfflineTokenError) return undefined
    throw error
  }
}

/** Which of these still let somebody in. */
export async function goodGrants(sql: Sql, grants: readonly string[]): Promise<Set<string>> {
  const ids = (kind: string) =>
    grants.flatMap((grant) => (grant.startsWith(`${kind}:`) ? [Number(grant.split(':')[1])] : []))
  const rows = await sql<{ key: string }[]>`
    select 'token:' || t.id as key from tokens t join accounts a on a.id = t.account_id
    where t.id = any(${ids('token')}::int[]) and t.expires_at > now() and a.suspended_at is null
    union all
    select 'session:' || s.id from web_sessions s join accounts a on a.id = s.account_id
    where s.id = any(${ids('session')}::int[]) and s.expires_at > now() and a.suspended_at is null
    union all
    select 'key:' || k.id from keys k join accounts a on a.id = k.account_id
    where k.id = any(${ids('key')}::int[]) and a.suspended_at is null`
  const good = new Set(rows.map(({ key }) => key))
  const nowMs = Date.now()
  return new Set(
    grants.filter((grant) => {
      const [kind, id, untilMs] = grant.split(':')
      return good.has(`${kind}:${id}`) && (untilMs === undefined || Number(untilMs) > nowMs)
    }),
  )
}
