import pino from 'pino'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { type TestDatabase, testDatabase } from '../../test/database.ts'
import type { DiskCounters } from '../hypervisor/driver.ts'
import type { ProcessReading, TapReading } from './load-readings.ts'
import { LoadRows } from './load-rows.ts'
import { LoadSampler, type LoadSource } from './load-sampler.ts'

const MiB = 2 ** 20
/** A whole hour, so that ten seconds from it are one step of five minutes. */
let beganAt: number
/** of both clocks, in milliseconds since `beganAt` */
let time: number
let database: TestDatabase
let sql: Sql
let sources: LoadSource[]
let processes: Map<number, ProcessReading & { beganAt: number }>
let taps: Map<number, TapReading>
let disks: Map<number, DiskCounters | Promise<DiskCounters>>
let isAway: boolean
let losesAnswers: boolean
let statements: number
let epoch: number
let leaseLost: number

beforeEach(async () => {
  database = await testDatabase()
  sql = database.as('berth_gateway')
  const owner = database.as('owner')
  await owner`insert into hosts (name, lease_epoch) values ('one', 1), ('other', 1)`
  await owner`insert into accounts (is_owner) values (true)`
  await owner`
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
    select 1, case when n = 9 then 2 else 1 end, 'm' || n, 'base', 2, 1, 1 from generate_series(1, 9) n`
  beganAt = Math.floor(Date.now() / 3_600_000) * 3_600_000
  time = 0
  sources = []
  processes = new Map()
  taps = new Map()
  disks = new Map()
  isAway = false
  losesAnswers = false
  statements = 0
  epoch = 1
  leaseLost = 0
})

afterEach(() => database[Symbol.asyncDispose]())

class Way extends LoadRows {
  override async add(...given: Parameters<LoadRows['add']>): Promise<void> {
    if (isAway) throw Object.assign(new Error('away'), { code: 'ECONNREFUSED' })
    statements++
    await super.add(...given)
    if (losesAnswers) throw Object.assign(new Error('away'), { code: 'ECONNRESET' })
  }
}

function vmhost(): LoadSampler {
  return new LoadSampler({
    sources: () => sources,
    rows: new Way(database.as('berth_vmhost'), { hostId: 1, hostName: 'one', epoch }),
    log: pino({ level: 'silent' }),
    onLeaseLost: () => leaseLost++,
    world: {
      readProcess: (pid) => processes.get(pid),
      ageMs: ({ startTicks }) => time - startTicks * 10,
      readTaps: () => new Map(taps),
      now: () => beganAt + time,
      monotonicMs: () => time,
    },
  })
}

function runs(id: number, { pid = id, began = -1_000_000 } = {}): void {
  processes.set(pid, { beganAt: began, startTicks: began / 10, cpuMs: 0, heldBytes: 100 * MiB })
  taps.set(id, taps.get(id) ?? { outBytes: 0, inBytes: 0 })
  disks.set(pid, { readBytes: 0, writtenBytes: 0 })
  const guest = { memoryUsedBytes: 60 * MiB, filesystemUsedBytes: 3, filesystemBytes: 20 }
  const diskCounters = async () => disks.get(pid) ?? { readBytes: 0, writtenBytes: 0 }
  const one = { pid, cpus: 2, memoryBytes: 512 * MiB, guest, hypervisor: { diskCounters } }
  sources = [...sources.filter((source) => source.id !== id), { id, state: 'running', runs: one }]
}

function does(pid: number, what: { cpuMs?: number; read?: number; out?: number; heldBytes?: number }): void {
  const { cpuMs = 0, read = 0, out = 0, heldBytes } = what
  const was = processes.get(pid)
  if (was) processes.set(pid, { ...was, cpuMs: was.cpuMs + cpuMs, heldBytes: heldBytes ?? was.heldBytes })
  const disk = disks.get(pid)
  if (disk && 'readBytes' in disk) disks.set(pid, { ...disk, readBytes: disk.readBytes + read })
  const tap = taps.get(pid)
  if (tap) taps.set(pid, { ...tap, outBytes: tap.outBytes + out })
}

