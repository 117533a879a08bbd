import { execFileSync } from 'node:child_process'
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { replaceFile } from './durable.ts'
import { openStore, type Store } from './store.ts'
import { growVolume, isMounted, loopDeviceOf, prepareVolume, unmountVolume, type Volume } from './volume.ts'

const MiB = 2 ** 20
const log = { info: () => {}, warn: () => {} }
let home: string
let volume: Volume
let store: Store
const image = {
  name: 'tiny',
  hash: '0123456789abcdef',
  sizeBytes: 8 * MiB,
  loginUser: 'dev',
  init: true,
  description: 'x',
}

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'berth-store-'))
  const folder = join(home, 'artifacts', 'images', `${image.name}-${image.hash}`)
  mkdirSync(folder, { recursive: true })
  writeFileSync(join(folder, 'root.raw'), Buffer.alloc(image.sizeBytes, 7))
  writeFileSync(join(folder, 'image.json'), JSON.stringify(image))
  symlinkSync(`${image.name}-${image.hash}`, join(home, 'artifacts', 'images', image.name))
  const boot = join(home, 'artifacts', 'boot', 'aaaaaaaaaaaaaaaa')
  mkdirSync(boot, { recursive: true })
  for (const name of ['vmlinuz', 'initrd', 'tools.erofs', 'boot.json']) writeFileSync(join(boot, name), name)
  symlinkSync('aaaaaaaaaaaaaaaa', join(home, 'artifacts', 'boot', 'current'))
  volume = await prepareVolume(options(400))
  store = await openStore(volume, join(home, 'artifacts'))
})
afterAll(async () => {
  await unmount(volume)
  await rm(home, { recursive: true })
})

/** The device goes with its last mount, and a mount namespace that was made meanwhile holds one, perhaps for long. */
async function unmount(volume: Volume): Promise<void> {
  await unmountVolume(volume)
  for (let left = 50; left > 0 && (await loopDeviceOf(volume.backingFile ?? '')); left--) await sleep(100)
}

function options(sizeMiB: number) {
  return { dataDirectory: home, log, sizeBytes: sizeMiB * MiB, forceVolume: true }
}
const wanted = (machineId: number, diskBytes = 64 * MiB) => ({
  image,
  diskBytes,
  uid: 2_000_000 + machineId,
  hostKey: 'key',
  token: '00000000-0000-4000-8000-000000000000',
})

describe('the volume', () => {
  test('is mounted once, however often it is prepared, and grows with what it may have', async () => {
    const before = await loopDeviceOf(join(home, 'volume.xfs'))
    await prepareVolume(options(400))
    expect(
      execFileSync('losetup', ['-j', join(home, 'volume.xfs')], { encoding: 'utf8' })
        .trim()
        .split('\n'),
    ).toHaveLength(1)
    expect(await loopDeviceOf(join(home, 'volume.xfs'))).toBe(before)
    const small = (await store.space()).totalBytes
    await growVolume(volume, options(480))
    expect((await store.space()).totalBytes).toBeGreaterThan(small + 60 * MiB)
  })

  test('a mount namespace of its own gets the same loop device, never a second one', () => {
    const script = `
      import { prepareVolume, loopDeviceOf } from ${JSON.stringify(new URL('./volume.ts', import.meta.url).href)}
      import { execFileSync } from 'node:child_process'
      execFileSync('umount', [${JSON.stringify(volume.path)}])
      await prepareVolume({ dataDirectory: ${JSON.stringify(home)}, log: console, sizeBytes: 1 })
      console.log(await loopDeviceOf(${JSON.stringify(join(home, 'volume.xfs'))}))`
    const out = execFileSync('unshare', ['--mount', '--', process.execPath, '--input-type=module', '-e', script], {
      encoding: 'utf8',
    })
    const devices = execFileSync('losetup', ['-j', join(home, 'volume.xfs'), '-n', '-O', 'NAME'], { encoding: 'utf8' })
    expect(devices.trim()).toBe(out.trim())
  })

  test('a mount point is known by its exact path', async () => {
    expect(await isMounted(volume.path)).toBe(true)
    expect(await isMounted(home)).toBe(false)
  })
})

test('a machine is whole after a power cut in the moment that it was made, and so is a file that was replaced', async () => {
  const other = join(home, 'power-cut')
  mkdirSync(other)
  const settings = { dataDirectory: other, log, sizeBytes: 320 * MiB, forceVolume: true }
  let cut = await prepareVolume(settings)
  const before = await (await openStore(cut, join(home, 'artifacts'))).createMachine(1, wanted(1))
  const note = join(cut.path, 'note')
  await replaceFile(note, 'old')
  await replaceFile(note, 'new')
  // Nothing more reaches the disk: neither what waits in memory, nor what the filesystem's log has not written.
  execFileSync('xfs_io', ['-x', '-c', 'shutdown', cut.path])
  await unmount(cut)
  cut = await prepareVolume(settings)
  const found = await (await openStore(cut, join(home, 'artifacts'))).findMachine(1)
  expect(found).toEqual(before)
  expect((await readFile(before.disk)).subarray(0, image.sizeBytes)).toEqual(Buffer.alloc(image.sizeBytes, 7))
  expect(await readFile(note, 'utf8')).toBe('new')
  await unmount(cut)
}, 120_000)

