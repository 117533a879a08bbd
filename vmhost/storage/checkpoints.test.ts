import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { chown, mkdtemp, open, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest'
import { type Checkpoint, type Checkpoints, openCheckpoints, readRestored } from './checkpoints.ts'
import { StorageError } from './errors.ts'
import { beginMemory, findMemory, keepMemory, memoryFolder, type SavedMemory } from './memory.ts'
import { openStore, type Store } from './store.ts'
import { loopDeviceOf, prepareVolume, unmountVolume, type Volume } from './volume.ts'

const MiB = 2 ** 20
const log = { info: () => {}, warn: () => {} }
const token = '00000000-0000-4000-8000-000000000001'
const other = '00000000-0000-4000-8000-000000000002'
const uid = 2_000_001
const saved: SavedMemory = {
  format: 1,
  stateVersion: 'qemu pc-q35-7.2 tcg',
  bootSet: '0123456789abcdef',
  commandLine: 'console=hvc0 ip=10.42.0.2::::demo',
  cpus: 1,
  memoryBytes: 2 ** 29,
  boot: 3,
  at: '2026-11-23T05:00:00.000Z',
}

let home: string
let volume: Volume
let store: Store
let checkpoints: Checkpoints
let lastId = 0
let id: number
/** a machine's directory with a disk of 16 MiB */
let machine: string

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'berth-checkpoints-'))
  volume = await prepareVolume({ dataDirectory: home, log, sizeBytes: 400 * MiB, forceVolume: true })
  store = await openStore(volume, join(home, 'artifacts'))
})
beforeEach(async () => {
  id = ++lastId
  machine = join(volume.path, 'machines', String(id))
  mkdirSync(machine)
  writeFileSync(join(machine, 'root.raw'), Buffer.alloc(16 * MiB, 1))
  await chown(join(machine, 'root.raw'), uid, uid)
  const record = { image: 'base', imageHash: 'x', loginUser: 'dev', init: true, systemId: 'a'.repeat(32), token }
  writeFileSync(join(machine, 'machine.json'), JSON.stringify(record))
  writeFileSync(join(machine, 'host_key'), 'its key')
  checkpoints = await openCheckpoints(volume)
})
afterAll(async () => {
  await unmountVolume(volume)
  // The device goes with its last mount, and a mount namespace that was made meanwhile holds one, perhaps for long.
  for (let left = 50; left > 0 && (await loopDeviceOf(volume.backingFile ?? '')); left--) await sleep(100)
  await rm(home, { recursive: true })
})

async function files() {
  const found = await store.findMachine(id)
  if (!found) throw new Error('no machine')
  return found
}

async function fallAsleep(): Promise<void> {
  const folder = await beginMemory(machine)
  writeFileSync(join(folder, 'state'), Buffer.alloc(2 * MiB, 5))
  await keepMemory(machine, saved)
}

async function take(asleep = false): Promise<Checkpoint> {
  const draft = await checkpoints.begin(id)
  await draft.takeDisk(join(machine, 'root.raw'))
  if (asleep) await draft.copyMemory(machine, saved)
  return draft.keep(token, await files())
}

async function write(path: string, at: number, bytes: Buffer): Promise<void> {
  const file = await open(path, 'r+')
  await file.write(bytes, 0, bytes.length, at)
  await file.sync()
  await file.close()
}

test('what a checkpoint holds stays as it was, whatever the machine writes, and takes only what differs', async () => {
  const checkpoint = await take()
  expect(await checkpoints.heldBytes(checkpoint)).toBe(0)
  await write(join(machine, 'root.raw'), 4 * MiB, Buffer.alloc(2 * MiB, 9))
  expect(await checkpoints.heldBytes(checkpoint)).toBe(2 * MiB)
  expect(readFileSync(checkpoint.disk).every((byte) => byte === 1)).toBe(true)
  expect(statSync(checkpoint.directory)).toMatchObject({ uid: 0, gid: 0, mode: expect.toSatisfy((m) => m % 64 === 0) })
  // Nothing of it is counted that another one has too.
  const second = await checkpoints.begin(id + 1000)
  await second.takeDisk(checkpoint.disk)
  const twin = await second.keep(token, await files())
  expect(await checkpoints.heldBytes(checkpoint)).toBe(0)
  await checkpoints.remove(twin.id, token)
  // XFS takes blocks back in its own time.
  await expect.poll(() => checkpoints.heldBytes(checkpoint), { timeout: 60_000 }).toBe(2 * MiB)
})

test('one that is half made is none, and goes with the next try, or the next vmhost', async () => {
  const draft = await checkpoints.begin(id)
  await draft.takeDisk(join(machine, 'root.raw'))
  expect(await checkpoints.find(id, token)).toBeUndefined()
  await checkpoints.begin(id)
  expect(existsSync(join(volume.path, 'checkpoints', `.new-${id}`, 'root.raw'))).toBe(false)
  await checkpoints.sweep()
  expect((await readdir(join(volume.path, 'checkpoints'))).filter((name) => name.startsWith('.'))).toEqual([])
})

test('one of another token is neither found nor removed', async () => {
  await take()
  expect(await checkpoints.find(id, other)).toBeUndefined()
  await checkpoints.remove(id, other)
  expect(await checkpoints.find(id, token)).toMatchObject({ id, diskBytes: 16 * MiB })
  await checkpoints.remove(id, token)
  expect(await checkpoints.find(id, token)).toBeUndefined()
  await checkpoints.remove(id, token)
})

