import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { afterEach, beforeEach, expect, test, vi } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { type TestDatabase, testDatabase } from '../../test/database.ts'
import { takeLease } from '../reconcile/lease.ts'
import { Rows } from '../reconcile/rows.ts'
import { createKeeper, type Keeper } from './keeper.ts'
import { leaving, MemoryRows, overPromisedBytes, shortOfMemory } from './memory-rows.ts'
import { marksOf } from './policy.ts'

/**
 * The keeper over the real database, with a server of figures: guests that use some memory and fill the rest with
 * caches, a kernel that counts what they hold.
 */

vi.setConfig({ testTimeout: 30_000 })

const MiB = 2 ** 20
const GiB = 2 ** 30
const totalBytes = 16 * GiB
const marks = marksOf(totalBytes)

class Guest {
  readonly memoryBytes = 4 * GiB
  readonly id: number
  readonly pid: number
  usedBytes = GiB
  /** caches fill it to the brim */
  balloonBytes = 0
  answers = true
  /** it gives nothing */
  isStuck = false
  asks: number[] = []

  constructor(id: number) {
    this.id = id
    this.pid = 1000 + id
  }

  get heldBytes(): number {
    return this.memoryBytes - this.balloonBytes
  }

  readonly hypervisor = {
    balloon: async () => this.balloonBytes,
    setBalloon: async (bytes: number) => {
      this.asks.push(bytes)
      if (!this.isStuck || bytes < this.balloonBytes)
        this.balloonBytes = Math.min(bytes, this.memoryBytes - this.usedBytes)
    },
  }

  async report() {
    if (!this.answers) throw new Error('silent')
    return { memoryAvailableBytes: this.memoryBytes - this.usedBytes - this.balloonBytes }
  }
}

let directory: string
let database: TestDatabase
let owner: Sql
let rows: Rows
let guests: Map<number, Guest>
let keeper: Keeper
/** that the server's own programs and caches leave */
let freeBytes: number
let stall: { some: number; full: number } | undefined
let clockMs: number

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'berth-keeper-'))
  database = await testDatabase()
  owner = database.as('owner')
  rows = new Rows(database.as('berth_vmhost'), await takeLease(database.as('berth_vmhost'), directory))
  await owner`insert into accounts (is_owner) values (true)`
  await owner`update hosts set memory_bytes = ${totalBytes}, memory_overcommit = 4`
  guests = new Map()
  freeBytes = 12 * GiB
  stall = undefined
  clockMs = 1_000_000
  keeper = make()
})
afterEach(async () => {
  await keeper.close()
  await database[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true })
})

function make(): Keeper {
  return createKeeper({
    seats: () => guests.values(),
    pids: () => [...guests.values()].map(({ pid }) => pid),
    rows: new MemoryRows(rows),
    overheadBytes: 0,
    log: pino({ level: 'silent' }),
    readHost: async () => {
      const held = [...guests.values()].reduce((sum, { heldBytes }) => sum + heldBytes, 0)
      return { totalBytes, availableBytes: freeBytes - held, stall }
    },
    readHeld: async (pid) => guests.get(pid - 1000)?.heldBytes ?? 0,
    now: () => clockMs,
  })
}

/** A machine that runs, idle for so many minutes; null: it works. */
async function running(idleMinutes: number | null, more: Record<string, unknown> = {}): Promise<Guest> {
  const row = {
    account_id: 1,
    host_id: rows.lease.hostId,
    name: `m${guests.size}`,
    image: 'minimal',
    cpus: 1,
    memory_bytes: 4 * GiB,
    disk_bytes: GiB,
    observed_state: 'running',
    observed_ready_at: new Date(),
    observed_idle_since: idleMinutes === null ? null : new Date(Date.now() - idleMinutes * 60_000),
    ...more,
  }
  const [made] = await owner<{ id: number }[]>`insert into machines ${owner(row as never)} returning id`
  const guest = new Guest(made?.id ?? 0)
  guests.set(guest.id, guest)
  return guest
}

async function asleep(): Promise<number> {
  const guest = await running(null, { observed_state: 'asleep', observed_ready_at: null, desired_state: 'running' })
  guests.delete(guest.id)
  return guest.id
}

const desired = async ({ id }: { id: number }) =>
  (await owner`select desired_state, observed_asleep_because from machines where id = ${id}`)[0]

/** As a vmhost does it: it is saved, and its hypervisor is gone. */
async function fallAsleep({ id }: Guest): Promise<void> {
  guests.delete(id)
  await owner`update machines set observed_state = 'asleep', observed_ready_at = null where id = ${id}`
}

