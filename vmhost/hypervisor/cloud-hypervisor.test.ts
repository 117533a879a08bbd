import { once } from 'node:events'
import { chmodSync, existsSync, readFileSync, statSync } from 'node:fs'
import { chown, mkdir, mkdtemp, readdir, rename, rm, symlink, truncate, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import { type CloudHypervisorDriverOptions, cloudHypervisorDriver } from './cloud-hypervisor.ts'
import { CloudHypervisorApi } from './cloud-hypervisor-api.ts'
import { MonitorReader } from './cloud-hypervisor-events.ts'
import { CloudHypervisorPrograms } from './cloud-hypervisor-programs.ts'
import { abilitiesOf, findCloudHypervisor, programVersion, releaseName } from './cloud-hypervisor-version.ts'
import { type Hypervisor, type HypervisorEvent, hypervisorUid, type MachineSpec } from './driver.ts'
import { readFifo } from './fifo.ts'
import { identify } from './process.ts'
import type { Recording } from './testing/record-cloud-hypervisor.ts'

/**
 * Every call of the driver without the program, against a fake that answers as the real one was seen to: see
 * testing/record-cloud-hypervisor.ts. The real one is in driver.test.ts and linux-guest.test.ts.
 */

const recordingPath = new URL('./testing/recorded/cloud-hypervisor-v53.0.json', import.meta.url).pathname
const recording: Recording = JSON.parse(readFileSync(recordingPath, 'utf8'))
const machineId = 43
const MiB = 2 ** 20
let home: string
let store: string
let directory: string
let fake: string
let kvmDevice: string
const running: Hypervisor[] = []

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'berth-fake-'))
  chmodSync(home, 0o711)
  // Where there is no KVM the driver shall go on to what is tried here.
  kvmDevice = join(home, 'kvm')
  await writeFile(kvmDevice, '')
  chmodSync(kvmDevice, 0o666)
})
beforeEach(async () => {
  store = await mkdtemp(join(home, 'store-'))
  chmodSync(store, 0o711)
  fake = await makeFake({})
})
afterEach(async () => {
  for (const one of running.splice(0)) await one.kill()
  await driver().destroy(machineId, directory ?? store)
})
afterAll(() => rm(home, { recursive: true }))

/** A program that is the fake, with these variables of its own. */
async function makeFake(environment: Record<string, string>): Promise<string> {
  const path = join(store, 'cloud-hypervisor')
  const module = new URL('./testing/fake-cloud-hypervisor.ts', import.meta.url).pathname
  const words = { FAKE_RECORDING: recordingPath, FAKE_REQUESTS: 'run/requests', ...environment }
  const assignments = Object.entries(words).map(([name, value]) => `${name}='${value}'`)
  await writeFile(path, `#!/bin/sh\n${assignments.join(' ')} exec '${process.execPath}' '${module}' "$@"\n`)
  chmodSync(path, 0o755)
  return path
}

function driver(options: Partial<CloudHypervisorDriverOptions> = {}) {
  const common = { binary: fake, version: 'v53.0', landlock: true, cgroups: false, kvmDevice }
  return cloudHypervisorDriver({ ...common, ...options })
}

async function layOut(): Promise<MachineSpec> {
  directory = join(store, 'machines', String(machineId))
  const uid = hypervisorUid(machineId)
  await mkdir(directory, { recursive: true })
  chmodSync(join(store, 'machines'), 0o711)
  await chown(directory, 0, uid)
  chmodSync(directory, 0o750)
  const disk = join(directory, 'root.raw')
  await writeFile(disk, '', { mode: 0o600 })
  await truncate(disk, 64 * MiB)
  await chown(disk, uid, uid)
  const boot = (name: string) => join(store, 'boot', name)
  return {
    machineId,
    directory,
    cpus: 2,
    memoryBytes: 64 * MiB,
    kernel: boot('vmlinuz'),
    initrd: boot('initrd'),
    tools: boot('tools.erofs'),
    commandLine: 'a, b',
    disk,
    network: { tap: 'vm43', mac: '02:be:0a:2a:00:02' },
  }
}

