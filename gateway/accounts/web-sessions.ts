/**
 * Browsers that are signed in at the control host. One is signed in as an account (by a link from the lobby, or by a
 * code mailed to the account's proved address), or as the reader of a mailbox that has no account here, who then sees
 * what is shared with that address and nothing else.
 *
 * An address counts as proved only when its reader typed a mailed code or opened a mailed link: one that an account
 * merely typed opens neither that account by mail nor what is shared with the address.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { Db, Sql } from '../../migrations/connect.ts'

export type WebSession = {
  id: number
  accountId: number | null
  isOwner: boolean
  /** addresses whose reader this is, the account's own first */
  emails: string[]
}

/** Who signs in. */
export type WebIdentity = { accountId: number | null; email: string | null }

const SIGN_IN_LINK_MINUTES = 10
/** From the last use. */
const SESSION_DAYS = 30
/** Their use is noted no finer than this. */
const NOTE_MINUTES = 60
const MAX_SESSIONS = 100

/** 256 random bits as a browser or a link carries them. */
export function makeToken(): string {
  return randomBytes(32).toString('base64url')
}

export function hashToken(token: string): Buffer {
  return createHash('sha256').update(token).digest()
}

/** @returns what signs one browser in as the account, once, within ten minutes */
export async function createSignInLink(sql: Sql, accountId: number): Promise<string> {
  const token = makeToken()
  await sql`delete from sign_in_links where expires_at < now()`
  await sql`
    insert into sign_in_links (token_hash, account_id, expires_at)
    values (${hashToken(token)}, ${accountId}, now() + ${SIGN_IN_LINK_MINUTES} * interval '1 minute')`
  return token
}

/** Whom a link would sign in; it stays good. */
export async function peekSignInLink(
  sql: Sql,
  token: string,
): Promise<{ accountId: number; email: string | null } | undefined> {
  const rows = await sql<{ accountId: number; email: string | null }[]>`
    select a.id as "accountId", a.email from sign_in_links l join accounts a on a.id = l.account_id
    where l.token_hash = ${hashToken(token)} and l.expires_at > now() and a.suspended_at is null`
  return rows[0]
}

/** @returns the session's token, or undefined when the link is used or too old */
export async function takeSignInLink(sql: Sql, token: string, address: string): Promise<string | undefined> {
  return await sql.begin(async (tx) => {
    const rows = await tx<{ accountId: number }[]>`
      delete from sign_in_links l using accounts a
      where l.token_hash = ${hashToken(token)} and l.expires_at > now() and a.id = l.account_id
        and a.suspended_at is null returning a.id as "accountId"`
    const link = rows[0]
    if (!link) return undefined
    return await insertSession(tx as unknown as Sql, { accountId: link.accountId, email: null }, address)
  })
}

/**
 * Whom the reader of a mailbox is signed in as. An account counts when its address was proved before, or is the
 * owner's: anybody else could have typed a stranger's address, and would get a reader who believes to be at home.
 * @returns undefined when nobody here has the address and nothing is shared with it
 */
export async function identityOfReader(sql: Sql, email: string): Promise<WebIdentity | undefined> {
  // Indexes: accounts_email_key, shares_by_email.
  // Both whatever comes of the first: how long it takes is to tell nothing.
  const [[account], shared] = await Promise.all([
    sql<{ id: number; suspended: boolean }[]>`
    select id, suspended_at is not null as suspended from accounts
    where email = ${email} and (email_proved_at is not null or is_owner)`,
    sql`select from shares where email = ${email} limit 1`,
  ])
  if (account?.suspended) return undefined
  if (account) return { accountId: account.id, email }
  return shared.length > 0 ? { accountId: null, email } : undefined
}

/** Signs a browser in whose person has just proved the address. @returns the session's token */
export async function createSession(sql: Sql, who: WebIdentity, address: string): Promise<string> {
  return await sql.begin(async (tx) => {
    if (who.accountId !== null && who.email !== null) {
      await tx`
        update accounts set email_proved_at = now()
        where id = ${who.accountId} and email = ${who.email} and email_proved_at is null`
    }
    return await insertSession(tx as unknown as Sql, who, address)
  })
}

