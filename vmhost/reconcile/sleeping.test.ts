import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { cannotRestore } from '../../migrations/schema.ts'
import { HypervisorError } from '../hypervisor/driver.ts'
import { qemuVersion } from '../hypervisor/qemu.ts'
import { machineType } from '../hypervisor/qemu-state.ts'
import { olderRelease } from '../hypervisor/testing/older-qemu.ts'
import type { SavedMemory } from '../storage/memory.ts'
import { bootHash, SleepLab, uid } from './testing/sleep-lab.ts'

/** A machine that sleeps and wakes. What a vmhost that is killed on the way leaves: sleeping.killed.test.ts. */

const MiB = 2 ** 20
let lab: SleepLab

beforeEach(async () => {
  lab = await SleepLab.make()
})
afterEach(() => lab[Symbol.asyncDispose]())

test('it sleeps on as long as its server has no memory for it', async () => {
  await lab.sleeps()
  lab.hasRoom = false
  lab.want({ desiredState: 'running' })
  await expect.poll(() => lab.row.desiredState, { timeout: 60_000 }).toBe('asleep')
  await lab.asleep()
  lab.hasRoom = true
  lab.want({ desiredState: 'running' })
  await lab.awake()
})

test('what its balloon has taken already stays taken while it is put to sleep', async () => {
  lab.balloonBytes = 30 * MiB
  lab.agent.memory = { totalBytes: 60 * MiB, availableBytes: 40 * MiB }
  // It uses what it does not say is available, less what it has given back: nothing, and some margin.
  lab.freeBytes = 2 ** 30 + 27 * MiB
  await lab.sleeps()
  expect(lab.mostBalloonBytes).toBeGreaterThan(30 * MiB)
})

test('its disk grows while it runs: the file, what its guest knows of it, its filesystem', async () => {
  lab.want({ diskBytes: 96 * MiB })
  await expect.poll(() => lab.seen.observedDiskBytes, { timeout: 60_000 }).toBe(96 * MiB)
  expect(lab.agent.grown).toBe(1)
  // While it sleeps nothing changes; then it is made up for.
  await lab.sleeps()
  lab.want({ diskBytes: 128 * MiB })
  lab.want({ desiredState: 'running' })
  await lab.awake()
  // That it is ready is news to its own vmhost too.
  lab.want({})
  await expect.poll(() => lab.seen.observedDiskBytes, { timeout: 60_000 }).toBe(128 * MiB)
  expect(lab.agent.grown).toBe(2)
})

test('of another size it is told what became of it: under QEMU all of it is for its next start', async () => {
  lab.want({ cpus: 2, memoryBytes: 256 * MiB })
  await expect.poll(() => lab.seen.observedResizeCpus, { timeout: 60_000 }).toBe(2)
  expect(lab.seen).toMatchObject({
    observedCpus: 1,
    observedMemoryBytes: 128 * MiB,
    observedResizeMemoryBytes: 256 * MiB,
  })
  await lab.sleeps()
  expect(lab.seen.observedResizeCpus).toBe(null)
  lab.want({ desiredState: 'running' })
  await lab.awake()
  // That it is ready is news to its own vmhost too.
  lab.want({})
  expect(lab.seen).toMatchObject({ observedCpus: 1, observedReason: null })
  await expect.poll(() => lab.seen.observedResizeCpus, { timeout: 60_000 }).toBe(2)
})

test('told to sleep, it leaves nothing but files, and goes on from them when it is wanted', async () => {
  await lab.sleeps()
  expect(lab.seen).toMatchObject({
    observedAsleepBecause: 'told to',
    observedAsleepAt: expect.any(Date),
    observedSavedBytes: expect.any(Number),
    observedReadyAt: null,
    observedReason: null,
    observedCpus: null,
  })
  expect(lab.agent.frozen).toBe(true)
  const told = lab.agent.told
  lab.want({ desiredState: 'running' })
  await lab.awake()
  // Told anew, though it said that it knows: its clock and its randomness are old.
  expect(lab.agent.told).toBe(told + 1)
  expect(lab.seen).toMatchObject({
    observedAsleepBecause: null,
    observedSavedBytes: null,
    observedReason: null,
    observedBoot: 1,
  })
  expect(lab.recorded).toEqual(['machine.running', 'machine.asleep', 'machine.woke'])
})

