import { afterEach, beforeEach, expect, test } from 'vitest'
import { SleepLab } from './testing/sleep-lab.ts'

/** A vmhost that starts, and finds a hypervisor that is there and does not answer. */

let lab: SleepLab
let pid: number
const reason = /^Its hypervisor does not answer, which is tried again/

beforeEach(async () => {
  lab = await SleepLab.make()
  pid = (await lab.pids())[0] ?? 0
})
afterEach(() => lab[Symbol.asyncDispose]())

/** The next vmhost's start, while it hangs. */
async function hangs(): Promise<void> {
  lab.killVmhost()
  process.kill(pid, 'SIGSTOP')
  await lab.vmhost()
}

test('it is waited for, said of its machine, and adopted as soon as it answers', async () => {
  // Once it has had its driver's time, `stopped` would end it.
  lab.adoptLimitMs = 600_000
  await hangs()
  expect(lab.seen.observedReason).toMatch(reason)
  const machine = lab.vmhosts.at(-1)?.machine
  expect(machine?.network).toMatchObject({ machineId: lab.row.id, address: lab.row.address })
  expect(machine?.bootSet).toBeDefined()
  // It has all of its turns, and none does anything.
  lab.want({ desiredState: 'asleep' })
  await machine?.poke()
  lab.want({ desiredState: 'stopped' })
  await machine?.poke()
  lab.want({ desiredState: 'running' })
  await machine?.poke()
  expect(await lab.pids()).toEqual([pid])
  expect(machine?.pid).toBeUndefined()
  process.kill(pid, 'SIGCONT')
  await expect.poll(() => lab.seen.observedReason, { timeout: 60_000 }).toBeNull()
  await expect.poll(() => machine?.pid, { timeout: 60_000 }).toBe(pid)
  await lab.awake()
  await lab.sleeps()
  expect(lab.recorded).not.toContain('machine.memory-lost')
})

test('tried over and over, it is adopted all the same', async () => {
  lab.adoptLimitMs = 300
  await hangs()
  process.kill(pid, 'SIGCONT')
  await expect.poll(() => lab.vmhosts.at(-1)?.machine.pid, { timeout: 60_000 }).toBe(pid)
  expect(lab.seen.observedReason).toBeNull()
})

test('a restart ends it, and boots its machine from the disk', async () => {
  lab.adoptLimitMs = 300
  await hangs()
  expect(await lab.pids()).toEqual([pid])
  lab.want({ desiredBoot: 2 })
  await expect.poll(() => lab.seen.observedBoot, { timeout: 60_000 }).toBe(2)
  await lab.awake()
  const now = await lab.pids()
  expect(now).toHaveLength(1)
  expect(now).not.toContain(pid)
})

test('somebody else ends it, and its machine is started again', async () => {
  lab.adoptLimitMs = 300
  await hangs()
  process.kill(pid, 'SIGKILL')
  await expect.poll(() => lab.vmhosts.at(-1)?.machine.pid, { timeout: 60_000 }).toBeDefined()
  await lab.awake()
  expect(await lab.pids()).not.toContain(pid)
})

test('saved already, its machine sleeps, and nobody waits for it', async () => {
  const reached = lab.cutOff('quit', false)
  lab.want({ desiredState: 'asleep' })
  await reached
  await hangs()
  await lab.asleep()
})

test('a vmhost that ends does not wait for it, and leaves it as it is', async () => {
  await hangs()
  lab.vmhosts.at(-1)?.stop.abort()
  await lab.vmhosts.at(-1)?.machine.release()
  expect(await lab.pids()).toEqual([pid])
})

test('that its files cannot be looked at for want of descriptors does not end it', async () => {
  lab.killVmhost()
  const short = () => Object.assign(new Error('too many open files'), { code: 'EMFILE' })
  lab.lookFailures.push(short(), short())
  await lab.vmhost()
  expect(lab.lookFailures).toEqual([])
  await expect.poll(() => lab.vmhosts.at(-1)?.machine.pid, { timeout: 60_000 }).toBe(pid)
  expect(await lab.pids()).toEqual([pid])
})
