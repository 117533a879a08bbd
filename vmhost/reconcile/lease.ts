import { mkdir, readFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import type { Sql } from '../../migrations/connect.ts'
import { replaceFile } from '../storage/durable.ts'

/**
 * One vmhost acts for a server. On the server itself a lock on the data directory sees to it (lock.ts). In the
 * database the server's row carries an epoch that grows with every vmhost that takes over: what an older one still
 * writes does not match and changes nothing. The expiry is the heartbeat that gateways look at.
 */
export type Lease = { readonly hostId: number; readonly hostName: string; readonly epoch: number }

export class LeaseError extends Error {
  override readonly name = 'LeaseError'
}

const leaseSeconds = 30

const ownSchema = z.object({ name: z.string(), hostId: z.number().int() })

/**
 * Takes this server's row, making it at first. Whoever has the data directory is the server: a restart, or a start
 * after kill -9, takes its own row back at once. A row of that name that was made from another data directory is
 * waited for until its lease has run out.
 * @throws LeaseError when another server of that name is alive
 */
export async function takeLease(sql: Sql, dataDirectory: string, signal?: AbortSignal): Promise<Lease> {
  const path = join(dataDirectory, 'vmhost', 'host.json')
  const own = await readFile(path, 'utf8').then(
    (text) => ownSchema.parse(JSON.parse(text)),
    () => undefined,
  )
  const hostName = own?.name ?? serverName()
  await sql`insert into hosts (name) values (${hostName}) on conflict (name) do nothing`
  const deadline = Date.now() + (leaseSeconds + 5) * 1000
  for (;;) {
    const [taken] = await sql<{ id: number; epoch: number }[]>`
      update hosts set lease_epoch = lease_epoch + 1, lease_expires_at = now() + make_interval(secs => ${leaseSeconds}),
        started_at = now()
      where name = ${hostName} and (id = ${own?.hostId ?? 0} or lease_expires_at < now())
      returning id, lease_epoch as epoch`
    if (taken) {
      await mkdir(join(dataDirectory, 'vmhost'), { recursive: true, mode: 0o700 })
      await replaceFile(path, JSON.stringify({ name: hostName, hostId: taken.id }), 0o644)
      return { hostId: taken.id, hostName, epoch: taken.epoch }
    }
    if (Date.now() > deadline) {
      throw new LeaseError(`Another server called ${hostName} is at work; give this one a host name of its own`)
    }
    await sleep(1000, undefined, signal ? { signal } : {})
  }
}

/** @returns false when a vmhost with a newer epoch has taken over: this one must not act any more */
export async function renewLease(sql: Sql, lease: Lease): Promise<boolean> {
  const renewed = await sql`
    update hosts set lease_expires_at = now() + make_interval(secs => ${leaseSeconds})
    where id = ${lease.hostId} and lease_epoch = ${lease.epoch}`
  return renewed.count === 1
}

function serverName(): string {
  const name = hostname()
    .toLowerCase()
    .replace(/[^a-z0-9.-]/g, '-')
    .slice(0, 63)
  return name || 'server'
}
