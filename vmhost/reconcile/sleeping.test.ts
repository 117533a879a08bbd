import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import pino from 'pino'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { type Hypervisor, type HypervisorDriver, hypervisorUid } from '../hypervisor/driver.ts'
import { findProcesses } from '../hypervisor/process.ts'
import { qemuDriver, qemuVersion } from '../hypervisor/qemu.ts'
import { makeTinyGuest } from '../hypervisor/tiny-guest.ts'
import type { SavedMemory } from '../storage/memory.ts'
import type { MachineFiles } from '../storage/store.ts'
import { Agent } from '../testing/agent.ts'
import { makeHostKey } from './identity.ts'
import { Machine } from './machine.ts'
import type { MachineEvent, MachineRow, Observation } from './rows.ts'
import { Slots } from './slots.ts'
import type { World } from './world.ts'

/**
 * A machine that sleeps and wakes: QEMU is real, with a guest of a few bytes in it; its agent is the test's own.
 *
 * A vmhost that is killed does nothing any more: a step that the test cuts off never returns, and another vmhost finds
 * what is left.
 */

const MiB = 2 ** 20
const id = 43
const uid = hypervisorUid(id)
const bootHash = '0123456789abcdef'
const hostKey = makeHostKey('').privateKey
const token = '00000000-0000-4000-8000-000000000000'

type Step = 'balloon' | 'pause' | 'save' | 'quit' | 'start' | 'resume'

let home: string
let directory: string
let agent: Agent
let row: MachineRow
let seen: Observation
let recorded: string[]
let freeBytes: number
let balloonBytes: number
let mostBalloonBytes: number
let hasRoom: boolean
let stateVersion: string | undefined
let keepsBoot: boolean
/** a step that never returns: it is begun, or done, and then its vmhost is killed */
let cut: { step: Step; done: boolean; reached: PromiseWithResolvers<void> } | undefined
/** called once, within the save */
let whileSaving: (() => void) | undefined
const vmhosts: { machine: Machine; stop: AbortController; killed: boolean; hypervisors: Hypervisor[] }[] = []

beforeEach(async () => {
  home = mkdtempSync(join(tmpdir(), 'berth-sleep-'))
  chmodSync(home, 0o711)
  directory = join(home, String(id))
  mkdirSync(directory, { mode: 0o750 })
  chownSync(directory, 0, uid)
  makeDisk()
  await makeTinyGuest(join(home, 'vmlinuz'), 'idle')
  for (const name of ['initrd', 'tools']) writeFileSync(join(home, name), Buffer.alloc(4096), { mode: 0o644 })
  agent = new Agent(join(home, 'agent.sock'))
  agent.stage = 'init'
  agent.memory = { totalBytes: 60 * MiB, availableBytes: 50 * MiB }
  row = {
    id,
    accountId: 1,
    name: 'demo',
    image: 'minimal',
    cpus: 1,
    memoryBytes: 128 * MiB,
    diskBytes: 64 * MiB,
    observedDiskBytes: 64 * MiB,
    env: {},
    command: 'auto',
    desiredState: 'running',
    desiredBoot: 1,
    observedState: 'creating',
    observedBoot: 0,
    observedReason: null,
    isReady: false,
    token,
    hostKey: null,
    address: '10.42.0.2',
    asleepBecause: null,
    restore: null,
    hasCheckpointWork: false,
  }
  seen = {}
  recorded = []
  freeBytes = 2 ** 40
  balloonBytes = 0
  mostBalloonBytes = 0
  hasRoom = true
  stateVersion = undefined
  keepsBoot = true
  cut = undefined
  whileSaving = undefined
  await vmhost()
  await awake()
})

