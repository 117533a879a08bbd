import { randomUUID } from 'node:crypto'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pino from 'pino'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { type TestDatabase, testDatabase } from '../../test/database.ts'
import type { TransferReadings } from '../network/counters.ts'
import { LedgerRows } from './ledger-rows.ts'
import { type MachineStanding, Meter } from './meter.ts'

const minute = 60_000
const noon = Date.UTC(2026, 2, 31, 12)
/** As if this test were the hypervisor: a process that is there, and stays the same. */
const runs: MachineStanding = { state: 'running', cpus: 2, memoryBytes: 2 ** 31, diskBytes: 2 ** 34, pid: process.pid }
const stopped: MachineStanding = { ...runs, state: 'stopped', pid: undefined }

let db: TestDatabase
let sql: Sql
let folder: string
let path: string
let time: number
let isAway: boolean
let losesAnswers: boolean
let appended: number
let alive: Way
let counters: { series: string; machineId: number; bytes: number }[]
let sequence: number
let written: number | undefined
let lost: number
let boot: string
let wallAheadMs: number
let bootedAt: number

beforeEach(async () => {
  db = await testDatabase()
  sql = db.as('berth_vmhost')
  const owner = db.as('owner')
  await owner`insert into hosts (name, lease_epoch) values ('one', 1)`
  await owner`insert into accounts (is_owner) values (true)`
  await owner`
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
    select 1, 1, 'm' || n, 'base', 2, 1, 1 from generate_series(1, 3) n`
  folder = mkdtempSync(join(tmpdir(), 'berth-meter-'))
  path = join(folder, 'ledger.json')
  time = noon
  boot = randomUUID()
  wallAheadMs = 0
  bootedAt = noon - 1_000
  isAway = false
  losesAnswers = false
  appended = 0
  counters = []
  sequence = 0
  written = undefined
  lost = 0
})

afterEach(async () => {
  await db[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true })
})

/** The ledger's rows, and what may happen on the way there. */
class Way extends LedgerRows {
  readonly #file: string

  constructor(file: string) {
    super(sql, { hostId: 1, hostName: 'one', epoch: 1 })
    this.#file = file
    alive = this
  }

  override async appendSpans(...[pieces]: Parameters<LedgerRows['appendSpans']>): Promise<void> {
    await this.#go(() => super.appendSpans(pieces))
  }

  override async appendReadings(...[readings]: Parameters<LedgerRows['appendReadings']>): Promise<void> {
    await this.#go(() => super.appendReadings(readings))
  }

  async #go(append: () => Promise<void>): Promise<void> {
    // A vmhost that was killed sends nothing any more.
    if (alive !== this) await new Promise(() => {})
    const lost = () => Object.assign(new Error('away'), { code: 'ECONNREFUSED' })
    if (isAway) throw lost()
    copyFileSync(this.#file, join(folder, 'when-sent'))
    await append()
    appended++
    if (losesAnswers) throw lost()
  }
}

/** A vmhost that starts, with machines that stand so. One before it, which is not closed, was killed. */
async function vmhost(machines: Record<number, MachineStanding>, file = path): Promise<Meter> {
  const meter = await Meter.open({
    path: file,
    rows: new Way(file),
    clocks: { wallMs: () => time + wallAheadMs, monotonicMs: () => time - bootedAt, boot },
    everyMs: minute,
    readTransfer: async (): Promise<TransferReadings> => ({ sequence: ++sequence, readings: counters.map(toReading) }),
    lastWrite: async () => written,
    log: pino({ level: 'silent' }),
    onLeaseLost: () => {
      lost++
    },
  })
  for (const [id, standing] of Object.entries(machines)) meter.note(Number(id), standing)
  await meter.goOn()
  return meter
}

function toReading({ series, machineId, bytes }: (typeof counters)[number]) {
  const one = { bytes, packets: Math.ceil(bytes / 1500) }
  const none = { bytes: 0, packets: 0 }
  return { series, machineId, directOut: one, directIn: none, gatewayOut: none, gatewayIn: none }
}

