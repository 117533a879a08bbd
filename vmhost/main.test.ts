import { execFileSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir, totalmem } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest'
import { makeTinyGuest, type TinyGuest } from './hypervisor/tiny-guest.ts'
import { rawTar } from './images/testing/layers.ts'
import { TestRegistry } from './images/testing/registry.ts'
import { artifactsFolder, TestServer } from './testing/server.ts'

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 })

/** The whole vmhost on guests of a few bytes: everything but what a guest itself does. */

const MiB = 2 ** 20
let artifacts: string
let server: TestServer

beforeAll(async () => {
  artifacts = artifactsFolder()
  const guests: TinyGuest[] = ['idle', 'powersOff', 'panics']
  for (const [index, guest] of guests.entries()) {
    const boot = join(artifacts, 'boot', `0000000${index}`)
    mkdirSync(boot)
    for (const name of ['initrd', 'tools.erofs', 'boot.json']) writeFileSync(join(boot, name), Buffer.alloc(4096))
    await makeTinyGuest(join(boot, 'vmlinuz'), guest)
  }
  const image = {
    name: 'minimal',
    hash: '0123456789abcdef',
    sizeBytes: 4 * MiB,
    loginUser: 'dev',
    init: true,
    description: '',
  }
  const folder = join(artifacts, 'images', `${image.name}-${image.hash}`)
  mkdirSync(folder)
  writeFileSync(join(folder, 'root.raw'), Buffer.alloc(image.sizeBytes, 1))
  writeFileSync(join(folder, 'image.json'), JSON.stringify(image))
  symlinkSync(`${image.name}-${image.hash}`, join(artifacts, 'images', image.name))
  boots('idle')
  server = await TestServer.make(artifacts)
  await server.start()
})
afterAll(async () => {
  await server[Symbol.asyncDispose]()
  rmSync(artifacts, { recursive: true })
})

/** What machines boot from now on. */
function boots(guest: TinyGuest): void {
  const index = ['idle', 'powersOff', 'panics'].indexOf(guest)
  rmSync(join(artifacts, 'boot', 'current'), { force: true })
  symlinkSync(`0000000${index}`, join(artifacts, 'boot', 'current'))
}

const small = { memory_bytes: 128 * MiB, disk_bytes: 64 * MiB }

async function bootingMachine(values = {}) {
  const id = await server.insert({ ...small, ...values })
  await server.until(id, (row) => row.observed_stage === 'boot')
  await expect.poll(() => server.hypervisors(id), { timeout: 60_000 }).toHaveLength(1)
  return id
}

async function nothingLeftOf(id: number) {
  await server.until(id, (row) => row.observed_state === 'gone')
  expect(await server.hypervisors(id)).toEqual([])
  expect(server.taps()).not.toContain(`vm${id}`)
  expect(server.disks()).not.toContain(String(id))
  const left = await server.sql`select address::text from addresses where machine_id = ${id}
    union all select name from machine_names where machine_id = ${id}`
  expect(left).toEqual([])
}