afterEach(async () => {
  cut = undefined
  for (const { machine, stop, killed } of vmhosts.splice(0)) {
    stop.abort()
    if (!killed) await machine.release()
  }
  const driver = qemuDriver({ accelerator: 'tcg', version: await qemuVersion(), cgroups: false })
  await driver.destroy(id, directory)
  agent.close()
  try {
    execFileSync('umount', [directory], { stdio: 'ignore' })
  } catch {
    // Most tests mount nothing.
  }
  rmSync(home, { recursive: true })
})

function makeDisk(): void {
  const disk = join(directory, 'root.raw')
  writeFileSync(disk, '', { mode: 0o600 })
  truncateSync(disk, 64 * MiB)
  chownSync(disk, uid, uid)
}

/** A vmhost that starts: it has what lies on the disk, what the database says, and nothing else. */
async function vmhost(): Promise<void> {
  const real = qemuDriver({ accelerator: 'tcg', version: await qemuVersion(), cgroups: false })
  const stop = new AbortController()
  const hypervisors: Hypervisor[] = []
  const wrap = (hypervisor: Hypervisor) => {
    hypervisors.push(hypervisor)
    return wrapped(hypervisor)
  }
  const driver: HypervisorDriver = {
    ...real,
    ...(stateVersion === undefined ? {} : { stateVersion, restores: async () => false }),
    start: ({ network: _, ...spec }) => {
      // What was told to a guest is in its memory, and goes with that.
      if (spec.restoreFrom === undefined) {
        agent.hostname = undefined
        agent.frozen = false
      }
      return step('start', async () => wrap(await real.start(spec)))
    },
    adopt: async (...of) => {
      const found = await real.adopt(...of)
      return found && wrap(found)
    },
  }
  const files: MachineFiles = {
    directory,
    disk: join(directory, 'root.raw'),
    diskBytes: 64 * MiB,
    record: { image: 'minimal', imageHash: bootHash, loginUser: 'dev', init: true, systemId: 'f'.repeat(32), token },
    hostKey,
  }
  const bootSet = {
    hash: bootHash,
    kernel: join(home, 'vmlinuz'),
    initrd: join(home, 'initrd'),
    tools: join(home, 'tools'),
  }
  const world: Partial<World> = {
    driver,
    store: {
      directoryOf: () => directory,
      findMachine: async () => files,
      claimMachine: async () => {},
      growDisk: async (_: number, diskBytes: number) => {
        truncateSync(files.disk, diskBytes)
        return diskBytes
      },
      currentBoot: async () => bootSet,
      keptBoot: async (hash: string) => (keepsBoot && hash === bootHash ? bootSet : undefined),
      space: async () => ({
        totalBytes: 2 ** 40,
        freeBytes,
        volumeFreeBytes: freeBytes,
        underlyingFreeBytes: undefined,
        reserveBytes: 2 ** 30,
      }),
    } as Partial<World['store']> as World['store'],
    network: {
      ensureMachine: async () => ({ tap: 'none', mac: 'none' }),
      removeMachine: async () => {},
    } as Partial<World['network']> as World['network'],
    rows: {
      one: async () => row,
      keysOf: async () => [],
      replaceReport: async () => {},
      nextConsoleSeq: async () => 1,
      appendConsole: async () => {},
    } as Partial<World['rows']> as World['rows'],
    outbox: {
      flushed: async () => {},
      report: (_: number, news: Observation) => report(stop.signal, news),
      record: ({ kind }: MachineEvent) => recorded.push(kind),
    } as Partial<World['outbox']> as World['outbox'],
    slots: new Slots(1),
    wakes: new Slots(1),
    sleeps: new Slots(1),
    room: async () => {
      if (hasRoom) return { [Symbol.dispose]: () => {} }
      row = { ...row, desiredState: 'asleep' }
      return undefined
    },
    guest: { network: '10.42.0.0/16', resolvers: [], ntp: '' },
    memoryBytes: 2 ** 40,
    log: pino({ level: process.env.BERTH_LOG ?? 'silent' }),
    gatewayKey: () => undefined,
    signal: stop.signal,
  }
  const machine = new Machine(row, world as World)
  vmhosts.push({ machine, stop, killed: false, hypervisors })
  await machine.adopt()
  void machine.poke()
}