async function looks(sampler: LoadSampler, afterMs = 10_000): Promise<void> {
  time += afterMs
  await sampler.look()
  await sampler.sent()
}

type Row = Record<string, number | null> & { at: Date }
const samples = (id = 1) => sql<Row[]>`select * from load_samples where machine_id = ${id} order by at`
const sums = (step: number, id = 1) => sql<Row[]>`
  select * from load_sums where machine_id = ${id} and step_seconds = ${step} order by at`
const marks = (id = 1) => sql<{ state: string; at: Date }[]>`
  select state, at from load_marks where machine_id = ${id} order by at`

/** The sums of a machine are what its samples add up to, whatever happened on their way. */
async function expectExact(id = 1): Promise<void> {
  for (const step of [300, 3600]) {
    const added = await sql`
      select date_bin(make_interval(secs => ${step}), at, '1970-01-01 00:00Z') as at, count(*)::int as samples, sum(ms)::bigint as ms,
        sum(cpu_ms)::bigint as cpu_ms, max(cpu_ms::real / ms) as cpu_most, sum(memory_held_bytes)::bigint as memory_held_sum,
        max(memory_held_bytes) as memory_held_most, sum(disk_ms)::bigint as disk_ms,
        sum(disk_read_bytes)::bigint as disk_read_bytes, sum(network_out_bytes)::bigint as network_out_bytes,
        max(network_out_bytes * 1000.0 / network_ms)::real as network_out_most
      from load_samples where machine_id = ${id} group by 1 order by 1`
    const kept = await sums(step, id)
    expect(kept.length).toBeGreaterThan(0)
    expect(kept.map((row) => Object.fromEntries(Object.keys(added[0] ?? {}).map((key) => [key, row[key]])))).toEqual([
      ...added,
    ])
  }
}

test('a sample is what counters read more than at the look before, and what is held at its end', async () => {
  const sampler = vmhost()
  runs(1)
  does(1, { cpuMs: 5_000, read: 999, out: 888 })
  await looks(sampler)
  expect(await samples()).toEqual([])
  does(1, { cpuMs: 2_500, read: 4096, out: 1000, heldBytes: 200 * MiB })
  await looks(sampler)
  expect(await samples()).toMatchObject([
    {
      at: new Date(beganAt + 10_000),
      ms: 10_000,
      cpus: 2,
      cpu_ms: 2_500,
      memory_limit_bytes: 512 * MiB,
      memory_held_bytes: 200 * MiB,
      memory_used_bytes: 60 * MiB,
      disk_ms: 10_000,
      disk_read_bytes: 4096,
      disk_written_bytes: 0,
      network_out_bytes: 1000,
      network_in_bytes: 0,
      filesystem_used_bytes: 3,
      filesystem_bytes: 20,
    },
  ])
})

test('sums over 5 minutes and an hour are what their samples add up to, from the first on', async () => {
  const sampler = vmhost()
  runs(1)
  for (let look = 0; look < 40; look++) {
    does(1, { cpuMs: look * 100, read: look * 7, out: look * 13, heldBytes: (100 + (look % 9)) * MiB })
    await looks(sampler)
  }
  expect(await samples()).toHaveLength(39)
  expect((await sums(300)).map((row) => row.samples)).toEqual([29, 10])
  await expectExact()
  const [hour] = await sums(3600)
  expect(hour).toMatchObject({ samples: 39, memory_used_samples: 39, memory_used_sum: 39 * 60 * MiB })
})

