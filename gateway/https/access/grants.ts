/**
 * What lets a visitor in: the cookie of a machine's host, or a program's token. Each is looked up once and remembered
 * for a minute; news that something was taken away empties the memory, and everybody who is connected is looked at
 * again. A look-up that was under way when news came is made again, so that nobody is let in by what was just removed.
 *
 * A grant's key names the row behind it: `site:<id>`, `token:<id>`, `key:<id>`, `terminal:<id>` for a sign-in at the
 * control host that has a terminal open, or `public:<port>` for whoever came in because the port was open to all.
 */
import type { Sql } from '../../../migrations/connect.ts'
import { maySee, sessionMaySee } from '../../accounts/web-access.ts'
import { hashToken } from '../../accounts/web-sessions.ts'
import { askAgain } from '../../fault.ts'
import type { Log } from '../../log.ts'
import { DEFAULT_PORT } from '../machines/routes.ts'
import type { Identity } from '../proxy/fields.ts'
import { OFFLINE_PREFIX, OfflineTokenError, parseOfflineToken } from './offline-token.ts'

export type Grant = {
  key: string
  identity: Identity | undefined
  /** Unix milliseconds: until then it is remembered */
  untilMs: number
  /** Unix milliseconds: it is over by itself, and whoever came by it is cut off */
  endsAtMs: number
}

/** A live exchange that was let in: its grant's key and its machine. */
export type LiveGrant = { key: string; machineId: number }

export type GrantsOptions = {
  sql: Sql
  log: Log
  /** what is live now */
  live(): LiveGrant[]
  /** ends what is live by these */
  end(grants: readonly LiveGrant[]): void
}

const REMEMBERED_MOST = 20_000
const REMEMBERED_MS = 60_000
/** News come in bursts, and a person who is signed out everywhere has many cookies. */
const GATHER_MS = 20
const ASKED_AT_ONCE = 5_000
/** After a failed look it is tried again: what was taken away must not live on because Postgres was busy. */
const AGAIN_MS = 500
/** News that come faster than Postgres answers keep nobody out. */
const READS_MOST = 5

export class Grants {
  readonly #options: GrantsOptions
  readonly #remembered = new Map<string, Grant>()
  #generation = 0
  #timer: NodeJS.Timeout | undefined
  #looking = false
  #closed = false

  constructor(options: GrantsOptions) {
    this.#options = options
  }

  /**
   * @param host where it is shown, without a port: a cookie is good where it was got
   * @returns at once where it is remembered; undefined when the cookie does not open this machine there
   */
  byCookie(machineId: number, host: string, cookie: string): Grant | undefined | Promise<Grant | undefined> {
    const id = `c ${machineId} ${host} ${cookie}`
    return this.#recall(id) ?? this.#look(id, () => this.#readCookie(machineId, host, cookie))
  }

  /**
   * @param host the machine's own name, which a token that was minted offline must be for
   * @returns undefined when the token opens this machine not
   */
  byToken(machineId: number, host: string, token: string): Grant | undefined | Promise<Grant | undefined> {
    const id = `t ${machineId} ${host} ${token}`
    return this.#recall(id) ?? this.#look(id, () => this.#readToken(machineId, host, token))
  }

  /** What `byToken` would say without a look-up; undefined where it is not remembered. */
  recallToken(machineId: number, host: string, token: string): Grant | undefined {
    return this.#recall(`t ${machineId} ${host} ${token}`)
  }

  /** Grows with each piece of news: whoever looks up by itself whether somebody is let in compares. */
  get generation(): number {
    return this.#generation
  }

  /** Something was taken away, or may have been: nothing remembered counts, and all that is live is looked at again. */
  changed(): void {
    this.#generation++
    this.#remembered.clear()
    this.#lookAgain()
  }

  #lookAgain(): void {
    if (!this.#closed) this.#timer ??= setTimeout(() => void this.#recheck(), GATHER_MS)
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#timer)
  }

