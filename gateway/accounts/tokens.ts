/** Short tokens that programs show, revocable: `exe1.` and 26 characters of base 32. Only their hash is kept. */
import { randomBytes } from 'node:crypto'
import type { Db, Sql } from '../../migrations/connect.ts'
import { hashToken } from './web-sessions.ts'

export const TOKEN_PREFIX = 'exe1.'
const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz'
const LENGTH = 26
const MAX_TOKENS = 200

export type Token = {
  id: number
  label: string
  machineName: string | null
  tag: string | null
  /** lobby commands it may run; null: none were named */
  commands: string[] | null
  createdAt: Date
  lastUsedAt: Date | null
  expiresAt: Date
}

/** `message` is a sentence for the person. */
export class TokenError extends Error {
  override readonly name = 'TokenError'
}

/**
 * @param options.madeBy the token or key that asks, where it was no person: what it makes ends with it
 * @returns the token, which is kept nowhere, and its number
 * @throws TokenError
 */
export async function createToken(
  sql: Db,
  options: {
    accountId: number
    label: string
    machineId?: number | undefined
    tag?: string | undefined
    commands?: readonly string[] | undefined
    expiresInMs: number
    madeBy?: { tokenId: number } | { keyId: number } | undefined
  },
): Promise<{ token: string; id: number; expiresAt: Date }> {
  const token = `${TOKEN_PREFIX}${Array.from(randomBytes(LENGTH), (byte) => ALPHABET[byte & 31]).join('')}`
  const { madeBy, commands } = options
  const rows = await sql<{ id: number; expiresAt: Date }[]>`
    insert into tokens (token_hash, account_id, label, machine_id, tag, commands, made_by_token, made_by_key, expires_at)
    select ${hashToken(token)}, ${options.accountId}, ${options.label}, ${options.machineId ?? null}::int,
      ${options.tag ?? null}::text, ${commands ? [...commands] : null}::text[],
      ${madeBy && 'tokenId' in madeBy ? madeBy.tokenId : null}::int, ${madeBy && 'keyId' in madeBy ? madeBy.keyId : null}::int,
      now() + ${options.expiresInMs} * interval '1 ms'
    where (select count(*) from tokens where account_id = ${options.accountId} and expires_at > now()) < ${MAX_TOKENS}
    returning id, expires_at as "expiresAt"`
  const made = rows[0]
  if (!made) throw new TokenError(`an account has at most ${MAX_TOKENS} tokens`)
  return { token, ...made }
}

/** Those that are still good. */
export async function listTokens(sql: Sql, accountId: number): Promise<Token[]> {
  return await sql<Token[]>`
    select t.id, t.label, m.name as "machineName", t.tag, t.commands, t.created_at as "createdAt", t.last_used_at as "lastUsedAt",
      t.expires_at as "expiresAt"
    from tokens t left join machines m on m.id = t.machine_id
    where t.account_id = ${accountId} and t.expires_at > now() order by t.id`
}

/** @returns whether there was such a token of the account; whoever came by it is cut off within a second */
export async function removeToken(sql: Db, accountId: number, id: number): Promise<boolean> {
  const rows = await sql`delete from tokens where id = ${id} and account_id = ${accountId} returning id`
  return rows.length > 0
}

/** Names of the keys that were added with a token and are still there: they do not end with it. */
export async function keysOfToken(sql: Sql, accountId: number, id: number): Promise<string[]> {
  // Index: events_by_account.
  const rows = await sql<{ name: string }[]>`
    select k.name from keys k where k.account_id = ${accountId} and exists (
      select from events e where e.account_id = ${accountId} and e.actor = ${`token:${id}`} and e.kind = 'key.added'
        and e.detail->>'fingerprint' = k.fingerprint)
    order by k.name`
  return rows.map(({ name }) => name)
}