async function boot(
  options?: Partial<CloudHypervisorDriverOptions>,
  spec: Partial<MachineSpec> = {},
): Promise<Hypervisor> {
  const one = await driver(options).start({ ...(await layOut()), ...spec })
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

/** What the fake was asked, in order. */
function requests(path = join(directory, 'run', 'requests')): { method: string; name: string; body: unknown }[] {
  if (!existsSync(path)) return []
  const lines = readFileSync(path, 'utf8').trim().split('\n')
  return lines.map((line) => JSON.parse(line))
}

const asked = (name: string) => requests().filter((request) => request.name === name)

async function saveFolder(): Promise<string> {
  const folder = join(directory, 'memory')
  await mkdir(folder, { mode: 0o700 })
  return folder
}

describe('the driver of Cloud Hypervisor, as recorded', () => {
  test('makes a guest whose files are named from its own folder, confined, with memory that is saved sparsely', async () => {
    const one = await boot()
    expect(await one.state()).toBe('running')
    expect(requests().map(({ method, name }) => `${method} ${name}`)).toEqual([
      'GET vmm.ping',
      'PUT vm.create',
      'PUT vm.boot',
      'GET vm.info',
    ])
    expect(asked('vm.create')[0]?.body).toEqual({
      cpus: { boot_vcpus: 2, max_vcpus: 2 },
      memory: { size: 64 * MiB, shared: true },
      payload: { kernel: '../../boot/vmlinuz', initramfs: '../../boot/initrd', cmdline: 'a, b' },
      disks: [
        { id: 'root', serial: 'root', path: 'root.raw', image_type: 'Raw' },
        { id: 'tools', serial: 'tools', path: '../../boot/tools.erofs', image_type: 'Raw', readonly: true },
      ],
      net: [{ id: 'net', num_queues: 2, tap: 'vm43', mac: '02:be:0a:2a:00:02' }],
      rng: { src: '/dev/urandom' },
      balloon: { size: 0, deflate_on_oom: true, free_page_reporting: true },
      vsock: { id: 'vsock', cid: 3, socket: 'run/agent.sock' },
      pvpanic: true,
      console: { mode: 'Tty' },
      serial: { mode: 'Null' },
      landlock_enable: true,
      landlock_rules: [
        { path: 'run', access: 'rw' },
        { path: '/sys/class/net/vm43', access: 'r' },
      ],
    })
    expect(one.agent).toEqual({
      socketPath: join(directory, 'run/agent.sock'),
      vsockPort: 1024,
      uid: hypervisorUid(machineId),
    })
    const status = readFileSync(`/proc/${one.pid}/status`, 'utf8')
    expect(status).toMatch(/^Uid:\t2000043\t2000043\t2000043\t2000043$/m)
    expect(status).toMatch(/^CapBnd:\t0+$/m)
  })

  test('its console comes out of a FIFO, as does what nobody could read for long; more than fits is dropped', async () => {
    fake = await makeFake({ FAKE_FLOOD: String(MiB) })
    const one = await boot()
    // It has written all of it, which nobody has read, and answers.
    expect(await one.state()).toBe('running')
    let said = ''
    const close = readFifo(one.consolePath, (chunk) => {
      said += chunk.toString('latin1')
    })
    await expect.poll(() => said.length).toBeGreaterThan(60_000)
    close()
    expect(said).toMatch(/^the fake comes up/)
    expect(said.length).toBeLessThan(80_000)
    expect(statSync(one.consolePath).isFIFO()).toBe(true)
  })

  test('moves the balloon, tells of the disk and grows it, presses the button', async () => {
    const one = await boot()
    expect(await one.diskCounters()).toEqual({ readBytes: 0, writtenBytes: 0 })
    await one.setBalloon(16 * MiB)
    expect(await one.balloon()).toBe(16 * MiB)
    await one.diskGrown(96 * MiB)
    await one.powerButton()
    expect(asked('vm.resize')[0]?.body).toEqual({ desired_balloon: 16 * MiB })
    expect(asked('vm.resize-disk')[0]?.body).toEqual({ id: 'root', desired_size: 96 * MiB })
    expect(asked('vm.power-button')).toHaveLength(1)
  })

  test('makes room for what a guest may be given while it runs, and gives it that, in whole modules', async () => {
    const one = await boot({}, { most: { cpus: 3, memoryBytes: 500 * MiB } })
    expect(asked('vm.create')[0]?.body).toMatchObject({
      cpus: { boot_vcpus: 2, max_vcpus: 3 },
      memory: { size: 64 * MiB, shared: true, hotplug_method: 'Acpi', hotplug_size: 384 * MiB },
    })
    expect(await one.size()).toEqual({ cpus: 2, memoryBytes: 64 * MiB })
    const larger = { cpus: 3, memoryBytes: 192 * MiB }
    expect(await one.resize({ cpus: 9, memoryBytes: 192 * MiB })).toEqual(larger)
    expect(asked('vm.resize').map(({ body }) => body)).toEqual([{ desired_vcpus: 3 }, { desired_ram: 192 * MiB }])
    // It has that, and neither less nor half a module is ever asked for.
    for (const wanted of [larger, { cpus: 1, memoryBytes: 64 * MiB }, { cpus: 3, memoryBytes: 200 * MiB }])
      expect(await one.resize(wanted)).toEqual(larger)
    expect(asked('vm.resize')).toHaveLength(2)
    one.release()
    const adopted = await driver().adopt(machineId, directory, 64 * MiB)
    if (!adopted) throw new Error('not found')
    running.push(adopted)
    expect(await adopted.size()).toEqual(larger)
    // Saved, it is of that size, and goes on with as much room.
    await adopted.pause()
    const folder = await saveFolder()
    await adopted.save(folder)
    await adopted.quit()
    const again = await driver().start({ ...(await layOut()), ...larger, restoreFrom: folder })
    running.push(again)
    expect(await again.size()).toEqual(larger)
    const { config } = (await new CloudHypervisorApi(join(directory, 'run/api.sock')).get('vm.info')) as {
      config: Record<string, unknown>
    }
    expect(config).toMatchObject({ cpus: { max_vcpus: 3 }, memory: { hotplug_size: 384 * MiB } })
  })

  test('what it refuses to give is for the next start; releases that could hang then are not asked for processors', async () => {
    fake = await makeFake({ FAKE_FAILURE: 'vm.resize Error from API | The VM could not be resized | no slot' })
    const most = { cpus: 4, memoryBytes: 320 * MiB }
    const one = await boot({}, { most })
    expect(await one.resize(most)).toEqual({ cpus: 2, memoryBytes: 64 * MiB })
    expect(asked('vm.resize')).toHaveLength(2)
    await one.quit()
    fake = await makeFake({ FAKE_VERSION: '51.2.0' })
    const older = await boot({ version: 'v51.2' }, { most })
    expect(await older.resize(most)).toEqual({ cpus: 2, memoryBytes: 320 * MiB })
    expect(asked('vm.resize').map(({ body }) => body)).toEqual([{ desired_ram: 320 * MiB }])
  })

  test('a guest that stands still already is not told to again, nor one that goes to go', async () => {
    const one = await boot()
    await one.resume()
    await one.pause()
    await one.pause()
    expect(await one.state()).toBe('paused')
    const resumed = next(one, 'resumed')
    await one.resume()
    await resumed
    await one.resume()
    expect([asked('vm.pause').length, asked('vm.resume').length]).toEqual([1, 1])
  })

  test('is saved into its own folder and moved from there, with the release that can read it', async () => {
    const one = await boot()
    await one.pause()
    const folder = await saveFolder()
    await one.save(folder)
    expect((await readdir(folder)).sort()).toEqual(['config.json', 'memory-ranges', 'release', 'state.json'])
    expect(readFileSync(join(folder, 'release'), 'utf8')).toBe('v53.0')
    expect(asked('vm.snapshot')[0]?.body).toEqual({ destination_url: 'file://run/save' })
    expect(existsSync(join(directory, 'run/save'))).toBe(false)
    expect(one.stateVersion).toBe(driver().stateVersion)
    expect(await driver().obstacle(one.stateVersion)).toBeUndefined()
    await one.resume()
    expect(await one.state()).toBe('running')
  })

  test('a disk that fills up while it is saved is an error, though the hypervisor does not notice', async () => {
    fake = await makeFake({ FAKE_SHORT: 'yes' })
    const one = await boot()
    await one.pause()
    const folder = await saveFolder()
    await expect(one.save(folder)).rejects.toThrow(/^The memory could not be written: /)
    await one.resume()
    expect(existsSync(join(directory, 'run/save'))).toBe(false)
  })

  test.each([
    ['symlink', '../../precious', 'precious', 0],
    // The kernel lets it make one to what is its own.
    ['hardlink', 'run/precious', 'run/precious', hypervisorUid(machineId)],
  ])(
    'one that was taken over and saves a %s to another file has nothing done to that',
    async (how, target, path, uid) => {
      fake = await makeFake({ FAKE_PLANTS: `${how} ${target}` })
      const one = await boot()
      const precious = join(directory, path)
      await writeFile(precious, '{"a":"secret"}', { mode: 0o600 })
      await chown(precious, uid, uid)
      await one.pause()
      const folder = await saveFolder()
      await expect(one.save(folder)).rejects.toThrow(/^The memory could not be written: /)
      expect(existsSync(join(directory, 'run/refused'))).toBe(false)
      expect(existsSync(join(folder, 'state.json'))).toBe(false)
      expect(existsSync(join(directory, 'run/save'))).toBe(false)
      expect(readFileSync(precious, 'utf8')).toBe('{"a":"secret"}')
      expect(statSync(precious)).toMatchObject({ uid, mode: 0o100600 })
      await one.resume()
      expect(await one.state()).toBe('running')
    },
  )

  test('one that was taken over cannot put a link in the place of the folder that it saves to', async () => {
    const elsewhere = join(store, 'elsewhere')
    await mkdir(elsewhere)
    const saved = { 'config.json': '{}', 'state.json': '{"of":"another"}', 'memory-ranges': 'another' }
    for (const [name, text] of Object.entries(saved)) {
      await writeFile(join(elsewhere, name), text)
      // As those of the same user's that are no longer its to change.
      await chown(join(elsewhere, name), hypervisorUid(machineId), hypervisorUid(machineId))
    }
    fake = await makeFake({ FAKE_PLANTS: `swap ${elsewhere}` })
    const one = await boot()
    await one.pause()
    const folder = await saveFolder()
    await one.save(folder)
    expect(readFileSync(join(directory, 'run/refused'), 'utf8')).toMatch(/^E(PERM|ACCES)$/)
    expect(readFileSync(join(folder, 'memory-ranges')).subarray(0, 7).toString()).toBe('memory\0')
    expect((await readdir(elsewhere)).sort()).toEqual(Object.keys(saved).sort())
    expect(statSync(join(directory, 'run'))).toMatchObject({ uid: 0, gid: hypervisorUid(machineId), mode: 0o41770 })
  })

  test('one that was taken over has nobody else’s socket asked in its place', async () => {
    const one = await boot()
    const elsewhere = join(store, 'elsewhere.sock')
    let came = 0
    const other = createServer((socket) => {
      came++
      socket.destroy()
    }).listen(elsewhere)
    await once(other, 'listening')
    const own = join(directory, 'run/api.sock')
    await rename(own, `${own}.away`)
    await symlink(elsewhere, own)
    await expect(one.pause()).rejects.toMatchObject({ code: 'hypervisor.gone' })
    expect(came).toBe(0)
    other.close()
    await rename(`${own}.away`, own)
    await one.pause()
    expect([await one.state(), one.agent.uid]).toEqual(['paused', hypervisorUid(machineId)])
  })

  test('a disk that is full is told as such', async () => {
    const chain = 'Error from API | Error sending snapshot | No space left on device (os error 28)'
    fake = await makeFake({ FAKE_FAILURE: `vm.snapshot ${chain}` })
    const one = await boot()
    await one.pause()
    await expect(one.save(await saveFolder())).rejects.toMatchObject({
      code: 'hypervisor.refused',
      message: expect.stringContaining('No space left on device'),
      cause: { code: 'ENOSPC' },
    })
  })

  test('goes on as another machine: its paths, tap and address are that one’s, and it stands still', async () => {
    const one = await boot()
    await one.pause()
    const folder = await saveFolder()
    await one.save(folder)
    await one.quit()
    // What the real one adds by itself, and could not set as the machine's user.
    const config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))
    config.net[0].host_mac = '8a:e7:00:00:00:01'
    // What a guest would add that has taken it over.
    config.pmem = [{ file: '/etc/passwd' }]
    config.rng.src = '/etc/passwd'
    await writeFile(join(folder, 'config.json'), JSON.stringify(config))
    const spec = await layOut()
    const network = { tap: 'vm99', mac: '02:be:0a:2a:00:63' }
    const again = await driver({ landlock: false }).start({ ...spec, network, restoreFrom: folder })
    running.push(again)
    expect(await again.state()).toBe('paused')
    expect(asked('vm.restore')[0]?.body).toEqual({ source_url: 'file://run/restore' })
    expect(existsSync(join(directory, 'run/restore'))).toBe(false)
    expect(readFileSync(join(folder, 'memory-ranges')).subarray(0, 7).toString()).toBe('memory\0')
    const { config: told } = (await new CloudHypervisorApi(join(directory, 'run/api.sock')).get('vm.info')) as {
      config: Record<string, unknown>
    }
    expect(told).toMatchObject({ landlock_enable: false, vsock: { cid: 3, socket: 'run/agent.sock' } })
    expect(told.net).toEqual([{ id: 'net', num_queues: 2, ...network }])
    expect(JSON.stringify(told)).not.toContain('/etc/passwd')
    await again.resume()
    expect(await again.state()).toBe('running')
    await again.quit()
    await expect(driver().start({ ...spec, memoryBytes: 32 * MiB, restoreFrom: folder })).rejects.toThrow(
      /The saved guest has 2 processors and 64 MiB, which the machine has not/,
    )
    expect(await driver().destroy(machineId, directory)).toBe(0)
  })

  test.each<[string, (config: { disks: object[]; memory: object }) => void]>([
    ['a disk in another format', ({ disks: [root] }) => Object.assign(root ?? {}, { image_type: 'Qcow2' })],
    ['a disk on top of another file', ({ disks: [root] }) => Object.assign(root ?? {}, { backing_files: true })],
    ['a disk that somebody else serves', ({ disks: [root] }) => Object.assign(root ?? {}, { vhost_user: true })],
    [
      'memory from a file',
      ({ memory }) => Object.assign(memory, { zones: [{ id: 'a', size: 1, file: '/etc/passwd' }] }),
    ],
  ])('%s, which no guest was ever given, is not restored', async (_, change) => {
    const one = await boot()
    await one.pause()
    const folder = await saveFolder()
    await one.save(folder)
    await one.quit()
    const path = join(folder, 'config.json')
    const config = JSON.parse(readFileSync(path, 'utf8'))
    change(config)
    await writeFile(path, JSON.stringify(config))
    await expect(driver().start({ ...(await layOut()), restoreFrom: folder })).rejects.toThrow(
      'Cloud Hypervisor did not start: The saved guest cannot be read',
    )
  })

  const cut = (name: string, bytes: number) => async (folder: string) => truncate(join(folder, name), bytes)
  const lose = (name: string) => async (folder: string) => rm(join(folder, name))
  test.each<[string, RegExp, (folder: string) => Promise<void>]>([
    ['the note of its release is missing', /^There is no saved guest to restore$/, lose('release')],
    ['its configuration is missing', /There is no saved guest to restore$/, lose('config.json')],
    ['its configuration is cut off', /The saved guest cannot be read$/, cut('config.json', 20)],
    ['its state is missing', /There is no saved guest to restore$/, lose('state.json')],
    ['its state is cut off', /The saved guest cannot be read$/, cut('state.json', 5)],
    ['its memory is missing', /There is no saved guest to restore$/, lose('memory-ranges')],
    ['its memory is cut off', /The end of the saved memory is missing$/, cut('memory-ranges', 64 * MiB - 4096)],
  ])('a saved guest is proved to be of no use where %s', async (_, message, damage) => {
    const one = await boot()
    await one.pause()
    const folder = await saveFolder()
    await one.save(folder)
    await one.quit()
    await damage(folder)
    const starting = driver().start({ ...(await layOut()), restoreFrom: folder })
    await expect(starting).rejects.toMatchObject({
      code: 'hypervisor.unreadable',
      message: expect.stringMatching(message),
    })
    expect(await driver().destroy(machineId, directory)).toBe(0)
  })

  test('nothing is proved by what Cloud Hypervisor itself says, or by a machine of another size', async () => {
    const one = await boot()
    await one.pause()
    const folder = await saveFolder()
    await one.save(folder)
    await one.quit()
    const spec = { ...(await layOut()), restoreFrom: folder }
    await expect(driver().start({ ...spec, cpus: 1 })).rejects.toMatchObject({ code: 'hypervisor.start' })
    fake = await makeFake({ FAKE_FAILURE: 'vm.restore Error from API | The VM could not be restored' })
    await expect(driver().start(spec)).rejects.toMatchObject({ code: 'hypervisor.start' })
  })

  test('one that was busy saving its guest when its vmhost was killed is waited for, and keeps it', async () => {
    fake = await makeFake({ FAKE_HELD: 'vm.snapshot run/go' })
    const one = await boot()
    await one.pause()
    const killed = one.save(await saveFolder()).catch(() => {})
    await expect.poll(() => asked('vm.snapshot')).toHaveLength(1)
    one.release()
    const adopting = driver({ adoptLimitMs: 200 }).adopt(machineId, directory, 64 * MiB)
    adopting.catch(() => {})
    await expect.poll(() => asked('vmm.ping')).toHaveLength(2)
    await sleep(400)
    await writeFile(join(directory, 'run/go'), '')
    const adopted = await adopting
    if (!adopted) throw new Error('not found')
    running.push(adopted)
    expect(await adopted.state()).toBe('paused')
    await adopted.resume()
    expect(await adopted.state()).toBe('running')
    await killed
    expect(existsSync(join(directory, 'run/save'))).toBe(false)
  })

  test('one that says it is busy is waited for as long as its guest’s memory takes, whatever else it has mapped', async () => {
    const one = await boot()
    await mkdir(join(directory, 'run/save'))
    const limitMs = vi.spyOn(CloudHypervisorApi.prototype, 'whenThere')
    one.release()
    try {
      const adopted = await driver().adopt(machineId, directory, 64 * MiB)
      if (!adopted) throw new Error('not found')
      running.push(adopted)
      expect(limitMs.mock.calls.map(([waitMs]) => waitMs)).toEqual([60_000 + Math.ceil((64 * MiB) / 30_000)])
    } finally {
      limitMs.mockRestore()
    }
  })

  test('what a vmhost that was killed has laid out takes no space any more', async () => {
    const one = await boot()
    one.release()
    for (const name of ['save', 'restore']) {
      await mkdir(join(directory, 'run', name))
      await writeFile(join(directory, 'run', name, 'memory-ranges'), 'memory')
    }
    const adopted = await driver().adopt(machineId, directory, 64 * MiB)
    if (!adopted) throw new Error('not found')
    running.push(adopted)
    expect(await readdir(join(directory, 'run'))).not.toEqual(expect.arrayContaining(['save']))
    expect(await readdir(join(directory, 'run'))).not.toEqual(expect.arrayContaining(['restore']))
  })

  test('a guest that another release has saved goes on under that one, and nowhere where it is not kept', async () => {
    const one = await boot()
    await one.pause()
    const folder = await saveFolder()
    await one.save(folder)
    const { stateVersion } = one
    await one.quit()
    const spec = { ...(await layOut()), restoreFrom: folder }
    const newer = (programs: CloudHypervisorPrograms) => driver({ version: 'v53.1', programs })
    const none = new CloudHypervisorPrograms(join(store, 'none'))
    const away = 'Its memory was saved by Cloud Hypervisor v53.0, which its server does not have now'
    expect(await newer(none).obstacle(stateVersion)).toBe(away)
    await expect(newer(none).start(spec)).rejects.toThrow(/Cloud Hypervisor v53\.0, which saved the guest, is not here/)
    const kept = new CloudHypervisorPrograms(join(store, 'hypervisors'))
    const path = await kept.keep(fake, 'v53.0')
    expect(await kept.newest()).toEqual({ binary: path, version: 'v53.0' })
    expect(await newer(kept).obstacle(stateVersion)).toBeUndefined()
    expect(await newer(kept).obstacle(stateVersion.replace(/\w+$/, '0123456789ab'))).toMatch(/ on another processor /)
    const unused = driver({ version: 'v53.1', programs: kept, isKvmUsed: false })
    expect(await unused.obstacle(stateVersion)).toMatch(/ under KVM, which its server does not use now$/)
    expect(await newer(kept).obstacle('qemu pc-q35-7.2 kvm x')).toMatch(
      /^Its memory was saved by QEMU 7\.2 under KVM, /,
    )
    const again = await newer(kept).start(spec)
    running.push(again)
    expect(again.stateVersion).toBe(stateVersion)
  })

  test('a guest that switched itself off leaves it behind; a signal that ends it is not the guest’s doing', async () => {
    const one = await boot()
    const off = next(one, 'shutdown')
    process.kill(one.pid, 'SIGUSR1')
    expect(await off).toMatchObject({ byGuest: true })
    expect(await one.state()).toBe('shutdown')
    // Standing still is for guests that go.
    await one.pause()
    await one.resume()
    expect([asked('vm.pause').length, asked('vm.resume').length]).toEqual([0, 0])
    const exited = next(one, 'exited')
    await one.quit()
    await exited
    expect(await identify(one.pid)).toBeUndefined()

    const another = await boot()
    const seen: HypervisorEvent[] = []
    another.on((event) => seen.push(event))
    const gone = next(another, 'exited')
    process.kill(another.pid, 'SIGTERM')
    await gone
    expect(seen.map((event) => ('byGuest' in event ? `${event.type} ${event.byGuest}` : event.type))).toEqual([
      'shutdown false',
      'exited',
    ])
  })

  test('a panic is told, the guest stands still, and a vmhost that comes later learns of it', async () => {
    const one = await boot()
    const panicked = next(one, 'panicked')
    process.kill(one.pid, 'SIGUSR2')
    await panicked
    expect(await one.state()).toBe('panicked')
    expect(asked('vm.pause')).toHaveLength(1)
    one.release()
    const adopted = await driver().adopt(machineId, directory, 64 * MiB)
    if (!adopted) throw new Error('not found')
    running.push(adopted)
    expect(await adopted.state()).toBe('panicked')
  })

  test('what happened while no vmhost was there is told to the next', async () => {
    const one = await boot()
    one.release()
    process.kill(one.pid, 'SIGHUP')
    const adopted = await driver().adopt(machineId, directory, 64 * MiB)
    if (!adopted) throw new Error('not found')
    running.push(adopted)
    expect(await next(adopted, 'reset')).toMatchObject({ byGuest: true })
    expect(await adopted.state()).toBe('running')
  })

  test('one whose vmhost was killed before its guest was started is ended, not adopted', async () => {
    const one = await boot()
    process.kill(one.pid, 'SIGUSR1')
    await next(one, 'shutdown')
    one.release()
    await rm(join(directory, 'guest'))
    expect(await driver().adopt(machineId, directory, 64 * MiB)).toBeUndefined()
    expect(await identify(one.pid)).toBeUndefined()
  })

  test('a release that is not known is refused with the list of those that are', async () => {
    fake = await makeFake({ FAKE_VERSION: '54.0.0' })
    const words = 'Cloud Hypervisor did not start: Cloud Hypervisor v54.0 is not known; known are v50, v51, v52, v53'
    await expect(driver().start(await layOut())).rejects.toThrow(words)
    expect(await driver().destroy(machineId, directory)).toBe(0)
  })

  test('its own words say why a guest does not start', async () => {
    fake = await makeFake({
      FAKE_FAILURE: 'vm.boot Error from API | The VM could not boot | No such file or directory (os error 2)',
    })
    await expect(driver().start(await layOut())).rejects.toThrow(
      'Cloud Hypervisor did not start: Cloud Hypervisor refused vm.boot: Error from API: The VM could not boot: No such file or directory (os error 2)',
    )
  })

  test('answers with errors as the real one gave them are refusals', async () => {
    await boot()
    const api = new CloudHypervisorApi(join(directory, 'run/api.sock'))
    for (const [name, body] of [
      ['vm.resume', undefined],
      ['vm.nonsense', undefined],
      ['vm.snapshot', { destination_url: 'file://run/save' }],
      ['vm.resize', { desired_vcpus: 4 }],
      ['vm.resize', { desired_ram: 1216 * MiB }],
    ] as const) {
      await expect(api.put(name, body)).rejects.toMatchObject({ code: 'hypervisor.refused' })
    }
  })
})

