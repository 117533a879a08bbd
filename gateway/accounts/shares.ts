/** What a machine's owner shares of its pages: with the reader of a mailbox, or with whoever has a link. */
import type { Db, Sql } from '../../migrations/connect.ts'
import { noteOnMachine, type Tx } from './events.ts'
import { addressedTo, provedEmail } from './web-access.ts'
import { hashToken, makeToken } from './web-sessions.ts'

export type Share = { id: number; email: string; createdAt: Date; acceptedAt: Date | null }
export type ShareLink = {
  id: number
  usesLeft: number | null
  used: number
  createdAt: Date
  expiresAt: Date | null
  /** when it last let a browser in that is still let in */
  lastUsedAt: Date | null
}

/** `message` is a sentence for the person. */
export class ShareError extends Error {
  override readonly name = 'ShareError'
  readonly code: 'share.too_many' | 'share.busy'

  constructor(code: ShareError['code'], message: string) {
    super(message)
    this.code = code
  }
}

const MAX_SHARES = 200
const MAX_LINKS = 100
/** So long a browser is let in by a link that lasts longer; then it opens the link again. */
export const LINK_DAYS = 30
/** Browsers that one link lets in at a time: nobody who has it fills the database. */
const MAX_BROWSERS_OF_LINK = 10_000
/** Mails that an account may have sent to strangers. */
const INVITATIONS_A_DAY = 50
/** Mails that one stranger gets, of one account and of all. */
const INVITATIONS_TO_ONE_A_DAY = 5
const INVITATIONS_FOR_ONE_A_DAY = 20

export async function listShares(sql: Db, machineId: number): Promise<{ shares: Share[]; links: ShareLink[] }> {
  const shares = await sql<Share[]>`
    select id, email, created_at as "createdAt", accepted_at as "acceptedAt" from shares
    where machine_id = ${machineId} order by email`
  const links = await sql<ShareLink[]>`
    select id, uses_left as "usesLeft", used, created_at as "createdAt", expires_at as "expiresAt",
      (select max(i.created_at) from site_sessions i where i.link_id = share_links.id) as "lastUsedAt"
    from share_links where machine_id = ${machineId} and (expires_at is null or expires_at > now()) order by id`
  return { shares, links }
}

/**
 * Shares with an address. Sharing again with one that has not come yet makes a new link and mails it.
 * @param mail what the invitation says, given its token
 * @param onAdded when the share is new, in its transaction
 * @returns whether the share was new
 * @throws ShareError
 */
export async function addShare(
  sql: Sql,
  { machineId, accountId, email }: { machineId: number; accountId: number; email: string },
  mail: (token: string) => { subject: string; body: string },
  onAdded: (tx: Db) => Promise<void> = async () => {},
): Promise<{ added: boolean; accepted: boolean }> {
  return await sql.begin(async (tx) => {
    await tx`select from accounts where id = ${accountId} for update`
    await tx`select pg_advisory_xact_lock(hashtextextended(${`berth.invitation.${email}`}, 0))`
    // Of mails, not of shares, which can be removed. Indexes: mails_by_inviter, mails_by_invited.
    const [counts] = await tx<{ all: number; sent: number; toOne: number; forOne: number }[]>`
      select (select count(*) from shares where machine_id = ${machineId})::int as all,
        (select count(*) from mails where invited_by = ${accountId} and created_at > now() - interval '1 day')::int as sent,
        (select count(*) from mails where invited_by = ${accountId} and recipient = ${email}
          and created_at > now() - interval '1 day')::int as "toOne",
        (select count(*) from mails where invited_by is not null and recipient = ${email}
          and created_at > now() - interval '1 day')::int as "forOne"`
    const [known] = await tx<{ accepted: boolean }[]>`
      select accepted_at is not null as accepted from shares where machine_id = ${machineId} and email = ${email}`
    if (known?.accepted) return { added: false, accepted: true }
    if (!known && (counts?.all ?? 0) >= MAX_SHARES) {
      throw new ShareError('share.too_many', `a machine is shared with at most ${MAX_SHARES} addresses`)
    }
    if ((counts?.sent ?? 0) >= INVITATIONS_A_DAY) {
      throw new ShareError('share.busy', `an account sends at most ${INVITATIONS_A_DAY} invitations a day`)
    }
    if ((counts?.toOne ?? 0) >= INVITATIONS_TO_ONE_A_DAY || (counts?.forOne ?? 0) >= INVITATIONS_FOR_ONE_A_DAY) {
      throw new ShareError('share.busy', `${email} was sent enough invitations for a day`)
    }
    const token = makeToken()
    await tx`
      insert into shares (machine_id, email, token_hash) values (${machineId}, ${email}, ${hashToken(token)})
      on conflict (machine_id, email) do update set token_hash = excluded.token_hash, created_at = now()`
    const { subject, body } = mail(token)
    await tx`
      insert into mails (recipient, subject, body, invited_by) values (${email}, ${subject}, ${body}, ${accountId})`
    if (!known) await onAdded(tx)
    return { added: !known, accepted: false }
  })
}

