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
 *
 * With BERTH_TEST_NETWORK=own, which says that this process may make taps where it is (a network namespace of its own),
 * guests have a network card, and are looked at over SSH too.
 */

const run = promisify(execFile)
const MiB = 2 ** 20
const memoryBytes = 512 * MiB
const machineIds = [41, 42]
const hasNetwork = process.env.BERTH_TEST_NETWORK === 'own'
/** How often a guest sleeps and wakes; each time takes an emulated guest some ten seconds, one in an emulated server a minute. */
const sleepCycles = 3
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
  for (const name of ['host', 'key']) await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(home, name)])
  if (hasNetwork) for (const id of machineIds) await makeTap(id)
})
afterEach(async () => {
  for (const close of closers.splice(0)) close()
  agent?.close()
  await hypervisor?.kill()
  hypervisor = undefined
})
afterAll(async () => {
  await rm(home, { recursive: true })
  if (hasNetwork) for (const id of machineIds) await run('ip', ['link', 'delete', `vm${id}`])
})

/** As a vmhost makes it: routed, so that the machines may have one address, and whoever runs has it. */
async function makeTap(id: number): Promise<void> {
  const uid = String(hypervisorUid(id))
  await run('ip', ['tuntap', 'add', 'dev', `vm${id}`, 'mode', 'tap', 'user', uid, 'vnet_hdr'])
  await run('ip', ['address', 'add', '10.42.0.1/32', 'dev', `vm${id}`])
  await run('ip', ['link', 'set', `vm${id}`, 'up'])
}

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
    ...(hasNetwork ? { network: { tap: `vm${machineId}`, mac: '02:be:0a:2a:00:02' } } : {}),
  }
}

/** Without a network card nothing is said of a network, or its guest would wait for one. */
function commandLine(): string {
  const words = ['console=hvc0 root=/dev/vda init=/exe/bin/exe-init rw']
  if (hasNetwork) {
    words.push('ip=10.42.0.2:10.42.0.1:10.42.0.1:255.255.0.0:demo:eth0:none:198.51.100.10::')
  }
  if (subject.name === 'QEMU') words.push('mitigations=off')
  return words.join(' ')
}

async function attend(one: Hypervisor): Promise<AgentChannel> {
  hypervisor = one
  said = ''
  if (hasNetwork) await run('ip', ['route', 'replace', '10.42.0.2/32', 'dev', `vm${one.machineId}`])
  closers.push(
    readFifo(one.consolePath, (chunk) => {
      said += chunk.toString('latin1')
    }),
  )
  return connectTo(one)
}

function connectTo({ agent: { socketPath, vsockPort } }: Hypervisor): AgentChannel {
  agent = connectAgent(socketPath, vsockPort === undefined ? {} : { vsockPort })
  return agent
}

async function identify(channel: AgentChannel, hostname: string): Promise<void> {
  await channel.identify(
    {
      hostname,
      loginUser: 'dev',
      authorizedKeys: [(await readFile(join(home, 'key.pub'), 'utf8')).trim()],
      environment: {},
      hostKey: await readFile(join(home, 'host'), 'utf8'),
      machineId: '0123456789abcdef0123456789abcdef',
    },
    { timeoutMs: 120_000 },
  )
}

/** Boots it and tells it who it is; its sshd listens when this returns. */
async function comeUp(one: Hypervisor, hostname: string): Promise<{ channel: AgentChannel; bootId: string }> {
  const channel = await attend(one)
  const listening = agentEvent(channel, (event) => event.type === 'stage' && event.stage === 'sshd')
  const first = await channel.ready({ timeoutMs: 400_000 }).catch((error: unknown) => {
    throw new Error(`it did not come up; its console: ${said.slice(-2_000)}`, { cause: error })
  })
  // It has none yet: whoever was made of it as it is now would have the same.
  expect(first).toMatchObject({ bootId: '', identified: false })
  await identify(channel, hostname)
  await listening
  channel.close()
  const again = connectTo(one)
  const { bootId } = await again.ready({ timeoutMs: 60_000 })
  return { channel: again, bootId }
}

/** Runs a command line in the guest, as root. @returns what it wrote, by line */
async function ssh(commandLine: string): Promise<string[]> {
  const options = ['StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null', 'LogLevel=ERROR', 'ConnectTimeout=120']
  const words = options.flatMap((option) => ['-o', option])
  const to = ['-F', 'none', '-i', join(home, 'key'), ...words, 'root@10.42.0.2', commandLine]
  const { stdout } = await run('ssh', to, { timeout: 300_000 })
  return stdout.trim().split('\n')
}

