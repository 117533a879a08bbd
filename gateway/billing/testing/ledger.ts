/** Accounts, machines and facts for tests, written as those who write them do: facts by a vmhost. */
import { randomUUID } from 'node:crypto'
import type { Sql } from '../../../migrations/connect.ts'
import { type TestDatabase, testDatabase } from '../../../test/database.ts'
import { DAY_MS } from '../calendar.ts'

export type Span = {
  machineId: number
  from: Date
  to: Date
  state: 'creating' | 'running' | 'asleep' | 'stopped' | 'failed'
  cpus: number
  memoryBytes: number
  diskBytes: number
  checkpointBytes: number
}

export type Reading = { machineId: number; series: string; sequence: number; at: Date; direct: number; gateway: number }

export type Ledger = {
  database: TestDatabase
  owner: Sql
  gateway: Sql
  vmhost: Sql
  /** @returns its number; it is there since 2026 began, and so long on its plan */
  account(options?: { owner?: boolean; email?: string; plan?: string; since?: string }): Promise<number>
  machine(accountId: number, name?: string): Promise<number>
  spans(spans: readonly Span[]): Promise<void>
  readings(readings: readonly Reading[]): Promise<void>
  /** Writes what could not be decided any more, had it not been decided then. */
  before(write: (owner: Sql) => Promise<unknown>): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

export async function testLedger(): Promise<Ledger> {
  return await ledgerOver(await testDatabase())
}

/** The same over a database that is there for more. */
export async function ledgerOver(database: TestDatabase): Promise<Ledger> {
  const [owner, gateway, vmhost] = [database.as('owner'), database.as('berth_gateway'), database.as('berth_vmhost')]
  await owner`insert into hosts (name) values ('server1') on conflict do nothing`
  let machines = 0
  const ledger: Ledger = {
    ...{ database, owner, gateway, vmhost },
    async account({ owner: isOwner = false, email, plan, since = '2026-01-01' } = {}) {
      const [row] = await owner<{ id: number }[]>`
        insert into accounts (email, is_owner, created_at) values (${email ?? null}, ${isOwner}, ${new Date(since)}) returning id`
      const id = row?.id ?? 0
      if (plan !== undefined) {
        await ledger.before(
          (sql) => sql`insert into account_plans (account_id, plan, effective)
            values (${id}, ${plan}, tstzrange(${new Date(since)}, null))`,
        )
      }
      return id
    },
    async machine(accountId, name = `m${++machines}`) {
      const [row] = await owner<{ id: number }[]>`
        insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, observed_state)
        values (${accountId}, 1, ${name}, 'base', 1, 1, 1, 'running') returning id`
      await owner`insert into machine_names (name, machine_id) values (${name}, ${row?.id ?? 0})`
      return row?.id ?? 0
    },
    async spans(spans) {
      await vmhost`
        insert into machine_spans (machine_id, host_id, started_at, ended_at, state, cpus, memory_bytes, disk_bytes, checkpoint_bytes)
        select machine_id, 1, started_at, ended_at, state, cpus, memory_bytes, disk_bytes, checkpoint_bytes
        from jsonb_to_recordset(${JSON.stringify(
          spans.map((span) => ({
            ...{ machine_id: span.machineId, started_at: span.from, ended_at: span.to, state: span.state },
            ...{ cpus: span.cpus, memory_bytes: span.memoryBytes, disk_bytes: span.diskBytes },
            checkpoint_bytes: span.checkpointBytes,
          })),
        )}::text::jsonb) as s(machine_id integer, started_at timestamptz, ended_at timestamptz, state text, cpus integer,
          memory_bytes bigint, disk_bytes bigint, checkpoint_bytes bigint) order by started_at`
    },
    async readings(readings) {
      for (const one of readings) {
        await vmhost`
          insert into transfer_readings (series, sequence, machine_id, host_id, host_boot, at, direct_out_bytes,
            direct_out_packets, direct_in_bytes, direct_in_packets, gateway_out_bytes, gateway_out_packets, gateway_in_bytes,
            gateway_in_packets)
          values (${one.series}, ${one.sequence}, ${one.machineId}, 1, ${BOOT}, ${one.at}, ${one.direct}, 0, 0, 0,
            ${one.gateway}, 0, 0, 0)`
      }
    },
    async before(write) {
      for (const table of ['rates', 'account_plans']) await owner`alter table ${owner(table)} disable trigger user`
      try {
        await write(owner)
      } finally {
        for (const table of ['rates', 'account_plans']) await owner`alter table ${owner(table)} enable trigger user`
      }
    },
    [Symbol.asyncDispose]: () => database[Symbol.asyncDispose](),
  }
  return ledger
}

const BOOT = randomUUID()

/** The same time in pieces: cut at every midnight UTC, and where `next` says. */
export function cut(span: Span, next: (from: Date) => Date): Span[] {
  const pieces: Span[] = []
  for (let from = span.from; from < span.to; ) {
    const midnight = (Math.floor(from.getTime() / DAY_MS) + 1) * DAY_MS
    const to = new Date(Math.min(span.to.getTime(), midnight, next(from).getTime()))
    pieces.push({ ...span, from, to })
    from = to
  }
  return pieces
}

export function span(machineId: number, from: string, to: string, given: Partial<Span> = {}): Span {
  return {
    ...{ machineId, from: new Date(from), to: new Date(to), state: 'running', cpus: 1 },
    ...{ memoryBytes: 2 ** 30, diskBytes: 0, checkpointBytes: 0 },
    ...given,
  }
}