test('that of a sleeper has its memory, which the machine goes on having, and its boot set is named', async () => {
  await fallAsleep()
  const checkpoint = await take(true)
  expect(checkpoint.saved).toEqual(saved)
  expect(readFileSync(join(memoryFolder(checkpoint.directory), 'state'))).toHaveLength(2 * MiB)
  expect((await findMemory(machine)).saved).toEqual(saved)
  expect(await checkpoints.bootSets()).toContain(saved.bootSet)
  // Its record alone is nobody else's.
  expect(await checkpoints.heldBytes(checkpoint)).toBeLessThanOrEqual(4096)
})

test('what a guest was saved to is moved into it', async () => {
  const folder = await beginMemory(machine)
  writeFileSync(join(folder, 'state'), Buffer.alloc(MiB, 5))
  const draft = await checkpoints.begin(id)
  await draft.takeDisk(join(machine, 'root.raw'))
  await draft.moveMemory(folder, saved)
  expect((await draft.keep(token, await files())).saved).toEqual(saved)
  expect(await findMemory(machine)).toEqual({ damaged: false, used: false, unfinished: false })
})

test('a machine that is made of one has its disk and its memory, and is somebody else', async () => {
  await fallAsleep()
  const checkpoint = await take(true)
  const directory = join(volume.path, 'machines', String(id + 2000))
  const made = { directory, uid: uid + 2000, boot: 1, restore: 1, diskBytes: 24 * MiB, hostKey: 'new', token: other }
  await checkpoints.makeMachine(checkpoint, made)
  const found = await store.findMachine(id + 2000)
  expect(found).toMatchObject({ diskBytes: 24 * MiB, hostKey: 'new', record: { loginUser: 'dev', token: other } })
  expect(found?.record.systemId).not.toBe('a'.repeat(32))
  expect(statSync(join(directory, 'root.raw'))).toMatchObject({ uid: uid + 2000, gid: uid + 2000 })
  expect((await findMemory(directory)).saved).toEqual({ ...saved, boot: 1 })
  expect(await readRestored(directory)).toBe(1)
  // What it writes is its own.
  await write(join(directory, 'root.raw'), 0, Buffer.alloc(MiB, 7))
  expect(readFileSync(checkpoint.disk)[0]).toBe(1)
  expect(readFileSync(join(machine, 'root.raw'))[0]).toBe(1)
  await expect(checkpoints.makeMachine(checkpoint, { ...made, diskBytes: 8 * MiB })).rejects.toThrow(/needs 16 MiB/)
})

test('a machine goes back to one, stays who it is, and knows which restore that was', async () => {
  await fallAsleep()
  const checkpoint = await take(true)
  await write(join(machine, 'root.raw'), 0, Buffer.alloc(MiB, 7))
  writeFileSync(join(memoryFolder(machine), 'state'), 'later')
  const back = { directory: machine, uid, boot: 8, restore: 4 }
  await checkpoints.restoreMachine(checkpoint, back)
  // Whoever was cut off does it again.
  await checkpoints.restoreMachine(checkpoint, back)
  expect(readFileSync(join(machine, 'root.raw'))[0]).toBe(1)
  expect(await findMemory(machine)).toEqual({
    saved: { ...saved, boot: 8 },
    damaged: false,
    used: false,
    unfinished: false,
  })
  expect(readFileSync(join(memoryFolder(machine), 'state'))).toHaveLength(2 * MiB)
  expect(await files()).toMatchObject({ hostKey: 'its key', record: { systemId: 'a'.repeat(32) } })
  expect(await readRestored(machine)).toBe(4)
})

test('a machine that goes back to a disk alone loses the memory that it slept with', async () => {
  const checkpoint = await take()
  await fallAsleep()
  await checkpoints.restoreMachine(checkpoint, { directory: machine, uid, boot: 8, restore: 1 })
  expect(await findMemory(machine)).toEqual({ damaged: false, used: false, unfinished: false })
})

test('a restore that cannot be made leaves the machine all that it had, its memory too', async () => {
  await fallAsleep()
  const checkpoint = await take(true)
  await write(join(machine, 'root.raw'), 0, Buffer.alloc(MiB, 7))
  const before = await readdir(machine)
  rmSync(join(memoryFolder(checkpoint.directory), 'state'))
  mkdirSync(join(memoryFolder(checkpoint.directory), 'state'))
  const back = { directory: machine, uid, boot: 8, restore: 4 }
  await expect(checkpoints.restoreMachine(checkpoint, back)).rejects.toThrow(StorageError)
  expect(await readdir(machine)).toEqual(before)
  expect(readFileSync(join(machine, 'root.raw'))[0]).toBe(7)
  expect((await findMemory(machine)).saved).toEqual(saved)
})

test('a restore that was cut off in the middle needs nothing of its checkpoint any more; what was only begun is swept', async () => {
  const checkpoint = await take()
  await write(join(machine, 'root.raw'), 0, Buffer.alloc(MiB, 7))
  const back = { directory: machine, uid, boot: 8, restore: 4 }
  const whole = join(machine, 'restore')
  mkdirSync(whole)
  writeFileSync(join(whole, 'restored.json'), JSON.stringify({ restore: 4 }))
  writeFileSync(join(whole, 'root.raw'), Buffer.alloc(16 * MiB, 5))
  mkdirSync(join(machine, 'restore.new'))
  await checkpoints.sweep()
  await checkpoints.restoreMachine({ ...checkpoint, disk: 'gone' }, back)
  expect(readFileSync(join(machine, 'root.raw'))[0]).toBe(5)
  expect(await readRestored(machine)).toBe(4)
  mkdirSync(whole)
  await checkpoints.sweep()
  expect((await readdir(machine)).filter((name) => name.startsWith('restore'))).toEqual(['restored.json'])
})