/** @returns whether there was one; whoever came by it is cut off within a second */
export async function removeShare(sql: Db, machineId: number, email: string): Promise<boolean> {
  const rows = await sql`delete from shares where machine_id = ${machineId} and email = ${email} returning id`
  return rows.length > 0
}

export type Invitation = { shareId: number; machineName: string; email: string; ownerEmail: string | null }

/** What an invitation's link is for. It stays good while the share is there, for the mailbox is what it proves. */
export async function findInvitation(sql: Sql, token: string): Promise<Invitation | undefined> {
  const rows = await sql<Invitation[]>`
    select h.id as "shareId", n.name as "machineName", h.email, ${provedEmail(sql, sql`o`)} as "ownerEmail"
    from shares h join machine_names n on n.machine_id = h.machine_id join machines m on m.id = h.machine_id
      join accounts o on o.id = m.account_id
    where h.token_hash = ${hashToken(token)} and h.accepted_at is null and o.suspended_at is null`
  return rows[0]
}

/** What is shared with a session's person who has not said yes to it. */
export async function listPending(sql: Sql, sessionId: number, machineId?: number): Promise<Invitation[]> {
  return await sql<Invitation[]>`
    select h.id as "shareId", n.name as "machineName", h.email, ${provedEmail(sql, sql`o`)} as "ownerEmail"
    from web_sessions s left join accounts a on a.id = s.account_id cross join shares h
      join machine_names n on n.machine_id = h.machine_id join machines m on m.id = h.machine_id
      join accounts o on o.id = m.account_id
    where s.id = ${sessionId} and h.accepted_at is null and o.suspended_at is null
      and ${addressedTo(sql, { email: sql`s.email`, account: sql`a` })}
      ${machineId === undefined ? sql`` : sql`and m.id = ${machineId}`}
    order by h.id desc limit 100`
}

/** Says yes to one of those, as the session's account where it has one. @returns whether there was such a share */
export async function acceptPending(sql: Sql, sessionId: number, shareId: number, address: string): Promise<boolean> {
  return await sql.begin(async (tx) => {
    const rows = await tx<Accepted[]>`
      update shares h set accepted_at = now(), account_id = s.account_id
      from web_sessions s left join accounts a on a.id = s.account_id
      where s.id = ${sessionId} and h.id = ${shareId} and h.accepted_at is null
        and ${addressedTo(sql, { email: sql`s.email`, account: sql`a` })}
      returning h.machine_id as "machineId", h.email, h.account_id as "accountId"`
    return await noteAccepted(tx, rows[0], address)
  })
}

/** Accepts as an account, which sees the machine from then on, or as the reader of the mailbox alone. */
export async function acceptInvitation(
  sql: Sql,
  token: string,
  accountId: number | null,
  address: string,
): Promise<boolean> {
  return await sql.begin(async (tx) => {
    const rows = await tx<Accepted[]>`
      update shares set accepted_at = now(), account_id = ${accountId}
      where token_hash = ${hashToken(token)} and accepted_at is null
      returning machine_id as "machineId", email, account_id as "accountId"`
    return await noteAccepted(tx, rows[0], address)
  })
}

type Accepted = { machineId: number; email: string; accountId: number | null }

/** In the record of the machine's owner. @returns whether there was anything to accept */
async function noteAccepted(tx: Tx, accepted: Accepted | undefined, address: string): Promise<boolean> {
  if (!accepted) return false
  const { machineId, email, accountId } = accepted
  const actor = accountId === null ? `reader:${email}` : `account:${accountId}`
  await noteOnMachine(tx, machineId, { actor, address, via: 'web', kind: 'share.accepted', detail: { email } })
  return true
}

