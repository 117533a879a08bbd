import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pino from 'pino'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { type TestDatabase, testDatabase } from '../../test/database.ts'
import type { GuestState, Hypervisor, HypervisorEvent } from '../hypervisor/driver.ts'
import { Agent } from '../testing/agent.ts'
import { type Ending, Guest } from './guest.ts'
import { makeHostKey } from './identity.ts'
import { takeLease } from './lease.ts'
import { type MachineRow, Rows } from './rows.ts'
import { Slots } from './slots.ts'

/** A guest without a guest: its hypervisor does nothing, its agent says what the test says, its database is real. */

let directory: string
let database: TestDatabase
let owner: Sql
let rows: Rows
let row: MachineRow
let agent: Agent
let guest: Guest | undefined
let happened: string[]
let balloons: number[]
let ended: PromiseWithResolvers<Ending>
let freeBytes: number
/** of its hypervisor, after `resume` too */
let state: GuestState
let raise: (event: HypervisorEvent) => void
let onResume: (() => void) | undefined

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'berth-guest-'))
  execFileSync('mkfifo', [join(directory, 'fifo')])
  database = await testDatabase()
  owner = database.as('owner')
  rows = new Rows(database.as('berth_vmhost'), await takeLease(database.as('berth_vmhost'), directory))
  await owner`insert into accounts (is_owner) values (true)`
  const [made] = await owner<{ id: number }[]>`
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
    values (1, ${rows.lease.hostId}, 'demo', 'minimal', 1, 1048576, 1048576) returning id`
  const found = await rows.one(made?.id ?? 0)
  if (!found) throw new Error('no machine')
  row = found
  happened = []
  balloons = []
  ended = Promise.withResolvers()
  freeBytes = 0
  state = 'running'
  agent = new Agent(join(directory, 'agent.sock'))
})

afterEach(async () => {
  await guest?.release()
  agent.close()
  await database[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true })
})

function attend(ready = false, options: { bootLimitMs?: number } = {}): Guest {
  const nothing = async () => {}
  const hypervisor: Hypervisor = {
    machineId: row.id,
    pid: process.pid,
    agent: { socketPath: join(directory, 'agent.sock') },
    consolePath: join(directory, 'fifo'),
    stateVersion: 'test',
    save: nothing,
    state: async () => state,
    on: (listener) => {
      raise = listener
      return () => {}
    },
    pause: async () => {
      happened.push('paused')
    },
    resume: async () => {
      happened.push('resumed')
      onResume?.()
    },
    powerButton: nothing,
    setBalloon: async (bytes) => {
      balloons.push(bytes)
    },
    balloon: async () => 0,
    diskCounters: async () => ({ readBytes: 0, writtenBytes: 0 }),
    size: async () => ({ cpus: row.cpus, memoryBytes: row.memoryBytes }),
    resize: async (wanted) => wanted,
    diskGrown: nothing,
    yieldToOthers: nothing,
    quit: nothing,
    kill: nothing,
    release: () => {},
  }
  const record = { image: 'minimal', imageHash: '0', loginUser: 'dev', init: true, systemId: 'f'.repeat(32) }
  guest = new Guest({
    hypervisor,
    files: { directory, disk: '', diskBytes: 0, record, hostKey: makeHostKey('').privateKey },
    boot: 1,
    ...options,
    ready,
    slot: undefined,
    owner: {
      row,
      ready: () => {},
      ended: (ending: Ending) => {
        happened.push(ending.kind)
        ended.resolve(ending)
      },
      observe: ({ observedStage, observedReason }) =>
        happened.push(observedStage ? `stage ${observedStage}` : `reason ${observedReason}`),
      record: (kind) => happened.push(kind),
    },
    world: {
      rows,
      slots: new Slots(1),
      gatewayKey: () => undefined,
      driver: { accelerator: 'kvm' },
      store: {
        space: async () => ({
          freeBytes,
          totalBytes: 9,
          volumeFreeBytes: freeBytes,
          underlyingFreeBytes: undefined,
          reserveBytes: 4,
        }),
      },
    },
    log: pino({ level: 'silent' }),
  })
  return guest
}

test('it is ready when it knows who it is and its sshd listens, and then reports', async () => {
  const one = attend()
  await agent.identified.promise
  expect(agent.hostname).toBe('demo')
  agent.reaches('identity')
  agent.reaches('sshd')
  await expect.poll(() => one.ready, { timeout: 60_000 }).toBe(true)
  expect(happened).toEqual(['stage ssh', 'stage ready', 'running'])
  await expect
    .poll(() => owner`select machine_id, report from machine_reports`, { timeout: 60_000 })
    .toMatchObject([{ machine_id: row.id, report: { txBytes: 4711, listeningPorts: [8000], cpuSeconds: 1.5 } }])
})

test('one that another vmhost was about to put to sleep is told again when it does not answer at first', async () => {
  const before = attend()
  await agent.identified.promise
  agent.reaches('sshd')
  await expect.poll(() => before.ready, { timeout: 60_000 }).toBe(true)
  await before.release()
  agent.deafToKeys = 1
  const after = attend(false, { bootLimitMs: 16_000 })
  await expect.poll(() => after.ready, { timeout: 60_000 }).toBe(true)
  expect(happened.filter((one) => one === 'failed')).toEqual([])
})

