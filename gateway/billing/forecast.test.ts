import { randomUUID } from 'node:crypto'
import { expect, it } from 'vitest'
import { DAY_MS } from './calendar.ts'
import { assumptionsOf, dayOfReaching, daysOf, readForecast } from './forecast.ts'
import { totalOf } from './pricing.ts'
import { cut, type Ledger, type Span, span, testLedger } from './testing/ledger.ts'
import { readMonth } from './usage.ts'

const NOW = new Date('2026-02-20T12:00:00Z')
const GIB = 2 ** 30

const written = (ledger: Ledger, whole: Span) => ledger.spans(cut(whole, () => whole.to))

it('is what the month comes to cost when all that it assumes comes true, over rates and plans that change', async () => {
  await using ledger = await testLedger()
  const accountId = await ledger.account({ plan: 'usage' })
  const [runs, rests] = [await ledger.machine(accountId), await ledger.machine(accountId)]
  await ledger.owner`update machines set cpus = 3, memory_bytes = ${3 * GIB}, disk_bytes = ${20 * GIB}, created_at = '2026-01-05'
    where id = ${runs}`
  // It runs with less than it is to have from its next start on.
  await ledger.owner`update machines set observed_cpus = 2, observed_memory_bytes = ${2 * GIB} where id = ${runs}`
  await ledger.owner`update machines set observed_state = 'asleep', desired_state = 'asleep', disk_bytes = ${7 * GIB} where id = ${rests}`
  await ledger.before(async (sql) => {
    await sql`update rates set effective = tstzrange(null, '2026-02-25') where plan = 'usage' and kind = 'cpu'`
    await sql`insert into rates (plan, kind, micros, included, effective) values
      ('usage', 'cpu', 50000, 100, tstzrange('2026-02-25', null)), ('usage', 'fee', 5000000, 0, '(,)')`
    await sql`insert into plans (name, charged) values ('late', true)`
    await sql`update account_plans set effective = tstzrange('2026-01-01', '2026-02-27') where account_id = ${accountId}`
    await sql`insert into account_plans (account_id, plan, effective) values (${accountId}, 'late', tstzrange('2026-02-27', null))`
    await sql`insert into rates (plan, kind, micros, included, effective) values ('late', 'transfer', 10000, 1, '(,)')`
  })
  const size = { cpus: 2, memoryBytes: 2 * GIB, diskBytes: 20 * GIB, checkpointBytes: 123_456_789 }
  const asleep = { state: 'asleep', diskBytes: 7 * GIB, memoryBytes: GIB } as const
  // The facts of one end before now, as they do.
  const counted = '2026-02-20T11:57:30.123456Z'
  await written(ledger, span(runs, '2026-02-03T00:00:00Z', counted, size))
  await written(ledger, span(rests, '2026-02-10T00:00:00Z', NOW.toISOString(), asleep))
  const series = randomUUID()
  // A GB a day in the six and a half days of the last week, and before that more.
  const reading = (sequence: number, at: string, bytes: number) =>
    ledger.readings([{ machineId: runs, series, sequence, at: new Date(at), direct: bytes, gateway: bytes / 10 }])
  await reading(0, '2026-02-13T23:00:00Z', 40e9)
  await reading(1, '2026-02-20T11:00:00Z', 46.5e9)

  const forecast = await readForecast(ledger.gateway, accountId, NOW)
  expect(forecast).toMatchObject({ running: 1, resting: 1 })
  expect(forecast.changes).toMatchObject([
    { from: '2026-02-25', plan: 'usage', isOfPlan: false },
    { from: '2026-02-27', plan: 'late', isOfPlan: true },
  ])
  expect(assumptionsOf(forecast)).toEqual([
    'the machine that runs now runs on until then',
    'the machine that rests (asleep or off) stays so',
    'disks and checkpoints stay as large as they are',
    'as much is sent as in the last 7 days',
    'other rates hold from 2026-02-25 on, as was set',
    'plan late holds from 2026-02-27 on, as was set',
  ])
  expect(totalOf(forecast.lines)).toBe(forecast.total)
  expect(daysOf(forecast.lines).reduce((all, [, amount]) => all + amount, 0n)).toBe(forecast.total)

  // And now it comes so. What the ledger holds below a millisecond, the forecast does not.
  await written(ledger, span(runs, '2026-02-20T11:57:30.123456Z', '2026-03-01T00:00:00Z', size))
  await written(ledger, span(rests, NOW.toISOString(), '2026-03-01T00:00:00Z', asleep))
  const left = 46.5e9 + 1e9 * ((Date.parse('2026-03-01') - Date.parse('2026-02-20T11:57:30.123Z')) / DAY_MS)
  for (let day = 21, sequence = 2; day <= 28; day++, sequence++) {
    const bytes = Math.round(left - (28 - day) * 1e9)
    await reading(sequence, `2026-02-${day}T23:00:00Z`, Math.round(bytes / 10) * 10)
  }
  const lines = await readMonth(ledger.gateway, accountId, '2026-02')
  const names = (list: readonly { kind: string; class: string; plan: string }[]) =>
    list.map((line) => `${line.kind} ${line.class} ${line.plan}`)
  expect(names(forecast.lines)).toEqual(names(lines))
  for (const [index, line] of lines.entries()) {
    const off = Number(line.amount - (forecast.lines[index]?.amount ?? 0n))
    expect(Math.abs(off), `${line.kind} ${line.class}`).toBeLessThanOrEqual(1)
  }
})