/**
 * @param uses browsers that it lets in; any number unless given
 * @param expiresInMs after that the link and everybody's access by it are over; never unless given
 * @throws ShareError
 */
export async function addLink(
  sql: Db,
  { machineId, uses, expiresInMs }: { machineId: number; uses?: number | undefined; expiresInMs?: number | undefined },
): Promise<{ token: string; link: ShareLink }> {
  if ((await listShares(sql, machineId)).links.length >= MAX_LINKS) {
    throw new ShareError('share.too_many', `a machine has at most ${MAX_LINKS} links`)
  }
  const token = makeToken()
  const [link] = await sql<ShareLink[]>`
    insert into share_links (machine_id, token_hash, uses_left, expires_at)
    values (${machineId}, ${hashToken(token)}, ${uses ?? null}, now() + ${expiresInMs ?? null} * interval '1 ms')
    returning id, uses_left as "usesLeft", used, created_at as "createdAt", expires_at as "expiresAt",
      null as "lastUsedAt"`
  if (!link) throw new ShareError('share.too_many', 'the link was not made')
  return { token, link }
}

/** @returns whether there was one; whoever came by it is cut off within a second */
export async function removeLink(sql: Db, machineId: number, id: number): Promise<boolean> {
  const rows = await sql`delete from share_links where machine_id = ${machineId} and id = ${id} returning id`
  return rows.length > 0
}

/** Whether a link would let a browser in now; it is not used up. */
export async function isOpenLink(sql: Sql, machineId: number, token: string): Promise<boolean> {
  const rows = await sql`
    select from share_links where token_hash = ${hashToken(token)} and machine_id = ${machineId}
      and (uses_left is null or uses_left > 0) and (expires_at is null or expires_at > now())`
  return rows.length > 0
}

/** Whether a browser was let in by this very link, and is still. @param who.cookie of the browser at that host */
export async function isInByLink(
  sql: Sql,
  { machineId, host, token, cookie }: { machineId: number; host: string; token: string; cookie: string },
): Promise<boolean> {
  // Index: site_sessions_token_hash_key.
  const rows = await sql`
    select from site_sessions i join share_links l on l.id = i.link_id
    where i.token_hash = ${hashToken(cookie)} and i.machine_id = ${machineId} and i.host = ${host} and i.expires_at > now()
      and l.token_hash = ${hashToken(token)} and l.machine_id = ${machineId}
      and (l.expires_at is null or l.expires_at > now())`
  return rows.length > 0
}

/**
 * Lets one browser in.
 * @param host where the cookie will be good, without a port
 * @returns its cookie and when that ends, or undefined when the link is used up or over
 */
export async function takeLink(
  sql: Sql,
  { machineId, host, token, address }: { machineId: number; host: string; token: string; address: string },
): Promise<{ token: string; expiresAt: Date } | undefined> {
  return await sql.begin(async (tx) => {
    // Index: site_sessions_by_link.
    const rows = await tx<{ id: number }[]>`
      update share_links set uses_left = uses_left - 1, used = used + 1
      where token_hash = ${hashToken(token)} and machine_id = ${machineId}
        and (uses_left is null or uses_left > 0) and (expires_at is null or expires_at > now())
        and (select count(*) from site_sessions i where i.link_id = share_links.id and i.expires_at > now())
          < ${MAX_BROWSERS_OF_LINK}
      returning id`
    const link = rows[0]
    if (!link) return undefined
    const cookie = makeToken()
    const [session] = await tx<{ expiresAt: Date }[]>`
      insert into site_sessions (token_hash, machine_id, host, link_id, expires_at)
      select ${hashToken(cookie)}, ${machineId}, ${host}, id, least(expires_at, now() + ${LINK_DAYS} * interval '1 day') from share_links
      where id = ${link.id} returning expires_at as "expiresAt"`
    const detail = { id: link.id, host }
    await noteOnMachine(tx, machineId, { actor: 'visitor', address, via: 'web', kind: 'share.link_used', detail })
    return session && { token: cookie, expiresAt: session.expiresAt }
  })
}