/** Looks as the clock goes, a second at a time, without waiting for it. */
async function look(seconds = 1): Promise<void> {
  for (let n = 0; n < seconds; n++) {
    clockMs += 1_000
    await keeper.look()
  }
}

const always = async () => true
const room = (id: number, bytes: number, isWanted = always) => keeper.room(id, { bytes, isWanted })

test('with memory in plenty nobody is asked for anything', async () => {
  const guest = await running(60)
  await look(3)
  expect(guest.asks).toEqual([])
})

test('a server that runs short takes from those idle longest, and gives back when there is plenty again', async () => {
  const [idle, idler, working] = [await running(5), await running(50), await running(null)]
  freeBytes = 12 * GiB + marks.low - 1
  await look()
  expect(idler.balloonBytes).toBeGreaterThanOrEqual(marks.enough - marks.low)
  expect([idle.balloonBytes, working.balloonBytes]).toEqual([0, 0])
  await look()
  expect((await keeper.figures()).reclaimedBytes).toBe(idler.balloonBytes)
  // It has enough now, and nothing changes for as long as that is all it has.
  await look(60)
  expect(idler.asks).toHaveLength(1)
  freeBytes += marks.ample
  await look(29)
  expect(idler.asks).toHaveLength(1)
  await look(60)
  expect(idler.balloonBytes).toBe(0)
  expect(await desired(idler)).toMatchObject({ desired_state: 'running' })
})

test('a guest that comes to have little gets all of it back at the next look, and is left alone for a while', async () => {
  const guest = await running(60)
  freeBytes = 4 * GiB
  await look()
  expect(guest.balloonBytes).toBeGreaterThan(GiB)
  guest.usedBytes = guest.memoryBytes - guest.balloonBytes - 10 * MiB
  // It is asked every five seconds as long as it has some.
  await look(5)
  expect(guest.balloonBytes).toBe(0)
  guest.usedBytes = GiB
  await look(58)
  expect(guest.balloonBytes).toBe(0)
  await look(3)
  expect(guest.balloonBytes).toBeGreaterThan(GiB)
})

test('a vmhost that starts finds what the one before has taken, and gives it back', async () => {
  const guest = await running(60)
  guest.balloonBytes = GiB
  freeBytes = 15 * GiB
  await look(50)
  expect(guest.balloonBytes).toBe(0)
})

test('a guest that does not answer any more gets its memory back', async () => {
  const guest = await running(60)
  freeBytes = 4 * GiB
  await look()
  guest.answers = false
  await look(29)
  expect(guest.balloonBytes).toBeGreaterThan(0)
  await look(8)
  expect(guest.balloonBytes).toBe(0)
})

test('where balloons do not do, those idle longest sleep, and no more than it takes, even if never for being idle', async () => {
  const all = [await running(5), await running(600, { sleep_never: true }), await running(60), await running(null)]
  for (const guest of all) guest.usedBytes = 3.9 * GiB
  freeBytes = 16 * GiB + marks.scarce - 1
  await look(2)
  expect((await owner`select from machines where desired_state = 'asleep'`).length).toBe(0)
  await look(2)
  const [idle, never, second, working] = all as [Guest, Guest, Guest, Guest]
  expect(await desired(never)).toEqual({ desired_state: 'asleep', observed_asleep_because: shortOfMemory })
  expect((await owner`select from machines where desired_state = 'asleep'`).length).toBe(1)
  await look(5)
  // Its memory is about to come; more of them are not needed.
  expect((await owner`select from machines where desired_state = 'asleep'`).length).toBe(1)
  freeBytes = 12 * GiB
  await fallAsleep(never)
  await look(5)
  expect(await desired(second)).toMatchObject({ desired_state: 'asleep' })
  for (const guest of [idle, working]) expect(await desired(guest)).toMatchObject({ desired_state: 'running' })
})

test('a hypervisor that hangs holds up what is done about the others for some seconds, once', async () => {
  const [hangs, idle] = [await running(600), await running(60)]
  hangs.hypervisor.balloon = () => new Promise(() => {})
  freeBytes = 8 * GiB + marks.low - 1
  const startedAt = performance.now()
  await look(20)
  expect(performance.now() - startedAt).toBeLessThan(12_000)
  expect(idle.balloonBytes).toBeGreaterThan(0)
  expect(await desired(hangs)).toMatchObject({ desired_state: 'running' })
})

test('a guest that says it has much and gives nothing of it keeps nobody awake until programs are ended', async () => {
  const [stuck, other] = [await running(600), await running(5)]
  stuck.isStuck = true
  other.usedBytes = 3.9 * GiB
  freeBytes = 8 * GiB + marks.least - 1
  await look(30)
  expect(await desired(stuck)).toEqual({ desired_state: 'asleep', observed_asleep_because: shortOfMemory })
})

