import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, readdirSync, readFileSync } from 'node:fs'
import { chown, mkdir, mkdtemp, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { getPriority, tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  type Hypervisor,
  type HypervisorDriver,
  type HypervisorEvent,
  hypervisorUid,
  type MachineSpec,
} from './driver.ts'
import { kvmProblem } from './probe.ts'
import { identify } from './process.ts'
import { processorKind } from './processor.ts'
import { qemuDriver, qemuVersion } from './qemu.ts'
import { files } from './qemu-command.ts'
import { connectQmp } from './qmp.ts'
import { olderRelease } from './testing/older-qemu.ts'
import { qemu, type Subject, subjects } from './testing/subjects.ts'
import type { TinyGuest } from './tiny-guest.ts'

/**
 * What every driver must do, with real hypervisors and guests of a few bytes. Cloud Hypervisor's is run where
 * CLOUD_HYPERVISOR names its program and KVM works; nested.test.ts runs this file in a guest that has KVM where it does not.
 */

const MiB = 2 ** 20
const machineId = 41
/** Closed to everybody else, as /root is: a hypervisor gets to its files all the same. */
let home: string
let store: string
let directory: string
let subject: Subject
let driver: HypervisorDriver
const running: Hypervisor[] = []

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'berth-driver-'))
  chmodSync(home, 0o700)
  store = join(home, 'store')
  await mkdir(store)
  chmodSync(store, 0o711)
})
afterEach(async () => {
  if (subject.absent !== undefined) return
  for (const one of running.splice(0)) await one.kill()
  await driver.destroy(machineId, directory)
})
afterAll(() => rm(home, { recursive: true }))

async function specOf(guest: TinyGuest): Promise<MachineSpec> {
  directory = join(store, 'machines', String(machineId))
  const uid = hypervisorUid(machineId)
  await rm(directory, { recursive: true, force: true })
  await mkdir(directory, { recursive: true })
  chmodSync(join(store, 'machines'), 0o711)
  await chown(directory, 0, uid)
  chmodSync(directory, 0o750)
  const disk = join(directory, 'root.raw')
  await writeFile(disk, '', { mode: 0o600 })
  await truncate(disk, 64 << 20)
  await chown(disk, uid, uid)
  const kernel = join(store, guest)
  await subject.makeGuest(kernel, guest)
  return { machineId, directory, cpus: 2, memoryBytes: 64 << 20, kernel, commandLine: 'a, b', disk }
}

async function boot(guest: TinyGuest) {
  const one = await driver.start(await specOf(guest))
  running.push(one)
  return one
}

function next(one: Hypervisor, type: HypervisorEvent['type']): Promise<HypervisorEvent> {
  return new Promise((resolve) => {
    const stop = one.on((event) => {
      if (event.type !== type) return
      stop()
      resolve(event)
    })
  })
}

/** It may have got there before anybody listens, or just after it was asked. */
async function reach(one: Hypervisor, state: 'shutdown' | 'panicked'): Promise<HypervisorEvent | undefined> {
  const event = next(one, state)
  return (await one.state()) === state ? undefined : await event
}

