import { linkSync, mkdirSync, readFileSync, symlinkSync, truncateSync, utimesSync, writeFileSync } from 'node:fs'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import pino from 'pino'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { type Hypervisor, type HypervisorDriver, type HypervisorEvent, hypervisorUid } from '../hypervisor/driver.ts'
import { findProcesses } from '../hypervisor/process.ts'
import { qemuDriver, qemuVersion } from '../hypervisor/qemu.ts'
import type { Store } from '../storage/store.ts'
import { openTemplates, type TemplateFiles } from '../storage/templates.ts'
import type { Volume } from '../storage/volume.ts'
import { Agent } from '../testing/agent.ts'
import { Machine } from './machine.ts'
import type { MachineEvent, MachineRow, Observation } from './rows.ts'
import { Slots } from './slots.ts'
import { Templates } from './templates.ts'
import { templateMachineId } from './templating.ts'
import { makeTinyStore, type TinyStore } from './testing/tiny-store.ts'
import type { World } from './world.ts'

/**
 * Templates, and machines that go on from them: the volume and QEMU are real; in each guest there are a few bytes, and
 * its agent is the test's own. A vmhost that is killed does nothing any more: a step that the test cuts off never returns.
 */

const MiB = 2 ** 20
const log = pino({ level: process.env.BERTH_LOG ?? 'silent' })
const real = qemuDriver({ accelerator: 'tcg', version: await qemuVersion(), cgroups: false })
vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 })

type Step = 'start' | 'pause' | 'save' | 'quit' | 'resume'

let tiny: TinyStore
let home: string
let volume: Volume
let store: Store
let files: TemplateFiles
let templates: Templates
let stop: AbortController
let world: World
let rows: Map<number, MachineRow>
let machines: Map<number, Machine>
let agents: Map<number, Agent>
/** what each machine's last hypervisor was started with */
let started: Map<number, { restoreFrom: string | undefined; mac: string | undefined }>
let paths: Map<number, string>
let heard: Map<number, ((event: HypervisorEvent) => void)[]>
let taps: Set<number>
let spareBytes: number
/** how often it was asked whether memory has run short meanwhile */
let looks: number
/** Somebody uses a machine; and how often that was asked. */
let isAtWork: boolean
let worksAsked: number
let hypervisors: Hypervisor[]
/** vmhosts that were killed: what they still have open would keep the volume */
let killed: { templates: Templates; machines: Machine[] }[]
let cuts: Cut[]
/** a step that does not return until it is let go, or never: its vmhost is killed */
let cut: Cut | undefined
type Cut = {
  readonly step: Step
  readonly of: number
  readonly done: boolean
  readonly reached: PromiseWithResolvers<void>
  readonly goOn: PromiseWithResolvers<void>
}
let count = 0

beforeAll(async () => {
  tiny = await makeTinyStore(log)
  ;({ home, volume, store } = tiny)
  // Of the same files as set-up's own.
  const own = join(home, 'artifacts', 'images', 'minimal')
  const image = join(home, 'artifacts', 'images', 'somebodys-fedcba9876543210')
  mkdirSync(image)
  linkSync(join(own, 'root.raw'), join(image, 'root.raw'))
  const description = JSON.parse(readFileSync(join(own, 'image.json'), 'utf8')) as object
  const theirs = { ...description, name: 'somebodys', hash: 'fedcba9876543210' }
  writeFileSync(join(image, 'image.json'), JSON.stringify(theirs))
  symlinkSync('somebodys-fedcba9876543210', join(home, 'artifacts', 'images', 'somebodys'))
})

beforeEach(async () => {
  rows = new Map()
  machines = new Map()
  agents = new Map()
  started = new Map()
  paths = new Map()
  heard = new Map()
  taps = new Set()
  hypervisors = []
  spareBytes = 2 ** 40
  looks = 0
  isAtWork = false
  worksAsked = 0
  killed = []
  cuts = []
  cut = undefined
  await vmhost()
})