async function insertSession(sql: Sql, { accountId, email }: WebIdentity, address: string): Promise<string> {
  const token = makeToken()
  await sql`delete from web_sessions where expires_at < now()`
  // The oldest go, so that a program that signs in again and again fills nothing.
  await sql`
    delete from web_sessions where id in (
      select id from web_sessions where account_id is not distinct from ${accountId}
        and (${accountId}::int is not null or email = ${email})
      order by last_used_at desc offset ${MAX_SESSIONS - 1})`
  await sql`
    insert into web_sessions (token_hash, account_id, email, address, expires_at)
    values (${hashToken(token)}, ${accountId}, ${email}, ${address}, now() + ${SESSION_DAYS} * interval '1 day')`
  if (accountId !== null) {
    await sql`
      insert into events (account_id, actor, address, via, kind)
      values (${accountId}, ${`account:${accountId}`}, ${address}, 'web', 'browser.signed_in')`
  }
  return token
}

/** Who a browser is; its use makes the session last longer. A suspended account is nobody. */
export async function findSession(sql: Sql, token: string): Promise<WebSession | undefined> {
  type Row = {
    id: number
    accountId: number | null
    isOwner: boolean | null
    email: string | null
    accountEmail: string | null
    idle: boolean
  }
  const rows = await sql<Row[]>`
    select s.id, s.account_id as "accountId", a.is_owner as "isOwner", s.email,
      case when a.email_proved_at is not null then a.email end as "accountEmail",
      s.last_used_at < now() - ${NOTE_MINUTES} * interval '1 minute' as idle
    from web_sessions s left join accounts a on a.id = s.account_id
    where s.token_hash = ${hashToken(token)} and s.expires_at > now() and a.suspended_at is null`
  const row = rows[0]
  if (!row) return undefined
  if (row.idle) {
    await sql`
      update web_sessions set last_used_at = now(), expires_at = now() + ${SESSION_DAYS} * interval '1 day'
      where id = ${row.id}`
  }
  const emails = [row.accountEmail, row.email].filter((email) => email !== null)
  return { id: row.id, accountId: row.accountId, isOwner: row.isOwner === true, emails: [...new Set(emails)] }
}

/** A browser that is signed in as an account. */
export type SignedIn = { id: number; address: string; createdAt: Date; lastUsedAt: Date; expiresAt: Date }

/** The one that was used last first; uses are known to the hour. Index: web_sessions_by_account. */
export async function listSessions(sql: Sql, accountId: number): Promise<SignedIn[]> {
  return await sql<SignedIn[]>`
    select id, address, created_at as "createdAt", last_used_at as "lastUsedAt", expires_at as "expiresAt"
    from web_sessions where account_id = ${accountId} and expires_at > now() order by last_used_at desc, id desc`
}

/** How many browsers are signed in as the same person, this one too. Index: web_sessions_by_account. */
export async function countSessions(sql: Sql, { accountId, emails }: WebSession): Promise<number> {
  const isTheirs =
    accountId === null ? sql`account_id is null and email = any(${emails})` : sql`account_id = ${accountId}`
  const [row] = await sql<{ count: number }[]>`
    select count(*)::int as count from web_sessions where ${isTheirs} and expires_at > now()`
  return row?.count ?? 0
}

/** Signs one browser of an account out. @returns whether there was such a one */
export async function endSessionOf(sql: Db, accountId: number, sessionId: number): Promise<boolean> {
  const rows = await sql`delete from web_sessions where id = ${sessionId} and account_id = ${accountId} returning id`
  return rows.length > 0
}

/** Signs the browser out, on every machine's host too. */
export async function endSession(sql: Db, sessionId: number): Promise<void> {
  await sql`delete from web_sessions where id = ${sessionId}`
}

/** Signs every browser of an account out. @returns how many there were */
export async function endAllSessions(sql: Db, accountId: number): Promise<number> {
  const rows = await sql`delete from web_sessions where account_id = ${accountId} returning id`
  return rows.length
}

/** The same for the reader of a mailbox who has no account. */
export async function endAllSessionsOfReader(sql: Sql, email: string): Promise<number> {
  const rows = await sql`delete from web_sessions where account_id is null and email = ${email} returning id`
  return rows.length
}
