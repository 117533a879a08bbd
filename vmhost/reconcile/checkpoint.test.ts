import { open, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pino from 'pino'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { type TestDatabase, testDatabase } from '../../test/database.ts'
import type { Hypervisor, HypervisorDriver } from '../hypervisor/driver.ts'
import { qemuDriver, qemuVersion } from '../hypervisor/qemu.ts'
import { openCheckpoints } from '../storage/checkpoints.ts'
import type { Store } from '../storage/store.ts'
import type { Volume } from '../storage/volume.ts'
import { Agent } from '../testing/agent.ts'
import { CheckpointRows } from './checkpoint-rows.ts'
import { takeLease } from './lease.ts'
import { Machine } from './machine.ts'
import { Outbox } from './observed.ts'
import { Rows } from './rows.ts'
import { Slots } from './slots.ts'
import { makeTinyStore, type TinyStore } from './testing/tiny-store.ts'
import type { World } from './world.ts'

/**
 * Checkpoints of machines, and machines of checkpoints: Postgres, the volume and QEMU are real; in each guest there are
 * a few bytes, and its agent is the test's own. What a gateway asks for is asked for as it does it.
 */

const MiB = 2 ** 20
const settleLimitMs = 60_000
/** Several guests after one another, on a machine that has other things to do. */
const limitMs = 180_000
const log = pino({ level: process.env.BERTH_LOG ?? 'silent' })
const driver = qemuDriver({ accelerator: 'tcg', version: await qemuVersion(), cgroups: false })

let tiny: TinyStore
let home: string
let volume: Volume
let store: Store
let database: TestDatabase
let gateway: Sql
let stop: AbortController
let outbox: Outbox
let world: World
let machines: Map<number, Machine>
let agents: Map<number, Agent>
/** of their sockets */
const paths = new Map<number, string>()
let started = 0
/** so many times a guest is not let go on */
let resumesRefused = 0
/** called within the next save */
let whileSaving: (() => void | Promise<void>) | undefined
let networks: Map<number, string | undefined>
/** those that this vmhost, which may be killed, is connected to */
const hypervisors: Hypervisor[] = []

beforeAll(async () => {
  tiny = await makeTinyStore(log)
  ;({ home, volume, store } = tiny)
})

vi.setConfig({ testTimeout: limitMs, hookTimeout: limitMs })

beforeEach(async () => {
  database = await testDatabase()
  gateway = database.as('berth_gateway')
  await database.as('owner')`insert into accounts (is_owner) values (true), (false)`
  machines = new Map()
  agents = new Map()
  networks = new Map()
  whileSaving = undefined
  resumesRefused = 0
  await vmhost()
})

afterEach(async () => {
  stop.abort()
  for (const machine of machines.values()) await machine.release()
  await outbox.close(1000)
  for (const id of await store.listMachines()) {
    await driver.destroy(id, store.directoryOf(id))
    await store.removeMachine(id)
  }
  for (const agent of agents.values()) agent.close()
  await rm(join(volume.path, 'checkpoints'), { recursive: true })
  await database[Symbol.asyncDispose]()
})

afterAll(async () => {
  for (const id of await store.listMachines()) await driver.destroy(id, store.directoryOf(id))
  await tiny[Symbol.asyncDispose]()
})

/** A vmhost that starts over what is there. */
async function vmhost(): Promise<void> {
  stop = new AbortController()
  const sql = database.as('berth_vmhost')
  const lease = await takeLease(sql, home)
  const rows = new Rows(sql, lease)
  const { signal } = stop
  outbox = new Outbox(rows, log, () => {})
  const parts: Partial<World> = {
    driver: { ...driver, start: startOf, adopt: adoptOf },
    store,
    checkpoints: await openCheckpoints(volume),
    checkpointRows: new CheckpointRows(sql, lease),
    rows,
    meter: { note: () => {}, goOn: async () => {}, start: () => {} },
    outbox,
    network: {
      ensureMachine: async ({ machineId, mac }) => {
        networks.set(machineId, mac)
        return { tap: 'none', mac: mac ?? 'none' }
      },
      removeMachine: async () => {},
    } as Partial<World['network']> as World['network'],
    slots: new Slots(2),
    wakes: new Slots(2),
    sleeps: new Slots(2),
    room: async () => ({ [Symbol.dispose]: () => {} }),
    guest: { network: '10.42.0.0/16', resolvers: ['1.1.1.1'], ntp: 'ntp' },
    memoryBytes: 2 ** 40,
    log,
    gatewayKey: () => undefined,
    signal,
  }
  world = parts as World
  for (const row of await rows.all()) {
    const machine = new Machine(row, world)
    machines.set(row.id, machine)
    await machine.adopt()
    void machine.poke()
  }
}

const startOf: HypervisorDriver['start'] = async ({ network: _, ...spec }) => {
  // Whoever is connected to the one before is not to find this one.
  const path = join(home, `agent-${spec.machineId}-${++started}.sock`)
  const agent = new Agent(path)
  paths.set(spec.machineId, path)
  agent.stage = 'init'
  agent.memory = { totalBytes: 60 * MiB, availableBytes: 50 * MiB }
  // What goes on from its memory knows who it was.
  if (spec.restoreFrom !== undefined) {
    agent.hostname = 'somebody'
    agent.frozen = true
  }
  agents.get(spec.machineId)?.close()
  agents.set(spec.machineId, agent)
  const hypervisor = await driver.start(spec)
  agent.onPowerOff = () => process.kill(hypervisor.pid, 'SIGKILL')
  return wrapped(hypervisor)
}
const adoptOf: HypervisorDriver['adopt'] = async (...of) => {
  const found = await driver.adopt(...of)
  return found && wrapped(found)
}

function wrapped(hypervisor: Hypervisor): Hypervisor {
  hypervisors.push(hypervisor)
  const own: Partial<Hypervisor> = {
    agent: { socketPath: paths.get(hypervisor.machineId) ?? '' },
    setBalloon: async () => {},
    balloon: async () => 0,
    save: async (folder, options) => {
      const act = whileSaving
      whileSaving = undefined
      await act?.()
      await hypervisor.save(folder, options)
    },
    resume: async () => {
      if (resumesRefused-- > 0) throw new Error('It does not go on')
      await hypervisor.resume()
    },
  }
  return new Proxy(hypervisor, {
    get: (target, name) => {
      if (name in own) return own[name as keyof Hypervisor]
      const value = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}
type Row = Record<string, unknown> & { id: number; observed_state: string; observed_restore: number }
const machineRow = async (id: number) => (await gateway<Row[]>`select * from machines where id = ${id}`)[0]
const checkpoint = async (id: number) => (await gateway<Row[]>`select * from checkpoints where id = ${id}`)[0]

/** What `new` does, and, with a checkpoint, what `cp` and `restore --as` do. */
async function create(name: string, of?: number): Promise<number> {
  const { hostId } = world.rows.lease
  const [row] = await gateway<{ id: number }[]>`
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, restore_from, desired_restore)
    values (1, ${hostId}, ${name}, 'minimal', 1, ${128 * MiB}, ${16 * MiB}, ${of ?? null}, ${of === undefined ? 0 : 1})
    returning id`
  const id = row?.id ?? 0
  await gateway`insert into addresses (address, machine_id) values (${`10.42.0.${id + 1}`}, ${id})`
  const found = await world.rows.one(id)
  if (!found) throw new Error('no row')
  machines.set(id, new Machine(found, world))
  await is(id, 'running')
  return id
}

/** A machine whose gateway wants nothing more of it than what it is. */
async function is(id: number, state: string): Promise<Row> {
  await settle(async () => {
    const row = await machineRow(id)
    if (row?.observed_state === 'failed') throw new FailedError(String(row.observed_reason))
    expect(row).toMatchObject({ observed_state: state, observed_restore: row?.desired_restore })
    if (state === 'running') expect(row?.observed_ready_at).not.toBeNull()
  })
  const row = await machineRow(id)
  if (!row) throw new Error('no row')
  return row
}

class FailedError extends Error {}

/** News, in these tests: everybody looks until it is so. */
async function settle(look: () => Promise<void>): Promise<void> {
  for (const deadline = Date.now() + settleLimitMs; ; await sleep(20)) {
    await Promise.all([...machines.values()].map((machine) => machine.poke()))
    try {
      await look()
      return
    } catch (error) {
      if (Date.now() > deadline || error instanceof FailedError) throw error
    }
  }
}

async function wantState(id: number, state: 'asleep' | 'running' | 'stopped'): Promise<void> {
  await gateway`update machines set desired_state = ${state} where id = ${id}`
  await is(id, state)
}

async function ask(machineId: number, { diskOnly = false, forCopy = false } = {}): Promise<number> {
  const [row] = await gateway<{ id: number }[]>`
    insert into checkpoints (machine_id, account_id, disk_only, for_copy)
    values (${machineId}, 1, ${diskOnly}, ${forCopy}) returning id`
  return row?.id ?? 0
}
async function take(machineId: number, options = {}): Promise<Row> {
  const id = await ask(machineId, options)
  await settle(async () => expect((await checkpoint(id))?.observed_state).not.toBe('waiting'))
  const row = await checkpoint(id)
  if (!row) throw new Error('no row')
  return row
}

/** What `restore` does. @returns the checkpoint of the state before */
async function wantRestore(machineId: number, from: number): Promise<number> {
  const keeps = await ask(machineId)
  await gateway`update machines set desired_state = 'running', restore_from = ${from}, restore_keeps = ${keeps},
    desired_restore = desired_restore + 1 where id = ${machineId}`
  return keeps
}

const diskOf = (id: number) => join(store.directoryOf(id), 'root.raw')
/** As a guest writes. */
async function write(id: number, text: string): Promise<void> {
  const file = await open(diskOf(id), 'r+')
  await file.write(text.padEnd(8), 0)
  await file.close()
}
const written = async (id: number) => (await readFile(diskOf(id))).subarray(0, 8).toString().trim()
const told = (id: number) => {
  const { hostname, address, frozen } = agents.get(id) ?? {}
  return { hostname, address, frozen }
}

test('a checkpoint of a machine that runs has its memory, and the machine runs on as the same process', async () => {
  const id = await create('demo')
  const pid = machines.get(id)?.pid
  await write(id, 'before')
  const taken = await take(id)
  expect(taken).toMatchObject({
    observed_state: 'kept',
    observed_disk_bytes: 16 * MiB,
    observed_cpus: 1,
    observed_memory_bytes: 128 * MiB,
    observed_saved_bytes: expect.toSatisfy((bytes) => bytes > 4096),
    observed_still_ms: expect.any(Number),
  })
  const stillMs = taken.observed_still_ms as number
  await settle(async () => {
    const told = await gateway<{ detail: Record<string, number> }[]>`
      select detail from events where kind = 'machine.checkpoint-taken' and machine_id = ${id}`
    expect(told).toMatchObject([{ detail: { checkpoint: taken.id, stillMs } }])
    const { frozenMs = 0, savingMs = 0 } = told[0]?.detail ?? {}
    expect([frozenMs >= stillMs, stillMs >= savingMs, savingMs > 0]).toEqual([true, true, true])
  })
  await is(id, 'running')
  expect(machines.get(id)?.pid).toBe(pid)
  expect(told(id)).toMatchObject({ frozen: false })
  // At its start, and what time it is when it goes on.
  await settle(async () => expect(agents.get(id)?.told).toBe(2))
})

test('of the disk alone, it does not stand still at all, and its filesystem writes again', async () => {
  const id = await create('demo')
  expect(await take(id, { diskOnly: true })).toMatchObject({ observed_state: 'kept', observed_memory_bytes: null })
  expect(told(id)).toMatchObject({ frozen: false })
  await wantState(id, 'stopped')
  expect(await take(id)).toMatchObject({ observed_state: 'kept', observed_memory_bytes: null, observed_still_ms: null })
})

test('a copy goes on as somebody else, with the card of the machine that it was, and its checkpoint goes', async () => {
  const id = await create('demo')
  await write(id, 'before')
  const from = await ask(id, { forCopy: true })
  const twin = await create('twin', from)
  expect(told(twin)).toEqual({
    hostname: 'twin',
    address: expect.stringMatching(new RegExp(`^10\\.42\\.0\\.${twin + 1}:10\\.42\\.0\\.1:.*:twin:eth0:`)),
    frozen: false,
  })
  expect(networks.get(twin)).toBe('02:be:0a:2a:00:02')
  expect(networks.get(id)).toBeUndefined()
  expect(await written(twin)).toBe('before')
  const [one, other] = [await machineRow(id), await machineRow(twin)]
  expect(other?.observed_host_key).not.toEqual(one?.observed_host_key)
  expect((await store.findMachine(twin))?.record.systemId).not.toBe((await store.findMachine(id))?.record.systemId)
  expect(told(id)).toMatchObject({ hostname: 'demo', address: undefined })
  await settle(async () => expect((await checkpoint(from))?.observed_state).toBe('gone'))
  // It is told anew after each sleep, and boots as itself.
  await wantState(twin, 'asleep')
  await wantState(twin, 'running')
  expect(told(twin)).toMatchObject({ hostname: 'twin', address: expect.stringContaining(`10.42.0.${twin + 1}:`) })
  expect(networks.get(twin)).toBe('02:be:0a:2a:00:02')
  await gateway`update machines set desired_boot = desired_boot + 1 where id = ${twin}`
  await is(twin, 'running')
  await settle(async () => expect((await machineRow(twin))?.observed_boot).toBe(2))
  await is(twin, 'running')
  expect(told(twin)).toMatchObject({ hostname: 'twin', address: undefined })
  expect(networks.get(twin)).toBeUndefined()
})

test('a copy that was asked for is made of a machine that is deleted a moment later', async () => {
  const id = await create('demo')
  await write(id, 'before')
  const from = await ask(id, { forCopy: true })
  await gateway`update machines set desired_state = 'gone' where id = ${id}`
  const twin = await create('twin', from)
  expect(told(twin)).toMatchObject({ hostname: 'twin', frozen: false })
  expect(await written(twin)).toBe('before')
  await settle(async () => expect((await machineRow(id))?.observed_state).toBe('gone'))
  expect(await checkpoint(from)).toMatchObject({ observed_state: 'gone' })
  expect(await world.checkpoints.find(from, (await checkpoint(from))?.token as string)).toBeUndefined()
})

test('a copy of one that sleeps goes on where it lies, and the sleeper sleeps on', async () => {
  const id = await create('demo')
  await wantState(id, 'asleep')
  const twin = await create('twin', await ask(id, { forCopy: true }))
  expect(told(twin)).toMatchObject({ hostname: 'twin', address: expect.any(String) })
  expect(await machineRow(id)).toMatchObject({ observed_state: 'asleep' })
  await wantState(id, 'running')
  expect(await machineRow(id)).toMatchObject({ observed_reason: null, observed_boot: 1 })
})

test('a machine goes back to its checkpoint, and forward again to what it was before', async () => {
  const id = await create('demo')
  await write(id, 'before')
  const { id: from } = await take(id)
  await write(id, 'after')
  const keeps = await wantRestore(id, from)
  expect(await is(id, 'running')).toMatchObject({ observed_restore: 1, observed_restore_problem: null })
  expect(await written(id)).toBe('before')
  expect(told(id)).toMatchObject({ hostname: 'demo', address: undefined, frozen: false })
  expect(await checkpoint(keeps)).toMatchObject({ observed_state: 'kept', observed_memory_bytes: 128 * MiB })
  await wantRestore(id, keeps)
  expect(await is(id, 'running')).toMatchObject({ observed_restore: 2 })
  expect(await written(id)).toBe('after')
})

test('a checkpoint whose files are damaged leaves the machine as it is, which goes on, and says why', async () => {
  const id = await create('demo')
  const { id: from, token } = await take(id)
  const found = await world.checkpoints.find(from, token as string)
  await writeFile(join(found?.directory ?? '', 'memory', 'saved.json'), '{}')
  const pid = machines.get(id)?.pid
  await wantRestore(id, from)
  expect(await is(id, 'running')).toMatchObject({
    observed_restore: 1,
    observed_restore_problem: 'The files of the checkpoint are damaged',
    observed_reason: null,
  })
  expect(machines.get(id)?.pid).toBe(pid)
})

test('one that failed is brought back by a restore', async () => {
  const id = await create('demo')
  await write(id, 'before')
  const { id: from } = await take(id)
  await wantState(id, 'stopped')
  await database.as('owner')`update machines set observed_state = 'failed' where id = ${id}`
  await wantRestore(id, from)
  await settle(async () => expect((await machineRow(id))?.observed_state).not.toBe('failed'))
  expect(await is(id, 'running')).toMatchObject({ observed_reason: null })
})

test('what cannot be kept leaves the machine as it is, running, and says why', async () => {
  const id = await create('demo')
  const { id: from } = await take(id)
  await write(id, 'after')
  const pid = machines.get(id)?.pid
  whileSaving = () => {
    throw new Error('There is no room for it')
  }
  const keeps = await wantRestore(id, from)
  expect(await is(id, 'running')).toMatchObject({
    observed_restore: 1,
    observed_restore_problem: expect.stringContaining('There is no room for it'),
  })
  expect(await checkpoint(keeps)).toMatchObject({ observed_state: 'failed' })
  expect(machines.get(id)?.pid).toBe(pid)
  expect(await written(id)).toBe('after')
  expect(told(id)).toMatchObject({ frozen: false })
})

test('one that cannot be let go on when it was not kept stands still until it can, and says so', async () => {
  const id = await create('demo')
  const { id: from } = await take(id)
  whileSaving = () => {
    resumesRefused = 1
    throw new Error('There is no room for it')
  }
  await wantRestore(id, from)
  await settle(async () =>
    expect((await machineRow(id))?.observed_reason).toBe(
      'It stands still: it was not put to sleep, and does not go on, which is tried again',
    ),
  )
  expect(await is(id, 'running')).toMatchObject({ observed_reason: null })
  expect(await hypervisors.at(-1)?.state()).toBe('running')
})

test('a machine that stands still is not ended for a restore that could not keep it', async () => {
  const id = await create('demo')
  const { id: from } = await take(id)
  await write(id, 'after')
  const pid = machines.get(id)?.pid
  await machines.get(id)?.standStill()
  await wantRestore(id, from)
  await settle(async () =>
    expect(await machineRow(id)).toMatchObject({
      observed_restore: 1,
      observed_restore_problem: expect.stringContaining('It stands still'),
    }),
  )
  expect(machines.get(id)?.pid).toBe(pid)
  expect(await written(id)).toBe('after')
})

test('a checkpoint that fails says why; a machine that was to be made of it fails, and can be thrown away', async () => {
  const id = await create('demo')
  whileSaving = () => {
    throw new Error('There is no room for it')
  }
  const from = await ask(id, { forCopy: true })
  await expect(create('twin', from)).rejects.toThrow('The checkpoint failed')
  expect(await checkpoint(from)).toMatchObject({ observed_state: 'failed', observed_reason: 'There is no room for it' })
  const [twin] = await gateway<Row[]>`select * from machines where name = 'twin'`
  expect(twin).toMatchObject({
    observed_state: 'failed',
    observed_reason: 'The checkpoint failed: There is no room for it',
  })
  await gateway`update machines set desired_state = 'gone' where id = ${twin?.id ?? 0}`
  await settle(async () => expect((await machineRow(twin?.id ?? 0))?.observed_state).toBe('gone'))
  expect(told(id)).toMatchObject({ hostname: 'demo', frozen: false })
})

test('a copy whose checkpoint failed says so when the machine that it was to be made of is deleted meanwhile', async () => {
  const id = await create('demo')
  whileSaving = () => {
    throw new Error('There is no room for it')
  }
  expect(await take(id, { forCopy: true })).toMatchObject({ observed_state: 'failed' })
  const [from] = await gateway<Row[]>`select * from checkpoints where machine_id = ${id}`
  await gateway`update machines set desired_state = 'gone' where id = ${id}`
  await settle(async () => expect((await machineRow(id))?.observed_state).toBe('gone'))
  expect(await checkpoint(from?.id ?? 0)).toMatchObject({ observed_state: 'gone' })
  await expect(create('twin', from?.id)).rejects.toThrow('The checkpoint failed: There is no room for it')
})

test('a vmhost that is killed while it takes one: the guest goes on, and the next one takes it', async () => {
  const id = await create('demo')
  const pid = machines.get(id)?.pid
  const reached = Promise.withResolvers<void>()
  const never = Promise.withResolvers<void>()
  whileSaving = () => {
    reached.resolve()
    return never.promise
  }
  const wanted = await ask(id)
  void machines.get(id)?.poke()
  await reached.promise
  stop.abort()
  for (const hypervisor of hypervisors.splice(0)) hypervisor.release()
  const killed = machines.get(id)
  machines.clear()
  await vmhost()
  await settle(async () => expect((await checkpoint(wanted))?.observed_state).toBe('kept'))
  await is(id, 'running')
  expect(machines.get(id)?.pid).toBe(pid)
  expect(await checkpoint(wanted)).toMatchObject({ observed_memory_bytes: 128 * MiB })
  // What it still has open would keep the volume.
  never.reject(new Error('killed'))
  await killed?.release()
})

test('a machine of another account’s checkpoint is not made, whatever its row says', async () => {
  const id = await create('demo')
  const { id: from } = await take(id)
  await database.as('owner')`update checkpoints set account_id = 2 where id = ${from}`
  await expect(create('twin', from)).rejects.toThrow('not on its server')
  const [twin] = await gateway<Row[]>`select * from machines where name = 'twin'`
  expect(twin).toMatchObject({ observed_state: 'failed', observed_reason: 'The checkpoint is not on its server' })
})

test('a checkpoint is removed, but not while a machine is about to become it; its machine takes all of its with it', async () => {
  const id = await create('demo')
  const [first, second] = [await take(id), await take(id, { diskOnly: true })]
  await gateway`update checkpoints set desired_state = 'gone' where id = ${first.id}`
  await settle(async () => expect((await checkpoint(first.id))?.observed_state).toBe('gone'))
  expect(await world.checkpoints.find(second.id, second.token as string)).toBeDefined()
  await gateway`update machines set desired_state = 'gone' where id = ${id}`
  await settle(async () => expect((await machineRow(id))?.observed_state).toBe('gone'))
  expect(await checkpoint(second.id)).toMatchObject({ observed_state: 'gone' })
  expect(await world.checkpoints.find(second.id, second.token as string)).toBeUndefined()
})
