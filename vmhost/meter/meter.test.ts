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
let counters: { series: string; machineId: number; bytes: number; gateway?: number }[]
let sequence: number
let written: number | undefined
let lost: number
let boot: string
let wallAheadMs: number
let bootedAt: number
let now: () => number
let cannotAsk: boolean
let said: string[]
let waitingMost: number | undefined

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
  now = () => time
  cannotAsk = false
  said = []
  waitingMost = undefined
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

  override async lastReadings(...[series, before]: Parameters<LedgerRows['lastReadings']>) {
    if (cannotAsk && before === undefined) throw new Error('away')
    return await super.lastReadings(series, before)
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
    clocks: { wallMs: () => now() + wallAheadMs, monotonicMs: () => now() - bootedAt, boot },
    everyMs: minute,
    ...(waitingMost === undefined ? {} : { waitingMost }),
    readTransfer: async (): Promise<TransferReadings> => ({ sequence: ++sequence, readings: counters.map(toReading) }),
    lastWrite: async () => written,
    log: pino({ level: 'warn' }, { write: (line) => said.push(JSON.parse(line).msg) }),
    onLeaseLost: () => {
      lost++
    },
  })
  for (const [id, standing] of Object.entries(machines)) meter.note(Number(id), standing)
  await meter.goOn()
  return meter
}

/** Whatever the vmhost would still do it does to another file than the next. */
function kill(): void {
  const next = join(folder, `ledger-${randomUUID()}.json`)
  copyFileSync(path, next)
  path = next
}

function toReading({ series, machineId, bytes, gateway = 0 }: (typeof counters)[number]) {
  const [one, other] = [bytes, gateway].map((all) => ({ bytes: all, packets: Math.ceil(all / 1500) }))
  const none = { bytes: 0, packets: 0 }
  return { series, machineId, directOut: one ?? none, directIn: none, gatewayOut: other ?? none, gatewayIn: none }
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

test('a counter that was set back and has counted beyond what it read before is found out by the ledger, the file lost', async () => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 1_000 }]
  const meter = await vmhost({ 1: runs })
  await meter.look()
  for (const one of counters) one.bytes = 300
  await meter.look()
  await expect.poll(() => used()).toBe(1_300)
  kill()
  rmSync(path)
  for (const one of counters) one.bytes = 1_500
  const next = await vmhost({ 1: runs })
  await next.look()
  await expect.poll(() => used()).toBe(2_500)
})

test('a counter that was set back alone has nothing counted twice, whether the file knows it or the ledger alone', async () => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 1_000, gateway: 700 }]
  const meter = await vmhost({ 1: runs })
  await meter.look()
  await expect.poll(bill).toEqual({ '2026-03-31': { direct: 1_000, gateway: 700 } })
  for (const one of counters) Object.assign(one, { bytes: 50, gateway: 800 })
  await meter.look()
  await expect.poll(bill).toEqual({ '2026-03-31': { direct: 1_050, gateway: 800 } })
  // The file is that of before, or there is none, and the ledger could not be asked: it refuses, and says what it has.
  for (const lost of [false, true]) {
    kill()
    if (lost) rmSync(path)
    cannotAsk = lost
    for (const one of counters) Object.assign(one, { bytes: one.bytes + 20, gateway: lost ? 15 : 10 })
    const next = await vmhost({ 1: runs })
    await next.look()
    const billed = lost ? { direct: 1_090, gateway: 815 } : { direct: 1_070, gateway: 810 }
    await expect.poll(bill).toEqual({ '2026-03-31': billed })
  }
})

/** Bytes of machine 1 by day, as the sums say that bills are made of. */
async function bill(): Promise<Record<string, { direct: number; gateway: number }>> {
  const found = await db.as('owner')<{ day: string; direct: number; gateway: number }[]>`
    select day::text, direct::bigint, gateway::bigint from usage_days
    where machine_id = 1 and direct + gateway > 0 order by day`
  return Object.fromEntries(found.map(({ day, ...used }) => [day, used]))
}

/** Lets time pass as the meter's timer does: a look every ten minutes, and one at midnight. */
async function passes(meter: Meter, minutes: number, bytesAMinute = 0): Promise<void> {
  for (const end = time + minutes * minute; time < end; ) {
    const midnight = Math.ceil((time + 1) / (1440 * minute)) * 1440 * minute
    const next = Math.min(time + 10 * minute, end, midnight + 3)
    for (const one of counters) one.bytes += Math.round((bytesAMinute * (Math.min(next, midnight) - time)) / minute)
    time = next
    await meter.look()
  }
}

test.each([
  ['is there', false],
  ['is away', true],
])(
  'bytes are of the day on which they were sent, while the ledger %s over two midnights and the end of a month',
  async (_, away) => {
    counters = [{ series: randomUUID(), machineId: 1, bytes: 0 }]
    time = Date.UTC(2026, 3, 29, 23, 0, 30)
    const meter = await vmhost({ 1: stopped })
    isAway = away
    await passes(meter, 120, 100)
    kill()
    const next = await vmhost({ 1: stopped })
    await passes(next, 24 * 60, 100)
    isAway = false
    await passes(next, 1)
    const perDay = { '2026-04-29': 5_950, '2026-04-30': 144_000, '2026-05-01': 6_050 }
    const all = Object.fromEntries(Object.entries(perDay).map(([day, direct]) => [day, { direct, gateway: 0 }]))
    await expect.poll(bill).toEqual(all)
  },
)

