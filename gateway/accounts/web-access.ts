/** Who may see a machine's pages, as SQL: one truth for the first look, for every later one and for lists. */
import type { PendingQuery, Row } from 'postgres'
import type { Sql } from '../../migrations/connect.ts'

type Fragment = PendingQuery<Row[]>

/**
 * A condition for a query that has the machine as `m` and its account as `o`.
 * @param who expressions of the visitor's account, of the address their session proved, and of the account's row,
 *   joined under that alias; the account may be null, and is then the reader of a mailbox
 */
export function maySee(sql: Sql, who: { accountId: Fragment; email: Fragment; account: Fragment }): Fragment {
  const { accountId, email, account } = who
  return sql`(
    m.observed_state <> 'gone' and o.suspended_at is null and ${account}.suspended_at is null
    and (m.account_id = ${accountId} or exists (
      select from shares h where h.machine_id = m.id and h.accepted_at is not null
        and (h.account_id = ${accountId} or ${addressedTo(sql, { email, account })}))))`
}

/** Whether a share, as `h`, is for an address that the visitor proved. */
export function addressedTo(sql: Sql, { email, account }: { email: Fragment; account: Fragment }): Fragment {
  return sql`(h.email = ${email} or (${account}.email_proved_at is not null and h.email = ${account}.email))`
}

/** `maySee` for the session that is joined as `s`, its account as `a`. */
export function sessionMaySee(sql: Sql): Fragment {
  return maySee(sql, { accountId: sql`s.account_id`, email: sql`s.email`, account: sql`a` })
}

/** An account's address as others may be shown it: one that was merely typed could be anybody's. */
export function provedEmail(sql: Sql, account: Fragment): Fragment {
  return sql`case when ${account}.email_proved_at is not null then ${account}.email end`
}

export type SeenMachine = {
  id: number
  name: string
  isOwn: boolean
  ownerEmail: string | null
  isPublic: boolean
  port: number | null
  state: string
  isStarting: boolean
}

/** The machines whose pages a session may see, its own first. */
export async function machinesOfSession(sql: Sql, sessionId: number): Promise<SeenMachine[]> {
  return await sql<SeenMachine[]>`
    select m.id, n.name, coalesce(m.account_id = s.account_id, false) as "isOwn", ${provedEmail(sql, sql`o`)} as "ownerEmail",
      m.web_public as "isPublic", m.web_port as port, m.observed_state as state,
      m.desired_state = 'running' and (m.observed_state <> 'running' or m.observed_ready_at is null) as "isStarting"
    from web_sessions s left join accounts a on a.id = s.account_id
      cross join machine_names n join machines m on m.id = n.machine_id join accounts o on o.id = m.account_id
    where s.id = ${sessionId} and ${sessionMaySee(sql)}
    order by "isOwn" desc, n.name limit 1000`
}
