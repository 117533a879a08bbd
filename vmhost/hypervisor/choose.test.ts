import { chmodSync, existsSync } from 'node:fs'
import { chown, mkdir, mkdtemp, rm, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { chooseHypervisor, type HypervisorOptions } from './choose.ts'
import { cloudHypervisorDriver } from './cloud-hypervisor.ts'
import { proveCloudHypervisor } from './cloud-hypervisor-probe.ts'
import { hypervisorUid, type MachineSpec } from './driver.ts'
import { withEarlier } from './earlier.ts'
import { kvmProblem } from './probe.ts'
import { qemuDriver } from './qemu.ts'
import { makeTinyGuest } from './tiny-guest.ts'

let home: string
let store: string
let kernel: string

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'berth-choose-'))
  chmodSync(home, 0o711)
})
beforeEach(async () => {
  store = await mkdtemp(join(home, 'store-'))
  chmodSync(store, 0o711)
  kernel = join(store, 'vmlinuz')
  await makeTinyGuest(kernel, 'idle')
})
afterAll(() => rm(home, { recursive: true }))

/** The fake as a program; see testing/fake-cloud-hypervisor.ts. */
async function makeFake(environment: Record<string, string> = {}): Promise<string> {
  const path = join(store, 'cloud-hypervisor')
  const file = (name: string) => new URL(`./testing/${name}`, import.meta.url).pathname
  const words = { FAKE_RECORDING: file('recorded/cloud-hypervisor-v53.0.json'), ...environment }
  const assignments = Object.entries(words).map(([name, value]) => `${name}='${value}'`)
  const command = `exec '${process.execPath}' '${file('fake-cloud-hypervisor.ts')}' "$@"`
  await writeFile(path, `#!/bin/sh\n${assignments.join(' ')} ${command}\n`)
  chmodSync(path, 0o755)
  return path
}

function choose(options: Partial<HypervisorOptions>) {
  return chooseHypervisor({
    wanted: 'auto',
    accelerator: 'auto',
    program: undefined,
    searchPath: '/nonexistent',
    kernel: undefined,
    qemuVersion: '7.2.22',
    cgroups: false,
    store,
    cache: join(store, 'cache'),
    ...options,
  })
}

describe('the choice of a hypervisor', () => {
  test('without Cloud Hypervisor it is QEMU, and nothing is said of the other', async () => {
    const choice = await choose({})
    expect(choice.driver.name).toBe('qemu')
    expect(choice.reason).not.toMatch(/Cloud Hypervisor/)
  })

  test('emulation is QEMU’s alone', async () => {
    const program = await makeFake()
    const choice = await choose({ accelerator: 'tcg', program })
    expect([choice.driver.name, choice.accelerator]).toEqual(['qemu', 'tcg'])
    await expect(choose({ wanted: 'cloud-hypervisor', accelerator: 'tcg', program })).rejects.toThrow(
      'BERTH_ACCEL is "tcg": expected auto or kvm with BERTH_HYPERVISOR=cloud-hypervisor',
    )
  })

  test('what is asked for and not there stops the start with a sentence', async () => {
    await expect(choose({ wanted: 'cloud-hypervisor' })).rejects.toThrow(
      /^BERTH_HYPERVISOR is "cloud-hypervisor": expected auto or qemu, because there is no program cloud-hypervisor in PATH/,
    )
    await expect(choose({ wanted: 'cloud-hypervisor', program: '/nonexistent/ch' })).rejects.toThrow(
      /CLOUD_HYPERVISOR names \/nonexistent\/ch, which is no program/,
    )
  })

  test('a release that is not known is not chosen, and the reason says so', async () => {
    const choice = await choose({ program: await makeFake({ FAKE_VERSION: '54.0.0' }) })
    expect(choice.driver.name).toBe('qemu')
    expect(choice.reason).toMatch(
      /; Cloud Hypervisor was not chosen: Cloud Hypervisor v54\.0 is not known; known are v50,/,
    )
  })

  test('it is chosen when a guest of the machines’ own kernel came up under it, and that is remembered', async () => {
    const program = await makeFake({ FAKE_SAYS: '[  1.0] Kernel panic - not syncing: VFS: Unable to mount root fs' })
    const choice = await choose({ program, kernel })
    if (kvmProblem() !== undefined) {
      expect(choice).toMatchObject({ accelerator: 'tcg', reason: expect.stringContaining('/dev/kvm') })
      return
    }
    expect(choice).toMatchObject({
      accelerator: 'kvm',
      proved: true,
      reason: 'a guest was started under KVM',
      concerns: [],
    })
    expect([choice.driver.name, choice.driver.version]).toEqual(['cloud-hypervisor', '53.0'])
    expect(existsSync(join(store, 'probe', '1'))).toBe(false)
    expect(existsSync(join(store, 'hypervisors', 'v53.0', 'cloud-hypervisor'))).toBe(true)
    expect(existsSync(join(store, 'cache', 'cloud-hypervisor.json'))).toBe(true)
    expect((await choose({ wanted: 'qemu', accelerator: 'tcg', program })).reason).toMatch(
      /BERTH_HYPERVISOR=qemu asks for it$/,
    )
  })
})