test('a clock that is put forward or back over midnight moves no byte to another day, makes none and loses none', async () => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 0 }]
  time = Date.UTC(2026, 3, 30, 22)
  const meter = await vmhost({ 1: stopped })
  await passes(meter, 30, 100)
  // 22:30, and what was counted since the last look was counted before it was put to 01:00.
  for (const one of counters) one.bytes += 7
  wallAheadMs = 150 * minute
  await meter.look()
  await expect.poll(bill).toEqual({ '2026-04-30': { direct: 3_007, gateway: 0 } })
  for (const one of counters) one.bytes += 10
  time += minute
  await meter.look()
  await expect.poll(bill).toMatchObject({ '2026-05-01': { direct: 10 } })
  // Back to the old day: the hours that come twice are counted on after what is there, and so are those of the next vmhost.
  wallAheadMs = 0
  for (const one of counters) one.bytes += 20
  await passes(meter, 30, 0)
  kill()
  const next = await vmhost({ 1: stopped })
  for (const one of counters) one.bytes += 5
  await passes(next, 1, 0)
  await expect
    .poll(bill)
    .toEqual({ '2026-04-30': { direct: 3_007, gateway: 0 }, '2026-05-01': { direct: 35, gateway: 0 } })
  expect(await used()).toBe(3_042)
})

test('it looks at midnight by itself', async () => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 0 }]
  const midnight = Date.UTC(2026, 4, 1)
  time = midnight - minute
  const meter = await vmhost({ 1: stopped })
  await meter.look()
  for (const one of counters) one.bytes = 500
  // From here on it goes as time does.
  const begun = performance.now()
  now = () => midnight - 500 + performance.now() - begun
  meter.start()
  await expect.poll(bill).toEqual({ '2026-04-30': { direct: 500, gateway: 0 } })
  await meter.close(1_000)
})

test.each([
  [
    'a column is not there',
    'alter table machine_spans rename column cpus to cores',
    'alter table machine_spans rename column cores to cpus',
  ],
  [
    'a grant is not there',
    'revoke insert on transfer_readings from berth_vmhost',
    'grant insert on transfer_readings to berth_vmhost',
  ],
  [
    'a function is not there',
    'alter function add_usage(usage_days[]) rename to add_more',
    'alter function add_more(usage_days[]) rename to add_usage',
  ],
  [
    'a column is there that no vmhost knows',
    'alter table machine_spans add wanted integer not null',
    'alter table machine_spans drop wanted',
  ],
])('while the database is half upgraded and %s, facts wait', async (_, half, whole) => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 0 }]
  const meter = await vmhost({ 1: runs })
  await db.as('owner').unsafe(half)
  for (const one of counters) one.bytes += 1_000
  time += 6 * minute
  await meter.look()
  await expect.poll(() => said).toContain('the ledger is away: what it is to have is kept')
  for (let looks = 0; looks < 2; looks++) {
    time += 6 * minute
    await meter.look()
  }
  expect(await meter.troubles()).toMatchObject({ away: { since: expect.any(Date) }, aside: undefined })
  await db.as('owner').unsafe(whole)
  time += minute
  meter.note(1, undefined)
  await meter.look()
  await expect.poll(() => used()).toBe(1_000)
  await expect.poll(async () => (await spans()).reduce((sum, [, , length]) => sum + Number(length), 0)).toBe(19)
  await expect.poll(() => meter.troubles()).toEqual({ away: undefined, aside: undefined })
})

test('a fact that can never be taken is put aside for the operator, and the others arrive', async () => {
  counters = [
    { series: randomUUID(), machineId: 1, bytes: 500 },
    { series: randomUUID(), machineId: 2, bytes: 600 },
  ]
  const meter = await vmhost({ 1: runs, 2: { ...stopped, cpus: 0 } })
  await db.as('owner')`alter table transfer_readings add constraint transfer_readings_test check (machine_id <> 2)`
  time += minute
  await meter.look()
  meter.note(1, undefined)
  meter.note(2, undefined)
  await expect.poll(() => spans(1)).toEqual([['running', 0, 1]])
  await expect.poll(() => used(1)).toBe(500)
  const refused = `${path}.refused`
  await expect
    .poll(() =>
      readFileSync(refused, 'utf8')
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    )
    .toHaveLength(2)
  const facts: { state?: string }[] = readFileSync(refused, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(facts.toSorted((one) => (one.state ? -1 : 1))).toMatchObject([
    { why: expect.stringContaining('machine_spans_cpus_check'), machineId: 2, cpus: 0, startedAt: noon, endedAt: time },
    { why: expect.stringContaining('transfer_readings_test'), machineId: 2, directOutBytes: 600 },
  ])
  expect(await meter.troubles()).toEqual({ away: undefined, aside: refused })
  // Once is enough.
  time += minute
  await meter.look()
  await expect.poll(() => JSON.parse(readFileSync(path, 'utf8')).underway).toEqual([])
  expect(readFileSync(refused, 'utf8').trim().split('\n')).toHaveLength(2)
})

test('of more than may wait the oldest are put aside, and days of a counter are joined before that', async () => {
  counters = [{ series: randomUUID(), machineId: 1, bytes: 0 }]
  waitingMost = 2
  isAway = true
  const meter = await vmhost({ 1: stopped })
  await passes(meter, 4 * 1440, 1)
  isAway = false
  const refused = readFileSync(`${path}.refused`, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(refused[0]).toMatchObject({ state: 'stopped', why: 'the ledger was away for too long' })
  expect(refused.filter(({ series }) => series !== undefined)).toEqual([])
  await passes(meter, 10)
  await expect.poll(() => used()).toBe(4 * 1440)
  expect(Object.keys(await bill())).toHaveLength(2)
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