/** As the database takes it. */
function report(signal: AbortSignal, news: Observation): void {
  if (signal.aborted) return
  seen = { ...seen, ...news }
  row = {
    ...row,
    observedState: seen.observedState ?? row.observedState,
    observedBoot: seen.observedBoot ?? row.observedBoot,
    observedReason: seen.observedReason ?? null,
    isReady: (seen.observedReadyAt ?? null) !== null,
    asleepBecause: seen.observedAsleepBecause ?? null,
    observedDiskBytes: seen.observedDiskBytes ?? row.observedDiskBytes,
  }
}

async function step<T>(name: Step, act: () => Promise<T>): Promise<T> {
  const mine = cut?.step === name ? cut : undefined
  if (mine?.done) await act()
  if (!mine) return act()
  mine.reached.resolve()
  return new Promise<never>(() => {})
}

function wrapped(hypervisor: Hypervisor): Hypervisor {
  const own: Partial<Hypervisor> = {
    agent: { socketPath: join(home, 'agent.sock') },
    setBalloon: (bytes) =>
      step('balloon', async () => {
        await hypervisor.setBalloon(bytes)
        balloonBytes = bytes
        mostBalloonBytes = Math.max(mostBalloonBytes, bytes)
      }),
    // A guest without a driver gives nothing back.
    balloon: async () => balloonBytes,
    pause: () => step('pause', () => hypervisor.pause()),
    resume: () => step('resume', () => hypervisor.resume()),
    quit: (limitMs) => step('quit', () => hypervisor.quit(limitMs)),
    save: (...to) =>
      step('save', async () => {
        await hypervisor.save(...to)
        whileSaving?.()
      }),
  }
  return new Proxy(hypervisor, {
    get: (target, name) => {
      if (name in own) return own[name as keyof Hypervisor]
      const value = Reflect.get(target, name, target)
      return typeof value === 'function' ? value.bind(target) : value
    },
  })
}

/** Has the next vmhost that comes to this step never come back from it. */
function cutOff(name: Step, done: boolean): Promise<void> {
  cut = { step: name, done, reached: Promise.withResolvers() }
  return cut.reached.promise
}

/** kill -9: nothing of it is heard any more. */
function killVmhost(): void {
  cut = undefined
  const killed = vmhosts.at(-1)
  if (!killed) return
  killed.killed = true
  killed.stop.abort()
  for (const hypervisor of killed.hypervisors) hypervisor.release()
}

function want(changes: Partial<MachineRow>): void {
  row = { ...row, ...changes }
  void vmhosts.at(-1)?.machine.poke()
}

const pids = async () => (await findProcesses(uid, directory)).map(({ pid }) => pid)
async function killHypervisor(): Promise<void> {
  for (const pid of await pids()) process.kill(pid, 'SIGKILL')
  await expect.poll(pids, { timeout: 10_000 }).toEqual([])
}
const memory = () => readdirSync(directory).filter((name) => name.startsWith('memory'))

async function awake(): Promise<void> {
  await expect
    .poll(() => [seen.observedState, row.isReady, agent.frozen, memory()], { timeout: 20_000 })
    .toEqual(['running', true, false, []])
}

async function asleep(): Promise<void> {
  await expect.poll(() => seen.observedState, { timeout: 20_000 }).toBe('asleep')
  expect(await pids()).toEqual([])
  expect(memory()).toEqual(['memory'])
}

async function sleeps(): Promise<void> {
  want({ desiredState: 'asleep' })
  await asleep()
}

test('it sleeps on as long as its server has no memory for it', async () => {
  await sleeps()
  hasRoom = false
  want({ desiredState: 'running' })
  await expect.poll(() => row.desiredState, { timeout: 10_000 }).toBe('asleep')
  await asleep()
  hasRoom = true
  want({ desiredState: 'running' })
  await awake()
})

