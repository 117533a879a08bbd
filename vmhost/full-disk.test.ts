import { execFileSync } from 'node:child_process'
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  statfsSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test, vi } from 'vitest'
import { makeTinyGuest, writesNextAt } from './hypervisor/tiny-guest.ts'
import { GuestMemory } from './testing/faults/guest-memory.ts'
import { artifactsFolder, TestServer } from './testing/server.ts'

vi.setConfig({ testTimeout: 240_000, hookTimeout: 120_000 })

/**
 * A volume whose own filesystem has space, on a filesystem that others fill: what a guest writes finds no block where
 * nobody told it that there might be none. The guest writes a mark into each 32 KiB of its disk, one after the other. The
 * filesystem, all holes, is as large as it takes for the reserve to be a gibibyte: far more than a guest writes between two looks.
 */

const MiB = 2 ** 20
const firstSector = 2048
const lastSector = 1_048_576
const sectorsAtOnce = 64
const small = { memory_bytes: 128 * MiB, disk_bytes: 640 * MiB }
const isLost =
  "It stands still: its server's disk lost some of what it wrote. Restart it: it boots from its disk, as after a power cut"
const isFull = "It stands still: its server's disk is full. It goes on by itself when there is space"

let artifacts: string
let home: string
let server: TestServer

beforeAll(async () => {
  artifacts = artifactsFolder()
  const boot = join(artifacts, 'boot', '00000000')
  mkdirSync(boot)
  for (const name of ['initrd', 'tools.erofs', 'boot.json']) writeFileSync(join(boot, name), Buffer.alloc(4096))
  await makeTinyGuest(join(boot, 'vmlinuz'), 'writes')
  symlinkSync('00000000', join(artifacts, 'boot', 'current'))
  const image = { name: 'minimal', hash: '0123456789abcdef', loginUser: 'dev', init: true, description: '' }
  const folder = join(artifacts, 'images', `${image.name}-${image.hash}`)
  mkdirSync(folder)
  writeFileSync(join(folder, 'root.raw'), Buffer.alloc(MiB, 1))
  writeFileSync(join(folder, 'image.json'), JSON.stringify({ ...image, sizeBytes: MiB }))
  symlinkSync(`${image.name}-${image.hash}`, join(artifacts, 'images', image.name))
})
afterAll(() => rmSync(artifacts, { recursive: true }))

beforeEach(async () => {
  home = mkdtempSync(join(tmpdir(), 'berth-full-'))
  server = await TestServer.make(artifacts, undefined, (data) => {
    execFileSync('truncate', ['-s', '24G', join(home, 'disk')])
    execFileSync('mkfs.ext4', ['-q', '-m', '0', join(home, 'disk')])
    execFileSync('mount', ['-o', 'loop', join(home, 'disk'), data])
  })
  expect(await server.start()).toMatchObject({ storeKind: 'xfs' })
})
afterEach(async () => {
  await server[Symbol.asyncDispose]()
  rmSync(home, { recursive: true })
})

const free = () => {
  const { bavail, bsize } = statfsSync(server.dataDirectory)
  return bavail * bsize
}

/** Others' files, beside the volume. */
function leaveFree(bytes: number): void {
  const folder = join(server.dataDirectory, 'others')
  mkdirSync(folder, { recursive: true })
  let files = 0
  for (const size of [free() - bytes - MiB, MiB, 65_536, 4096]) {
    try {
      while (free() - bytes >= size)
        execFileSync('fallocate', ['-l', String(size), join(folder, `${files++}`)], { stdio: 'ignore' })
    } catch {
      // Somebody was quicker, or the list of files took the block.
    }
  }
}

function makeSpace(): void {
  rmSync(join(server.dataDirectory, 'others'), { recursive: true })
}

async function writingGuest(id: number): Promise<() => number> {
  let pid: number | undefined
  await expect
    .poll(
      async () => {
        pid = (await server.hypervisors(id))[0]
        return pid
      },
      { timeout: 60_000 },
    )
    .toBeDefined()
  const next = () => new GuestMemory(pid ?? 0, small.memory_bytes).word(writesNextAt)
  await expect.poll(next, { timeout: 60_000 }).toBeGreaterThan(firstSector)
  return next
}