describe('a vmhost', () => {
  test('says what it found: hypervisor, accelerator and why, store, images, findings', async () => {
    expect(server.ready).toMatchObject({
      accelerator: 'tcg',
      reason: 'BERTH_ACCEL=tcg asks for emulation',
      proved: false,
    })
    const [host] = await server.sql`select * from hosts`
    expect(host).toMatchObject({ accelerator: 'tcg', accelerator_reason: 'BERTH_ACCEL=tcg asks for emulation' })
    expect(host?.images).toEqual([
      { name: 'minimal', hash: '0123456789abcdef', sizeBytes: 4 * MiB, loginUser: 'dev', description: '' },
    ])
    expect(host?.doctor.map((finding: { check: string }) => finding.check)).toContain('kvm')
    expect(host?.store_free_bytes).toBeGreaterThan(0)
    // Some of it is the server's own, and each machine's hypervisor takes some beside the machine.
    expect(host?.memory_bytes).toBe(totalmem() - Math.min(2 ** 30, Math.floor(totalmem() / 4)))
    expect(host?.machine_overhead_bytes).toBe(384 * MiB)
  })

  test('a second one for the same data directory does not start', async () => {
    const other = await TestServer.make(artifacts)
    try {
      await expect(other.start({ BERTH_DATA: server.dataDirectory })).rejects.toThrow('the vmhost ended')
      expect(other.log()).toContain(`Another vmhost is at work in ${server.dataDirectory}`)
    } finally {
      await other[Symbol.asyncDispose]()
    }
  })

  test('starts a new row, with stages and host key, and removes everything when it shall be gone', async () => {
    const id = await bootingMachine()
    const row = await server.machine(id)
    expect(row).toMatchObject({ observed_state: 'creating', observed_boot: 1, observed_reason: null })
    expect(row.observed_host_key?.toString('latin1', 4, 15)).toBe('ssh-ed25519')
    expect(server.taps()).toContain(`vm${id}`)
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test.each([
    ['an image that set-up has not made', { image: 'base' }, 'There is no image called base on this server'],
    ['an image that is a path', { image: '../x' }, '"../x" is no image'],
    ['an image where only the operator may send it', { image: 'localhost:1/x' }, 'localhost:1 is in a private network'],
    ['more memory than the server has', { memory_bytes: 2 ** 50 }, /^It wants more memory than its server has/],
    ['a disk smaller than its image', { disk_bytes: MiB }, 'The image minimal needs a disk of at least 4 MiB'],
    ['memory that is no whole number of MiB', { memory_bytes: 128 * MiB + 1 }, /^Its memory must be a multiple/],
  ])('%s is a failure in words, with nothing half made', async (_, values, reason) => {
    const id = await server.insert({ ...small, ...values })
    const row = await server.until(id, (seen) => seen.observed_state === 'failed')
    expect(row.observed_reason).toMatch(reason)
    expect(server.disks()).not.toContain(String(id))
    expect(server.taps()).not.toContain(`vm${id}`)
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test('an image of a registry becomes the disk of a machine, and says how it is used', async () => {
    await using registry = await TestRegistry.start()
    const layer = rawTar([
      { path: 'etc/passwd', content: 'root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n' },
      { path: 'bin/sh', content: 'sh', mode: 0o755 },
    ])
    const config = { User: 'web', Env: ['A=b'], ExposedPorts: { '80/tcp': {}, '8080/tcp': {} }, Cmd: ['serve'] }
    await registry.push('app', 'latest', { layers: [layer], config })
    await using _there = await registry.alsoIn(server.namespace)
    const image = `${registry.host}/app`
    const registries = join(server.dataDirectory, 'registries.json')
    writeFileSync(registries, JSON.stringify({ auths: { [registry.host]: {} } }))
    const refused = await server.insert({ ...small, image })
    const failed = await server.until(refused, (row) => row.observed_state === 'failed', 60_000)
    expect(failed.observed_reason).toMatch(/^The image .*\/app:latest needs a disk of at least \d+ MiB$/)
    const missing = await server.insert({ ...small, image: `${image}:nothing` })
    await server.until(missing, (row) => row.observed_state === 'failed', 60_000)
    expect((await server.machine(missing)).observed_reason).toMatch(/^There is no image localhost:\d+\/app:nothing/)
    const id = await server.insert({ ...small, image, disk_bytes: 2 ** 30 })
    const told = () => server.sql`select step, total_bytes from image_pulls where machine_id = ${id}`
    await expect.poll(told, { timeout: 60_000, interval: 20 }).not.toEqual([])
    await server.until(id, (row) => row.observed_stage === 'boot', 60_000)
    const [row] = await server.sql`select observed_login_user, observed_web_port from machines where id = ${id}`
    expect(row).toEqual({ observed_login_user: 'web', observed_web_port: 80 })
    const folder = join(server.dataDirectory, 'store/machines', String(id))
    const record = JSON.parse(readFileSync(join(folder, 'machine.json'), 'utf8'))
    expect(record).toMatchObject({ image: `${image}:latest`, init: false, settings: { environment: { A: 'b' } } })
    expect(statSync(join(folder, 'root.raw')).size).toBe(2 ** 30)
    await expect.poll(() => server.sql`select from image_pulls`, { timeout: 60_000 }).toEqual([])
    for (const gone of [refused, missing, id]) {
      await server.update(gone, { desired_state: 'gone' })
      await nothingLeftOf(gone)
    }
  })

  test('a guest that switches itself off while it boots is a failure, and restart the way out', async () => {
    boots('powersOff')
    const id = await server.insert(small)
    const failed = await server.until(id, (row) => row.observed_state === 'failed')
    expect(failed.observed_reason).toMatch(/^It switched itself off while it booted/)
    expect(failed).toMatchObject({ desired_state: 'running', observed_boot: 1 })
    expect(await server.hypervisors(id)).toEqual([])
    boots('idle')
    await server.update(id, { desired_boot: 2 })
    await server.until(id, (row) => row.observed_stage === 'boot' && row.observed_boot === 2)
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test('a guest that panics is a failure that says so, and its hypervisor is ended', async () => {
    boots('panics')
    const id = await server.insert(small)
    const failed = await server.until(id, (row) => row.observed_state === 'failed')
    expect(failed.observed_reason).toMatch(/^Its kernel panicked/)
    expect(await server.hypervisors(id)).toEqual([])
    boots('idle')
    await server.update(id, { desired_state: 'stopped' })
    await server.until(id, (row) => row.observed_state === 'stopped')
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test('a hypervisor that somebody kills is started again, and given up after some times', async () => {
    const id = await bootingMachine()
    for (let killed = 0; killed < 4; killed++) {
      await expect.poll(() => server.hypervisors(id), { timeout: 60_000 }).toHaveLength(1)
      const [pid = 0] = await server.hypervisors(id)
      process.kill(pid, 'SIGKILL')
      await expect.poll(async () => (await server.hypervisors(id)).includes(pid), { timeout: 60_000 }).toBe(false)
    }
    const failed = await server.until(id, (row) => row.observed_state === 'failed')
    expect(failed.observed_reason).toBe('Its hypervisor was ended 4 times within 10 minutes')
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test('trash keeps the disk and the address, and a machine leaves it by starting again', async () => {
    const id = await bootingMachine()
    await server.update(id, { desired_state: 'trashed', trashed_at: new Date() })
    await server.until(id, (row) => row.observed_state === 'trashed')
    expect(await server.hypervisors(id)).toEqual([])
    expect(server.taps()).not.toContain(`vm${id}`)
    expect(server.disks()).toContain(String(id))
    await server.update(id, { desired_state: 'running' })
    await server.until(id, (row) => row.observed_stage === 'boot')
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test('machines outlive it, by SIGTERM as by SIGKILL, and it adopts them with a new epoch', async () => {
    const id = await bootingMachine()
    const [pid] = await server.hypervisors(id)
    for (const signal of ['SIGKILL', 'SIGTERM'] as const) {
      const [{ epoch: before } = { epoch: 0 }] = await server.sql<
        { epoch: number }[]
      >`select lease_epoch as epoch from hosts`
      expect(await server.end(signal)).toBe(signal === 'SIGTERM' ? 0 : null)
      expect(await server.hypervisors(id)).toEqual([pid])
      expect(await server.start()).toMatchObject({ running: 1 })
      expect(await server.hypervisors(id)).toEqual([pid])
      const [{ epoch: after } = { epoch: 0 }] = await server.sql<
        { epoch: number }[]
      >`select lease_epoch as epoch from hosts`
      expect(after).toBe(before + 1)
    }
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test('a hypervisor that hangs holds up nothing but its own machine, which says so, and is adopted when it answers', async () => {
    const [hung, other] = [await bootingMachine(), await bootingMachine()]
    const [pid = 0] = await server.hypervisors(hung)
    await server.end('SIGKILL')
    process.kill(pid, 'SIGSTOP')
    try {
      expect(await server.start()).toMatchObject({ machines: 2, running: 1 })
      const { observed_reason } = await server.until(hung, (row) => row.observed_reason !== null)
      expect(observed_reason).toMatch(/^Its hypervisor does not answer, which is tried again.* restart it: /)
      await server.update(other, { desired_state: 'gone' })
      await nothingLeftOf(other)
      expect(await server.hypervisors(hung)).toEqual([pid])
      expect(server.taps()).toContain(`vm${hung}`)
    } finally {
      process.kill(pid, 'SIGCONT')
    }
    await server.until(hung, (row) => row.observed_reason === null, 60_000)
    expect(await server.hypervisors(hung)).toEqual([pid])
    // What it does is counted, which is asked of its hypervisor.
    const count = async () => (await server.sql`select from load_samples where machine_id = ${hung}`).length
    const before = await count()
    await expect.poll(count, { timeout: 60_000 }).toBeGreaterThan(before)
    await server.update(hung, { desired_state: 'gone' })
    await nothingLeftOf(hung)
  })

  test('samples what a machine does, from the counters of its hypervisor and its tap, also once it was adopted', async () => {
    const id = await bootingMachine()
    const count = async () => (await server.sql`select from load_samples where machine_id = ${id}`).length
    await expect.poll(count, { timeout: 60_000 }).toBeGreaterThanOrEqual(2)
    await server.end('SIGKILL')
    await server.start()
    const before = await count()
    await expect.poll(count, { timeout: 60_000 }).toBeGreaterThan(before)
    const samples = await server.sql`select * from load_samples where machine_id = ${id} order by at`
    // Its guest halts and has no agent: its firmware has read nothing either, since its kernel was given to it.
    for (const sample of samples) {
      expect(sample).toMatchObject({ cpus: 2, memory_limit_bytes: 128 * MiB, memory_used_bytes: null })
      expect(sample).toMatchObject({ disk_read_bytes: 0, disk_written_bytes: 0, network_out_bytes: 0 })
      expect(sample.memory_held_bytes).toBeGreaterThan(MiB)
      expect(sample.at.getTime() % 10_000).toBe(0)
    }
    // What its hypervisor took to come up.
    expect(samples[0]?.cpu_ms).toBeGreaterThan(0)
    expect(await server.sql`select state from load_marks where machine_id = ${id}`).toEqual([{ state: 'running' }])
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test('what changed while it was away is put right: gone, killed, half made, not ours', async () => {
    const kept = await bootingMachine()
    await server.end('SIGKILL')
    // Only so many boot at a time, and these guests never come to an end of it; an adopted one does not count.
    await server.start()
    const [gone, killed] = [await bootingMachine(), await bootingMachine()]
    await server.end('SIGKILL')
    await server.update(gone, { desired_state: 'gone' })
    const [pid = 0] = await server.hypervisors(killed)
    process.kill(pid, 'SIGKILL')
    mkdirSync(join(server.dataDirectory, 'store/machines/.new-77'))
    mkdirSync(join(server.dataDirectory, 'store/machines/999'))
    server.exec('ip', ['tuntap', 'add', 'vm998', 'mode', 'tap', 'user', '2000998', 'vnet_hdr'])
    await server.start()
    await nothingLeftOf(gone)
    await expect.poll(() => server.hypervisors(killed), { timeout: 60_000 }).toHaveLength(1)
    expect(await server.hypervisors(killed)).not.toContain(pid)
    expect(await server.hypervisors(kept)).toHaveLength(1)
    // A folder without a row is kept: the database may be the one that is wrong.
    expect(server.disks()).toEqual([kept, killed, 999].map(String).sort())
    await expect
      .poll(async () => JSON.stringify((await server.sql`select doctor from hosts`)[0]?.doctor))
      .toContain('999')
    for (const id of [killed, kept]) {
      await server.update(id, { desired_state: 'gone' })
      await nothingLeftOf(id)
    }
    rmSync(join(server.dataDirectory, 'store/machines/999'), { recursive: true })
  })

  test('a machine whose row is missing is ended and disconnected, and its disk stays', async () => {
    const id = await bootingMachine()
    await server.sql`delete from machines where id = ${id}`
    await expect.poll(() => server.hypervisors(id), { timeout: 60_000 }).toEqual([])
    // Told when nothing more is to be done.
    await expect
      .poll(async () => JSON.stringify((await server.sql`select doctor from hosts`)[0]?.doctor), { timeout: 60_000 })
      .toContain(`/store/machines: ${id}"`)
    expect(server.taps()).not.toContain(`vm${id}`)
    expect(server.disks()).toContain(String(id))
    rmSync(join(server.dataDirectory, 'store/machines', String(id)), { recursive: true })
  })

  test('a machine that runs is ended, and its disk stays, when its number comes to be another machine', async () => {
    const id = await bootingMachine()
    await server.update(id, { token: randomUUID(), observed_host_key: null, desired_state: 'stopped' })
    await server.until(id, (row) => row.observed_state === 'stopped')
    expect(await server.hypervisors(id)).toEqual([])
    await server.update(id, { desired_state: 'gone' })
    await server.until(id, (row) => row.observed_state === 'gone')
    expect(server.disks()).toContain(String(id))
    rmSync(join(server.dataDirectory, 'store/machines', String(id)), { recursive: true })
  })

  test('a running machine whose number is another machine when a vmhost starts is not adopted', async () => {
    const id = await bootingMachine()
    await server.end()
    await server.update(id, { token: randomUUID(), observed_host_key: null })
    expect(await server.start()).toMatchObject({ running: 0 })
    const failed = await server.until(id, (row) => row.observed_state === 'failed')
    expect(failed.observed_reason).toMatch(/^Another machine's disk lies in its place/)
    expect(await server.hypervisors(id)).toEqual([])
    await server.update(id, { desired_state: 'gone' })
    await server.until(id, (row) => row.observed_state === 'gone')
    expect(server.disks()).toContain(String(id))
    rmSync(join(server.dataDirectory, 'store/machines', String(id)), { recursive: true })
  })

  test('a lost disk is never replaced by a fresh one', async () => {
    const id = await bootingMachine()
    await server.update(id, { desired_state: 'stopped' })
    await server.until(id, (row) => row.observed_state === 'stopped')
    rmSync(join(server.dataDirectory, 'store/machines', String(id)), { recursive: true })
    await server.update(id, { desired_state: 'running' })
    const failed = await server.until(id, (row) => row.observed_state === 'failed')
    expect(failed.observed_reason).toBe('Its disk is not on this server any more')
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
  })

  test('machines whose disks share a filesystem with Postgres stand still before it is full, and go on by themselves', async () => {
    const home = mkdtempSync(join(tmpdir(), 'berth-xfs-'))
    execFileSync('truncate', ['-s', '512M', join(home, 'disk')])
    execFileSync('mkfs.xfs', ['-q', '-m', 'reflink=1', join(home, 'disk')])
    const full = await TestServer.make(artifacts, undefined, (data) =>
      execFileSync('mount', ['-o', 'loop', join(home, 'disk'), data]),
    )
    try {
      expect(await full.start()).toMatchObject({ storeKind: 'native' })
      const ballast = join(full.dataDirectory, 'ballast')
      await expect.poll(() => existsSync(ballast), { timeout: 60_000 }).toBe(true)
      const id = await full.insert(small)
      await full.until(id, (row) => row.observed_stage === 'boot')
      const filler = join(full.dataDirectory, 'store/filler')
      execFileSync('sh', ['-c', `dd if=/dev/zero of=${filler} bs=1M 2>/dev/null || true`])
      const { observed_reason } = await full.until(id, (row) => row.observed_reason !== null)
      expect(observed_reason).toMatch(/^It stands still: its server's disk is full/)
      await expect.poll(() => existsSync(ballast), { timeout: 60_000 }).toBe(false)
      // The vmhost that comes after it has to have it go on.
      await full.end('SIGKILL')
      rmSync(filler)
      await full.start()
      await full.until(id, (row) => row.observed_reason === null)
      await expect.poll(() => existsSync(ballast), { timeout: 60_000 }).toBe(true)
      expect(await full.hypervisors(id)).toHaveLength(1)
    } finally {
      await full[Symbol.asyncDispose]()
      rmSync(home, { recursive: true })
    }
  })

  test('the end of its launcher does not end it', async () => {
    await server.end()
    await server.start()
    server.disconnect()
    const id = await bootingMachine()
    await server.update(id, { desired_state: 'gone' })
    await nothingLeftOf(id)
    expect(readFileSync(`/proc/${server.pid}/comm`, 'utf8')).not.toBe('')
  })
})