test('a process that began since the look before counted from zero, and so did a tap that is new or reads less', async () => {
  const sampler = vmhost()
  runs(1)
  await looks(sampler)
  does(1, { cpuMs: 3_000, out: 5_000 })
  await looks(sampler)
  // It was started anew 4 s before the next look; its tap was taken away and made again.
  runs(1, { pid: 11, began: time + 6_000 })
  taps.set(1, { outBytes: 700, inBytes: 0 })
  does(11, { cpuMs: 1_200, read: 512 })
  await looks(sampler)
  runs(2, { began: time + 2_000 })
  taps.set(2, { outBytes: 50, inBytes: 60 })
  await looks(sampler)
  const [, second] = await samples()
  expect(second).toMatchObject({ ms: 4_000, cpu_ms: 1_200, disk_read_bytes: 512, network_out_bytes: 700 })
  expect((await samples(2))[0]).toMatchObject({ ms: 8_000, network_out_bytes: 50, network_in_bytes: 60 })
  expect(await marks()).toMatchObject([{ state: 'running' }, { state: 'running', at: new Date(beganAt + 26_000) }])
})

test('what nobody saw is a gap: before a vmhost looked, while a machine slept, after a look that came too late', async () => {
  const sampler = vmhost()
  runs(1)
  await looks(sampler)
  await looks(sampler)
  sources = [{ id: 1, state: 'asleep' }]
  for (let look = 0; look < 3; look++) await looks(sampler)
  runs(1, { pid: 12, began: time + 5_000 })
  await looks(sampler)
  does(12, { cpuMs: 60_000 })
  await looks(sampler, 120_000)
  await looks(sampler)
  expect((await samples()).map(({ at, ms }) => [at.getTime() - beganAt, ms])).toEqual([
    [10_000, 10_000],
    [50_000, 5_000],
    [180_000, 10_000],
  ])
  expect((await marks()).map(({ state }) => state)).toEqual(['running', 'asleep', 'running'])
  // Another vmhost has nothing to compare with, and says nothing twice of when the machine began to run.
  const next = vmhost()
  await looks(next)
  expect(await samples()).toHaveLength(3)
  await looks(next)
  expect(await samples()).toHaveLength(4)
  expect(await marks()).toHaveLength(3)
})

test('a disk that does not answer is not known for then, and what it did is told of the time since it last did', async () => {
  const sampler = vmhost()
  runs(1)
  await looks(sampler)
  const silent = Promise.withResolvers<DiskCounters>()
  disks.set(1, silent.promise)
  silent.promise.catch(() => {})
  const looking = looks(sampler)
  silent.reject(new Error('busy'))
  await looking
  disks.set(1, { readBytes: 3000, writtenBytes: 0 })
  await looks(sampler)
  expect(await samples()).toMatchObject([
    { ms: 10_000, disk_ms: null, disk_read_bytes: null, network_out_bytes: 0 },
    { ms: 10_000, disk_ms: 20_000, disk_read_bytes: 3000 },
  ])
  await expectExact()
})

test('a guest that says nothing leaves its own view out, and no sum of it is wrong', async () => {
  const sampler = vmhost()
  runs(1)
  const [talking] = sources
  const silent = talking?.runs && [{ ...talking, runs: { ...talking.runs, guest: undefined } }]
  await looks(sampler)
  sources = silent ?? []
  await looks(sampler)
  sources = talking ? [talking] : []
  await looks(sampler)
  expect((await samples()).map((row) => row.memory_used_bytes)).toEqual([null, 60 * MiB])
  expect(await sums(300)).toMatchObject([
    { samples: 2, memory_used_samples: 1, memory_used_sum: 60 * MiB, memory_held_sum: 200 * MiB },
  ])
})

test('while the database is away samples wait, up to a bound; then they are written, each once', async () => {
  const sampler = vmhost()
  runs(1)
  await looks(sampler)
  isAway = true
  for (let look = 0; look < 5; look++) {
    does(1, { cpuMs: 1_000 })
    await looks(sampler)
  }
  isAway = false
  // It arrives, and the answer does not: the same is sent again.
  losesAnswers = true
  await looks(sampler)
  losesAnswers = false
  await looks(sampler)
  expect((await samples()).map((row) => row.cpu_ms)).toEqual([1_000, 1_000, 1_000, 1_000, 1_000, 0, 0])
  await expectExact()

  // The database knows nothing of the others: what they wait for is their turn.
  for (let id = 1_000; id < 1_600; id++) runs(id)
  isAway = true
  for (let look = 0; look < 70; look++) {
    time += 10_000
    await sampler.look()
  }
  isAway = false
  statements = 0
  await looks(sampler)
  expect(statements).toBeGreaterThan(15)
  expect(statements).toBeLessThan(25)
  // The oldest were given up, and nothing is left over.
  const times = (await samples()).map(({ at }) => (at.getTime() - beganAt) / 10_000)
  expect(times).toHaveLength(7 + 59)
  expect(times.slice(7)).toEqual(Array.from({ length: 59 }, (_, index) => 20 + index))
  statements = 0
  await sampler.sent()
  expect(statements).toBe(0)
})