test('paused is asleep, and both say who put it to sleep when it was not its owner', async () => {
  lab.want({ desiredState: 'paused', asleepBecause: 'idle for 30 minutes' })
  lab.seen = { ...lab.seen, observedAsleepBecause: 'idle for 30 minutes' }
  await lab.asleep()
  expect(lab.seen.observedAsleepBecause).toBe('idle for 30 minutes')
})

test('wanted again while it is being saved, it goes on as if nothing had been', async () => {
  const [pid] = await lab.pids()
  // Whoever wants it would take it for ready otherwise, and find nobody.
  let wasReady: boolean | undefined
  lab.whileSaving = () => {
    wasReady = lab.row.isReady
    lab.want({ desiredState: 'running' })
  }
  lab.want({ desiredState: 'asleep' })
  await expect.poll(() => lab.row.desiredState, { timeout: 60_000 }).toBe('running')
  await lab.awake()
  expect(wasReady).toBe(false)
  expect(await lab.pids()).toEqual([pid])
  expect(lab.recorded).toEqual(['machine.running'])
})

describe('a sleep that fails', () => {
  test('for want of space leaves it awake, says why, and takes no space', async () => {
    lab.freeBytes = 2 ** 30
    lab.want({ desiredState: 'asleep' })
    await expect
      .poll(() => lab.seen.observedReason, { timeout: 60_000 })
      .toMatch(/^It could not be put to sleep, which is tried again: Its server's disk has no room for the \d+ MiB/)
    await lab.awake()
    // The next one would find no space either.
    expect(lab.failedSleeps).toBe(0)
    lab.want({ desiredState: 'running' })
    await expect.poll(() => lab.seen.observedReason).toBeNull()
  })

  const says = ['it says nothing', 'No space left on device']
  test.each(says)(
    'for want of an answer (%s) takes no place from others, and whoever keeps the memory hears of it',
    async (said) => {
      using _place = await lab.places.acquire(AbortSignal.timeout(20_000))
      lab.agent.refusesReports = said
      lab.want({ desiredState: 'asleep' })
      await expect
        .poll(() => lab.seen.observedReason, { timeout: 20_000 })
        .toMatch(/^It could not be put to sleep, which is tried again: /)
      expect(lab.failedSleeps).toBe(1)
      await lab.awake()
    },
  )

  test('half way is heard of too', async () => {
    lab.whileSaving = () => {
      throw new Error('half way')
    }
    lab.want({ desiredState: 'asleep' })
    await expect.poll(() => lab.seen.observedReason, { timeout: 20_000 }).toMatch(/tried again: half way$/)
    expect(lab.failedSleeps).toBe(1)
    await lab.awake()
  })

  test('because the disk is full half way leaves it awake', async () => {
    // Another filesystem in place of the machine's, so small that QEMU itself fits and its guest's state does not.
    lab.killVmhost()
    await lab.killHypervisor()
    execFileSync('mount', ['-t', 'tmpfs', '-o', `size=200k,mode=750,gid=${uid}`, 'tmpfs', lab.directory])
    lab.makeDisk()
    lab.seen = { ...lab.seen, observedReadyAt: null }
    lab.row = { ...lab.row, isReady: false }
    await lab.vmhost()
    await lab.awake()
    const [pid] = await lab.pids()
    lab.want({ desiredState: 'asleep' })
    await expect
      .poll(() => lab.seen.observedReason, { timeout: 60_000 })
      .toMatch(/could not be put to sleep, which is tried again: The server's disk is full$/)
    await lab.awake()
    expect(await lab.pids()).toEqual([pid])
  })

  test('because the hypervisor ended leaves it asleep without its memory, which it says, and it boots when it wakes', async () => {
    const reached = lab.cutOff('save', false)
    lab.want({ desiredState: 'asleep' })
    await reached
    lab.killVmhost()
    await lab.killHypervisor()
    await lab.vmhost()
    await expect.poll(() => lab.seen.observedState, { timeout: 60_000 }).toBe('asleep')
    expect(lab.seen.observedReason).toMatch(/^It has lost its memory and starts from its disk: /)
    lab.want({ desiredState: 'running' })
    await lab.awake()
    expect(lab.seen.observedReason).toMatch(/^It lost its memory and was started from its disk: /)
  })
})

describe('a sleeper that cannot be restored boots from its disk and says why', () => {
  test.each<[string, () => void, RegExp]>([
    [
      'no kernel any more',
      () => {
        lab.keepsBoot = false
      },
      /the kernel that it was saved with is not on this server any more$/,
    ],
    [
      'a damaged record',
      () => writeFileSync(join(lab.directory, 'memory/saved.json'), '{'),
      /what was kept of its memory is damaged$/,
    ],
    [
      'a state that ends too early',
      () => truncateSync(join(lab.directory, 'memory/state'), 10_000),
      /QEMU did not start/,
    ],
    ['a state of something else', () => writeFileSync(join(lab.directory, 'memory/state'), 'nothing'), /QEMU did not/],
    ['no state', () => rmSync(join(lab.directory, 'memory/state')), /There is no saved guest to restore$/],
  ])('%s', async (_, spoil, sentence) => {
    await lab.sleeps()
    lab.killVmhost()
    spoil()
    lab.row = { ...lab.row, desiredState: 'running' }
    await lab.vmhost()
    await lab.awake()
    expect(lab.seen.observedReason).toMatch(/^It lost its memory and was started from its disk: /)
    expect(lab.seen.observedReason).toMatch(sentence)
    expect(lab.recorded.at(-1)).toBe('machine.running')
  })
})

describe('a sleeper whose server has not what it takes to restore it', () => {
  const says = 'Its memory was saved by QEMU 99.0, which the QEMU on its server now cannot read'

  async function found(): Promise<void> {
    await lab.sleeps()
    lab.killVmhost()
    lab.obstacle = says
    lab.row = { ...lab.row, desiredState: 'running' }
    await lab.vmhost()
    await expect.poll(() => lab.row.desiredState, { timeout: 60_000 }).toBe('asleep')
    await lab.asleep()
    expect(lab.seen).toMatchObject({ observedReason: says, observedAsleepBecause: cannotRestore })
  }

  test('sleeps on with all its memory, whatever knocks, and wakes by itself with a vmhost that can', async () => {
    await found()
    lab.want({ desiredState: 'running' })
    await expect.poll(() => lab.row.desiredState, { timeout: 60_000 }).toBe('asleep')
    await lab.asleep()
    lab.killVmhost()
    await lab.vmhost()
    await lab.asleep()
    expect(lab.row.desiredState).toBe('asleep')
    lab.killVmhost()
    lab.obstacle = undefined
    await lab.vmhost()
    await lab.awake()
    expect(lab.seen).toMatchObject({ observedBoot: 1, observedReason: null, observedAsleepBecause: null })
    expect(lab.recorded.at(-1)).toBe('machine.woke')
    expect(lab.recorded).not.toContain('machine.memory-lost')
  })

  test('stays asleep where its owner has paused it meanwhile, and wakes when that is over', async () => {
    await found()
    lab.want({ desiredState: 'paused' })
    lab.killVmhost()
    lab.obstacle = undefined
    await lab.vmhost()
    await lab.vmhosts.at(-1)?.machine.poke()
    expect(lab.row.desiredState).toBe('paused')
    await lab.asleep()
    lab.want({ desiredState: 'running' })
    await lab.awake()
    expect(lab.recorded.at(-1)).toBe('machine.woke')
  })

  test('starts from its disk when it is restarted, which gives its memory up', async () => {
    await found()
    lab.want({ desiredState: 'running', desiredBoot: 2 })
    await lab.awake()
    expect(lab.seen).toMatchObject({ observedBoot: 2, observedReason: null })
    expect(lab.recorded).toContain('machine.memory-dropped')
  })

  test('is asleep again where a vmhost before was killed when it had begun to wake it', async () => {
    await lab.sleeps()
    const reached = lab.cutOff('start', false)
    lab.want({ desiredState: 'running' })
    await reached
    expect(lab.seen.observedState).toBe('running')
    lab.killVmhost()
    lab.obstacle = says
    await lab.vmhost()
    await lab.asleep()
    await expect.poll(() => lab.seen.observedReason, { timeout: 60_000 }).toBe(says)
    expect(lab.seen).toMatchObject({ observedAsleepAt: expect.any(Date), observedSavedBytes: expect.any(Number) })
  })
})

describe('a sleeper whose restore fails for what is not its memory', () => {
  test.each<[string, () => Error]>([
    ['no memory', () => new HypervisorError('hypervisor.start', 'QEMU did not start: Cannot allocate memory')],
    ['no answer', () => new HypervisorError('hypervisor.timeout', 'QEMU does not listen on its control socket')],
    ['killed again and again', () => new HypervisorError('hypervisor.gone', 'QEMU was killed while it started')],
    ['no more files', () => Object.assign(new Error('too many open files'), { code: 'EMFILE' })],
  ])('%s: sleeps on with it and says why, and wakes when somebody comes and that is over', async (_, failure) => {
    await lab.sleeps()
    lab.startFailure = failure
    for (let times = 0; times < 2; times++) {
      lab.want({ desiredState: 'running' })
      await expect.poll(() => lab.row.desiredState, { timeout: 60_000 }).toBe('asleep')
      await lab.vmhosts.at(-1)?.machine.poke()
      await lab.asleep()
      expect(lab.seen).toMatchObject({
        observedReason: `Its memory could not be restored: ${failure().message}`,
        observedAsleepBecause: cannotRestore,
        observedSavedBytes: expect.any(Number),
        observedReadyAt: null,
      })
    }
    lab.startFailure = undefined
    lab.want({ desiredState: 'running' })
    await lab.awake()
    expect(lab.recorded.at(-1)).toBe('machine.woke')
    expect(lab.recorded).not.toContain('machine.memory-lost')
  })

  test('once: is tried again', async () => {
    await lab.sleeps()
    lab.startFailure = () => {
      lab.startFailure = undefined
      return new HypervisorError('hypervisor.start', 'QEMU did not start')
    }
    lab.want({ desiredState: 'running' })
    await lab.awake()
    expect(lab.recorded.at(-1)).toBe('machine.woke')
  })
})

test('one that was saved under an older release of QEMU goes on as the same kind of machine', async () => {
  lab.killVmhost()
  await lab.killHypervisor()
  lab.version = olderRelease(await qemuVersion())
  const older = `qemu ${machineType(lab.version)} tcg`
  lab.seen = { ...lab.seen, observedReadyAt: null }
  lab.row = { ...lab.row, isReady: false }
  await lab.vmhost()
  await lab.awake()
  await lab.sleeps()
  expect(record().stateVersion).toBe(older)
  lab.killVmhost()
  lab.version = undefined
  lab.row = { ...lab.row, desiredState: 'running' }
  await lab.vmhost()
  await lab.awake()
  expect(lab.recorded.at(-1)).toBe('machine.woke')
  expect(lab.seen.observedReason).toBeNull()
  // Asleep once more, it still is what it was.
  await lab.sleeps()
  expect(record().stateVersion).toBe(older)
})

describe('a sleeper', () => {
  test('that is restarted boots from its disk, without its memory', async () => {
    await lab.sleeps()
    lab.want({ desiredState: 'running', desiredBoot: 2 })
    await lab.awake()
    expect(lab.seen).toMatchObject({ observedBoot: 2, observedReason: null })
    expect(lab.recorded).toContain('machine.memory-dropped')
  })

  test.each(['stopped', 'trashed'] as const)('that shall be %s is so, and its memory gone', async (desiredState) => {
    await lab.sleeps()
    lab.want({ desiredState })
    await expect.poll(() => lab.seen.observedState, { timeout: 60_000 }).toBe(desiredState)
    expect(lab.memory()).toEqual([])
    expect(lab.recorded).toContain('machine.memory-dropped')
  })

  test('keeps its boot set, and is left alone as long as nothing is asked of it', async () => {
    await lab.sleeps()
    lab.killVmhost()
    await lab.vmhost()
    const { machine } = lab.vmhosts.at(-1) ?? {}
    await machine?.poke()
    expect(machine?.bootSet).toBe(bootHash)
    expect(machine?.isAtRest(lab.row)).toBe(true)
    expect(machine?.isAtRest({ ...lab.row, desiredState: 'running' })).toBe(false)
    expect(existsSync(join(lab.directory, 'memory/state'))).toBe(true)
  })
})

test('a server that goes down puts it to sleep, and wakes it when it is back, since it was wanted running all the while', async () => {
  await lab.vmhosts.at(-1)?.machine.sleepThroughShutdown()
  await lab.asleep()
  expect(lab.seen.observedAsleepBecause).toBe('its server shut down')
  expect(lab.row.desiredState).toBe('running')
  lab.killVmhost()
  await lab.vmhost()
  await lab.awake()
  expect(lab.recorded).toEqual(['machine.running', 'machine.asleep', 'machine.woke'])
})

test('its record says what it needs again', async () => {
  await lab.sleeps()
  const saved = record()
  expect(saved).toMatchObject({ bootSet: bootHash, cpus: 1, memoryBytes: 128 * MiB, usedBytes: 10 * MiB, boot: 1 })
  expect(saved.stateVersion).toMatch(/^qemu pc-q35-\d+\.\d+ tcg$/)
})

function record(): SavedMemory {
  return JSON.parse(readFileSync(join(lab.directory, 'memory/saved.json'), 'utf8')) as SavedMemory
}
