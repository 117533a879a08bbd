import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { SleepLab, type Step } from './testing/sleep-lab.ts'

/** Every step of a sleep and of a wake at which a vmhost can be killed, and its hypervisor with it. */

let lab: SleepLab

beforeEach(async () => {
  lab = await SleepLab.make()
})
afterEach(() => lab[Symbol.asyncDispose]())

describe('a vmhost that is killed while it puts a machine to sleep', () => {
  test.each<[string, Step, boolean]>([
    ['takes its caches', 'balloon', true],
    ['has not stopped it yet', 'pause', false],
    ['has stopped it', 'pause', true],
    ['has written all of it, without its name', 'save', true],
  ])('when it %s: the guest goes on, and sleeps when that is still wanted', async (_, name, done) => {
    const [pid] = await lab.pids()
    const reached = lab.cutOff(name, done)
    lab.want({ desiredState: 'asleep' })
    await reached
    lab.killVmhost()
    expect(lab.memory()).toEqual(['memory.new'])
    lab.row = { ...lab.row, desiredState: 'running' }
    await lab.vmhost()
    await lab.awake()
    expect(await lab.pids()).toEqual([pid])
    await lab.sleeps()
  })

  test('when its memory has its name: the hypervisor is ended, and it sleeps', async () => {
    const reached = lab.cutOff('quit', false)
    lab.want({ desiredState: 'asleep' })
    await reached
    lab.killVmhost()
    expect(await lab.pids()).toHaveLength(1)
    expect(lab.memory()).toEqual(['memory'])
    await lab.vmhost()
    await lab.asleep()
    lab.want({ desiredState: 'running' })
    await lab.awake()
    expect(lab.recorded).not.toContain('machine.memory-lost')
  })

  test('and its hypervisor with it: it boots from its disk, and says what was lost', async () => {
    const reached = lab.cutOff('save', true)
    lab.want({ desiredState: 'asleep' })
    await reached
    lab.killVmhost()
    await lab.killHypervisor()
    lab.row = { ...lab.row, desiredState: 'running' }
    await lab.vmhost()
    await lab.awake()
    expect(lab.seen.observedReason).toMatch(
      /^It lost its memory and was started from its disk: .* while it was put to sleep$/,
    )
    expect(lab.recorded).toContain('machine.memory-lost')
  })

  test('and the next one too, before anybody was told what was lost: it is told all the same, once', async () => {
    const reached = lab.cutOff('save', true)
    lab.want({ desiredState: 'asleep' })
    await reached
    lab.killVmhost()
    await lab.killHypervisor()
    lab.row = { ...lab.row, desiredState: 'running' }
    const started = lab.cutOff('start', true)
    await lab.vmhost()
    await started
    lab.killVmhost()
    // What it was to go on from is forgotten by now.
    expect(lab.memory()).toEqual([])
    await lab.vmhost()
    await lab.awake()
    expect(lab.seen.observedReason).toMatch(/^It lost its memory and was started from its disk: .* put to sleep$/)
    await lab.sleeps()
    expect(lab.seen.observedReason).toBeNull()
  })
})

describe('a vmhost that is killed while it wakes a machine', () => {
  test('before the guest may run: it is restored once more', async () => {
    await lab.sleeps()
    const reached = lab.cutOff('start', true)
    lab.want({ desiredState: 'running' })
    await reached
    lab.killVmhost()
    const [first] = await lab.pids()
    expect(lab.memory()).toEqual(['memory'])
    await lab.vmhost()
    await lab.awake()
    expect(await lab.pids()).not.toContain(first)
    expect(lab.recorded).toEqual(['machine.running', 'machine.asleep', 'machine.woke'])
  })

  test.each<[string, boolean]>([
    ['before', false],
    ['after', true],
  ])('when its memory is spent, %s it has been let run: the same guest goes on', async (_, done) => {
    await lab.sleeps()
    lab.agent.answers = false
    const reached = lab.cutOff('resume', done)
    lab.want({ desiredState: 'running' })
    await reached
    lab.killVmhost()
    lab.agent.answers = true
    const [first] = await lab.pids()
    expect(lab.memory()).toEqual(['memory.used'])
    await lab.vmhost()
    await lab.awake()
    expect(await lab.pids()).toEqual([first])
    expect(lab.seen.observedReason).toBeNull()
  })

  test('and its hypervisor with it, when its memory is spent: it boots from its disk, and says what was lost', async () => {
    await lab.sleeps()
    // A guest that stands still says nothing.
    lab.agent.answers = false
    const reached = lab.cutOff('resume', false)
    lab.want({ desiredState: 'running' })
    await reached
    lab.killVmhost()
    lab.agent.answers = true
    await lab.killHypervisor()
    await lab.vmhost()
    await lab.awake()
    expect(lab.seen.observedReason).toMatch(/^It lost its memory and was started from its disk: .* while it woke$/)
  })
})