describe('the store', () => {
  test('offers what set-up made', async () => {
    expect(await store.images()).toEqual([image])
    const boot = await store.currentBoot()
    expect(await readFile(boot.tools, 'utf8')).toBe('tools.erofs')
    expect(boot.kernel).toBe(join(home, 'store/boot/aaaaaaaaaaaaaaaa/vmlinuz'))
  })

  test('offers no image whose description is damaged, and the others all the same', async () => {
    const folder = join(home, 'artifacts', 'images', 'torn')
    mkdirSync(folder)
    writeFileSync(join(folder, 'image.json'), '{"name":"to')
    expect(await store.images()).toEqual([image])
    await rm(folder, { recursive: true })
  })

  test("clones a disk without copying it, gives it to the machine's uid, and twice is once", async () => {
    const made = await store.createMachine(3, wanted(3))
    const disk = await stat(made.disk)
    expect(disk).toMatchObject({ size: 64 * MiB, uid: 2_000_003, gid: 2_000_003 })
    expect(disk.mode & 0o777).toBe(0o600)
    expect((await stat(made.directory)).uid).toBe(0)
    await store.createMachine(99, wanted(99))
    const free = (await store.space()).volumeFreeBytes
    for (let id = 100; id < 110; id++) await store.createMachine(id, wanted(id))
    expect(free - (await store.space()).volumeFreeBytes).toBeLessThan(image.sizeBytes)
    expect((await store.createMachine(3, wanted(3))).record).toEqual(made.record)
    expect(await store.findMachine(4)).toBeUndefined()
  })

  test('who has not what it takes to look does not say that there is none, nor that it is damaged', async () => {
    await store.createMachine(7, wanted(7))
    const script = `import { closeSync, openSync } from 'node:fs'
      const { openStore } = await import('${new URL('./store.ts', import.meta.url).href}')
      const store = await openStore(${JSON.stringify(volume)}, '${join(home, 'artifacts')}')
      const words = () => store.findMachine(7).then((files) => String(files?.diskBytes), (error) => error.code)
      const opened = []
      try { for (;;) opened.push(openSync('/dev/null', 'r')) } catch {}
      const all = await words()
      closeSync(opened.pop())
      process.stdout.write(all + ' ' + (await words()))`
    const command = 'ulimit -n 40; exec "$0" --input-type=module -e "$1"'
    const said = execFileSync('sh', ['-c', command, process.execPath, script], { encoding: 'utf8' })
    expect(said).toMatch(/^EMFILE \d+$/)
  })

  test('a disk smaller than its image is refused in words', async () => {
    await expect(store.createMachine(5, wanted(5, MiB))).rejects.toThrow(
      'The image tiny needs a disk of at least 8 MiB',
    )
    expect(await store.listMachines()).not.toContain(5)
  })

  test('a full store refuses new machines in words and keeps the others', async () => {
    const { freeBytes, reserveBytes } = await store.space()
    const ballast = join(volume.path, 'ballast')
    execFileSync('fallocate', ['-l', String(freeBytes - reserveBytes + MiB), ballast])
    await expect(store.createMachine(6, wanted(6))).rejects.toMatchObject({
      code: 'storage.full',
      message: expect.stringMatching(/^The server's disk is full: the machines' store has 0\.0 GiB left$/),
    })
    await rm(ballast)
    // XFS gives blocks of removed files back in the background.
    await expect.poll(async () => (await store.space()).freeBytes).toBeGreaterThan(2 * reserveBytes)
    expect((await readdir(join(volume.path, 'machines'))).filter((name) => name.startsWith('.'))).toEqual([])
    expect((await store.createMachine(6, wanted(6))).diskBytes).toBe(64 * MiB)
  })

  test('disks grow and never shrink', async () => {
    await store.createMachine(7, wanted(7))
    expect(await store.growDisk(7, 96 * MiB)).toBe(96 * MiB)
    expect(await store.growDisk(7, 64 * MiB)).toBe(96 * MiB)
  })

  test('removes a machine, and what was left half done; keeps the rest', async () => {
    await store.createMachine(8, wanted(8))
    await store.removeMachine(8)
    await store.removeMachine(8)
    mkdirSync(join(volume.path, 'machines', '.new-9'))
    mkdirSync(join(volume.path, 'machines', '.gone-10-abcd'))
    mkdirSync(join(volume.path, 'boot', 'bbbbbbbbbbbbbbbb'))
    mkdirSync(join(volume.path, 'boot', 'cccccccccccccccc'))
    await writeFile(join(volume.path, 'images', 'tiny-00000000.raw'), '')
    await truncate(join(volume.path, 'images', 'tiny-00000000.raw'), MiB)
    await store.sweep(new Set(['bbbbbbbbbbbbbbbb']))
    const left = await readdir(join(volume.path, 'machines'))
    expect(left).toContain('3')
    expect(left.filter((name) => name.startsWith('.') || name === '8')).toEqual([])
    expect((await readdir(join(volume.path, 'boot'))).sort()).toEqual(['aaaaaaaaaaaaaaaa', 'bbbbbbbbbbbbbbbb'])
    expect(await readdir(join(volume.path, 'images'))).toEqual(['tiny-0123456789abcdef.raw'])
  })
})