const asleepOf = async (all: Guest[]) => {
  const told = await owner<{ id: number }[]>`select id from machines where desired_state = 'asleep' order by id`
  return told.map(({ id }) => all.findIndex((guest) => guest.id === id))
}

test('one that could not be put to sleep is not waited for, and is passed over as long as there are others', async () => {
  const all = [await running(600), await running(500), await running(60), await running(5)]
  for (const guest of all) guest.usedBytes = 3.9 * GiB
  freeBytes = 16 * GiB + marks.scarce - 5 * GiB
  await look()
  expect(await asleepOf(all)).toEqual([0, 1])
  await look(5)
  expect(await asleepOf(all)).toEqual([0, 1])
  for (const { id } of all.slice(0, 2)) keeper.couldNotSleep(id)
  await look()
  expect(await asleepOf(all)).toEqual([0, 1, 2, 3])
  // Something came for all of them. Those that failed are idle longest again.
  await owner`update machines set desired_state = 'running'`
  await look()
  expect(await asleepOf(all)).toEqual([2, 3])
  for (const guest of all.slice(2)) await fallAsleep(guest)
  freeBytes -= 8 * GiB
  await look()
  expect(await asleepOf(all)).toEqual([0, 1, 2, 3])
})

test('one that failed before memory ran short keeps nobody awake either', async () => {
  const all = [await running(600), await running(500), await running(60)]
  for (const guest of all) guest.usedBytes = 3.9 * GiB
  freeBytes = 40 * GiB
  for (const { id } of all.slice(0, 2)) {
    await owner`update machines set desired_state = 'asleep' where id = ${id}`
    keeper.couldNotSleep(id)
  }
  await look(60)
  freeBytes = 12 * GiB + marks.least - 1
  await look()
  expect(await asleepOf(all)).toEqual([0, 1, 2])
})

test('while programs are about to be ended, one that says nothing is waited for ten seconds', async () => {
  const all = [await running(600), await running(500), await running(null)]
  for (const guest of all) guest.usedBytes = 3.9 * GiB
  freeBytes = 12 * GiB + marks.least - 1
  await look()
  expect(await asleepOf(all)).toEqual([0])
  freeBytes = 12 * GiB - 5 * GiB
  await look()
  expect(await asleepOf(all)).toEqual([0, 1])
  await look(8)
  expect(await asleepOf(all)).toEqual([0, 1])
  await look(3)
  expect(await asleepOf(all)).toEqual([0, 1, 2])
})

test('nobody sleeps whom something came for since it was idle; one that works does when programs are about to be ended', async () => {
  const idle = await running(60)
  idle.usedBytes = 3.9 * GiB
  const awake = await new MemoryRows(rows).awake()
  await database.as('berth_gateway')`insert into machine_activity values (${idle.id}, now(), 'ssh')`
  expect(await new MemoryRows(rows).putToSleep(awake[0] as (typeof awake)[0])).toBe(false)
  await owner`update machines set observed_idle_since = null`
  freeBytes = 4 * GiB + marks.least
  await look(10)
  expect(await desired(idle)).toMatchObject({ desired_state: 'running' })
  freeBytes = 4 * GiB
  await look()
  expect(await desired(idle)).toMatchObject({ desired_state: 'asleep' })
})

test('a machine that wakes has room at once where there is room, and counts until its memory is read', async () => {
  freeBytes = marks.scarce + 2 * GiB
  const [first, second] = [await asleep(), await asleep()]
  const granted = await Promise.all([room(first, 1.5 * GiB), room(second, 1.5 * GiB)])
  expect(granted.filter((one) => one !== undefined)).toHaveLength(1)
  for (const one of granted) one?.[Symbol.dispose]()
  using again = await room(second, 1.5 * GiB)
  expect(again).toBeDefined()
})

test('for what can wait there is only what nobody has to give, was promised, or waits for', async () => {
  await running(60)
  freeBytes = 4 * GiB + marks.scarce + GiB
  expect([await keeper.spare(GiB), await keeper.spare(1.1 * GiB)]).toEqual([true, false])
  freeBytes = 4 * GiB + marks.low - 1
  expect(await keeper.spare(0)).toBe(false)
  freeBytes = 40 * GiB
  await owner`update hosts set memory_overcommit = 0.5`
  expect([await keeper.spare(4 * GiB), await keeper.spare(4 * GiB + 1)]).toEqual([true, false])
})