test('what its balloon has taken already stays taken while it is put to sleep', async () => {
  balloonBytes = 30 * MiB
  agent.memory = { totalBytes: 60 * MiB, availableBytes: 40 * MiB }
  // It uses what it does not say is available, less what it has given back: nothing, and some margin.
  freeBytes = 2 ** 30 + 27 * MiB
  await sleeps()
  expect(mostBalloonBytes).toBeGreaterThan(30 * MiB)
})

test('its disk grows while it runs: the file, what its guest knows of it, its filesystem', async () => {
  want({ diskBytes: 96 * MiB })
  await expect.poll(() => seen.observedDiskBytes, { timeout: 10_000 }).toBe(96 * MiB)
  expect(agent.grown).toBe(1)
  // While it sleeps nothing changes; then it is made up for.
  await sleeps()
  want({ diskBytes: 128 * MiB })
  want({ desiredState: 'running' })
  await awake()
  // That it is ready is news to its own vmhost too.
  want({})
  await expect.poll(() => seen.observedDiskBytes, { timeout: 10_000 }).toBe(128 * MiB)
  expect(agent.grown).toBe(2)
})

test('told to sleep, it leaves nothing but files, and goes on from them when it is wanted', async () => {
  await sleeps()
  expect(seen).toMatchObject({
    observedAsleepBecause: 'told to',
    observedAsleepAt: expect.any(Date),
    observedSavedBytes: expect.any(Number),
    observedReadyAt: null,
    observedReason: null,
    observedCpus: null,
  })
  expect(agent.frozen).toBe(true)
  const told = agent.told
  want({ desiredState: 'running' })
  await awake()
  // Told anew, though it said that it knows: its clock and its randomness are old.
  expect(agent.told).toBe(told + 1)
  expect(seen).toMatchObject({
    observedAsleepBecause: null,
    observedSavedBytes: null,
    observedReason: null,
    observedBoot: 1,
  })
  expect(recorded).toEqual(['machine.running', 'machine.asleep', 'machine.woke'])
})

test('paused is asleep, and both say who put it to sleep when it was not its owner', async () => {
  want({ desiredState: 'paused', asleepBecause: 'idle for 30 minutes' })
  seen = { ...seen, observedAsleepBecause: 'idle for 30 minutes' }
  await asleep()
  expect(seen.observedAsleepBecause).toBe('idle for 30 minutes')
})

test('wanted again while it is being saved, it goes on as if nothing had been', async () => {
  const [pid] = await pids()
  // Whoever wants it would take it for ready otherwise, and find nobody.
  let wasReady: boolean | undefined
  whileSaving = () => {
    wasReady = row.isReady
    want({ desiredState: 'running' })
  }
  want({ desiredState: 'asleep' })
  await expect.poll(() => row.desiredState, { timeout: 20_000 }).toBe('running')
  await awake()
  expect(wasReady).toBe(false)
  expect(await pids()).toEqual([pid])
  expect(recorded).toEqual(['machine.running'])
})

