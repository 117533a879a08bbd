/**
 * The way of a browser from the control host, where it is signed in, to one machine's host, which has a cookie of its
 * own. It goes by a code that is good once, for a minute, for that host, and only in the browser that set out: the
 * code is bound to a cookie which that browser got there.
 */
import type { Sql } from '../../migrations/connect.ts'
import { sessionMaySee } from './web-access.ts'
import { hashToken, makeToken } from './web-sessions.ts'

const CODE_SECONDS = 60
/** After that the browser goes through the control host again, which nobody notices who is still signed in. */
const SITE_DAYS = 7
/** Of one browser, for all hosts: what a program that signs in again and again leaves behind is bounded. */
const MAX_SITES = 1000

export type SiteTrip = {
  sessionId: number
  machineId: number
  /** `demo.example.com:8443`, as the browser wrote it */
  host: string
  /** path and query to end at */
  path: string
  stateHash: Buffer
}

/** @returns the code, or undefined when the session may not see the machine */
export async function createSiteCode(sql: Sql, trip: SiteTrip): Promise<string | undefined> {
  const code = makeToken()
  await sql`delete from site_codes where expires_at < now()`
  const rows = await sql`
    insert into site_codes (code_hash, session_id, machine_id, host, path, state_hash, expires_at)
    select ${hashToken(code)}, s.id, m.id, ${trip.host}, ${trip.path}, ${trip.stateHash},
      now() + ${CODE_SECONDS} * interval '1 s'
    from web_sessions s left join accounts a on a.id = s.account_id
      join machines m on m.id = ${trip.machineId} join accounts o on o.id = m.account_id
    where s.id = ${trip.sessionId} and s.expires_at > now() and ${sessionMaySee(sql)}
    returning machine_id`
  return rows.length > 0 ? code : undefined
}

/**
 * Uses a code up.
 * @param trip.cookieHost where the cookie will be good: the host without its port
 * @returns the cookie's value and where to go, or undefined when any of it does not fit
 */
export async function takeSiteCode(
  sql: Sql,
  trip: { code: string; machineId: number; host: string; cookieHost: string; state: string },
): Promise<{ token: string; path: string } | undefined> {
  const { code, machineId, host, cookieHost, state } = trip
  return await sql.begin(async (tx) => {
    const rows = await tx<{ sessionId: number; path: string }[]>`
      delete from site_codes where code_hash = ${hashToken(code)} and machine_id = ${machineId} and host = ${host}
        and state_hash = ${hashToken(state)} and expires_at > now()
      returning session_id as "sessionId", path`
    const taken = rows[0]
    if (!taken) return undefined
    const token = makeToken()
    // Index: site_sessions_by_session.
    await tx`
      delete from site_sessions where id in (
        select id from site_sessions where session_id = ${taken.sessionId} order by id desc offset ${MAX_SITES - 1})`
    await tx`
      insert into site_sessions (token_hash, machine_id, host, session_id, expires_at)
      values (${hashToken(token)}, ${machineId}, ${cookieHost}, ${taken.sessionId}, now() + ${SITE_DAYS} * interval '1 day')`
    return { token, path: taken.path }
  })
}

/** Forgets one machine's cookie. */
export async function endSiteSession(sql: Sql, token: string): Promise<void> {
  await sql`delete from site_sessions where token_hash = ${hashToken(token)}`
}

/** Sign-ins, links and tokens: what lets somebody see a machine's pages, for a time. */
const TIMED = ['site_sessions', 'web_sessions', 'sign_in_links', 'share_links', 'tokens'] as const

/** Removes what is over, or each would stay for ever. Whoever is still connected is looked at again by the news of it. */
export async function sweepAccess(sql: Sql): Promise<void> {
  for (const table of TIMED) {
    // A statement that deletes nothing would be news all the same.
    const [{ over } = { over: false }] = await sql<{ over: boolean }[]>`
      select exists (select from ${sql(table)} where expires_at < now()) as over`
    if (over) await sql`delete from ${sql(table)} where expires_at < now()`
  }
}