/** What a vmhost does that takes the place of one that was killed. */
async function adopt(one: Hypervisor, { machineId, directory }: MachineSpec) {
  agent?.close()
  one.release()
  const adopted = await driver.adopt(machineId, directory, 64 * MiB)
  if (!adopted) throw new Error('not found')
  expect(adopted.pid).toBe(one.pid)
  return { one: adopted, channel: await attend(adopted) }
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

/** However long it takes, as long as it goes on. */
async function untilBalloon(one: Hypervisor, holds: (bytes: number) => boolean): Promise<number> {
  for (let last = 0, since = Date.now(); ; await sleep(200)) {
    const bytes = await one.balloon()
    if (holds(bytes)) return bytes
    if (bytes !== last) since = Date.now()
    if (Date.now() > since + 120_000) throw new Error(`the balloon holds ${bytes} bytes`)
    last = bytes
  }
}

/** @returns the folder that it is saved to */
async function saveInto(one: Hypervisor, { directory }: MachineSpec): Promise<string> {
  const folder = join(directory, 'memory')
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { mode: 0o700 })
  await one.save(folder)
  return folder
}

/** @returns milliseconds since it was made */
function stopwatch(): () => number {
  const from = performance.now()
  return () => Math.round(performance.now() - from)
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
    let { channel, bootId } = await comeUp(one, 'demo')
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

    ;({ one, channel } = await adopt(one, spec))
    expect(await one.state()).toBe('running')
    expect(await channel.ready({ timeoutMs: 60_000 })).toMatchObject({ bootId, identified: true })

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

  test(
    'is given more while it runs, and sleeps and wakes over and over with every file and process as it was',
    async ({ skip }) => {
      if (!hasNetwork) skip('BERTH_TEST_NETWORK=own is not set, and without a network there is no SSH')
      const started = { ...(await layOut(41)), cpus: 1, most: { cpus: 2, memoryBytes: 2 * memoryBytes } }
      let one = await driver.start(started)
      let { channel, bootId } = await comeUp(one, 'sleeper')
      const before = await channel.report({ timeoutMs: 60_000 })
      expect(before.cpuCount).toBe(1)

      const wanted = { cpus: 3, memoryBytes: memoryBytes + 128 * MiB }
      const size = await one.resize(wanted)
      expect(size).toEqual(subject.resizes ? { cpus: 2, memoryBytes: wanted.memoryBytes } : { cpus: 1, memoryBytes })
      expect(await one.resize(wanted)).toEqual(size)
      await expect.poll(async () => (await channel.online()).cpuCount, { timeout: 120_000 }).toBe(size.cpus)
      const given = size.memoryBytes - memoryBytes
      const total = async () => (await channel.report({ timeoutMs: 60_000 })).memoryTotalBytes
      await expect.poll(total, { timeout: 120_000 }).toBeGreaterThan(before.memoryTotalBytes + given * 0.9 - MiB)
      ;({ one, channel } = await adopt(one, started))
      expect(await one.size()).toEqual(size)

      await ssh(`mkdir /root/kept; cd /; setsid sh -c 'n=0; while :; do n=$((n + 1)); echo $n > /run/counter; sleep 0.1; done' \
      > /dev/null 2>&1 < /dev/null & echo $! > /run/counting`)
      const figures: { savedMs: number; wokeMs: number; bytes: number }[] = []
      for (let cycle = 1; cycle <= sleepCycles; cycle++) {
        const [counted] = await ssh(
          `cd /root/kept; head -c 1000000 /dev/urandom > ${cycle}; sha256sum * > /root/sums; cat /run/counter`,
        )
        // Every other time with most of its caches gone.
        await one.setBalloon(cycle % 2 === 0 ? 128 * MiB : 0)
        await untilBalloon(one, (bytes) => (cycle % 2 === 0 ? bytes >= 120 * MiB : bytes === 0))
        const tookSave = stopwatch()
        await one.pause()
        const restoreFrom = await saveInto(one, started)
        const savedMs = tookSave()
        channel.close()
        await one.quit()
        const tookWake = stopwatch()
        one = await driver.start({ ...started, ...size, restoreFrom })
        channel = await attend(one)
        await one.resume()
        expect(await channel.ready({ timeoutMs: 120_000 })).toMatchObject({ bootId, identified: true })
        await identify(channel, `sleeper-${cycle}`)
        figures.push({ savedMs, wokeMs: tookWake(), bytes: await takenBytes(restoreFrom) })
        const look = `hostname; cat /etc/machine-id; cat /run/counter; nproc; date +%s
        kill -0 $(cat /run/counting) && cd /root/kept && sha256sum --check --quiet /root/sums && ls | wc -l`
        const [hostname, machineId, counter, processors, seconds, files] = await ssh(look)
        const isAt = Date.now() / 1000
        expect([hostname, machineId]).toEqual([`sleeper-${cycle}`, '0123456789abcdef0123456789abcdef'])
        expect(Number(counter)).toBeGreaterThan(Number(counted))
        expect([processors, files]).toEqual([String(size.cpus), String(cycle)])
        // It read its clock at some time of the call.
        expect(Math.abs(isAt - Number(seconds))).toBeLessThan(30)
      }
      process.stderr.write(`${subject.name}: ${JSON.stringify(figures)}\n`)

      const off = hypervisorEvent(one, 'shutdown')
      await channel.powerOff(60_000, { timeoutMs: 60_000 })
      expect(await off).toMatchObject({ byGuest: true })
      await one.quit()
      hypervisor = undefined
    },
    600_000 + sleepCycles * 180_000,
  )
})