afterEach(async () => {
  cut = undefined
  stop.abort()
  for (const { goOn } of cuts) goOn.reject(new Error('killed'))
  for (const vmhost of [...killed, { templates, machines: [...machines.values()] }]) {
    await vmhost.templates.close()
    for (const machine of vmhost.machines) await machine.release()
  }
  for (const id of await store.listMachines()) {
    await real.destroy(id, store.directoryOf(id))
    await store.removeMachine(id)
  }
  await real.destroy(templateMachineId, files.workDirectory)
  for (const agent of agents.values()) agent.close()
  await rm(join(volume.path, 'templates'), { recursive: true })
})

afterAll(async () => {
  await tiny[Symbol.asyncDispose]()
})

/** A vmhost that starts over what is there. */
async function vmhost(options: { stateVersion?: string; ntp?: string } = {}): Promise<void> {
  stop = new AbortController()
  files = await openTemplates(volume)
  const { signal } = stop
  const parts: Partial<World> = {
    driver: { ...real, ...options, start: startOf, adopt: adoptOf },
    store,
    network: {
      ensureMachine: async ({ mac }) => ({ tap: 'none', mac: mac ?? 'own' }),
      ensureBareTap: async (id) => {
        taps.add(id)
        return { tap: 'none' }
      },
      removeMachine: async (id) => void taps.delete(id),
    } as Partial<World['network']> as World['network'],
    rows: {
      one: async (id: number) => rows.get(id),
      keysOf: async () => [],
      replaceReport: async () => {},
      wasUsed: async () => true,
      anyUsedWithin: async () => {
        worksAsked++
        return isAtWork
      },
      nextConsoleSeq: async () => 1,
      appendConsole: async () => {},
    } as Partial<World['rows']> as World['rows'],
    outbox: {
      flushed: async () => {},
      report: (id: number, news: Observation) => report(signal, id, news),
      record: (_: MachineEvent) => {},
    } as Partial<World['outbox']> as World['outbox'],
    meter: { note: () => {}, goOn: async () => {}, start: () => {} },
    slots: new Slots(2),
    wakes: new Slots(2),
    sleeps: new Slots(2),
    guest: { network: '10.42.0.0/16', resolvers: ['1.1.1.1'], ntp: options.ntp ?? 'ntp' },
    memoryBytes: 2 ** 40,
    log,
    gatewayKey: () => undefined,
    signal,
  }
  const given = parts as World
  const spare = async (bytes: number) => {
    if (bytes === 0) looks++
    return bytes <= spareBytes
  }
  const limits = { settleMs: 0, calmMs: 50, calmLookMs: 50 }
  templates = new Templates({ ...given, files, spare, limits, quietMs: 0 })
  world = { ...given, templates }
  await templates.start()
  for (const row of rows.values()) {
    const machine = new Machine(row, world)
    machines.set(row.id, machine)
    await machine.adopt()
    void machine.poke()
  }
}

/** kill -9: nothing of it is heard any more. */
function killVmhost(): void {
  stop.abort()
  cut = undefined
  for (const hypervisor of hypervisors.splice(0)) hypervisor.release()
  killed.push({ templates, machines: [...machines.values()] })
  machines.clear()
}

/** As the database takes it. */
function report(signal: AbortSignal, id: number, seen: Observation): void {
  const row = rows.get(id)
  if (signal.aborted || !row) return
  const { observedReadyAt, observedAsleepBecause, observedHostKey, ...same } = seen
  rows.set(id, {
    ...row,
    ...same,
    ...(observedReadyAt === undefined ? {} : { isReady: observedReadyAt !== null }),
    ...(observedAsleepBecause === undefined ? {} : { asleepBecause: observedAsleepBecause }),
    ...(observedHostKey ? { hostKey: observedHostKey } : {}),
  })
}

async function step<T>(name: Step, of: number, act: () => Promise<T>): Promise<T> {
  const mine = cut?.step === name && cut.of === of ? cut : undefined
  if (!mine) return act()
  cut = undefined
  const done = mine.done ? { result: await act() } : undefined
  mine.reached.resolve()
  await mine.goOn.promise
  return done ? done.result : act()
}

/** Holds the next of these steps up, when it is done or before. */
function holdUp(name: Step, of: number, done: boolean): Cut {
  cut = { step: name, of, done, reached: Promise.withResolvers(), goOn: Promise.withResolvers() }
  cuts.push(cut)
  cut.goOn.promise.catch(() => {})
  return cut
}

