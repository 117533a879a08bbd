import { execFile } from 'node:child_process'
import { chmodSync } from 'node:fs'
import { chown, copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { testArtifacts } from '../../test/e2e/artifacts.ts'
import { type AgentChannel, connectAgent } from '../guest/channel.ts'
import type { AgentEvent } from '../guest/messages.ts'
import {
  type Hypervisor,
  type HypervisorDriver,
  type HypervisorEvent,
  hypervisorUid,
  type MachineSpec,
} from './driver.ts'
import { readFifo } from './fifo.ts'
import { type Subject, subjects } from './testing/subjects.ts'

vi.setConfig({ testTimeout: 600_000, hookTimeout: 120_000 })

/**
 * What every driver must do with a real Linux guest and its agent. For Cloud Hypervisor as driver.test.ts has it.
 */

const run = promisify(execFile)
const MiB = 2 ** 20
const memoryBytes = 512 * MiB
let home: string
let store: string
let subject: Subject
let driver: HypervisorDriver
let hypervisor: Hypervisor | undefined
let agent: AgentChannel | undefined
let said = ''
const closers: (() => void)[] = []

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'berth-linux-'))
  chmodSync(home, 0o711)
  store = join(home, 'store')
  for (const folder of [store, join(store, 'boot'), join(store, 'machines')]) {
    await mkdir(folder)
    chmodSync(folder, 0o711)
  }
  const artifacts = await testArtifacts()
  for (const name of ['vmlinuz', 'initrd', 'tools.erofs']) {
    await copyFile(join(artifacts, 'boot', 'current', name), join(store, 'boot', name))
  }
})
afterEach(async () => {
  for (const close of closers.splice(0)) close()
  agent?.close()
  await hypervisor?.kill()
  hypervisor = undefined
})
afterAll(() => rm(home, { recursive: true }))

/** A machine's directory with a disk; `of` another machine, whose disk is copied. */
async function layOut(machineId: number, of?: MachineSpec): Promise<MachineSpec> {
  const directory = join(store, 'machines', String(machineId))
  const uid = hypervisorUid(machineId)
  await rm(directory, { recursive: true, force: true })
  await mkdir(directory)
  await chown(directory, 0, uid)
  chmodSync(directory, 0o750)
  const disk = join(directory, 'root.raw')
  const image = of?.disk ?? join(await testArtifacts(), 'images', 'minimal', 'root.raw')
  await run('cp', ['--reflink=auto', '--sparse=always', image, disk])
  await chown(disk, uid, uid)
  chmodSync(disk, 0o600)
  const boot = (name: string) => join(store, 'boot', name)
  return {
    machineId,
    directory,
    cpus: 2,
    memoryBytes,
    kernel: boot('vmlinuz'),
    initrd: boot('initrd'),
    tools: boot('tools.erofs'),
    commandLine: commandLine(),
    disk,
    ...tap(),
  }
}

/** Without a network card nothing is said of a network, or its guest would wait for one. */
function commandLine(): string {
  const words = ['console=hvc0 root=/dev/vda init=/exe/bin/exe-init rw']
  if (process.env.BERTH_TEST_TAP !== undefined) {
    words.push('ip=10.42.0.2:10.42.0.1:10.42.0.1:255.255.0.0:demo:eth0:none:198.51.100.10::')
  }
  if (subject.name === 'QEMU') words.push('mitigations=off')
  return words.join(' ')
}

/** A network card where the test was given a tap for it. */
function tap(): Pick<MachineSpec, 'network'> {
  const name = process.env.BERTH_TEST_TAP
  return name === undefined ? {} : { network: { tap: name, mac: '02:be:0a:2a:00:02' } }
}

async function attend(one: Hypervisor): Promise<AgentChannel> {
  hypervisor = one
  said = ''
  closers.push(
    readFifo(one.consolePath, (chunk) => {
      said += chunk.toString('latin1')
    }),
  )
  const { socketPath, vsockPort } = one.agent
  agent = connectAgent(socketPath, vsockPort === undefined ? {} : { vsockPort })
  return agent
}

async function identify(channel: AgentChannel, hostname: string): Promise<void> {
  const key = join(home, 'host')
  if (!(await stat(key).catch(() => undefined))) {
    await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', key])
  }
  await channel.identify({
    hostname,
    loginUser: 'dev',
    authorizedKeys: [],
    environment: {},
    hostKey: await readFile(key, 'utf8'),
    machineId: '0123456789abcdef0123456789abcdef',
  })
}

function agentEvent(channel: AgentChannel, matches: (event: AgentEvent) => boolean): Promise<AgentEvent> {
  return new Promise((resolve) => {
    const stop = channel.on((event) => {
      if (!matches(event)) return
      stop()
      resolve(event)
    })
  })
}