describe('the interface of Cloud Hypervisor', () => {
  test('takes one request after the other, each with its own time from when it leaves', async () => {
    const { createServer } = await import('node:http')
    const path = join(store, 'api.sock')
    let inside = 0
    let most = 0
    const slow = Promise.withResolvers<void>()
    const server = createServer(async (question, answer) => {
      most = Math.max(most, ++inside)
      if (question.url === '/api/v1/vm.snapshot') await slow.promise
      inside--
      answer.writeHead(204).end()
    })
    server.listen(path)
    await once(server, 'listening')
    const api = new CloudHypervisorApi(path)
    const first = api.put('vm.snapshot', {}, 30_000)
    // Shorter than what it waits for: its time has not begun.
    const second = api.get('vm.info', 300)
    setTimeout(() => slow.resolve(), 600)
    await Promise.all([first, second])
    expect(most).toBe(1)
    server.close()
  })

  test('an answer without an end is not taken in, and silence has an end', async () => {
    const { createServer } = await import('node:http')
    const path = join(store, 'api.sock')
    const server = createServer((question, answer) => {
      if (question.url !== '/api/v1/vm.info') return
      for (let chunks = 0; chunks < 64; chunks++) answer.write(Buffer.alloc(64 * 1024))
    })
    server.listen(path)
    await once(server, 'listening')
    const api = new CloudHypervisorApi(path)
    await expect(api.get('vm.info')).rejects.toMatchObject({ code: 'hypervisor.gone' })
    await expect(api.get('vmm.ping', 50)).rejects.toMatchObject({ code: 'hypervisor.timeout' })
    server.closeAllConnections()
    server.close()
    await once(server, 'close')
    await expect(api.get('vmm.ping')).rejects.toMatchObject({ code: 'hypervisor.gone' })
  })

  test('events are cut out of the stream as it comes, and what was dropped of it costs no others', () => {
    const text = recording.events.boot ?? ''
    const whole = new MonitorReader().push(text).map(({ source, event }) => `${source} ${event}`)
    expect(whole).toContain('vm booted')
    const byCharacter = new MonitorReader()
    expect(
      [...text].flatMap((character) => byCharacter.push(character)).map(({ source, event }) => `${source} ${event}`),
    ).toEqual(whole)
    const torn = new MonitorReader()
    expect(torn.push(`{\n  "timestamp": {\n${text}`).map(({ source, event }) => `${source} ${event}`)).toEqual(whole)
    expect(torn.push(text.replaceAll('\n\n', '')).length).toBe(whole.length)
    const endless = new MonitorReader()
    for (let times = 0; times < 100; times++) endless.push(`{\n  "${'x'.repeat(10_000)}`)
    expect(endless.push(`\n${text}`).length).toBe(whole.length)
  })

  test('releases are known by what they can do, whatever way they say their name', () => {
    expect(['cloud-hypervisor v53.0', '53.0.0', 'v51.2.0', 'v53.0-12-gabc'].map(releaseName)).toEqual([
      'v53.0',
      'v53.0',
      'v51.2',
      'v53.0',
    ])
    const all = { outlivesGuest: true, dropsConsole: true, savesSparsely: true, addsProcessors: true }
    expect(abilitiesOf('v53.0')).toEqual(all)
    expect(abilitiesOf('v52.0')).toEqual(all)
    expect(abilitiesOf('v51.2').objection).toBeUndefined()
    expect(abilitiesOf('v51.1').objection).toMatch(/CVE-2026-45782/)
    expect(() => abilitiesOf('v50.0')).toThrow(/v50\.1 and later do not/)
    expect(() => abilitiesOf('v49.0')).toThrow(/known are v50, v51, v52, v53/)
    expect(() => abilitiesOf('nonsense')).toThrow(/nonsense is not known/)
  })

  test('it is found where it is named, else by its names in PATH', async () => {
    expect(await findCloudHypervisor(fake, '')).toBe(fake)
    await expect(findCloudHypervisor(join(store, 'nothing'), '')).rejects.toThrow(
      /CLOUD_HYPERVISOR names .*nothing, which is no program/,
    )
    expect(await findCloudHypervisor(undefined, `relative:/nonexistent:${store}`)).toBe(fake)
    expect(await findCloudHypervisor(undefined, '/nonexistent')).toBeUndefined()
    expect(await programVersion(fake)).toBe('v53.0')
  })
})
