import { createSecureContext, type SecureContext } from 'node:tls'
import type { Sql } from '../../../migrations/connect.ts'
import { seal, unseal } from '../../secrets.ts'
import type { Certificates } from '../server.ts'
import type { Authority } from './authority.ts'

/** A context in memory is looked at again after this long: another gateway may have renewed its certificate. */
const FRESH_MS = 300_000
/** How long a name that is not ours is remembered. */
const UNKNOWN_MS = 15_000
const RENEWAL_ROUND_MS = 3_600_000

export type CertificatesOptions = {
  sql: Sql
  secretKey: Buffer
  authority: Authority
  /** whether the name is one that a certificate should exist for: the control host, a machine's, a proven domain */
  exists(name: string): Promise<boolean>
  /** contexts kept in memory */
  contexts?: number
  onError(error: unknown, name: string): void
  now?: () => Date
}

type Entry = { context: SecureContext | undefined; notAfter: Date; checkAtMs: number }
type Row = { chain: string; sealed_key: Buffer; not_after: Date; renew_at: Date; issuer: string }

/**
 * Certificates by name: from memory (least recently used goes first), else from Postgres, else issued there and then,
 * for names that exist only. Issuing and renewing take an advisory lock on the name and look again under it, so that
 * of many gateways one does it and the others find it done.
 */
export class StoredCertificates implements Certificates {
  readonly #options: CertificatesOptions
  readonly #limit: number
  readonly #entries = new Map<string, Entry>()
  readonly #loading = new Map<string, Promise<SecureContext | undefined>>()
  readonly #timer: NodeJS.Timeout

  constructor(options: CertificatesOptions) {
    this.#options = options
    this.#limit = options.contexts ?? 1000
    this.#timer = setInterval(() => void this.renewDue(), RENEWAL_ROUND_MS)
    this.#timer.unref()
  }

  async contextFor(name: string): Promise<SecureContext | undefined> {
    const entry = this.#entries.get(name)
    if (entry && this.#nowMs() < entry.checkAtMs) {
      this.#entries.delete(name)
      this.#entries.set(name, entry)
      return entry.context
    }
    const loading = this.#loading.get(name)
    if (loading) return loading
    const load = this.#load(name).finally(() => this.#loading.delete(name))
    this.#loading.set(name, load)
    return load
  }

  expiryAt(): ReadonlyMap<string, Date> {
    return new Map(
      [...this.#entries].filter(([, { context }]) => context).map(([name, { notAfter }]) => [name, notAfter]),
    )
  }

  /** A name came to be or is no more: what is remembered of it counts no longer. */
  forget(name: string): void {
    this.#entries.delete(name)
  }

  /** Renews what is due and removes what belongs to no name any more. Never rejects. */
  async renewDue(): Promise<void> {
    const { sql, exists, onError } = this.#options
    try {
      const due = await sql<{ name: string }[]>`
        select name from certificates where renew_at <= ${this.#now()} order by renew_at limit 1000`
      for (const { name } of due) {
        try {
          if (await exists(name)) await this.#ensure(name)
          else await sql`delete from certificates where name = ${name} and renew_at <= ${this.#now()}`
          this.#entries.delete(name)
        } catch (error) {
          onError(error, name)
        }
      }
    } catch (error) {
      onError(error, '')
    }
  }

  close(): void {
    clearInterval(this.#timer)
  }

  async #load(name: string): Promise<SecureContext | undefined> {
    const row = (await this.#options.exists(name)) ? await this.#ensure(name) : undefined
    const nowMs = this.#nowMs()
    const context =
      row &&
      createSecureContext({
        cert: row.chain,
        key: unseal(this.#options.secretKey, sealName(name), row.sealed_key),
        minVersion: 'TLSv1.2',
      })
    this.#entries.set(name, {
      context,
      notAfter: row?.not_after ?? new Date(0),
      checkAtMs: nowMs + (row ? FRESH_MS : UNKNOWN_MS),
    })
    for (const [oldest] of this.#entries) {
      if (this.#entries.size <= this.#limit) break
      this.#entries.delete(oldest)
    }
    return context
  }

  async #ensure(name: string): Promise<Row> {
    const row = await this.#read(this.#options.sql, name)
    return row && this.#isGood(row) ? row : await this.#issue(name)
  }

  async #issue(name: string): Promise<Row> {
    const { sql, authority, secretKey } = this.#options
    return await sql.begin(async (transaction) => {
      const sql = transaction as unknown as Sql
      await sql`select pg_advisory_xact_lock(hashtextextended(${`berth.certificate.${name}`}, 0))`
      const row = await this.#read(sql, name)
      if (row && this.#isGood(row)) return row
      const issued = await authority.issue(name, this.#now())
      const lifeMs = issued.notAfter.getTime() - issued.notBefore.getTime()
      const made: Row = {
        chain: issued.chain,
        sealed_key: seal(secretKey, sealName(name), Buffer.from(issued.key)),
        not_after: issued.notAfter,
        renew_at: new Date(issued.notBefore.getTime() + (lifeMs * 2) / 3),
        issuer: this.#issuer,
      }
      await sql`
        insert into certificates (name, issuer, chain, sealed_key, not_before, not_after, renew_at)
        values (${name}, ${made.issuer}, ${made.chain}, ${made.sealed_key}, ${issued.notBefore}, ${made.not_after},
          ${made.renew_at})
        on conflict (name) do update set issuer = excluded.issuer, chain = excluded.chain,
          sealed_key = excluded.sealed_key, not_before = excluded.not_before, not_after = excluded.not_after,
          renew_at = excluded.renew_at`
      return made
    })
  }

  async #read(sql: Sql, name: string): Promise<Row | undefined> {
    const rows = await sql<Row[]>`
      select chain, sealed_key, not_after, renew_at, issuer from certificates where name = ${name}`
    return rows[0]
  }

  get #issuer(): string {
    return `own:${this.#options.authority.fingerprint}`
  }

  #isGood({ issuer, renew_at }: Row): boolean {
    return issuer === this.#issuer && renew_at > this.#now()
  }

  #now(): Date {
    return this.#options.now?.() ?? new Date()
  }

  #nowMs(): number {
    return this.#now().getTime()
  }
}

function sealName(name: string): string {
  return `certificate:${name}`
}
