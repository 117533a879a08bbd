/** Domains that people brought: whose they are, and how their certificates stand. */
import type { Db, Sql } from '../../migrations/connect.ts'

export type CustomDomain = {
  domain: string
  wildcard: boolean
  machineId: number
  machineName: string
  addedAt: Date
  /** of the certificate that is served; null: none yet */
  notAfter: Date | null
  /** failures in a row to get one, or the next one */
  failures: number
  problem: string | null
  tryAt: Date | null
}

/** `message` is a sentence for the person. */
export class DomainError extends Error {
  override readonly name = 'DomainError'
  readonly code: 'domain.taken' | 'domain.too_many' | 'domain.busy'
  /** the machine of the same account that has the domain */
  readonly machineName: string | undefined

  constructor(code: DomainError['code'], message: string, machineName?: string) {
    super(message)
    this.code = code
    this.machineName = machineName
  }
}

const DOMAINS_MOST = 100
/** Each asks the directory for a certificate, also one that is added again and again. */
const ADDED_A_DAY = 50
/** How soon after a failure somebody who says that it is mended is believed. */
const AGAIN_MINUTES = 5

/** @returns the label that the account's records carry */
export async function accountProof(sql: Sql, accountId: number): Promise<string> {
  const [row] = await sql<{ proof: string }[]>`select domain_proof as proof from accounts where id = ${accountId}`
  if (!row) throw new Error(`no account ${accountId}`)
  return row.proof
}

export async function listDomains(sql: Sql, machineIds: readonly number[]): Promise<CustomDomain[]> {
  return await sql<CustomDomain[]>`
    select d.domain, d.wildcard, m.id as "machineId", m.name as "machineName", d.added_at as "addedAt",
      c.not_after as "notAfter", coalesce(c.failures, 0) as failures, c.problem, c.try_at as "tryAt"
    from custom_domains d join machines m on m.id = d.machine_id left join acme_certificates c on c.domain = d.domain
    where d.machine_id = any(${machineIds as number[]})
    order by m.name, d.domain`
}

/** Who has a domain; nobody when the machine is gone or in the trash. */
export async function holderOf(
  sql: Sql,
  domain: string,
): Promise<
  { machineId: number; machineName: string; accountId: number; proof: string; wildcard: boolean } | undefined
> {
  const rows = await sql<
    { machineId: number; machineName: string; accountId: number; proof: string; wildcard: boolean }[]
  >`
    select m.id as "machineId", m.name as "machineName", m.account_id as "accountId", a.domain_proof as proof, d.wildcard
    from custom_domains d join machines m on m.id = d.machine_id join machine_names n on n.machine_id = m.id
      join accounts a on a.id = m.account_id
    where d.domain = ${domain}`
  return rows[0]
}

/**
 * Gives a domain, whose proof was seen, to a machine. Said again of the same machine it changes the wildcard, and has
 * a certificate that failed tried again soon.
 * @param from the holder whose proof DNS does not show any more
 * @param onNew when it is new to the machine, in its transaction
 * @returns whether it is new to the machine
 * @throws DomainError
 */
export async function giveDomain(
  sql: Sql,
  wanted: { domain: string; wildcard: boolean; machineId: number; accountId: number; from?: number | undefined },
  onNew: (tx: Db) => Promise<void> = async () => {},
): Promise<boolean> {
  const { domain, wildcard, machineId, accountId } = wanted
  return await sql.begin(async (transaction) => {
    const tx = transaction as unknown as Sql
    // Two who claim one domain at the same moment come one after the other.
    await tx`select pg_advisory_xact_lock(hashtextextended(${`berth.domain.${domain}`}, 0))`
    await tx`select from accounts where id = ${accountId} for update`
    const holder = await holderOf(tx, domain)
    if (holder?.machineId === machineId) {
      await tx`update custom_domains set wildcard = ${wildcard} where domain = ${domain} and wildcard <> ${wildcard}`
      await tx`
        update acme_certificates set try_at = least(try_at, greatest(now(), tried_at + ${AGAIN_MINUTES} * interval '1 minute'))
        where domain = ${domain} and failures > 0`
      return false
    }
    if (holder && holder.machineId !== wanted.from) {
      const isOwn = holder.accountId === accountId
      throw new DomainError(
        'domain.taken',
        isOwn ? `${domain} belongs to ${holder.machineName}` : `${domain} belongs to somebody else here`,
        isOwn ? holder.machineName : undefined,
      )
    }
    const [count] = await tx<{ all: number; today: number }[]>`
      select (select count(*) from custom_domains d join machines m on m.id = d.machine_id
          where m.account_id = ${accountId} and m.observed_state <> 'gone')::int as all,
        (select count(*) from events where account_id = ${accountId} and kind = 'domain.added'
          and at > now() - interval '1 day')::int as today`
    if ((count?.today ?? 0) >= ADDED_A_DAY) {
      throw new DomainError('domain.busy', `an account adds at most ${ADDED_A_DAY} domains a day`)
    }
    if ((count?.all ?? 0) >= DOMAINS_MOST) {
      throw new DomainError('domain.too_many', `an account has at most ${DOMAINS_MOST} domains`)
    }
    // With the old row goes its certificate.
    await tx`delete from custom_domains where domain = ${domain}`
    await tx`insert into custom_domains (domain, machine_id, wildcard) values (${domain}, ${machineId}, ${wildcard})`
    await onNew(tx)
    return true
  })
}

/** @returns whether the machine had it */
export async function dropDomain(sql: Db, machineId: number, domain: string): Promise<boolean> {
  const rows = await sql`
    delete from custom_domains where domain = ${domain} and machine_id = ${machineId} returning domain`
  return rows.length > 0
}