/** What it was told is written must be on the disk: not in a memory that goes with the volume's last mount. */
async function expectWritten(id: number, next: number): Promise<void> {
  await server.end('SIGKILL')
  for (const pid of await server.hypervisors(id)) process.kill(pid, 'SIGKILL')
  await expect.poll(() => server.hypervisors(id), { timeout: 60_000 }).toEqual([])
  const store = join(server.dataDirectory, 'store')
  await expect
    .poll(
      () => {
        try {
          execFileSync('umount', [store], { stdio: 'ignore' })
          return 'unmounted'
        } catch {
          return 'busy'
        }
      },
      { timeout: 60_000 },
    )
    .toBe('unmounted')
  // Its log is written when the last that has it mounted lets go, as a namespace that another test began meanwhile.
  const volume = join(server.dataDirectory, 'volume.xfs')
  const devices = () => execFileSync('losetup', ['-j', volume], { encoding: 'utf8' })
  await expect.poll(devices, { timeout: 60_000 }).toBe('')
  execFileSync('xfs_repair', ['-n', volume], { stdio: 'pipe' })
  await server.start()
  const disk = openSync(join(store, 'machines', String(id), 'root.raw'), 'r')
  try {
    for (let sector = firstSector; sector < next; sector += sectorsAtOnce) {
      const mark = Buffer.alloc(4)
      readSync(disk, mark, 0, 4, sector * 512)
      if (mark.readUInt32LE() !== sector) throw new Error(`sector ${sector} of ${next} was written and is not there`)
    }
  } finally {
    closeSync(disk)
  }
}

test('machines stand still before the filesystem under their volume is full, nothing new is begun, and they go on by themselves', async () => {
  const id = await server.insert(small)
  const next = await writingGuest(id)
  leaveFree(200 * MiB)
  const { observed_reason: reason } = await server.until(id, (row) => row.observed_reason !== null, 90_000)
  expect(reason).toBe(isFull)
  expect(free()).toBeGreaterThan(4 * MiB)
  const before = next()
  expect(before).toBeLessThan(lastSector)
  const refused = await server.insert(small)
  const { observed_reason: why } = await server.until(refused, (row) => row.observed_state === 'failed', 60_000)
  expect(why).toMatch(/The server's disk is full: the filesystem under the machines' volume has 0\.[0-2] GiB left/)
  expect(server.disks()).not.toContain(String(refused))
  await expect
    .poll(async () => JSON.stringify((await server.sql`select doctor, store_free_bytes as free from hosts`)[0]), {
      timeout: 90_000,
    })
    .toMatch(/the filesystem under the machines' volume has.*"free":0/)
  makeSpace()
  await server.until(id, (row) => row.observed_reason === null, 60_000)
  await expect.poll(next, { timeout: 60_000 }).toBeGreaterThan(before + 4 * sectorsAtOnce)
  await expectWritten(id, next())
})

test('what others leave not a block of stops machines where they are, and nothing is lost that they were told is written', async () => {
  const id = await server.insert(small)
  const next = await writingGuest(id)
  // At once, before anybody has looked.
  process.kill(server.pid, 'SIGSTOP')
  leaveFree(0)
  let seen = 0
  await expect
    .poll(
      async () => {
        const before = seen
        seen = next()
        return seen === before
      },
      { timeout: 60_000, interval: 2_000 },
    )
    .toBe(true)
  expect(seen).toBeLessThan(lastSector)
  process.kill(server.pid, 'SIGCONT')
  await server.until(id, (row) => row.observed_reason === isFull, 60_000)
  makeSpace()
  // QEMU was told that something is lost which it had handed over, and never again that all is written.
  await server.until(id, (row) => row.observed_reason === isLost, 60_000)
  expect(next()).toBe(seen)
  await server.update(id, { desired_boot: 2 })
  await server.until(id, (row) => row.observed_boot === 2 && row.observed_reason === null, 60_000)
  await expectWritten(id, seen)
})
