import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { cannotRestore } from '../../migrations/schema.ts'
import { type TestDatabase, testDatabase } from '../../test/database.ts'
import { takeLease } from './lease.ts'
import { Rows } from './rows.ts'

/** Idleness as the database has it: what a gateway says, and what a vmhost may do about it. */

let directory: string
let database: TestDatabase
let gateway: Sql
let rows: Rows

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'berth-rows-'))
  database = await testDatabase()
  const owner = database.as('owner')
  gateway = database.as('berth_gateway')
  rows = new Rows(database.as('berth_vmhost'), await takeLease(database.as('berth_vmhost'), directory))
  await owner`insert into accounts (is_owner, defaults) values (true, '{"sleep-after": "30m"}')`
  await owner`insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, observed_state,
      observed_ready_at)
    values (1, ${rows.lease.hostId}, 'demo', 'minimal', 1, 1048576, 1048576, 'running', now())`
})
afterEach(async () => {
  await database[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true })
})

async function awake() {
  const [found] = await rows.awake()
  if (!found) throw new Error('nobody is awake')
  return found
}

const row = async () => (await gateway`select * from machines`)[0]

test('a machine that runs is watched with what may keep it awake', async () => {
  expect(await awake()).toEqual({
    id: 1,
    holdUntil: null,
    activityAt: null,
    activity: null,
    sleepNever: false,
    sleepAfterSeconds: null,
    defaultSleepAfter: '30m',
    awakeBecause: null,
    idleSince: null,
  })
  await gateway`insert into machine_activity values (1, now(), 'ssh')`
  await gateway`update machines set hold_until = now() + interval '1 hour'`
  const idleSince = new Date()
  await rows.report(1, { observedIdleSince: idleSince })
  expect(await awake()).toMatchObject({ activity: 'ssh', holdUntil: expect.any(Date), idleSince })
  await gateway`update machines set desired_state = 'stopped'`
  expect(await rows.awake()).toEqual([])
})

test('an idle machine is put to sleep, with the reason', async () => {
  expect(await rows.putToSleep(1, 'idle for 30 minutes', await awake())).toBe(true)
  expect(await row()).toMatchObject({ desired_state: 'asleep', observed_asleep_because: 'idle for 30 minutes' })
  expect(await rows.one(1)).toMatchObject({ asleepBecause: 'idle for 30 minutes' })
})

test.each<[string, (sql: Sql) => Promise<unknown>]>([
  ['something came', (sql) => sql`insert into machine_activity values (1, now(), 'https')`],
  ['it was held', (sql) => sql`update machines set hold_until = now() + interval '1 minute'`],
  ['it was set never to sleep', (sql) => sql`update machines set sleep_never = true`],
  ['its time was changed', (sql) => sql`update machines set sleep_after_seconds = 7200`],
  ['it was stopped', (sql) => sql`update machines set desired_state = 'stopped'`],
])('not when %s since it was found idle', async (_, happens) => {
  const found = await awake()
  await happens(gateway)
  expect(await rows.putToSleep(1, 'idle for 30 minutes', found)).toBe(false)
  expect((await row())?.desired_state).not.toBe('asleep')
})

test('what came before it was found idle keeps nothing awake', async () => {
  await gateway`insert into machine_activity values (1, now() - interval '1 hour', 'ssh')`
  expect(await rows.putToSleep(1, 'idle for 30 minutes', await awake())).toBe(true)
})

test('a machine that cannot be restored is left asleep with the reason, recorded once, and wanted again when it can', async () => {
  const because = 'Its memory was saved by QEMU 99.0, which the QEMU on its server now cannot read'
  const knock = () => gateway`update machines set desired_state = 'running' where id = 1`
  await database.as('owner')`update machines set observed_state = 'asleep', observed_ready_at = null`
  const boot = Number((await row())?.desired_boot)
  for (let knocks = 0; knocks < 2; knocks++) {
    await knock()
    await rows.leaveAsleep(1, boot, because)
    expect(await row()).toMatchObject({
      desired_state: 'asleep',
      observed_reason: because,
      observed_asleep_because: cannotRestore,
    })
  }
  const events = await gateway`select actor, detail from events where kind = 'machine.left_asleep'`
  expect([...events]).toEqual([{ actor: `host:${rows.lease.hostName}`, detail: { because } }])
  for (const since of ['suspended_at', 'over_limit_at']) {
    await database.as('owner').unsafe(`update accounts set ${since} = now()`)
    await rows.wakeLeftAsleep(1)
    expect(await row(), since).toMatchObject({ desired_state: 'asleep' })
    await database.as('owner').unsafe(`update accounts set ${since} = null`)
  }
  await rows.wakeLeftAsleep(1)
  expect(await row()).toMatchObject({ desired_state: 'running' })
})

test('one that is restarted meanwhile is not left asleep, and one that its owner has sleep is not wanted', async () => {
  const boot = Number((await row())?.desired_boot)
  await gateway`update machines set desired_state = 'running', desired_boot = desired_boot + 1`
  await rows.leaveAsleep(1, boot, 'Its memory was saved by another')
  expect(await row()).toMatchObject({ desired_state: 'running', observed_reason: null })
  await gateway`update machines set desired_state = 'asleep'`
  await rows.wakeLeftAsleep(1)
  expect(await row()).toMatchObject({ desired_state: 'asleep' })
})