function hypervisorEvent(one: Hypervisor, type: HypervisorEvent['type']): Promise<HypervisorEvent> {
  return new Promise((resolve) => {
    const stop = one.on((event) => {
      if (event.type !== type) return
      stop()
      resolve(event)
    })
  })
}

async function untilBalloon(one: Hypervisor, holds: (bytes: number) => boolean): Promise<number> {
  for (const deadline = Date.now() + 120_000; ; await sleep(200)) {
    const bytes = await one.balloon()
    if (holds(bytes)) return bytes
    if (Date.now() > deadline) throw new Error(`the balloon holds ${bytes} bytes`)
  }
}

/** @returns the folder that it is saved to */
async function saveInto(one: Hypervisor, { machineId, directory }: MachineSpec): Promise<string> {
  const uid = hypervisorUid(machineId)
  const folder = join(directory, 'memory')
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { mode: 0o700 })
  await chown(folder, uid, uid)
  await one.save(folder)
  return folder
}

/** Bytes that the files of a folder take on the disk. */
async function takenBytes(folder: string): Promise<number> {
  const found = await Promise.all((await readdir(folder)).map((name) => stat(join(folder, name))))
  return found.reduce((sum, { blocks }) => sum + blocks * 512, 0)
}

describe.each(subjects)('under $name a Linux guest', (candidate) => {
  beforeEach(async ({ skip }) => {
    subject = candidate
    if (candidate.absentForLinux !== undefined) skip(candidate.absentForLinux)
    driver = await candidate.driver(store)
  })

  test('boots, gives memory back, is saved, goes on as itself and as another, reboots and switches itself off', async () => {
    const spec = await layOut(41)
    let one = await driver.start(spec)
    let channel = await attend(one)
    const listening = agentEvent(channel, (event) => event.type === 'stage' && event.stage === 'sshd')
    const { bootId } = await channel.ready({ timeoutMs: 400_000 }).catch((error: unknown) => {
      throw new Error(`it did not come up; its console: ${said.slice(-2_000)}`, { cause: error })
    })
    await identify(channel, 'demo')
    await listening
    expect(said).toContain('Run /init as init process')

    await one.setBalloon(128 * MiB)
    await untilBalloon(one, (bytes) => bytes >= 120 * MiB)
    const { memoryTotalBytes, memoryAvailableBytes } = await channel.report({ timeoutMs: 60_000 })
    const used = memoryTotalBytes - memoryAvailableBytes

    await truncate(spec.disk, (await stat(spec.disk)).size + 64 * MiB)
    await one.diskGrown((await stat(spec.disk)).size)
    await one.pause()
    expect(await one.state()).toBe('paused')
    await one.pause()
    const saved = await saveInto(one, spec)
    expect(await takenBytes(saved)).toBeLessThan(used + 160 * MiB)
    expect(await readdir(join(spec.directory, 'run'))).not.toContain('save')
    expect(driver.stateVersion).toBe(one.stateVersion)

    // It stands still as long as nobody says otherwise, and goes on after it was saved.
    await one.resume()
    await one.resume()
    expect(await one.state()).toBe('running')
    await channel.ping({ timeoutMs: 60_000 })

    // What it has written since would be missing from that memory.
    await one.pause()
    await saveInto(one, spec)
    channel.close()
    await one.quit()

    // As another machine: by its own user, from a copy of the disk.
    const other = await layOut(42, spec)
    await run('cp', ['-a', saved, join(other.directory, 'memory')])
    for (const restoring of [
      { ...spec, restoreFrom: saved },
      { ...other, restoreFrom: join(other.directory, 'memory') },
    ]) {
      one = await driver.start(restoring)
      channel = await attend(one)
      expect(await one.state()).toBe('paused')
      await one.resume()
      const hello = await channel.ready({ timeoutMs: 120_000 })
      expect(hello).toMatchObject({ bootId, identified: true })
      await identify(channel, 'again')
      await one.setBalloon(0)
      await untilBalloon(one, (bytes) => bytes === 0)
      expect((await channel.grow({ timeoutMs: 60_000 })).sizeBytes).toBe((await stat(spec.disk)).size)
      if (restoring.machineId !== 42) {
        channel.close()
        await one.quit()
      }
    }

    const reset = hypervisorEvent(one, 'reset')
    const again = agentEvent(channel, (event) => event.type === 'hello' && event.hello.bootId !== bootId)
    await channel.reboot(5_000, { timeoutMs: 60_000 })
    expect(await reset).toMatchObject({ byGuest: true })
    await again
    await identify(channel, 'demo')

    const off = hypervisorEvent(one, 'shutdown')
    await channel.powerOff(5_000, { timeoutMs: 60_000 })
    expect(await off).toMatchObject({ byGuest: true })
    expect(await one.state()).toBe('shutdown')
    await one.quit()
    hypervisor = undefined
  })
})