  #recall(id: string): Grant | undefined {
    const grant = this.#remembered.get(id)
    if (!grant) return undefined
    if (Date.now() < grant.untilMs) return grant
    this.#remembered.delete(id)
    return undefined
  }

  async #look(id: string, read: () => Promise<Grant | undefined>): Promise<Grant | undefined> {
    for (let reads = 1; ; reads++) {
      const generation = this.#generation
      const grant = await askAgain(read)
      if (generation !== this.#generation) {
        if (reads < READS_MOST) continue
        // What is let in by this is live at once, and so is seen when all that is live is looked at after this.
        this.#lookAgain()
        return grant
      }
      if (grant) {
        this.#remembered.set(id, grant)
        for (const oldest of this.#remembered.keys()) {
          if (this.#remembered.size <= REMEMBERED_MOST) break
          this.#remembered.delete(oldest)
        }
      }
      return grant
    }
  }

  async #readCookie(machineId: number, host: string, cookie: string): Promise<Grant | undefined> {
    const { sql } = this.#options
    type Row = {
      id: number
      expiresAt: Date
      accountId: number | null
      sessionEmail: string | null
      email: string | null
    }
    // Index: site_sessions_token_hash_key.
    const rows = await sql<Row[]>`
      select i.id, i.expires_at as "expiresAt", s.account_id as "accountId", s.email as "sessionEmail",
        case when a.email_proved_at is not null then a.email end as email
      ${this.#sites} and i.token_hash = ${hashToken(cookie)} and i.machine_id = ${machineId} and i.host = ${host}`
    const row = rows[0]
    if (!row) return undefined
    const email = row.email ?? row.sessionEmail
    return grantOf(`site:${row.id}`, row.expiresAt.getTime(), row.accountId, email)
  }

  async #readToken(machineId: number, host: string, token: string): Promise<Grant | undefined> {
    if (token.startsWith(OFFLINE_PREFIX)) return await this.#readOffline(machineId, host, token)
    const { sql } = this.#options
    type Row = { id: number; expiresAt: Date; accountId: number; email: string | null }
    const rows = await sql<Row[]>`
      select t.id, t.expires_at as "expiresAt", a.id as "accountId",
        case when a.email_proved_at is not null then a.email end as email
      ${this.#tokens} and t.token_hash = ${hashToken(token)} and m.id = ${machineId}`
    const row = rows[0]
    if (!row) return undefined
    await sql`
      update tokens set last_used_at = now()
      where id = ${row.id} and (last_used_at is null or last_used_at < now() - interval '1 minute')`
    return grantOf(`token:${row.id}`, row.expiresAt.getTime(), row.accountId, row.email)
  }

  async #readOffline(machineId: number, host: string, token: string): Promise<Grant | undefined> {
    try {
      const unchecked = parseOfflineToken(token)
      if (unchecked.namespace !== `v0@${host}`) return undefined
      const { sql } = this.#options
      const rows = await sql<{ keyId: number; accountId: number; email: string | null }[]>`
        select k.id as "keyId", a.id as "accountId", case when a.email_proved_at is not null then a.email end as email
        ${this.#keys} and k.public_key = ${unchecked.publicKey} and m.id = ${machineId}`
      const row = rows[0]
      if (!row) return undefined
      // Only now: a signature costs the event loop more than the look-up, and anybody can send one.
      const { expiresAtMs, context } = unchecked.verify()
      return grantOf(`key:${row.keyId}:${expiresAtMs}`, expiresAtMs, row.accountId, row.email, context)
    } catch (error) {
      if (error instanceof OfflineTokenError) return undefined
      throw error
    }
  }

  /** Cookies that are good, as `i`, with their machine `m`. */
  get #sites() {
    const { sql } = this.#options
    return sql`
      from site_sessions i join machines m on m.id = i.machine_id join accounts o on o.id = m.account_id
        left join web_sessions s on s.id = i.session_id left join accounts a on a.id = s.account_id
        left join share_links l on l.id = i.link_id
      where i.expires_at > now() and (
        (s.id is not null and s.expires_at > now() and ${sessionMaySee(sql)})
        or (l.id is not null and l.machine_id = m.id and (l.expires_at is null or l.expires_at > now())
          and m.observed_state <> 'gone' and o.suspended_at is null))`
  }

  /** Tokens that are good, as `t`, with each machine `m` that they open. */
  get #tokens() {
    const { sql } = this.#options
    const seen = maySee(sql, { accountId: sql`a.id`, email: sql`null::text`, account: sql`a` })
    return sql`
      from tokens t join accounts a on a.id = t.account_id cross join machines m join accounts o on o.id = m.account_id
      where t.expires_at > now() and (t.machine_id is null or t.machine_id = m.id)
        and (t.tag is null or (t.tag = any(m.tags) and m.account_id = a.id)) and ${seen}`
  }

  /** SSH keys, as `k`, with each machine `m` whose pages a token of theirs may open. */
  get #keys() {
    const { sql } = this.#options
    const seen = maySee(sql, { accountId: sql`a.id`, email: sql`null::text`, account: sql`a` })
    return sql`
      from keys k join accounts a on a.id = k.account_id cross join machines m join accounts o on o.id = m.account_id
      where ${seen}`
  }

  async #recheck(): Promise<void> {
    if (this.#looking) {
      this.#timer = setTimeout(() => void this.#recheck(), GATHER_MS)
      return
    }
    this.#timer = undefined
    this.#looking = true
    try {
      const live = new Map(this.#options.live().map((grant) => [`${grant.key} ${grant.machineId}`, grant]))
      const all = [...live.values()]
      for (let from = 0; from < all.length; from += ASKED_AT_ONCE) {
        const part = all.slice(from, from + ASKED_AT_ONCE)
        const good = await this.#good(part)
        const over = part.filter(({ key, machineId }) => !good.has(`${key} ${machineId}`))
        if (over.length > 0) this.#options.end(over)
      }
    } catch (error) {
      this.#options.log.warn({ err: error }, 'could not check live visits against their grants')
      if (!this.#closed) this.#timer ??= setTimeout(() => void this.#recheck(), AGAIN_MS)
    } finally {
      this.#looking = false
    }
  }

  /** Which of these would still be let in. */
  async #good(grants: readonly LiveGrant[]): Promise<Set<string>> {
    const { sql } = this.#options
    const machineIds = [...new Set(grants.map(({ machineId }) => machineId))]
    const ids = (kind: string) => [
      ...new Set(grants.flatMap(({ key }) => (key.startsWith(`${kind}:`) ? [Number(key.split(':')[1])] : []))),
    ]
    type Row = { kind: string; id: number; machineId: number }
    const rows = await sql<Row[]>`
      select 'site' as kind, i.id, m.id as "machineId" ${this.#sites} and i.id = any(${ids('site')}::int[])
      union all
      select 'token', t.id, m.id ${this.#tokens} and t.id = any(${ids('token')}::int[]) and m.id = any(${machineIds}::int[])
      union all
      select 'key', k.id, m.id ${this.#keys} and k.id = any(${ids('key')}::int[]) and m.id = any(${machineIds}::int[])
      union all
      select 'terminal', s.id, m.id from web_sessions s join accounts a on a.id = s.account_id
        join machines m on m.account_id = a.id
      where s.expires_at > now() and a.suspended_at is null and m.observed_state <> 'gone'
        and s.id = any(${ids('terminal')}::int[]) and m.id = any(${machineIds}::int[])
      union all
      select 'public', coalesce(m.web_port, m.observed_web_port, ${DEFAULT_PORT}), m.id from machines m join accounts o on o.id = m.account_id
      where m.web_public and m.observed_state <> 'gone' and o.suspended_at is null and m.id = any(${machineIds}::int[])`
    const good = new Set(rows.map(({ kind, id, machineId }) => `${kind}:${id} ${machineId}`))
    const nowMs = Date.now()
    return new Set(
      grants
        .filter(({ key, machineId }) => {
          const [kind, id, untilMs] = key.split(':')
          return good.has(`${kind}:${id} ${machineId}`) && (untilMs === undefined || Number(untilMs) > nowMs)
        })
        .map(({ key, machineId }) => `${key} ${machineId}`),
    )
  }
}

function grantOf(
  key: string,
  expiresAtMs: number,
  accountId: number | null,
  email: string | null,
  tokenCtx?: string,
): Grant {
  const times = { untilMs: Math.min(expiresAtMs, Date.now() + REMEMBERED_MS), endsAtMs: expiresAtMs }
  // Whoever came by a link is nobody in particular.
  if (accountId === null && email === null) return { key, identity: undefined, ...times }
  const printable = email !== null && /^[\x21-\x7e]+$/.test(email) ? email : undefined
  return {
    key,
    ...times,
    identity: {
      user: accountId === null ? `mail:${printable ?? ''}` : String(accountId),
      ...(printable === undefined ? {} : { email: printable }),
      ...(tokenCtx === undefined ? {} : { tokenCtx }),
    },
  }
}