async function spans(machineId = 1) {
  const found = await sql<{ state: string; start: number; minutes: number }[]>`
    select state, extract(epoch from started_at - ${new Date(noon)}) / 60 as start,
      extract(epoch from ended_at - started_at) / 60 as minutes
    from machine_spans where machine_id = ${machineId} order by started_at`
  return found.map(({ state, start, minutes }) => [state, Number(start), Number(minutes)])
}

/** Bytes that left, as a bill has them. */
async function used(machineId = 1): Promise<number> {
  const [found] = await sql<{ bytes: number }[]>`
    select coalesce(sum(bytes), 0)::bigint as bytes from (
      select direct_out_bytes - coalesce(lag(direct_out_bytes) over (partition by series order by sequence), 0) as bytes
      from transfer_readings where machine_id = ${machineId}) as uses`
  return found?.bytes ?? 0
}

test('states and sizes of machines arrive as they change, and at least every five minutes', async () => {
  const meter = await vmhost({ 1: runs, 2: stopped })
  time += minute
  meter.note(1, { ...runs, diskBytes: 2 ** 35 })
  await expect.poll(() => spans()).toEqual([['running', 0, 1]])
  for (let minutes = 0; minutes < 7; minutes++) {
    time += minute
    await meter.look()
  }
  await expect
    .poll(() => spans())
    .toEqual([
      ['running', 0, 1],
      ['running', 1, 5],
    ])
  meter.note(1, undefined)
  meter.note(2, undefined)
  await expect.poll(() => spans(2)).toEqual([['stopped', 0, 8]])
  expect((await spans()).at(-1)).toEqual(['running', 6, 2])
  const [size] =
    await sql`select disk_bytes from machine_spans where machine_id = 1 order by started_at offset 1 limit 1`
  expect(size).toEqual({ disk_bytes: 2 ** 35 })
})

test('what checkpoints hold is part of the size, and found out by itself', async () => {
  const meter = await vmhost({ 1: stopped })
  meter.start()
  await db.as('owner')`
    insert into checkpoints (machine_id, account_id, observed_state, observed_held_bytes, for_copy, desired_state)
    values (1, 1, 'kept', 1000, false, 'kept'), (1, 1, 'kept', 500, false, 'kept'), (1, 1, 'kept', 7, true, 'kept'),
      (1, 1, 'kept', 7, false, 'gone'), (2, 1, 'kept', 9, false, 'kept')`
  time += minute
  await meter.look()
  // What it learns with the first answer begins a piece, which the next one ends.
  await expect.poll(() => spans()).toHaveLength(1)
  time += minute
  meter.note(1, undefined)
  await expect.poll(() => spans()).toHaveLength(2)
  const held = await sql`select checkpoint_bytes as bytes from machine_spans where machine_id = 1 order by started_at`
  expect(held.map(({ bytes }) => bytes)).toEqual([0, 1500])
  await meter.close(1000)
})

test('while the ledger is away facts wait, joined where they touch, and then all arrive', async () => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 0 }]
  const meter = await vmhost({ 1: runs, 2: stopped })
  isAway = true
  for (let minutes = 0; minutes < 120; minutes++) {
    time += minute
    for (const one of counters) one.bytes += 1_000
    await meter.look()
  }
  const kept = JSON.parse(readFileSync(path, 'utf8'))
  expect(kept.waiting.length + kept.underway.length).toBeLessThan(6)
  expect(kept.readings).toHaveLength(1)
  isAway = false
  time += 3 * minute
  await meter.look()
  const total = async (machineId: number) =>
    (await spans(machineId)).reduce((sum, [, , length]) => sum + Number(length), 0)
  await expect.poll(() => total(1)).toBe(120)
  await expect.poll(() => total(2)).toBe(120)
  await expect.poll(() => used()).toBe(120_000)
})