describe('a vmhost that is killed while it puts a machine to sleep', () => {
  test.each<[string, Step, boolean]>([
    ['takes its caches', 'balloon', true],
    ['has not stopped it yet', 'pause', false],
    ['has stopped it', 'pause', true],
    ['has written all of it, without its name', 'save', true],
  ])('when it %s: the guest goes on, and sleeps when that is still wanted', async (_, name, done) => {
    const [pid] = await pids()
    const reached = cutOff(name, done)
    want({ desiredState: 'asleep' })
    await reached
    killVmhost()
    expect(memory()).toEqual(['memory.new'])
    row = { ...row, desiredState: 'running' }
    await vmhost()
    await awake()
    expect(await pids()).toEqual([pid])
    await sleeps()
  })

  test('when its memory has its name: the hypervisor is ended, and it sleeps', async () => {
    const reached = cutOff('quit', false)
    want({ desiredState: 'asleep' })
    await reached
    killVmhost()
    expect(await pids()).toHaveLength(1)
    expect(memory()).toEqual(['memory'])
    await vmhost()
    await asleep()
    want({ desiredState: 'running' })
    await awake()
    expect(recorded).not.toContain('machine.memory-lost')
  })

  test('and its hypervisor with it: it boots from its disk, and says what was lost', async () => {
    const reached = cutOff('save', true)
    want({ desiredState: 'asleep' })
    await reached
    killVmhost()
    await killHypervisor()
    row = { ...row, desiredState: 'running' }
    await vmhost()
    await awake()
    expect(seen.observedReason).toMatch(
      /^It lost its memory and was started from its disk: .* while it was put to sleep$/,
    )
    expect(recorded).toContain('machine.memory-lost')
  })
})

describe('a vmhost that is killed while it wakes a machine', () => {
  test('before the guest may run: it is restored once more', async () => {
    await sleeps()
    const reached = cutOff('start', true)
    want({ desiredState: 'running' })
    await reached
    killVmhost()
    const [first] = await pids()
    expect(memory()).toEqual(['memory'])
    await vmhost()
    await awake()
    expect(await pids()).not.toContain(first)
    expect(recorded).toEqual(['machine.running', 'machine.asleep', 'machine.woke'])
  })

  test.each<[string, boolean]>([
    ['before', false],
    ['after', true],
  ])('when its memory is spent, %s it has been let run: the same guest goes on', async (_, done) => {
    await sleeps()
    agent.answers = false
    const reached = cutOff('resume', done)
    want({ desiredState: 'running' })
    await reached
    killVmhost()
    agent.answers = true
    const [first] = await pids()
    expect(memory()).toEqual(['memory.used'])
    await vmhost()
    await awake()
    expect(await pids()).toEqual([first])
    expect(seen.observedReason).toBeNull()
  })

  test('and its hypervisor with it, when its memory is spent: it boots from its disk, and says what was lost', async () => {
    await sleeps()
    // A guest that stands still says nothing.
    agent.answers = false
    const reached = cutOff('resume', false)
    want({ desiredState: 'running' })
    await reached
    killVmhost()
    agent.answers = true
    await killHypervisor()
    await vmhost()
    await awake()
    expect(seen.observedReason).toMatch(/^It lost its memory and was started from its disk: .* while it woke$/)
  })
})

