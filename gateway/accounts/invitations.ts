import { createHash, randomInt } from 'node:crypto'
import type { Db, Sql } from '../../migrations/connect.ts'

/** Crockford's base 32: no letter that could be taken for a digit. */
const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz'
/** 16 characters are 80 bits: nobody guesses one, and the database keeps only a hash. */
const GROUPS = 4
const GROUP_LENGTH = 4
const MAX_USES = 1000
const DAY_MS = 86_400_000
const INVITATION_DEFAULTS = { uses: 1, expiresInMs: 7 * DAY_MS } as const
const MAX_EXPIRY_MS = 366 * DAY_MS
const MAX_OPEN_INVITATIONS = 100

export class InvitationError extends Error {
  override readonly name = 'InvitationError'
}

export type Invitation = { id: number; usesLeft: number; expiresAt: Date; createdAt: Date }

export type NewInvitation = {
  /** who invites; null is the installation itself */
  accountId: number | null
  makesOwner?: boolean
  /** default 1 */
  uses?: number
  /** default 7 days */
  expiresInMs?: number
}

/** @returns a join code such as `k7m2-9qpd-x4tz-1abc` */
export function makeCode(): string {
  const group = () => Array.from({ length: GROUP_LENGTH }, () => ALPHABET[randomInt(ALPHABET.length)]).join('')
  return Array.from({ length: GROUPS }, group).join('-')
}

/** A code as typed: capitals, spaces, missing hyphens and the letters taken for digits do not matter. */
function normaliseCode(typed: string): string {
  return typed.toLowerCase().replace(/[\s-]/g, '').replace(/o/g, '0').replace(/[il]/g, '1')
}

export function hashCode(code: string): Buffer {
  return createHash('sha256').update(normaliseCode(code)).digest()
}

/**
 * Makes an invitation.
 * @param code the join code to use; a new one unless given
 * @returns the code, which is kept nowhere: only its hash is
 * @throws InvitationError
 */
export async function createInvitation(
  sql: Db,
  { accountId, makesOwner = false, uses = INVITATION_DEFAULTS.uses, expiresInMs }: NewInvitation,
  code = makeCode(),
): Promise<{ code: string; invitation: Invitation }> {
  const durationMs = expiresInMs ?? INVITATION_DEFAULTS.expiresInMs
  if (!Number.isInteger(uses) || uses < 1 || uses > MAX_USES) {
    throw new InvitationError(`an invitation is for 1 to ${MAX_USES} uses`)
  }
  if (durationMs < 1000 || durationMs > MAX_EXPIRY_MS) {
    throw new InvitationError('an invitation lasts between a second and a year')
  }
  if (accountId !== null && (await listInvitations(sql, accountId)).length >= MAX_OPEN_INVITATIONS) {
    throw new InvitationError(`an account has at most ${MAX_OPEN_INVITATIONS} open invitations`)
  }
  const rows = await sql<Invitation[]>`
    insert into invitations (code_hash, account_id, makes_owner, uses_left, expires_at)
    values (${hashCode(code)}, ${accountId}, ${makesOwner}, ${uses}, now() + ${durationMs} * interval '1 ms')
    on conflict (code_hash) do update set expires_at = excluded.expires_at
    returning id, uses_left as "usesLeft", expires_at as "expiresAt", created_at as "createdAt"`
  const invitation = rows[0]
  if (!invitation) throw new InvitationError('the invitation was not made')
  return { code, invitation }
}

/** Those that can still be used, the newest first. */
export async function listInvitations(sql: Db, accountId: number): Promise<Invitation[]> {
  return await sql<Invitation[]>`
    select id, uses_left as "usesLeft", expires_at as "expiresAt", created_at as "createdAt" from invitations
    where account_id = ${accountId} and uses_left > 0 and expires_at > now() order by id desc`
}

/** @returns whether there was such an invitation of this account */
export async function revokeInvitation(sql: Db, accountId: number, id: number): Promise<boolean> {
  const rows = await sql`delete from invitations where id = ${id} and account_id = ${accountId} returning id`
  return rows.length > 0
}

/** Whether a code would be taken now; `signUp` is what takes it. */
export async function isOpenCode(sql: Sql, code: string): Promise<boolean> {
  const rows = await sql`
    select from invitations where code_hash = ${hashCode(code)} and uses_left > 0 and expires_at > now()`
  return rows.length > 0
}
