/**
 * The certificates that are wanted of an ACME directory, as rows that all gateways share.
 *
 *     due       `try_at` has come: there is none yet, two thirds of its life are over, or a failure's wait is
 *     leased    a gateway works on it; should it be killed, the lease ends by itself and the row is due again
 *     held      `try_at` is when it is to be renewed
 *     failed    `problem` says why, `try_at` when it is tried again; what is held is served meanwhile
 */
import type { Sql } from '../../../migrations/connect.ts'

/** A row that this gateway works on. */
export type Job = {
  name: string
  names: string[]
  /** null: the installation's own */
  domain: string | null
  failures: number
  lease: number
  /** what is counted against the bounds */
  orderId: number
}

export type Held = {
  directory: string
  chain: string
  sealedKey: Buffer
  notBefore: Date
  notAfter: Date
}

/** What the installation itself wants: the first name is the row's. */
export type OwnNames = readonly string[]

/** Longer than an order takes at its slowest: all its polls and requests together. */
const LEASE_MINUTES = 15
/** After the first failure, the second …; the last for all further ones. */
const RETRY_MINUTES = [1, 5, 15, 60, 180, 360, 720, 1440]
/** Should our clock and the directory's disagree, or a certificate live for minutes. */
const RENEWAL_LEAST_MINUTES = 60
/** Half as much again at random, or all that failed together would come again together. */
const JITTER = 0.5
/** Certificates asked for by the whole installation; Let's Encrypt takes 100 orders an hour (300 in three). */
const ORDERS_AN_HOUR = 60
/** Those of one account's domains: nobody uses up what is there for all. */
const ORDERS_OF_ACCOUNT_AN_HOUR = 15

/**
 * Makes the rows what is wanted now: the installation's own names, and every domain that somebody has. A row whose
 * names changed, or that another directory issued, is due at once.
 */
export async function wantCertificates(sql: Sql, own: readonly OwnNames[], directory: string): Promise<void> {
  await sql`delete from acme_orders where at < now() - interval '1 day'`
  await sql`
    delete from custom_domains d using machines m where m.id = d.machine_id and m.observed_state = 'gone'`
  const names = own.map(([first]) => first ?? '')
  await sql`delete from acme_certificates where domain is null and not name = any(${names})`
  for (const wanted of own) {
    await sql`
      insert into acme_certificates (name, names) values (${wanted[0] ?? ''}, ${wanted as string[]})
      on conflict (name) do update set names = excluded.names, try_at = now(), failures = 0
        where acme_certificates.names <> excluded.names and acme_certificates.domain is null`
  }
  await sql`
    insert into acme_certificates (name, names, domain)
    select domain, case when wildcard then array[domain, '*.' || domain] else array[domain] end, domain
    from custom_domains
    on conflict (name) do update set names = excluded.names, try_at = now(), failures = 0
      where acme_certificates.names <> excluded.names`
  await sql`
    update acme_certificates set try_at = now(), failures = 0
    where directory <> ${directory} and try_at > now() and failures = 0`
}

/** Takes the row that has been due longest, the installation's own first. @returns undefined when nothing may be asked for */
export async function takeJob(sql: Sql): Promise<Job | undefined> {
  // Indexes: acme_certificates_by_try, acme_orders_by_time, acme_orders_by_account.
  const rows = await sql<Job[]>`
    with owned as (
      select c.name, m.account_id from acme_certificates c left join custom_domains d on d.domain = c.domain
        left join machines m on m.id = d.machine_id
    ), taken as (
      update acme_certificates
      set leased_until = now() + ${LEASE_MINUTES} * interval '1 minute', lease = lease + 1, tried_at = now()
      where name = (
        select c.name from acme_certificates c
        where c.try_at <= now() and c.leased_until <= now()
          and (select count(*) from acme_orders where at > now() - interval '1 hour') < ${ORDERS_AN_HOUR}
          and (c.domain is null or (
            select count(*) from acme_orders o join owned on owned.account_id = o.account_id
            where owned.name = c.name and o.at > now() - interval '1 hour'
          ) < ${ORDERS_OF_ACCOUNT_AN_HOUR})
        order by c.domain is not null, c.try_at limit 1 for update skip locked)
      returning name, names, domain, failures, lease
    ), ordered as (
      insert into acme_orders (account_id) select owned.account_id from taken join owned using (name) returning id
    )
    select taken.*, ordered.id as "orderId" from taken, ordered`
  return rows[0]
}

/** How long until something may be due. @returns milliseconds, undefined when nothing is wanted */
export async function msUntilDue(sql: Sql): Promise<number | undefined> {
  const [row] = await sql<{ ms: number | null }[]>`
    select (extract(epoch from min(greatest(try_at, leased_until)) - now()) * 1000)::float as ms from acme_certificates`
  return row?.ms ?? undefined
}

/** @returns false when the lease was lost: somebody else works on it, or nobody wants it any more */
export async function keepObtained(sql: Sql, job: Job, held: Held): Promise<boolean> {
  const renewAt = renewalOf(held)
  const rows = await sql`
    update acme_certificates set directory = ${held.directory}, chain = ${held.chain}, sealed_key = ${held.sealedKey},
      not_before = ${held.notBefore}, not_after = ${held.notAfter}, renew_at = ${renewAt},
      try_at = greatest(${renewAt}, now() + ${RENEWAL_LEAST_MINUTES} * interval '1 minute'),
      failures = 0, problem = null, leased_until = now()
    where name = ${job.name} and lease = ${job.lease} and names = ${job.names} returning name`
  if (rows.length > 0) return true
  // Other names are wanted since: the row is due.
  await releaseJob(sql, job)
  return false
}

/**
 * @param wasOrdered the directory was asked; otherwise the try counts against no limit
 * @param retryAt not before then, whatever the number of failures says
 */
export async function noteFailure(
  sql: Sql,
  job: Job,
  { problem, wasOrdered, retryAt }: { problem: string; wasOrdered: boolean; retryAt?: Date | undefined },
): Promise<void> {
  const minutes = RETRY_MINUTES[Math.min(job.failures, RETRY_MINUTES.length - 1)] ?? 0
  const waitS = minutes * 60 * (1 + Math.random() * JITTER)
  if (!wasOrdered) await sql`delete from acme_orders where id = ${job.orderId}`
  await sql`
    update acme_certificates set failures = failures + 1, problem = ${problem.slice(0, 1000)}, leased_until = now(),
      tried_at = case when ${wasOrdered} then tried_at end,
      try_at = greatest(now() + ${waitS} * interval '1 s', ${retryAt ?? null}::timestamptz)
    where name = ${job.name} and lease = ${job.lease}`
}

/** Gives a row back as it was. */
export async function releaseJob(sql: Sql, job: Job): Promise<void> {
  await sql`update acme_certificates set leased_until = now() where name = ${job.name} and lease = ${job.lease}`
}

/** A certificate in use. */
export async function readHeld(sql: Sql, name: string): Promise<Held | undefined> {
  const rows = await sql<Held[]>`
    select directory, chain, sealed_key as "sealedKey", not_before as "notBefore", not_after as "notAfter"
    from acme_certificates where name = ${name} and chain is not null`
  return rows[0]
}

/** At two thirds of its life. */
function renewalOf({ notBefore, notAfter }: Held): Date {
  return new Date(notBefore.getTime() + ((notAfter.getTime() - notBefore.getTime()) * 2) / 3)
}