test('a try of Cloud Hypervisor that failed is tried again, and one that did not is kept', async () => {
  const kvmDevice = join(store, 'kvm')
  await writeFile(kvmDevice, '')
  chmodSync(kvmDevice, 0o666)
  const cachePath = join(store, 'cache', 'cloud-hypervisor.json')
  const proof = async () =>
    proveCloudHypervisor({ binary: program, kernel, directory: join(store, 'probe', '1'), cachePath, kvmDevice })
  let program = await makeFake({ FAKE_VERSION: '54.0.0' })
  expect(await proof()).toMatchObject({ problem: expect.stringContaining('v54.0 is not known') })
  expect(existsSync(cachePath)).toBe(false)
  program = await makeFake({ FAKE_SAYS: '[  1.0] Kernel panic - not syncing: VFS: Unable to mount root fs' })
  expect(await proof()).toMatchObject({ version: 'v53.0' })
  expect(existsSync(cachePath)).toBe(true)
})

test('what an older release does worse is said', async () => {
  const says = '[  1.0] Kernel panic - not syncing: VFS: Unable to mount root fs'
  const program = await makeFake({ FAKE_SAYS: says, FAKE_VERSION: '51.2.0' })
  const { driver, concerns } = await choose({ program, kernel })
  if (kvmProblem() !== undefined) return
  expect(driver.version).toBe('51.2')
  expect(concerns).toEqual([
    {
      message: expect.stringMatching(/^Under Cloud Hypervisor v51\.2 a machine that wakes takes all of its memory/),
      remedy: 'Install Cloud Hypervisor v52 or newer',
    },
  ])
})

test('each hypervisor is taken over by its own driver, whichever starts machines now', async () => {
  const directory = join(store, 'machines', '44')
  const uid = hypervisorUid(44)
  await mkdir(directory, { recursive: true })
  chmodSync(join(store, 'machines'), 0o711)
  await chown(directory, 0, uid)
  chmodSync(directory, 0o750)
  const disk = join(directory, 'root.raw')
  await writeFile(disk, '', { mode: 0o600 })
  await truncate(disk, 1 << 20)
  await chown(disk, uid, uid)
  const kvmDevice = join(store, 'kvm')
  await writeFile(kvmDevice, '')
  chmodSync(kvmDevice, 0o666)
  const spec: MachineSpec = { machineId: 44, directory, cpus: 1, memoryBytes: 64 << 20, kernel, commandLine: '', disk }
  const qemu = qemuDriver({ accelerator: 'tcg', version: '7.2.22', cgroups: false })
  const binary = await makeFake()
  const cloud = cloudHypervisorDriver({ binary, version: 'v53.0', landlock: false, cgroups: false, kvmDevice })
  try {
    for (const [before, after] of [
      [qemu, withEarlier(cloud, qemu)],
      [cloud, withEarlier(qemu, cloud)],
    ] as const) {
      const one = await before.start(spec)
      one.release()
      const adopted = await after.adopt(44, directory, 64 * 2 ** 20)
      expect(adopted?.pid).toBe(one.pid)
      expect(await adopted?.state()).toBe('running')
      expect(await after.obstacle(before.stateVersion)).toBeUndefined()
      await adopted?.kill()
      expect(await after.adopt(44, directory, 64 * 2 ** 20)).toBeUndefined()
    }
  } finally {
    await qemu.destroy(44, directory)
  }
})