const startOf: HypervisorDriver['start'] = ({ network, ...spec }) =>
  step('start', spec.machineId, async () => {
    started.set(spec.machineId, { restoreFrom: spec.restoreFrom, mac: network?.mac })
    const path = join(home, `agent-${++count}.sock`)
    const agent = new Agent(path)
    agent.stage = spec.machineId === templateMachineId ? 'tools' : 'init'
    agent.reachesWhenTold = 'init'
    // Of a guest that had started what its image starts.
    if (spec.restoreFrom !== undefined && rows.get(spec.machineId)?.image === 'minimal') agent.hostname = 'template'
    agent.filesystemBytes = 16 * MiB
    agents.get(spec.machineId)?.close()
    agents.set(spec.machineId, agent)
    paths.set(spec.machineId, path)
    const hypervisor = await real.start(spec)
    agent.onPowerOff = () => process.kill(hypervisor.pid, 'SIGKILL')
    return wrapped(hypervisor)
  })

const adoptOf: HypervisorDriver['adopt'] = async (...of) => {
  const found = await real.adopt(...of)
  return found && wrapped(found)
}

function wrapped(hypervisor: Hypervisor): Hypervisor {
  hypervisors.push(hypervisor)
  const { machineId } = hypervisor
  const own: Partial<Hypervisor> = {
    agent: { socketPath: paths.get(machineId) ?? '' },
    setBalloon: async () => {},
    on: (listener) => {
      heard.set(machineId, [...(heard.get(machineId) ?? []), listener])
      return hypervisor.on(listener)
    },
    pause: () => step('pause', machineId, () => hypervisor.pause()),
    resume: () => step('resume', machineId, () => hypervisor.resume()),
    save: (...to) => step('save', machineId, () => hypervisor.save(...to)),
    quit: (limitMs) => step('quit', machineId, () => hypervisor.quit(limitMs)),
  }
  return new Proxy(hypervisor, {
    get: (target, name) => {
      if (name in own) return own[name as keyof Hypervisor]
      const value = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

/** What `new` does, and nothing more than that: it may not be ready yet. */
function insert(id: number, size: Partial<MachineRow> = {}): void {
  const row: MachineRow = {
    id,
    accountId: 1,
    name: `m${id}`,
    image: 'minimal',
    cpus: 1,
    memoryBytes: 128 * MiB,
    diskBytes: 16 * MiB,
    observedDiskBytes: null,
    env: {},
    command: 'auto',
    desiredState: 'running',
    desiredBoot: 1,
    observedState: 'creating',
    observedBoot: 0,
    observedReason: null,
    isReady: false,
    token: `00000000-0000-4000-8000-${String(id).padStart(12, '0')}`,
    hostKey: null,
    address: `10.42.0.${id}`,
    asleepBecause: null,
    restore: null,
    hasCheckpointWork: false,
    ...size,
  }
  rows.set(id, row)
  const machine = new Machine(row, world)
  machines.set(id, machine)
  void machine.poke()
}

async function ready(id: number): Promise<MachineRow> {
  await expect
    .poll(() => [rows.get(id)?.observedState, rows.get(id)?.isReady], { timeout: 60_000 })
    .toEqual(['running', true])
  const row = rows.get(id)
  if (!row) throw new Error('no row')
  return row
}
async function create(id: number, size: Partial<MachineRow> = {}): Promise<MachineRow> {
  insert(id, size)
  return ready(id)
}

const kept = () => readdir(join(volume.path, 'templates'))
const makers = async () => (await findProcesses(hypervisorUid(templateMachineId), files.workDirectory)).length
async function made(): Promise<string> {
  await expect.poll(kept, { timeout: 60_000 }).toEqual([expect.stringMatching(/^[0-9a-f]{32}$/)])
  await templates.close()
  return join(volume.path, 'templates', (await kept())[0] ?? '')
}
const isFromTemplate = (id: number) => started.get(id)?.restoreFrom !== undefined

test('the first machine of an image boots, and the next goes on from its template, as itself', async () => {
  const first = await create(2)
  expect(isFromTemplate(2)).toBe(false)
  await made()
  // Nobody's, and nothing of it runs.
  expect(agents.get(templateMachineId)).toMatchObject({ told: 1, hostname: 'template', frozen: false })
  expect([await makers(), taps.size]).toEqual([0, 0])

  const second = await create(3)
  expect(isFromTemplate(3)).toBe(true)
  expect(agents.get(3)).toMatchObject({ hostname: 'm3', told: 1 })
  expect(agents.get(3)?.bootId).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4/)
  expect(agents.get(2)?.bootId).toBeUndefined()
  expect(agents.get(3)?.address).toMatch(/^10\.42\.0\.3:10\.42\.0\.1:10\.42\.0\.1:255\.255\.0\.0:m3:eth0:/)
  // The card is the template's.
  expect(machines.get(3)?.network).toMatchObject({ address: '10.42.0.3', mac: '02:be:c0:00:02:02' })
  expect(second.hostKey).not.toEqual(first.hostKey)
  const [one, other] = await Promise.all([store.findMachine(2), store.findMachine(3)])
  expect(other?.record.systemId).not.toBe(one?.record.systemId)
  expect(second.observedReason).toBeNull()
  // Larger than the image, before anybody could see it.
  expect(other?.diskBytes).toBe(16 * MiB)
  expect(second.observedDiskBytes).toBe(16 * MiB)
  expect(agents.get(3)?.grown).toBe(1)
})

test('of an image that is not set-up’s, no program has started in a template, which is told nothing', async () => {
  await create(2, { image: 'somebodys' })
  await made()
  expect(agents.get(templateMachineId)).toMatchObject({ told: 0, hostname: undefined })
  await create(3, { image: 'somebodys' })
  expect(isFromTemplate(3)).toBe(true)
  expect(agents.get(3)).toMatchObject({ hostname: 'm3', told: 1 })
})

test('one in which something could not be started is not kept', async () => {
  const { reached, goOn } = holdUp('start', templateMachineId, true)
  await create(2)
  await reached.promise
  const console = join(files.workDirectory, 'console.out')
  writeFileSync(console, '[\x1b[0;1;31mFAILED\x1b[0m] Failed to start \x1b[0;1;39mdbus.service\x1b[0m.\n')
  goOn.resolve()
  await templates.close()
  expect([await makers(), await kept()]).toEqual([0, []])
})

test('two at once go on from one template; another size has another', async () => {
  await create(2)
  await made()
  insert(3)
  insert(4)
  await Promise.all([ready(3), ready(4)])
  expect([3, 4].map(isFromTemplate)).toEqual([true, true])
  await create(5, { memoryBytes: 160 * MiB })
  expect(isFromTemplate(5)).toBe(false)
  await expect.poll(kept, { timeout: 60_000 }).toHaveLength(2)
})

test('a machine of a template boots as itself when it is restarted', async () => {
  await create(2)
  await made()
  await create(3)
  const row = rows.get(3)
  if (row) rows.set(3, { ...row, desiredBoot: 2, isReady: false })
  void machines.get(3)?.poke()
  await expect.poll(() => rows.get(3)?.observedBoot, { timeout: 60_000 }).toBe(2)
  await ready(3)
  expect(isFromTemplate(3)).toBe(false)
  expect(machines.get(3)?.network).not.toHaveProperty('mac')
  expect(agents.get(3)?.address).toBeUndefined()
})

describe('a vmhost that is killed while it makes one', () => {
  test.each<[Step, boolean]>([
    ['start', true],
    ['pause', true],
    ['save', false],
    ['save', true],
    ['quit', false],
    ['quit', true],
  ])('at the step %s (done: %s) leaves nothing half, and the next one makes it', async (name, done) => {
    const { reached } = holdUp(name, templateMachineId, done)
    await create(2)
    await reached.promise
    killVmhost()
    expect(await kept()).toEqual(['.new'])
    await vmhost()
    expect(await makers()).toBe(0)
    expect(await kept()).toEqual([])
    await ready(2)
    await create(3)
    expect(isFromTemplate(3)).toBe(false)
    await made()
  })
})

test('a vmhost that ends in order while it makes one ends its hypervisor and leaves nothing', async () => {
  const { reached, goOn } = holdUp('pause', templateMachineId, true)
  await create(2)
  await reached.promise
  expect(await makers()).toBe(1)
  stop.abort()
  goOn.resolve()
  await templates.close()
  expect([await makers(), await kept(), taps.size]).toEqual([0, [], 0])
})

test('a vmhost that is killed before a machine of a template may run has it go on', async () => {
  await create(2)
  await made()
  const { reached } = holdUp('resume', 3, false)
  insert(3)
  await reached.promise
  killVmhost()
  const directory = store.directoryOf(3)
  const [first] = await findProcesses(hypervisorUid(3), directory)
  expect(JSON.parse(readFileSync(join(directory, 'started.json'), 'utf8'))).toHaveProperty('template')
  await vmhost()
  await ready(3)
  expect((await findProcesses(hypervisorUid(3), directory))[0]?.pid).toBe(first?.pid)
  expect(agents.get(3)).toMatchObject({ hostname: 'm3' })
})

describe('a machine boots, and is told nothing of it, when its template', () => {
  test('cannot be read', async () => {
    await create(2)
    const directory = await made()
    truncateSync(join(directory, 'memory', 'state'), 10_000)
    const row = await create(3)
    expect(isFromTemplate(3)).toBe(false)
    expect(row.observedReason).toBeNull()
    expect((await kept()).filter((name) => directory.endsWith(name))).toEqual([])
  })

  test('has a damaged record', async () => {
    await create(2)
    const directory = await made()
    writeFileSync(join(directory, 'template.json'), '{')
    expect((await create(3)).observedReason).toBeNull()
    expect(isFromTemplate(3)).toBe(false)
  })

  test('does not come up', async () => {
    await create(2)
    const directory = await made()
    const { reached, goOn } = holdUp('resume', 3, false)
    insert(3)
    await reached.promise
    expect(isFromTemplate(3)).toBe(true)
    for (const listener of heard.get(3) ?? []) listener({ type: 'panicked' })
    goOn.resolve()
    expect((await ready(3)).observedReason).toBeNull()
    expect(isFromTemplate(3)).toBe(false)
    expect((await kept()).filter((name) => directory.endsWith(name))).toEqual([])
  })

  test('was made under another hypervisor, or with other settings', async () => {
    await create(2)
    await made()
    killVmhost()
    await vmhost({ ntp: 'another' })
    await create(3)
    expect(isFromTemplate(3)).toBe(false)
    await templates.close()
    killVmhost()
    await vmhost({ stateVersion: 'qemu pc-q35-99.0 tcg' })
    // None of them will ever be good again here.
    expect(await kept()).toEqual([])
  })
})

describe('templates', () => {
  test('are not made while somebody works in a machine, where guests are emulated', async ({ skip }) => {
    skip(real.accelerator !== 'tcg', 'guests are not emulated here')
    isAtWork = true
    await create(2)
    await expect.poll(() => worksAsked, { timeout: 60_000 }).toBeGreaterThan(2)
    expect(started.has(templateMachineId)).toBe(false)
    isAtWork = false
    await templates.close()
    expect(await kept()).toHaveLength(1)
  })

  test('are not made where there is no memory to spare, and given up where it runs short meanwhile', async () => {
    spareBytes = 0
    await create(2)
    await templates.close()
    expect(started.has(templateMachineId)).toBe(false)
    spareBytes = 2 ** 40
    const { reached, goOn } = holdUp('pause', templateMachineId, false)
    await create(3)
    await reached.promise
    spareBytes = -1
    const asked = looks
    await expect.poll(() => looks, { timeout: 60_000 }).toBeGreaterThan(asked)
    goOn.resolve()
    await templates.close()
    expect([await makers(), await kept()]).toEqual([0, []])
  })

  test('that nobody asked for in a week are removed, and all of them when their space is needed', async () => {
    await create(2)
    const directory = await made()
    await templates.sweep()
    expect(await kept()).toHaveLength(1)
    expect(await templates.giveUp()).toBe(true)
    expect([await kept(), await templates.giveUp()]).toEqual([[], false])
    await create(3)
    await made()
    const longAgo = new Date(Date.now() - 8 * 86_400_000)
    utimesSync(join(directory, 'template.json'), longAgo, longAgo)
    await templates.sweep()
    expect(await kept()).toEqual([])
  })
})