describe.each(subjects)('the driver of $name', (candidate) => {
  beforeEach(async ({ skip }) => {
    subject = candidate
    if (candidate.absent !== undefined) skip(candidate.absent)
    driver = await candidate.driver(store)
  })

  test("runs a guest under the machine's own uid, without capabilities or a group but the one it needs, seccomp on, in its own session", async () => {
    const one = await boot('idle')
    expect(await one.state()).toBe('running')
    const status = readFileSync(`/proc/${one.pid}/status`, 'utf8')
    expect(status).toMatch(/^Uid:\t2000041\t2000041\t2000041\t2000041$/m)
    expect(status).toMatch(/^Gid:\t2000041\t/m)
    expect(/^Groups:\t(.*)$/m.exec(status)?.[1]?.trim()).toBe(subject.groups().join(' '))
    expect(status).toMatch(/^CapBnd:\t0+$/m)
    expect(status).toMatch(/^NoNewPrivs:\t1$/m)
    for (const thread of readdirSync(`/proc/${one.pid}/task`)) {
      // Cloud Hypervisor's first thread only waits for the others, each of which has a filter of its own.
      if (subject.name === 'Cloud Hypervisor' && thread === String(one.pid)) continue
      const filtered = readFileSync(`/proc/${one.pid}/task/${thread}/status`, 'utf8')
      expect(filtered).toMatch(/^Seccomp:\t2$/m)
    }
    const stat = readFileSync(`/proc/${one.pid}/stat`, 'utf8')
    const session = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[3]
    expect(Number(session)).toBe(one.pid)
  })

  test('keeps a guest that switched itself off until somebody has asked why', async () => {
    const one = await driver.start(await specOf('powersOff'))
    running.push(one)
    expect((await reach(one, 'shutdown')) ?? { byGuest: true }).toMatchObject({ byGuest: true })
    expect(await one.state()).toBe('shutdown')
    const exited = next(one, 'exited')
    await one.quit()
    await exited
    expect(await identify(one.pid)).toBeUndefined()
  })

  test('reports a panic and keeps the guest for the report', async () => {
    const one = await boot('panics')
    await reach(one, 'panicked')
    expect(await one.state()).toBe('panicked')
  })

  test('reports a reboot and goes on', async () => {
    const one = await boot('resets')
    expect(await next(one, 'reset')).toMatchObject({ byGuest: true })
    expect(await one.state()).toBe('running')
  })

  test('tells when the process was killed by somebody else', async () => {
    const one = await boot('idle')
    const exited = next(one, 'exited')
    process.kill(one.pid, 'SIGKILL')
    expect(await exited).toMatchObject({ type: 'exited' })
    await expect(one.state()).rejects.toMatchObject({ code: 'hypervisor.gone' })
  })

  test('says in words of the hypervisor why it does not start, and leaves nothing running', async () => {
    const spec = await specOf('idle')
    await rm(spec.disk)
    await expect(driver.start(spec)).rejects.toThrow(subject.missingDisk)
    expect(await driver.destroy(machineId, directory)).toBe(0)
  })

  test('refuses a second hypervisor for the same machine and leaves the first alone', async () => {
    const one = await boot('idle')
    const spec = { machineId, directory, cpus: 1, memoryBytes: 64 << 20, kernel: join(store, 'idle'), commandLine: '' }
    await expect(driver.start({ ...spec, disk: join(directory, 'root.raw') })).rejects.toThrow(/already runs/)
    expect(await one.state()).toBe('running')
  })

  test('adopts the hypervisor of an owner that was killed by SIGKILL', async () => {
    const spec = await specOf('idle')
    const module = new URL('./testing/subjects.ts', import.meta.url).href
    const owner = spawn(
      process.execPath,
      [
        '--input-type=module',
        '-e',
        `import { subjects } from ${JSON.stringify(module)}
         const driver = await subjects[${subjects.indexOf(candidate)}].driver(${JSON.stringify(store)})
         const one = await driver.start(${JSON.stringify(spec)})
         console.log(one.pid)
         setInterval(() => {}, 1000)`,
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    )
    const [line] = await once(createInterface({ input: owner.stdout }), 'line')
    owner.kill('SIGKILL')
    await once(owner, 'exit')
    const adopted = await driver.adopt(machineId, directory, 64 * MiB)
    if (!adopted) throw new Error('not found')
    running.push(adopted)
    expect(adopted.pid).toBe(Number(line))
    expect(await adopted.state()).toBe('running')
    const exited = next(adopted, 'exited')
    await adopted.quit()
    await exited
  })

  test('a released hypervisor runs on and is adopted', async () => {
    const one = await driver.start(await specOf('idle'))
    one.release()
    const again = await driver.adopt(machineId, directory, 64 * MiB)
    if (!again) throw new Error('not found')
    running.push(again)
    expect(again.pid).toBe(one.pid)
  })

  test('gives a guest more while it runs, up to what it was started for, where it can, and whoever takes it over knows', async () => {
    const spec = { ...(await specOf('idle')), cpus: 1, most: { cpus: 3, memoryBytes: 320 * MiB } }
    const one = await driver.start(spec)
    const start = { cpus: 1, memoryBytes: 64 * MiB }
    const given = (cpus: number, memory: number) => (subject.resizes ? { cpus, memoryBytes: memory * MiB } : start)
    expect(await one.size()).toEqual(start)
    expect(await one.resize({ cpus: 2, memoryBytes: 64 * MiB })).toEqual(given(2, 64))
    expect(await one.resize({ cpus: 3, memoryBytes: 192 * MiB })).toEqual(given(3, 192))
    // Nothing is taken away.
    expect(await one.resize(start)).toEqual(given(3, 192))
    expect(await one.state()).toBe('running')
    one.release()
    const again = await driver.adopt(machineId, directory, 64 * MiB)
    if (!again) throw new Error('not found')
    running.push(again)
    expect(await again.size()).toEqual(given(3, 192))
    await again.setBalloon(16 * MiB)
    expect(await again.resize({ cpus: 4, memoryBytes: 320 * MiB })).toEqual(given(3, 320))
  })

  test('one that yielded when its vmhost was killed yields no more once it is adopted', async () => {
    const nices = (pid: number) => {
      const threads = readdirSync(`/proc/${pid}/task`).map((thread) => getPriority(Number(thread)))
      return [...new Set(threads)]
    }
    const one = await driver.start(await specOf('idle'))
    await one.yieldToOthers(true)
    expect(nices(one.pid)).toEqual([19])
    one.release()
    const again = await driver.adopt(machineId, directory, 64 * MiB)
    if (!again) throw new Error('not found')
    running.push(again)
    expect(nices(again.pid)).toEqual([0])
  })

  test('a hypervisor that does not answer is not adopted, and ended all the same', async () => {
    const one = await driver.start(await specOf('idle'))
    one.release()
    process.kill(one.pid, 'SIGSTOP')
    await expect(
      (await subject.driver(store, { adoptLimitMs: 300 })).adopt(machineId, directory, 64 * MiB),
    ).rejects.toMatchObject({ code: 'hypervisor.timeout' })
    expect(await driver.destroy(machineId, directory)).toBe(1)
    expect(await identify(one.pid)).toBeUndefined()
  })

  test('quit has a limit when the hypervisor hangs', async () => {
    const one = await boot('idle')
    process.kill(one.pid, 'SIGSTOP')
    await one.quit(200)
    expect(await identify(one.pid)).toBeUndefined()
  })

  test('nothing runs: nothing is adopted', async () => {
    await specOf('idle')
    expect(await driver.adopt(machineId, directory, 64 * MiB)).toBeUndefined()
  })
})

test("QEMU's version is known", async () => {
  expect(await qemuVersion()).toMatch(/^\d+\.\d+/)
})

/** What is QEMU's alone. */
describe('the driver of QEMU', () => {
  beforeEach(async () => {
    subject = qemu
    driver = await qemu.driver(store)
  })

  test('a guest that an older kind of machine saved goes on as that kind, whatever machines are started as now', async () => {
    const older = qemuDriver({ accelerator: 'tcg', version: olderRelease(await qemuVersion()), cgroups: false })
    const spec = await specOf('idle')
    const one = await older.start(spec)
    running.push(one)
    await one.pause()
    const restoreFrom = join(directory, 'memory')
    await mkdir(restoreFrom, { mode: 0o700 })
    await one.save(restoreFrom)
    await one.quit()
    const { stateVersion } = one
    expect(stateVersion).toBe(older.stateVersion)
    expect(driver.stateVersion).not.toBe(stateVersion)
    expect(await driver.obstacle(stateVersion)).toBeUndefined()
    const again = await driver.start({ ...spec, restoreFrom, stateVersion })
    running.push(again)
    expect([again.stateVersion, await again.state()]).toEqual([stateVersion, 'paused'])
    await again.resume()
    expect(await again.state()).toBe('running')
  })

  test('what it cannot restore now it says in a sentence, and that it can when that is over', async () => {
    const kvm = `qemu pc-q35-7.2 kvm ${processorKind()}`
    expect(await driver.obstacle(kvm)).toBe(
      'Its memory was saved by QEMU 7.2 under KVM, which its server does not use now',
    )
    const accelerated = qemuDriver({ accelerator: 'kvm', version: '7.2.22', cgroups: false })
    if (kvmProblem() === undefined) {
      expect(await accelerated.obstacle(driver.stateVersion.replace('tcg', `kvm ${processorKind()}`))).toBeUndefined()
    }
    // Every QEMU emulates.
    expect(await accelerated.obstacle(driver.stateVersion)).toBeUndefined()
    expect(await driver.obstacle('cloud-hypervisor v53.0 kvm 0123456789ab')).toBe(
      'Its memory was saved by Cloud Hypervisor v53.0, which its server does not have now',
    )
    const newer = 'qemu pc-q35-99.0 tcg'
    const unknown = 'Its memory was saved by QEMU 99.0, which the QEMU on its server now cannot read'
    expect(await driver.obstacle(newer)).toBe(unknown)
    try {
      const path = join(home, 'qemu-system-x86_64')
      const fake = async (command: string) => {
        await writeFile(`${path}.new`, `#!/bin/sh\n${command}\n`)
        chmodSync(`${path}.new`, 0o755)
        await rename(`${path}.new`, path)
      }
      await fake('exit 1')
      vi.stubEnv('PATH', `${home}:${process.env.PATH}`)
      expect(await driver.obstacle(newer)).toMatch(/, and the QEMU on its server does not work now$/)
      // An update in place, under a vmhost that runs.
      await fake("echo 'Supported machines are:'; echo 'pc-q35-99.0          Standard PC'")
      expect(await driver.obstacle(newer)).toBeUndefined()
      expect(await driver.obstacle('qemu pc-q35-7.0 tcg')).toMatch(/^Its memory was saved by QEMU 7\.0, which /)
    } finally {
      vi.unstubAllEnvs()
    }
  })

  test('one that was taken over leads whoever takes it over to nobody else’s socket', async () => {
    const one = await driver.start(await specOf('idle'))
    one.release()
    const elsewhere = join(store, 'elsewhere.sock')
    let came = 0
    const other = createServer((socket) => {
      came++
      socket.destroy()
    }).listen(elsewhere)
    await once(other, 'listening')
    const own = join(directory, files.qmp)
    await rename(own, `${own}.away`)
    await symlink(elsewhere, own)
    const hasty = await qemu.driver(store, { adoptLimitMs: 1_000 })
    await expect(hasty.adopt(machineId, directory, 64 * MiB)).rejects.toMatchObject({ code: 'hypervisor.timeout' })
    await rename(elsewhere, own)
    await expect(hasty.adopt(machineId, directory, 64 * MiB)).rejects.toMatchObject({ code: 'hypervisor.timeout' })
    expect(came).toBe(0)
    other.close()
    await rename(`${own}.away`, own)
    const adopted = await driver.adopt(machineId, directory, 64 * MiB)
    if (!adopted) throw new Error('not found')
    running.push(adopted)
    expect([await adopted.state(), adopted.agent.uid]).toEqual(['running', hypervisorUid(machineId)])
  })

  test('one that was being written when its vmhost was killed goes on once it is adopted, and does not stop at the end', async () => {
    const one = await driver.start(await specOf('idle'))
    one.release()
    const path = join(directory, 'slow.sock')
    const reader = createServer((socket) => socket.resume()).listen(path)
    await once(reader, 'listening')
    await chown(path, hypervisorUid(machineId), hypervisorUid(machineId))
    const killed = await connectQmp(join(directory, files.qmp), { timeoutMs: 60_000, onEvent: () => {} })
    await killed.execute('stop')
    await killed.execute('migrate-set-parameters', { 'max-bandwidth': 1_000 })
    const connected = once(reader, 'connection')
    await killed.execute('migrate', { uri: 'unix:slow.sock' })
    const [writing] = (await connected) as [Socket]
    killed.close()
    const over = once(writing, 'close')
    const adopted = await driver.adopt(machineId, directory, 64 * MiB)
    if (!adopted) throw new Error('not found')
    running.push(adopted)
    await adopted.resume()
    await over
    expect(await adopted.state()).toBe('running')
    reader.close()
  })
})
