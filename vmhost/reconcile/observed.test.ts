import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { testDatabase } from '../../test/database.ts'
import { takeLease } from './lease.ts'
import { Outbox } from './observed.ts'
import { Rows } from './rows.ts'

const report = {
  cpuSeconds: 1,
  memoryTotalBytes: 2,
  memoryAvailableBytes: 3,
  load1: 0.5,
  uptimeSeconds: 4,
  listeningPorts: [22],
  txBytes: 2 ** 40,
  rxBytes: 6,
}

const log = { warn: () => {}, error: () => {} }

async function withMachine(use: (context: Awaited<ReturnType<typeof prepare>>) => Promise<void>): Promise<void> {
  await using db = await testDatabase()
  const directory = await mkdtemp(join(tmpdir(), 'berth-lease-'))
  try {
    await use(await prepare(db, directory))
  } finally {
    await rm(directory, { recursive: true })
  }
}

async function prepare(db: Awaited<ReturnType<typeof testDatabase>>, directory: string) {
  const sql = db.as('berth_vmhost')
  const owner = db.as('owner')
  const rows = new Rows(sql, await takeLease(sql, directory))
  await owner`insert into accounts (is_owner) values (true)`
  const [made] = await owner<{ id: number }[]>`
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
    values (1, ${rows.lease.hostId}, 'demo', 'base', 1, 1048576, 1048576) returning id`
  return { sql, owner, rows, directory, id: made?.id ?? 0 }
}

test('reports arrive in order, the last word of each field wins', () =>
  withMachine(async ({ rows, id }) => {
    const outbox = new Outbox(rows, log, () => {})
    for (const stage of ['disk', 'network', 'boot'] as const)
      outbox.report(id, { observedStage: stage, observedReason: stage })
    outbox.report(id, { observedReason: null })
    await outbox.flushed(id)
    expect(await rows.one(id)).toMatchObject({ observedReason: null })
  }))

test('a machine that switched itself off is wanted off, unless another start was asked for meanwhile', () =>
  withMachine(async ({ rows, owner, id }) => {
    await rows.report(id, { observedState: 'stopped', switchedOffBoot: 1 })
    expect(await rows.one(id)).toMatchObject({ desiredState: 'stopped', observedState: 'stopped' })
    await owner`update machines set desired_state = 'running', desired_boot = 2`
    await rows.report(id, { observedState: 'stopped', switchedOffBoot: 1 })
    expect(await rows.one(id)).toMatchObject({ desiredState: 'running' })
  }))

test('what an overtaken vmhost still reports changes nothing, and it is told', () =>
  withMachine(async ({ rows, sql, directory, id }) => {
    const lost = Promise.withResolvers<void>()
    const outbox = new Outbox(rows, log, lost.resolve)
    const newer = await takeLease(sql, directory)
    expect(newer.epoch).toBe(rows.lease.epoch + 1)
    outbox.report(id, { observedState: 'running' })
    await lost.promise
    expect(await rows.one(id)).toMatchObject({ observedState: 'creating' })
    await rows.replaceReport(id, report)
    await rows.appendConsole(id, 1, 1, Buffer.from('x'), 100)
    expect(await sql`select machine_id from machine_reports union all select machine_id from console_chunks`).toEqual(
      [],
    )
  }))

test('reports wait while the database is away and arrive when it is back', () =>
  withMachine(async ({ rows, owner, id }) => {
    const outbox = new Outbox(rows, log, () => {})
    // For this role the server is gone; the owner is not counted.
    const [{ name } = { name: '' }] = await owner<{ name: string }[]>`select current_database() as name`
    await owner.unsafe(`alter database ${name} connection limit 0`)
    await owner`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'berth_vmhost' and datname = current_database()`
    outbox.report(id, { observedState: 'running' })
    outbox.record({ machineId: id, machineName: 'demo', accountId: 1, kind: 'machine.running' })
    const flushed = outbox.flushed(id)
    expect(
      await Promise.race([flushed.then(() => 'arrived'), new Promise((resolve) => setTimeout(resolve, 300, 'waits'))]),
    ).toBe('waits')
    await owner.unsafe(`alter database ${name} connection limit -1`)
    await flushed
    await outbox.close(5_000)
    const [seen] = await owner`select observed_state, (select count(*)::int from events) as events from machines`
    expect(seen).toEqual({ observed_state: 'running', events: 1 })
  }))

test('the console keeps its last bytes and no more', () =>
  withMachine(async ({ rows, owner, id }) => {
    for (let seq = 1; seq <= 10; seq++) await rows.appendConsole(id, 1, seq, Buffer.alloc(1000, 65), 3_500)
    const [kept] = await owner`select min(seq) as first, max(seq) as last from console_chunks`
    expect(kept).toEqual({ first: 7, last: 10 })
    expect(await rows.nextConsoleSeq(id)).toBe(11)
  }))

test('a machine has one report, its last; with the machine it goes, and with its name and address', () =>
  withMachine(async ({ rows, owner, id }) => {
    await owner`insert into machine_names values ('demo', ${id})`
    await owner`insert into addresses values ('10.42.0.2', ${id})`
    await rows.replaceReport(id, { ...report, load1: 9 })
    await rows.replaceReport(id, report)
    expect(
      await owner`select machine_id, report, at > now() - interval '1 minute' as fresh from machine_reports`,
    ).toEqual([{ machine_id: id, report, fresh: true }])
    await rows.finishGone(id)
    for (const table of ['machine_reports', 'machine_names', 'addresses', 'console_chunks'])
      expect(await owner.unsafe(`select from ${table}`)).toHaveLength(0)
    expect(await rows.one(id)).toMatchObject({ observedState: 'gone', address: null })
  }))

test('for want of space, the machine that has lain in the trash longest is given up, and no other', () =>
  withMachine(async ({ rows, owner, id }) => {
    const trashed = async (hours: number | null) => {
      const [made] = await owner<{ id: number }[]>`
        insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, desired_state,
          observed_state, trashed_at)
        values (1, ${rows.lease.hostId}, ${`t${hours}`}, 'base', 1, 1048576, 1048576, 'trashed', 'trashed',
          now() - make_interval(hours => ${hours})) returning id`
      return made?.id
    }
    const [young, old] = [await trashed(1), await trashed(100)]
    expect(await rows.expireTrash(7)).toEqual([])
    expect(await rows.sacrificeTrash()).toBe(old)
    expect(await rows.sacrificeTrash()).toBe(young)
    expect(await rows.sacrificeTrash()).toBeUndefined()
    expect(await rows.one(id)).toMatchObject({ desiredState: 'running' })
  }))
