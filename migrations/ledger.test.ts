import { randomUUID } from 'node:crypto'
import { expect, test } from 'vitest'
import { testDatabase } from '../test/database.ts'
import type { Sql } from './connect.ts'

type Span = { start: string; end: string; state?: string; cpus?: number; machine?: number }

function span(sql: Sql, { start, end, state = 'running', cpus = 2, machine = 1 }: Span) {
  const at = (time: string) => (time.includes('-') ? time : `2026-03-31 ${time}+00`)
  return sql`
    insert into machine_spans (machine_id, host_id, started_at, ended_at, state, cpus, memory_bytes, disk_bytes)
    values (${machine}, 1, ${at(start)}, ${at(end)}, ${state}, ${cpus}, 1024, 2048) on conflict do nothing`
}

function reading(sql: Sql, series: string, sequence: number, bytes: number, boot = '0'.repeat(32), machine = 1) {
  const row = { series, sequence, machine_id: machine, host_id: 1, host_boot: boot, at: new Date(sequence) }
  const counted = ['direct_out', 'direct_in', 'gateway_out', 'gateway_in'].flatMap((name) => [
    [`${name}_bytes`, bytes],
    [`${name}_packets`, 1],
  ])
  return sql`insert into transfer_readings ${sql({ ...row, ...Object.fromEntries(counted) })} on conflict do nothing`
}

test("no piece of a machine's time is in the ledger twice, in whatever order pieces arrive", async () => {
  await using db = await testDatabase()
  const sql = db.as('berth_vmhost')
  await span(sql, { start: '10:00', end: '10:05' })
  await span(sql, { start: '10:05', end: '10:10' })
  await span(sql, { start: '09:00', end: '10:00', state: 'stopped' })
  await span(sql, { start: '10:00', end: '10:05', machine: 2 })
  for (const [start, end] of [
    ['10:04', '10:06'],
    ['10:09:59.999', '10:20'],
    ['08:00', '09:00:00.001'],
    ['08:00', '11:00'],
    ['10:06', '10:07'],
    ['10:00', '10:10'],
  ] as const)
    await expect(span(sql, { start, end }), `${start} to ${end}`).rejects.toMatchObject({ code: '23P01' })
  await expect(span(sql, { start: '10:00', end: '10:05', cpus: 4 })).rejects.toMatchObject({ code: '23P01' })
  await span(sql, { start: '10:10', end: '24:00' })
  const [found] = await db.as('berth_gateway')`
    select range_agg(during)::text as all, count(*)::int as pieces from machine_spans where machine_id = 1`
  expect(found).toEqual({ all: '{["2026-03-31 09:00:00+00","2026-04-01 00:00:00+00")}', pieces: 4 })
})

test('a piece that arrives again is there once, though it was never said what to do with a conflict', async () => {
  await using db = await testDatabase()
  const sql = db.as('berth_vmhost')
  const again = () => sql`
    insert into machine_spans (machine_id, host_id, started_at, ended_at, state, cpus, memory_bytes, disk_bytes)
    select 1, 1, at, at + interval '5 minutes', 'running', 2, 1, 1
    from generate_series(timestamptz '2026-03-31 10:00Z', '2026-03-31 11:00Z', interval '5 minutes') at`
  expect((await again()).count).toBe(13)
  expect((await again()).count).toBe(0)
})

test('a piece has a length, and belongs to one day in UTC whatever zone the session is in', async () => {
  await using db = await testDatabase()
  const sql = db.as('berth_vmhost')
  await sql.reserve().then(async (session) => {
    await session`set timezone to 'Pacific/Auckland'`
    await expect(
      span(session as unknown as Sql, { start: '23:00', end: '2026-04-01 00:00:01+00' }),
    ).rejects.toMatchObject({
      constraint_name: 'machine_spans_in_one_day',
    })
    await span(session as unknown as Sql, { start: '00:00', end: '24:00' })
    session.release()
  })
  await expect(span(sql, { start: '10:00', end: '10:00', machine: 2 })).rejects.toMatchObject({
    constraint_name: 'machine_spans_forwards',
  })
})

test('two that append at the same moment do not both get the same time in', async () => {
  await using db = await testDatabase()
  const writers = [db.as('berth_vmhost'), db.as('berth_vmhost')]
  for (let minute = 10; minute < 40; minute++) {
    const [first, second] = [`10:${minute}:00`, `10:${minute}:30`]
    const outcomes = await Promise.allSettled([
      writers[0] && span(writers[0], { start: first, end: `10:${minute}:59`, machine: minute }),
      writers[1] && span(writers[1], { start: second, end: `10:${minute}:45`, machine: minute }),
    ])
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(1)
  }
})

test('readings of a series grow, a repeat is one of them, and one that comes late fits between its neighbours', async () => {
  await using db = await testDatabase()
  const sql = db.as('berth_vmhost')
  const series = randomUUID()
  await reading(sql, series, 10, 100)
  await reading(sql, series, 30, 300)
  await reading(sql, series, 30, 300)
  await reading(sql, series, 20, 200)
  await reading(sql, series, 40, 300)
  for (const [sequence, bytes] of [
    [50, 299],
    [25, 301],
    [25, 199],
    [5, 101],
    [30, 301],
  ] as const)
    await expect(reading(sql, series, sequence, bytes), `${sequence}: ${bytes}`).rejects.toMatchObject({
      code: '23P01',
    })
  await expect(reading(sql, series, 50, 400, '1'.repeat(32))).rejects.toMatchObject({ code: '23P01' })
  await expect(reading(sql, series, 50, 400, undefined, 2)).rejects.toMatchObject({ code: '23P01' })
  await reading(sql, randomUUID(), 5, 7, undefined, 2)
  const found = await sql`
    select machine_id, sum(used)::int as used from (
      select machine_id, direct_out_bytes - coalesce(lag(direct_out_bytes) over (partition by series order by sequence), 0)
        as used from transfer_readings) as uses group by machine_id order by 1`
  expect([...found]).toEqual([
    { machine_id: 1, used: 300 },
    { machine_id: 2, used: 7 },
  ])
})

test('nobody changes or removes a fact, and the gateway appends none', async () => {
  await using db = await testDatabase()
  const [owner, vmhost, gateway] = [db.as('owner'), db.as('berth_vmhost'), db.as('berth_gateway')]
  await span(vmhost, { start: '10:00', end: '10:05' })
  await reading(vmhost, randomUUID(), 1, 1)
  for (const table of ['machine_spans', 'transfer_readings']) {
    for (const statement of [`update ${table} set host_id = 2`, `delete from ${table}`, `truncate ${table}`]) {
      await expect(owner.unsafe(statement), statement).rejects.toThrow(/append only/)
      await expect(vmhost.unsafe(statement), statement).rejects.toThrow(/permission denied/)
    }
  }
  await expect(span(gateway, { start: '11:00', end: '11:05' })).rejects.toThrow(/permission denied/)
  await expect(reading(gateway, randomUUID(), 1, 1)).rejects.toThrow(/permission denied/)
})
