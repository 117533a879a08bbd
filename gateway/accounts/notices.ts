/**
 * What an account is told, such as what its machines are to cost. A notice is
 *
 *   unread   in the lobby's greeting and on the dashboard's pages, whoever of the account comes
 *   read     when somebody says so; `billing notices` still has it
 *
 * and goes out by mail too where the account has an address. Nobody has to have one, and mail may be switched off.
 */
import type { Db } from '../../migrations/connect.ts'

export type Message = { subject: string; body: string }
export type Notice = Message & { id: number; at: Date; readAt: Date | null }

/** The older ones are kept, and shown nowhere. */
const NOTICES_TOLD = 50

/** In the transaction of what they are about. */
export async function tellAccounts(tx: Db, told: readonly (Message & { accountId: number })[]): Promise<void> {
  if (told.length === 0) return
  const rows = told.map(({ accountId, subject, body }) => ({ account_id: accountId, subject, body }))
  await tx`
    with told as (
      insert into notices (account_id, subject, body)
      select * from jsonb_to_recordset(${JSON.stringify(rows)}::text::jsonb) as n(account_id integer, subject text, body text)
      returning account_id, subject, body)
    insert into mails (recipient, subject, body)
    select email, 'Berth: ' || subject, body from told join accounts on accounts.id = account_id where email is not null`
}

/** Newest first. */
export async function readNotices(db: Db, accountId: number): Promise<Notice[]> {
  // Index: notices_by_account.
  return await db<Notice[]>`
    select id, subject, body, at, read_at as "readAt" from notices where account_id = ${accountId}
    order by id desc limit ${NOTICES_TOLD}`
}

export async function countUnread(db: Db, accountId: number): Promise<number> {
  // Index: notices_by_account.
  const [row] = await db<{ count: number }[]>`
    select count(*)::integer as count from notices where account_id = ${accountId} and read_at is null`
  return row?.count ?? 0
}

/** Up to that one, so that none is read that came after those somebody saw. @returns how many were unread */
export async function markRead(db: Db, accountId: number, upTo: number): Promise<number> {
  return (
    await db`
      update notices set read_at = now() where account_id = ${accountId} and id <= ${upTo} and read_at is null`
  ).count
}