test('after a reboot it is told anew, once its tools are there, and is not ready before', async () => {
  const one = attend()
  await agent.identified.promise
  agent.reaches('sshd')
  await expect.poll(() => one.ready, { timeout: 60_000 }).toBe(true)
  raise({ type: 'reset', byGuest: true })
  raise({ type: 'reset', byGuest: true })
  expect(one.ready).toBe(false)
  // It boots with all of its memory, whatever had been taken from it.
  expect(balloons).toEqual([0])
  agent.boots()
  agent.reaches('tools')
  await expect.poll(() => agent.hostname, { timeout: 60_000 }).toBe('demo')
  agent.reaches('sshd')
  await expect.poll(() => one.ready, { timeout: 60_000 }).toBe(true)
  expect(happened).toEqual(['stage ready', 'running', 'rebooted', 'stage boot', 'stage ready', 'running'])
})

test('one that was adopted as ready hears nothing but its keys', async () => {
  agent.stage = 'init'
  attend()
  await agent.identified.promise
  await expect.poll(() => guest?.ready, { timeout: 60_000 }).toBe(true)
  await guest?.release()
  agent.hostname = 'what it was told before'
  expect(attend(true).ready).toBe(true)
  await expect
    .poll(() => owner`select count(*)::int as reports from machine_reports`, { timeout: 60_000 })
    .toEqual([{ reports: 1 }])
  expect(agent.hostname).toBe('what it was told before')
})

test('switched off by itself, it has ended once, whatever follows from it', async () => {
  const one = attend()
  raise({ type: 'shutdown', byGuest: true })
  await one.off
  await one.end('quit')
  raise({ type: 'exited', detail: '' })
  expect(happened).toEqual(['off'])
})

test('one that stands still for want of disk says so, goes on when there is space, and says that too', async () => {
  agent.stage = 'init'
  agent.hostname = 'demo'
  const one = attend(true)
  await agent.identified.promise
  const { told } = agent
  raise({ type: 'ioError', noSpace: true })
  raise({ type: 'ioError', noSpace: true })
  const reason = "reason It stands still: its server's disk is full. It goes on by itself when there is space"
  expect(happened).toEqual([reason, 'disk-error'])
  freeBytes = 9
  await expect.poll(() => happened.slice(2), { timeout: 60_000 }).toEqual(['resumed', 'reason null'])
  expect(one.ready).toBe(true)
  // Its clock stood still with it.
  await expect.poll(() => agent.told, { timeout: 60_000 }).toBe(told + 1)
})

test('one whose hypervisor cannot go on, with space enough, says what the way out is, and is tried all the same', async () => {
  agent.stage = 'init'
  agent.hostname = 'demo'
  const one = attend(true)
  state = 'ioError'
  freeBytes = 9
  raise({ type: 'ioError', noSpace: false })
  const tried = () => happened.filter((what) => what === 'resumed').length
  await expect.poll(tried, { timeout: 60_000 }).toBe(3)
  const lost =
    "reason It stands still: its server's disk lost some of what it wrote. Restart it: it boots from its disk, as after a power cut"
  await expect.poll(() => happened.filter((what) => what !== 'resumed').slice(2), { timeout: 60_000 }).toEqual([lost])
  expect(one.standsStill).toBe(true)
  state = 'running'
  await expect.poll(() => happened.at(-1), { timeout: 60_000 }).toBe('reason null')
  expect(one.standsStill).toBe(false)
})

test('one whose disk fails while there is no space under it says that it is for want of space', async () => {
  agent.stage = 'init'
  agent.hostname = 'demo'
  attend(true)
  raise({ type: 'ioError', noSpace: false })
  const failed = "reason It stands still: its server's disk failed a write or read, which is tried again"
  const full = "reason It stands still: its server's disk is full. It goes on by itself when there is space"
  await expect.poll(() => happened, { timeout: 60_000 }).toEqual([failed, 'disk-error', full])
})

test('one that has to stand still for others to have space is paused once, and goes on when there is some', async () => {
  agent.stage = 'init'
  agent.hostname = 'demo'
  const one = attend(true)
  await one.standStill()
  await one.standStill()
  const reason = "reason It stands still: its server's disk is full. It goes on by itself when there is space"
  expect(happened).toEqual(['paused', reason, 'disk-error'])
  freeBytes = 9
  await expect.poll(() => happened.slice(3), { timeout: 60_000 }).toEqual(['resumed', 'reason null'])
})

test('one that is stopped again while it is let go on is tried again', async () => {
  const one = attend(true)
  freeBytes = 9
  onResume = () => {
    onResume = undefined
    raise({ type: 'ioError', noSpace: true })
  }
  raise({ type: 'ioError', noSpace: true })
  await expect.poll(() => one.standsStill, { timeout: 60_000 }).toBe(false)
  expect(happened.filter((what) => what === 'resumed')).toHaveLength(2)
})

test('one that says hundreds of times where it is makes nothing happen a second time', async () => {
  agent.answers = false
  const one = attend()
  await agent.identified.promise
  for (const round of ['first', 'second', 'third']) {
    for (let i = 0; i < 100; i++) for (const stage of ['tools', 'identity', 'tools']) agent.reaches(stage)
    agent.gives(round)
    await expect.poll(() => one.fatal, { timeout: 60_000 }).toBe(round)
    await rows.one(row.id)
  }
  expect(happened).toEqual(['stage ssh'])
  expect(agent.told).toBe(1)
})

test.each([
  ['says the same stage over and over', () => agent.reaches('tools')],
  [
    'reboots over and over',
    () => {
      raise({ type: 'reset', byGuest: true })
      agent.boots()
      agent.reaches('modules')
    },
  ],
])(
  'one that %s before it was ready has failed: it holds its place among those that boot no longer',
  async (_, again) => {
    attend(false, { bootLimitMs: 1_500 })
    await agent.identified.promise
    const repeating = setInterval(again, 200)
    const ending = await ended.promise
    clearInterval(repeating)
    expect(ending).toMatchObject({ kind: 'failed', reason: expect.stringContaining('within 1.5 s') })
  },
)
