import { execFileSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { hostname, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, afterEach, beforeAll, expect, test, vi } from 'vitest'
import { connect, type Sql } from '../migrations/connect.ts'
import { embeddedUrl, startEmbedded, stopEmbedded } from '../migrations/embedded.ts'
import { migrate } from '../migrations/migrate.ts'
import { makeHostKey } from './reconcile/identity.ts'
import { isMounted } from './storage/volume.ts'
import { artifactsFolder, TestServer } from './testing/server.ts'

vi.setConfig({ testTimeout: 90_000, hookTimeout: 90_000 })

/**
 * What a vmhost does with its database and its store alone: nothing here starts a guest. The database is a server of
 * its own, which is stopped and started.
 */

let artifacts: string
let postgres: string
let server: TestServer

beforeAll(async () => {
  artifacts = artifactsFolder()
  postgres = mkdtempSync(join(tmpdir(), 'berth-postgres-'))
  chmodSync(postgres, 0o755)
  await startEmbedded(postgres)
  const url = embeddedUrl(postgres)
  const owner = connect({ url, role: 'owner', max: 1 })
  await migrate(owner)
  await owner.end()
  const opened: Sql[] = []
  server = await TestServer.make(artifacts, {
    url,
    as: (role) => {
      const sql = connect({ url, role, max: 4 })
      opened.push(sql)
      return sql
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(opened.map((sql) => sql.end({ timeout: 2 })))
    },
  })
  // Makes the server's row and its store.
  await server.start()
  await server.end()
})

afterAll(async () => {
  await server[Symbol.asyncDispose]()
  await stopEmbedded(postgres)
  for (const folder of [postgres, artifacts]) rmSync(folder, { recursive: true })
})

afterEach(async () => {
  await server.end()
})

/** A machine that is wanted off needs no guest to become so. */
const off = { desired_state: 'stopped' }

test('Postgres away and back: it waits, makes up for what it missed, and hears news again', async () => {
  await server.start()
  const pid = server.pid
  const id = await server.insert(off)
  await server.until(id, (row) => row.observed_state === 'stopped')
  await stopEmbedded(postgres)
  // The heartbeat is the first to notice.
  await expect.poll(() => server.log(), { timeout: 60_000 }).toContain('put off')
  await startEmbedded(postgres)
  await server.update(id, { desired_state: 'gone' })
  await server.until(id, (row) => row.observed_state === 'gone', 10_000)
  // Sooner than the next look at all rows: by the news of it.
  const another = await server.insert(off)
  await server.until(another, (row) => row.observed_state === 'stopped', 5_000)
  await expect
    .poll(async () => (await server.sql`select lease_expires_at > now() as live from hosts`)[0]?.live, {
      timeout: 60_000,
    })
    .toBe(true)
  expect(server.pid).toBe(pid)
  expect(await server.end()).toBe(0)
  // It let go of its launcher itself.
  expect(server.log()).toContain('ending; machines run on')
  expect(server.log()).not.toContain('the launcher is gone')
})

test('a server says how much memory it has left, what its machines hold of it, and whether that is short', async () => {
  await server.start()
  const [row] = await server.sql`select memory_available_bytes > 0 as some, memory_used_bytes as used,
    memory_reclaimed_bytes as reclaimed, doctor from hosts`
  expect(row).toMatchObject({ some: true, used: 0, reclaimed: 0 })
  expect(row?.doctor).toContainEqual(
    expect.objectContaining({ check: 'memory', message: expect.stringMatching(/GiB of memory are available/) }),
  )
})

test('overtaken by another vmhost, it writes nothing more and ends; the next start takes the lease again', async () => {
  await server.start()
  const taken = server.sql`update hosts set lease_epoch = lease_epoch + 1 returning lease_epoch as epoch`
  const [{ epoch } = { epoch: 0 }] = await taken
  const id = await server.insert(off)
  expect(await server.ended()).toBe(1)
  expect(await server.machine(id)).toMatchObject({ observed_state: 'creating' })
  await server.start()
  await server.until(id, (row) => row.observed_state === 'stopped')
  expect(await server.sql`select lease_epoch as epoch from hosts`).toMatchObject([{ epoch: epoch + 1 }])
})

test('a step that fails is told as the reason, until it is done', async () => {
  await server.start()
  const id = await server.insert(off)
  await server.until(id, (row) => row.observed_state === 'stopped')
  const machines = join(server.dataDirectory, 'store/machines')
  mkdirSync(join(machines, String(id)))
  // Nothing in it can be renamed.
  execFileSync('chattr', ['+i', machines])
  try {
    await server.update(id, { desired_state: 'gone' })
    const { observed_reason } = await server.until(id, (row) => row.observed_reason !== null)
    expect(observed_reason).toMatch(/^What is to be done with it fails and is tried again: EPERM/)
  } finally {
    execFileSync('chattr', ['-i', machines])
  }
  const gone = await server.until(id, (row) => row.observed_state === 'gone')
  expect(gone.observed_reason).toBeNull()
  expect(server.disks()).toEqual([])
})

test('what has lain in the trash for seven days is gone at the next start: disk, address and name are free', async () => {
  await server.start()
  const trashed = async (hours: number): Promise<number> => {
    const id = await server.insert({ desired_state: 'trashed' })
    await server.until(id, (row) => row.observed_state === 'trashed')
    await server.sql`update machines set trashed_at = now() - make_interval(hours => ${hours}) where id = ${id}`
    const folder = join(server.dataDirectory, 'store/machines', String(id))
    mkdirSync(folder)
    writeFileSync(join(folder, 'root.raw'), 'all that was on it')
    return id
  }
  const [old, young] = [await trashed(7 * 24 + 1), await trashed(7 * 24 - 1)]
  // Of a database that is no more: only the number is that of a machine which is gone.
  const number = await server.insert({ desired_state: 'gone' })
  await server.until(number, (row) => row.observed_state === 'gone')
  leaveFiles(number, randomUUID())
  await server.end('SIGKILL')
  await server.start()
  await server.until(old, (row) => row.observed_state === 'gone')
  expect(server.disks()).toEqual([String(young), String(number)])
  for (const id of [old, young]) {
    const kept = id === young ? 1 : 0
    expect(await server.sql`select from addresses where machine_id = ${id}`).toHaveLength(kept)
    expect(await server.sql`select from machine_names where machine_id = ${id}`).toHaveLength(kept)
  }
  expect(await server.machine(young)).toMatchObject({ desired_state: 'trashed', observed_state: 'trashed' })
  rmSync(join(server.dataDirectory, 'store/machines', String(number)), { recursive: true })
})

const doctor = async () => JSON.stringify((await server.sql`select doctor from hosts`)[0]?.doctor)

test('a machine whose row is missing keeps its disk, which the doctor names: an older database may have come back', async () => {
  await server.start()
  const id = await server.insert(off)
  await server.until(id, (row) => row.observed_state === 'stopped')
  const disk = join(server.dataDirectory, 'store/machines', String(id), 'root.raw')
  mkdirSync(dirname(disk))
  writeFileSync(disk, 'all that was on it')
  await server.sql`delete from machines where id = ${id}`
  // The doctor's look every 30 s would be too late for this.
  await expect.poll(doctor, { timeout: 60_000 }).toContain(`${server.dataDirectory}/store/machines: ${id}"`)
  expect(readFileSync(disk, 'utf8')).toBe('all that was on it')
  rmSync(dirname(disk), { recursive: true })
})

test('what a sleeper whose row is missing goes on from is kept as long as it lies there', async () => {
  await server.start()
  const store = join(server.dataDirectory, 'store')
  const bootSet = '00000000000000aa'
  const saved = {
    format: 1,
    stateVersion: 'qemu pc-q35-7.2 tcg',
    bootSet,
    commandLine: '',
    cpus: 1,
    memoryBytes: 1,
    boot: 1,
  }
  const memory = join(store, 'machines/4711/memory')
  mkdirSync(memory, { recursive: true })
  writeFileSync(join(memory, 'saved.json'), JSON.stringify({ ...saved, at: new Date().toISOString() }))
  mkdirSync(join(store, 'boot', bootSet))
  const isKept = () => existsSync(join(store, 'boot', bootSet))
  await server.end('SIGKILL')
  await server.start()
  expect(isKept()).toBe(true)
  rmSync(dirname(memory), { recursive: true })
  await server.end('SIGKILL')
  await server.start()
  expect(isKept()).toBe(false)
})

/** Files of a machine, as a vmhost leaves them. */
function leaveFiles(id: number, token: string | undefined): { hostKey: Buffer; note(): Promise<string | undefined> } {
  const folder = join(server.dataDirectory, 'store/machines', String(id))
  mkdirSync(folder)
  const { privateKey, publicKey } = makeHostKey('demo')
  const record = { image: 'minimal', imageHash: '0', loginUser: 'dev', init: true, systemId: 'f'.repeat(32), token }
  for (const [name, content] of Object.entries({
    'root.raw': Buffer.alloc(4096, 7),
    host_key: privateKey,
    'machine.json': JSON.stringify(record),
  }))
    writeFileSync(join(folder, name), content)
  const note = () => readFile(join(folder, 'machine.json'), 'utf8').then((text) => JSON.parse(text).token)
  return { hostKey: publicKey, note }
}

test.each([
  ['of another token', randomUUID()],
  ['from before there were tokens', undefined],
])(
  "files %s are another machine's: its disk is neither given away nor removed, and the doctor names it",
  async (_, token) => {
    await server.start()
    const id = await server.insert(off)
    await server.until(id, (row) => row.observed_state === 'stopped')
    const { note } = leaveFiles(id, token)
    const disk = join(server.dataDirectory, 'store/machines', String(id), 'root.raw')
    await server.update(id, { desired_state: 'running' })
    const failed = await server.until(id, (row) => row.observed_state === 'failed')
    expect(failed.observed_reason).toMatch(/^Another machine's disk lies in its place.* Remove this machine/)
    expect(failed.observed_host_key).toBeNull()
    await server.update(id, { desired_state: 'gone' })
    await server.until(id, (row) => row.observed_state === 'gone')
    await expect.poll(doctor, { timeout: 60_000 }).toContain(`${server.dataDirectory}/store/machines: ${id}"`)
    expect(readFileSync(disk)).toEqual(Buffer.alloc(4096, 7))
    expect(await note()).toBe(token)
    rmSync(dirname(disk), { recursive: true })
  },
)

test('files from before there were tokens stay with their machine, which its host key tells', async () => {
  await server.start()
  const id = await server.insert(off)
  await server.until(id, (row) => row.observed_state === 'stopped')
  const { hostKey, note } = leaveFiles(id, undefined)
  const [{ token } = { token: '' }] = await server.sql<{ token: string }[]>`
    update machines set observed_host_key = ${hostKey}, desired_state = 'running' where id = ${id} returning token`
  await expect.poll(note).toBe(token)
  await server.update(id, { desired_state: 'gone' })
  await server.until(id, (row) => row.observed_state === 'gone')
  expect(server.disks()).not.toContain(String(id))
})

test("machines are let through to ports that the gateway has, as it has them, and to nobody else's", async () => {
  const opened = () =>
    [
      ...server
        .exec('nft', ['list', 'chain', 'inet', 'berth', 'to_host'])
        .matchAll(/(?:tcp|udp) dport \d+(?= accept comment "the gateway")/g),
    ].map(([rule]) => rule)
  const has = (...ports: object[]) => server.sql`
    insert into settings values (${`gateway_ports@${hostname()}`}, ${JSON.stringify(ports)})
    on conflict (key) do update set value = excluded.value`
  const [ssh, http, dns, other] = [
    { protocol: 'tcp', port: 2222 },
    { protocol: 'tcp', port: 8080 },
    { protocol: 'udp', port: 53 },
    { protocol: 'tcp', port: 5432 },
  ]
  const env = { BERTH_SIDES: 'gateway,vmhost', BERTH_DNS: ':53' }
  await server.start(env)
  expect(opened()).toEqual([])
  // Of the settings' ports alone: the gateway is not to open others.
  await has(ssh, dns, other)
  await expect.poll(opened).toEqual(['tcp dport 2222', 'udp dport 53'])
  await has(ssh, http)
  await expect.poll(opened).toEqual(['tcp dport 2222', 'tcp dport 8080'])
  await server.end()
  await server.start(env)
  expect(opened()).toEqual(['tcp dport 2222', 'tcp dport 8080'])
  await has(ssh)
  await expect.poll(opened).toEqual(['tcp dport 2222'])
})

test('an orderly end takes the store down, so that a backup has it once and whole; a start has it again', async () => {
  await server.start()
  const store = join(server.dataDirectory, 'store')
  expect(await isMounted(store)).toBe(server.ready?.storeKind === 'xfs')
  writeFileSync(join(store, 'note'), 'kept')
  await server.end()
  expect(await isMounted(store)).toBe(false)
  await server.start()
  expect(readFileSync(join(store, 'note'), 'utf8')).toBe('kept')
  rmSync(join(store, 'note'))
})

test('name servers that machines cannot reach are told at the start', async () => {
  const { notices } = await server.start({ BERTH_RESOLVERS: '192.168.7.53,1.1.1.1' })
  expect(notices).toContainEqual(expect.stringContaining('set BERTH_ALLOW=192.168.7.53'))
  await server.end()
  const allowed = await server.start({ BERTH_RESOLVERS: '192.168.7.53', BERTH_ALLOW: '192.168.7.0/24' })
  expect(allowed.notices.join()).not.toContain('BERTH_RESOLVERS')
})