test('kill -9 at any moment between counting, keeping and sending: nothing is lost and nothing is there twice', async () => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 0 }]
  let meter = await vmhost({ 1: runs, 2: stopped })
  for (let round = 0; round < 24; round++) {
    const before = appended
    for (const one of counters) one.bytes += 700
    time += 6 * minute
    const when = ['before it looks', 'before it sends', 'before it hears', 'before it notes'][round % 4]
    isAway = when === 'before it sends'
    losesAnswers = when === 'before it hears'
    if (when !== 'before it looks') await meter.look()
    if (when === 'before it hears' || when === 'before it notes') {
      await expect.poll(() => appended).toBeGreaterThan(before)
      copyFileSync(join(folder, 'when-sent'), path)
    }
    // The one before is dead: what it would still do it does to another file.
    const next = join(folder, `ledger-${round}.json`)
    copyFileSync(path, next)
    path = next
    isAway = false
    losesAnswers = false
    meter = await vmhost({ 1: runs, 2: stopped })
    for (const one of counters) one.bytes += 50
  }
  time += minute
  await meter.look()
  meter.note(1, undefined)
  meter.note(2, undefined)
  const [bytes] = counters.map((one) => one.bytes)
  await expect.poll(() => used()).toBe(bytes)
  for (const id of [1, 2]) {
    const covered = async () => {
      const [found] = await sql`
        select range_agg(during)::text as all, sum(extract(epoch from ended_at - started_at))::int / 60 as minutes
        from machine_spans where machine_id = ${id}`
      return found
    }
    const minutes = 24 * 6 + 1
    const end = new Date(noon + minutes * minute).toISOString().slice(11, 19)
    await expect.poll(covered).toEqual({ all: `{["2026-03-31 12:00:00+00","2026-03-31 ${end}+00")}`, minutes })
  }
})

test('the last reading of counters is in the file before they are removed', async () => {
  const series = randomUUID()
  const meter = await vmhost({ 1: runs })
  isAway = true
  await meter.keepTransfer({ sequence: ++sequence, readings: [toReading({ series, machineId: 1, bytes: 4200 })] })
  // Killed, and the host boots again: no counter is left.
  isAway = false
  const next = await vmhost({ 1: runs })
  await next.look()
  await expect.poll(() => used()).toBe(4200)
  time += minute
  await next.look()
  await expect.poll(() => JSON.parse(readFileSync(path, 'utf8')).readings).toEqual([])
})

test('a host that lost its power and boots again has lost what came after the last look, and nothing is there twice', async () => {
  // No process of this host: when it was started nobody knows.
  const unknown = { ...runs, pid: 2 ** 30 }
  const [before, after] = [randomUUID(), randomUUID()]
  const asleep: MachineStanding = { ...stopped, state: 'asleep' }
  counters = [{ series: before, machineId: 1, bytes: 1_000 }]
  const meter = await vmhost({ 1: unknown, 2: asleep })
  isAway = true
  time += minute
  await meter.look()
  for (const one of counters) one.bytes += 500
  time += minute / 2
  const firstBoot = boot
  boot = randomUUID()
  bootedAt = time + 4 * minute
  time += 5 * minute
  sequence = 0
  isAway = false
  // The same number of a process is another process.
  const next = await vmhost({ 1: unknown, 2: asleep })
  counters = [{ series: after, machineId: 1, bytes: 70 }]
  await next.look()
  time += minute
  next.note(1, undefined)
  next.note(2, undefined)
  await expect.poll(() => used()).toBe(1_070)
  await expect
    .poll(() => spans(1))
    .toEqual([
      ['running', 0, 1],
      ['running', 6.5, 1],
    ])
  await expect.poll(() => spans(2)).toEqual([['asleep', 0, 7.5]])
  const boots = await sql`select series, host_boot from transfer_readings order by direct_out_bytes`
  expect([...boots]).toEqual([
    { series: after, host_boot: boot },
    { series: before, host_boot: firstBoot },
  ])
})