test('a machine that wakes gets what balloons give', async () => {
  const idle = await running(60)
  freeBytes = 4 * GiB + marks.low + GiB
  using granted = await room(await asleep(), 2 * GiB)
  expect(granted).toBeDefined()
  expect(idle.balloonBytes).toBeGreaterThan(0)
  expect(await desired(idle)).toMatchObject({ desired_state: 'running' })
})

test('for a machine that wakes, those idle longest sleep where balloons do not do', async () => {
  const [idle, working] = [await running(60), await running(null)]
  for (const guest of [idle, working]) guest.usedBytes = 3.9 * GiB
  freeBytes = 8 * GiB + marks.low
  const id = await asleep()
  const coming = room(id, 2 * GiB)
  await vi.waitFor(async () => expect(await desired(idle)).toMatchObject({ desired_state: 'asleep' }), 5_000)
  await fallAsleep(idle)
  using granted = await coming
  expect(granted).toBeDefined()
  expect(await desired(working)).toMatchObject({ desired_state: 'running' })
})

test('so they do where more is promised than the operator allows; those that only would like to wake promise nothing', async () => {
  await owner`update hosts set memory_overcommit = 0.5`
  const [idle] = [await running(60), await running(null)]
  freeBytes = 40 * GiB
  const [id, other] = [await asleep(), await asleep()]
  const promises = await new MemoryRows(rows).promises()
  expect(overPromisedBytes(promises, new Set(), 0)).toBe(0)
  expect(overPromisedBytes(promises, new Set([id]), 0)).toBe(4 * GiB)
  expect(overPromisedBytes(promises, new Set([id, other]), GiB)).toBe(12 * GiB)
  const coming = room(id, GiB)
  await vi.waitFor(async () => expect(await desired(idle)).toMatchObject({ desired_state: 'asleep' }), 5_000)
  expect(leaving(await new MemoryRows(rows).promises()).map((row) => row.id)).toEqual([idle.id])
  await fallAsleep(idle)
  expect(await coming).toBeDefined()
})

const saidOf = async (id: number) =>
  (await owner`select desired_state, observed_reason from machines where id = ${id}`)[0]

test('a machine that nobody can make room for is left asleep at once, and its row says why', async () => {
  const working = await running(null)
  working.usedBytes = 3.9 * GiB
  freeBytes = 4 * GiB + marks.low
  const id = await asleep()
  expect(await room(id, 2 * GiB)).toBeUndefined()
  const noMemory = 'Its server has no memory left for it: all of it is in use'
  expect(await saidOf(id)).toEqual({ desired_state: 'asleep', observed_reason: noMemory })
  expect(await owner`select machine_name, actor, kind, detail from events`).toEqual([
    {
      machine_name: 'm1',
      actor: `host:${rows.lease.hostName}`,
      kind: 'machine.left_asleep',
      detail: { because: noMemory },
    },
  ])
  freeBytes = 40 * GiB
  await owner`update hosts set memory_overcommit = 0.25`
  const other = await asleep()
  expect(await room(other, MiB)).toBeUndefined()
  expect((await saidOf(other))?.observed_reason).toBe(
    'Its server has promised all its memory to machines that are in use',
  )
})

test('wanted again at once, it waits a while before it is refused again, and comes when there is room', async () => {
  const working = await running(null)
  freeBytes = 4 * GiB + marks.least
  working.usedBytes = 3.9 * GiB
  const id = await asleep()
  expect(await room(id, GiB)).toBeUndefined()
  await owner`update machines set desired_state = 'running' where id = ${id}`
  const again = room(id, GiB)
  await look(20)
  expect(await saidOf(id)).toMatchObject({ desired_state: 'running' })
  freeBytes += 2 * GiB
  expect(await again).toBeDefined()
})

test('one that nobody wants awake any more is forgotten', async () => {
  const idle = await running(60)
  idle.isStuck = true
  freeBytes = 4 * GiB + marks.low
  const id = await asleep()
  expect(await room(id, 2 * GiB, async () => false)).toBeUndefined()
  expect(await saidOf(id)).toMatchObject({ desired_state: 'running' })
})

test('programs that wait for memory are believed before the figures are low', async () => {
  const idle = await running(60)
  freeBytes = 4 * GiB + marks.enough - MiB
  await look(3)
  expect(idle.asks).toEqual([])
  stall = { some: 0.4, full: 0.05 }
  await look()
  expect(idle.balloonBytes).toBeGreaterThan(0)
})

test('without its database a server takes by balloons all the same', async () => {
  const guest = await running(60)
  await look()
  await database[Symbol.asyncDispose]()
  freeBytes = 4 * GiB
  await expect(look()).rejects.toThrow()
  expect(guest.balloonBytes).toBeGreaterThan(0)
  database = await testDatabase()
})