it('of an account with nothing is nothing, and of a plan with a fee its fee', async () => {
  await using ledger = await testLedger()
  const accountId = await ledger.account()
  const forecast = await readForecast(ledger.gateway, accountId, NOW)
  expect(forecast).toMatchObject({ total: 0n, running: 0, resting: 0 })
  expect(assumptionsOf(forecast)).toEqual(['no machine is made'])
  // Trashed, failed before it had a disk, and the last instant of a month.
  const [trashed, failed] = [await ledger.machine(accountId), await ledger.machine(accountId)]
  await ledger.owner`update machines set observed_state = 'trashed', desired_state = 'trashed' where id = ${trashed}`
  await ledger.owner`update machines set observed_state = 'failed', disk_bytes = ${100 * GIB} where id = ${failed}`
  expect(await readForecast(ledger.gateway, accountId, NOW)).toMatchObject({ total: 0n, resting: 1 })
  const end = new Date('2026-02-28T23:59:59.999Z')
  expect((await readForecast(ledger.gateway, accountId, end)).total).toBe(0n)
})

it('of an account that no plan is named for says from when the plan of all others holds', async () => {
  await using ledger = await testLedger()
  const accountId = await ledger.account()
  const owner = await ledger.account({ owner: true })
  await ledger.before(
    (sql) => sql`insert into account_plans (plan, effective) values ('usage', tstzrange('2026-02-25', null))`,
  )
  const machineId = await ledger.machine(accountId)
  await ledger.owner`update machines set cpus = 25, created_at = '2026-02-01' where id = ${machineId}`
  await written(ledger, span(machineId, '2026-02-20T00:00:00Z', NOW.toISOString(), { cpus: 25, memoryBytes: 1 }))
  const forecast = await readForecast(ledger.gateway, accountId, NOW)
  expect(assumptionsOf(forecast)).toContain('plan usage holds from 2026-02-25 on, as was set')
  expect(forecast.charged).toBe(4n * 24_000_000n)
  expect((await readForecast(ledger.gateway, owner, NOW)).changes).toEqual([])
})

it('says on which day a limit is reached', async () => {
  await using ledger = await testLedger()
  const accountId = await ledger.account({ plan: 'usage' })
  const machineId = await ledger.machine(accountId)
  await ledger.owner`update machines set cpus = 25, created_at = '2026-02-01' where id = ${machineId}`
  await written(ledger, span(machineId, '2026-02-20T00:00:00Z', NOW.toISOString(), { cpus: 25, memoryBytes: 1 }))
  const forecast = await readForecast(ledger.gateway, accountId, NOW)
  // 24 dollars a day, from the 20th on; a byte of memory and disk is not seen.
  expect(forecast.charged).toBe(9n * 24_000_000n)
  expect(dayOfReaching(forecast, 12_000_000n)).toBe('2026-02-20')
  expect(dayOfReaching(forecast, 24_000_001n)).toBe('2026-02-21')
  expect(dayOfReaching(forecast, 216_000_000n)).toBe('2026-02-28')
  expect(dayOfReaching(forecast, 216_000_001n)).toBeUndefined()
})