test('200 machines are one statement an interval', async () => {
  const sampler = vmhost()
  await database.as('owner')`
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
    select 1, 1, 'n' || n, 'base', 2, 1, 1 from generate_series(10, 209) n`
  for (let id = 10; id < 210; id++) runs(id)
  await looks(sampler)
  statements = 0
  await looks(sampler)
  expect(statements).toBe(1)
  const [{ count } = { count: 0 }] = await sql<{ count: number }[]>`select count(*)::int from load_samples`
  expect(count).toBe(200)
})

test("a vmhost writes of its own server's machines, and nothing once another has taken over", async () => {
  runs(1)
  runs(9)
  const sampler = vmhost()
  await looks(sampler)
  await looks(sampler)
  expect([await samples(1), await samples(9)]).toMatchObject([[{}], []])
  await database.as('owner')`update hosts set lease_epoch = 2 where id = 1`
  await looks(sampler)
  expect(await samples(1)).toHaveLength(1)
  expect(leaseLost).toBe(1)
  await expect(database.as('berth_vmhost')`insert into load_marks values (1, now(), 'failed')`).rejects.toThrow(
    /permission/,
  )
})

test('a time that no partition is for is given up, and what comes after it is written', async () => {
  const sampler = vmhost()
  runs(1)
  await looks(sampler)
  beganAt += 90 * 86_400_000
  await looks(sampler)
  beganAt -= 90 * 86_400_000
  await looks(sampler)
  expect(await samples()).toHaveLength(1)
})

test('partitions are there a day ahead, and those of which all is too old go, a few at a time', async () => {
  const owner = database.as('owner')
  const names = async (prefix: string) =>
    (
      await owner<{ name: string }[]>`
      select relname as name from pg_class join pg_namespace n on n.oid = relnamespace
      where nspname = 'partitions' and relkind = 'r' and relname like ${`${prefix}%`} order by 1`
    ).map(({ name }) => name)
  const fresh = await names('load_samples_')
  expect(fresh.length).toBeGreaterThanOrEqual(5)
  const at = (name: string) => Date.parse(name.replace(/.*_(\d{4})(\d\d)(\d\d)_(\d\d)$/, '$1-$2-$3T$4:00Z'))
  expect(at(fresh.at(-1) ?? '')).toBeGreaterThan(Date.now() + 18 * 3_600_000)
  expect(at((await names('load_hours_')).at(-1) ?? '')).toBeGreaterThan(Date.now() + 56 * 86_400_000)
  // As if this database had been made some days ago.
  for (let days = 3; days <= 8; days++) {
    const start = new Date(Math.floor((Date.now() - days * 86_400_000) / 21_600_000) * 21_600_000)
    const name = `load_samples_${start.toISOString().replace(/^(....)-(..)-(..)T(..).*/, '$1$2$3_$4')}`
    const end = new Date(start.getTime() + 21_600_000)
    await owner.unsafe(
      `create table partitions.${name} partition of load_samples for values from ('${start.toISOString()}') to ('${end.toISOString()}')`,
    )
  }
  const vmhost = database.as('berth_vmhost')
  await vmhost`select keep_load_partitions()`
  expect(await names('load_samples_')).toHaveLength(fresh.length + 2)
  await vmhost`select keep_load_partitions()`
  expect(await names('load_samples_')).toEqual(fresh)
  const [row] = await vmhost`select keep_load_partitions() as done`
  expect(row?.done).toBe(0)
})