test('a clock that is put forward and back makes no time and takes none', async () => {
  const meter = await vmhost({ 1: runs })
  const fiveMinutes = async () => {
    time += 5 * minute
    await meter.look()
  }
  await fiveMinutes()
  wallAheadMs += 60 * minute
  await fiveMinutes()
  await fiveMinutes()
  wallAheadMs -= 30 * minute
  await fiveMinutes()
  const pieces = async () => {
    const [found] = await sql<{ all: string }[]>`
      select range_agg(during)::text as all from machine_spans where machine_id = 1`
    return found?.all.replaceAll('2026-03-31 ', '').replaceAll(':00+00', '')
  }
  // Twenty minutes, as many as went by.
  await expect.poll(pieces).toBe('{["12:00","12:10"),["13:10","13:20")}')
})

test('counters that were set back count on, also where the file was lost with what was known of them', async () => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 1_000 }]
  const meter = await vmhost({ 1: runs })
  await meter.look()
  await expect.poll(() => used()).toBe(1_000)
  for (const one of counters) one.bytes = 300
  await meter.look()
  await expect.poll(() => used()).toBe(1_300)
  rmSync(path)
  for (const one of counters) one.bytes = 400
  const next = await vmhost({ 1: runs })
  await next.look()
  await expect.poll(() => used()).toBe(1_400)
})

test('a machine whose end nobody saw ran until the last note, or until it last wrote to its disk', async () => {
  const meter = await vmhost({ 1: runs, 2: { ...runs, pid: process.ppid } })
  time += minute
  await meter.look()
  time += 10 * minute
  written = noon + 90_000
  const next = await vmhost({ 1: stopped, 2: { ...runs, pid: process.ppid } })
  time += minute
  next.note(1, undefined)
  next.note(2, undefined)
  await expect
    .poll(() => spans(1))
    .toEqual([
      ['running', 0, 1.5],
      ['stopped', 11, 1],
    ])
  await expect.poll(() => spans(2)).toEqual([['running', 0, 12]])
})

test('of a piece that the ledger has in part the rest arrives', async () => {
  const meter = await vmhost({ 1: runs })
  const size = { cpus: 1, memoryBytes: 1, diskBytes: 1, checkpointBytes: 0 }
  const foreign = { ...size, machineId: 1, state: 'stopped' as const }
  const at = (minutes: number) => noon + minutes * minute
  await alive.appendSpans([
    { ...foreign, startedAt: at(1), endedAt: at(2) },
    { ...foreign, startedAt: at(4), endedAt: at(5) },
  ])
  time += 6 * minute
  meter.note(1, undefined)
  await expect
    .poll(() => spans())
    .toEqual([
      ['running', 0, 1],
      ['stopped', 1, 1],
      ['running', 2, 2],
      ['stopped', 4, 1],
      ['running', 5, 1],
    ])
})

test('a file that cannot be read is put aside, and the ledger is not written twice for it', async () => {
  const meter = await vmhost({ 1: runs })
  time += 5 * minute
  await meter.look()
  await expect.poll(() => spans()).toEqual([['running', 0, 5]])
  writeFileSync(path, readFileSync(path, 'utf8').slice(0, 50))
  time -= 2 * minute
  const next = await vmhost({ 1: runs })
  time += 4 * minute
  next.note(1, undefined)
  await expect
    .poll(() => spans())
    .toEqual([
      ['running', 0, 5],
      ['running', 5, 2],
    ])
  expect(readFileSync(`${path}.damaged`, 'utf8')).toHaveLength(50)
})

test('overtaken by another vmhost, it writes nothing more and says so', async () => {
  const meter = await vmhost({ 1: runs })
  await db.as('owner')`update hosts set lease_epoch = 2`
  time += 5 * minute
  await meter.look()
  await expect.poll(() => lost).toBe(1)
  expect(await spans()).toEqual([])
})