describe('a sleep that fails', () => {
  test('for want of space leaves it awake, says why, and takes no space', async () => {
    freeBytes = 2 ** 30
    want({ desiredState: 'asleep' })
    await expect
      .poll(() => seen.observedReason, { timeout: 20_000 })
      .toMatch(/^It could not be put to sleep, which is tried again: Its server's disk has no room for the \d+ MiB/)
    await awake()
    want({ desiredState: 'running' })
    await expect.poll(() => seen.observedReason).toBeNull()
  })

  test('because the disk is full half way leaves it awake', async () => {
    // Another filesystem in place of the machine's, so small that QEMU itself fits and its guest's state does not.
    killVmhost()
    await killHypervisor()
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=200k,mode=750,gid=${uid}`, 'tmpfs', directory])
    makeDisk()
    seen = { ...seen, observedReadyAt: null }
    row = { ...row, isReady: false }
    await vmhost()
    await awake()
    const [pid] = await pids()
    want({ desiredState: 'asleep' })
    await expect.poll(() => seen.observedReason, { timeout: 20_000 }).toMatch(/could not be put to sleep.*ENOSPC/)
    await awake()
    expect(await pids()).toEqual([pid])
  })

  test('because the hypervisor ended leaves it asleep without its memory, which it says, and it boots when it wakes', async () => {
    const reached = cutOff('save', false)
    want({ desiredState: 'asleep' })
    await reached
    killVmhost()
    await killHypervisor()
    await vmhost()
    await expect.poll(() => seen.observedState, { timeout: 20_000 }).toBe('asleep')
    expect(seen.observedReason).toMatch(/^It has lost its memory and starts from its disk: /)
    want({ desiredState: 'running' })
    await awake()
    expect(seen.observedReason).toMatch(/^It lost its memory and was started from its disk: /)
  })
})

describe('a sleeper that cannot be restored boots from its disk and says why', () => {
  test.each<[string, () => void, RegExp]>([
    [
      'another hypervisor',
      () => {
        stateVersion = 'qemu pc-q35-99.0 tcg'
      },
      /it was saved by qemu .*, and this server runs qemu pc-q35-99.0 tcg$/,
    ],
    [
      'no kernel any more',
      () => {
        keepsBoot = false
      },
      /the kernel that it was saved with is not on this server any more$/,
    ],
    [
      'a damaged record',
      () => writeFileSync(join(directory, 'memory/saved.json'), '{'),
      /what was kept of its memory is damaged$/,
    ],
    ['a damaged state', () => truncateSync(join(directory, 'memory/state'), 10_000), /QEMU did not start/],
  ])('%s', async (_, spoil, sentence) => {
    await sleeps()
    killVmhost()
    spoil()
    row = { ...row, desiredState: 'running' }
    await vmhost()
    await awake()
    expect(seen.observedReason).toMatch(/^It lost its memory and was started from its disk: /)
    expect(seen.observedReason).toMatch(sentence)
    expect(recorded.at(-1)).toBe('machine.running')
  })
})

describe('a sleeper', () => {
  test('that is restarted boots from its disk, without its memory', async () => {
    await sleeps()
    want({ desiredState: 'running', desiredBoot: 2 })
    await awake()
    expect(seen).toMatchObject({ observedBoot: 2, observedReason: null })
    expect(recorded).toContain('machine.memory-dropped')
  })

  test.each(['stopped', 'trashed'] as const)('that shall be %s is so, and its memory gone', async (desiredState) => {
    await sleeps()
    want({ desiredState })
    await expect.poll(() => seen.observedState, { timeout: 20_000 }).toBe(desiredState)
    expect(memory()).toEqual([])
    expect(recorded).toContain('machine.memory-dropped')
  })

  test('keeps its boot set, and is left alone as long as nothing is asked of it', async () => {
    await sleeps()
    killVmhost()
    await vmhost()
    const { machine } = vmhosts.at(-1) ?? {}
    await machine?.poke()
    expect(machine?.bootSet).toBe(bootHash)
    expect(machine?.isAtRest(row)).toBe(true)
    expect(machine?.isAtRest({ ...row, desiredState: 'running' })).toBe(false)
    expect(existsSync(join(directory, 'memory/state'))).toBe(true)
  })
})

test('a server that goes down puts it to sleep, and wakes it when it is back, since it was wanted running all the while', async () => {
  await vmhosts.at(-1)?.machine.sleepThroughShutdown()
  await asleep()
  expect(seen.observedAsleepBecause).toBe('its server shut down')
  expect(row.desiredState).toBe('running')
  killVmhost()
  await vmhost()
  await awake()
  expect(recorded).toEqual(['machine.running', 'machine.asleep', 'machine.woke'])
})

test('its record says what it needs again', async () => {
  await sleeps()
  const saved = JSON.parse(readFileSync(join(directory, 'memory/saved.json'), 'utf8')) as SavedMemory
  expect(saved).toMatchObject({ bootSet: bootHash, cpus: 1, memoryBytes: 128 * MiB, usedBytes: 10 * MiB, boot: 1 })
  expect(saved.stateVersion).toMatch(/^qemu pc-q35-\d+\.\d+ tcg$/)
})
