import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { readNotices } from '../accounts/notices.ts'
import { wakeMachine } from '../activity/wake.ts'
import { readFailures } from './failures.ts'
import { dayOfReaching, readForecast } from './forecast.ts'
import { checkLimit, checkLimits, type LookedAt, setLimit } from './limits.ts'
import { type Ledger, span, testLedger } from './testing/ledger.ts'

const log = pino({ level: 'silent' })
const never = new AbortController().signal
const FEBRUARY = new Date('2026-02-20T12:00:00Z')

describe('a limit', () => {
  let ledger: Ledger
  let accountId = 0
  let machineId = 0
  let sleeper = 0
  beforeAll(async () => {
    ledger = await testLedger()
    accountId = await ledger.account({ plan: 'usage', email: 'ada@example.com' })
    machineId = await ledger.machine(accountId, 'demo')
    sleeper = await ledger.machine(accountId, 'sleeper')
    await ledger.owner`update machines set desired_state = 'asleep', observed_state = 'asleep' where id = ${sleeper}`
  })
  afterAll(() => ledger?.[Symbol.asyncDispose]())

  const mails = async () =>
    (await ledger.gateway<{ subject: string }[]>`select subject from mails order by id`).map(({ subject }) => subject)
  const wanted = async (id: number) =>
    (await ledger.gateway<{ desired_state: string }[]>`select desired_state from machines where id = ${id}`)[0]
      ?.desired_state
  /** Hours of 25 vCPUs, a dollar each. */
  const runs = (from: string, to: string) => ledger.spans([span(machineId, from, to, { cpus: 25, memoryBytes: 1 })])

  it('is told of at 80 and at 100 percent, once each, and pauses nothing unless it is hard', async () => {
    await setLimit(ledger.gateway, accountId, 'own', { micros: 10_000_000n, hard: false })
    await runs('2026-02-01T00:00:00Z', '2026-02-01T07:59:59Z')
    await checkLimits(ledger.gateway, FEBRUARY, never, log)
    expect(await mails()).toEqual([])
    await runs('2026-02-01T07:59:59Z', '2026-02-01T08:00:00Z')
    await Promise.all([1, 2, 3].map(() => checkLimits(ledger.gateway, FEBRUARY, never, log)))
    expect(await mails()).toEqual(['Berth: your machines have cost 80 % of your limit of $10.00'])
    await runs('2026-02-02T00:00:00Z', '2026-02-02T02:00:00Z')
    for (let look = 0; look < 3; look++) await checkLimits(ledger.gateway, FEBRUARY, never, log)
    expect(await mails()).toEqual([
      'Berth: your machines have cost 80 % of your limit of $10.00',
      'Berth: your machines have reached your limit of $10.00',
    ])
    expect(await wanted(machineId)).toBe('running')
  })

  it('that is hard pauses what runs, and nothing knocks it awake', async () => {
    await setLimit(ledger.gateway, accountId, 'operator', { micros: 10_000_000n, hard: true })
    expect(await checkLimit(ledger.gateway, accountId, FEBRUARY)).toBe(true)
    expect(await wanted(machineId)).toBe('paused')
    expect(await wakeMachine(ledger.gateway, sleeper, 'an SSH session')).toBe(false)
    expect(await wanted(sleeper)).toBe('asleep')
    expect((await mails()).at(-1)).toBe("Berth: your machines have reached the operator's limit of $10.00")
    const events = await ledger.gateway<
      { kind: string }[]
    >`select kind from events where account_id = ${accountId} order by id`
    expect(events.map(({ kind }) => kind)).toEqual(['account.over_limit', 'machine.paused'])
    // One that another gateway woke in the same moment.
    await ledger.owner`update machines set desired_state = 'running' where id = ${machineId}`
    await checkLimits(ledger.gateway, FEBRUARY, never, log)
    expect(await wanted(machineId)).toBe('paused')
  })

  it('is no more in the next month, where what was paused waits for its people', async () => {
    await checkLimits(ledger.gateway, new Date('2026-03-01T00:05:00Z'), never, log)
    expect(await wanted(machineId)).toBe('paused')
    expect(await wakeMachine(ledger.gateway, sleeper, 'an SSH session')).toBe(true)
    expect((await mails()).length).toBe(3)
  })

  it('of an account that cannot be looked at keeps no other from being reached, and the operator hears of it once', async () => {
    await using other = await testLedger()
    await other.account({ owner: true, email: 'operator@example.com' })
    const limited = []
    for (const email of ['first@example.com', 'second@example.com']) {
      const account = await other.account({ plan: 'usage', email })
      const machine = await other.machine(account)
      await other.spans([span(machine, '2026-02-01T00:00:00Z', '2026-02-01T02:00:00Z', { cpus: 25 })])
      await setLimit(other.gateway, account, 'own', { micros: 1_000_000n, hard: true })
      limited.push({ account, machine })
    }
    const [broken, sound] = limited
    await other.owner.unsafe(`create function break_one() returns trigger language plpgsql as $$ begin
      if new.account_id = ${broken?.account} then raise exception 'this account is broken'; end if; return new; end $$;
      create trigger break_one before insert on limit_notices for each row execute function break_one()`)
    const states = async () =>
      await other.gateway`select desired_state as state from machines where id in (${broken?.machine ?? 0}, ${sound?.machine ?? 0}) order by id`
    for (let look = 0; look < 3; look++) await checkLimits(other.gateway, FEBRUARY, never, log)
    expect(await states()).toEqual([{ state: 'running' }, { state: 'paused' }])
    expect(await readFailures(other.gateway)).toMatchObject([
      { accountId: broken?.account, task: 'limit', month: '2026-02', attempts: 3, problem: 'this account is broken' },
    ])
    const told = await other.gateway`select recipient from mails where subject like '%wants to be looked at'`
    expect(told).toEqual([{ recipient: 'operator@example.com' }])
    await other.owner`drop trigger break_one on limit_notices`
    await checkLimits(other.gateway, FEBRUARY, never, log)
    expect(await states()).toEqual([{ state: 'paused' }, { state: 'paused' }])
    expect(await readFailures(other.gateway)).toEqual([])
  })

  it('is told to an account without an address too', async () => {
    const nameless = await ledger.account({ plan: 'usage' })
    const id = await ledger.machine(nameless)
    await ledger.spans([span(id, '2026-02-01T00:00:00Z', '2026-02-01T02:00:00Z', { cpus: 25, memoryBytes: 1 })])
    await setLimit(ledger.gateway, nameless, 'own', { micros: 2_000_000n, hard: true })
    const before = (await mails()).length
    await checkLimit(ledger.gateway, nameless, FEBRUARY)
    expect((await readNotices(ledger.gateway, nameless)).map(({ subject }) => subject)).toEqual([
      'your machines have reached your limit of $2.00',
    ])
    expect((await mails()).length).toBe(before)
  })

  it('is looked at again when something was used, and where nothing was not until the hour is over', async () => {
    await using other = await testLedger()
    const account = await other.account({ plan: 'usage' })
    const id = await other.machine(account)
    const run = (from: string, to: string) => other.spans([span(id, from, to, { cpus: 25, memoryBytes: 1 })])
    const states = async () => (await other.gateway`select desired_state as state from machines`)[0]?.state
    const lookedAt: LookedAt = new Map()
    const look = (minutes: number) =>
      checkLimits(other.gateway, new Date(FEBRUARY.getTime() + minutes * 60_000), never, log, lookedAt)
    await setLimit(other.gateway, account, 'own', { micros: 10_000_000n, hard: true })
    await run('2026-02-01T00:00:00Z', '2026-02-01T02:00:00Z')
    await look(0)
    // Nobody lowers a limit so: the commands look by themselves.
    await setLimit(other.gateway, account, 'own', { micros: 1_000_000n, hard: true })
    await look(1)
    expect(await states()).toBe('running')
    await look(60)
    expect(await states()).toBe('paused')
    await setLimit(other.gateway, account, 'own', { micros: 10_000_000n, hard: true })
    await look(61)
    await other.owner`update machines set desired_state = 'running'`
    await run('2026-02-02T00:00:00Z', '2026-02-02T08:00:00Z')
    await look(62)
    expect(await states()).toBe('paused')
    // What is over it is looked at each time.
    await other.owner`update machines set desired_state = 'running'`
    await look(63)
    expect(await states()).toBe('paused')
  })

  it('counts what is charged: on plan house none is ever reached', async () => {
    const guest = await ledger.account({ email: 'guest@example.com' })
    const id = await ledger.machine(guest)
    await ledger.spans([span(id, '2026-02-01T00:00:00Z', '2026-02-02T00:00:00Z', { cpus: 64 })])
    await setLimit(ledger.gateway, guest, 'own', { micros: 1n, hard: true })
    expect(await checkLimit(ledger.gateway, guest, FEBRUARY)).toBe(false)
    expect(await wanted(id)).toBe('running')
  })

  it('counts a fee whole on the first day of its plan, and not before', async () => {
    const guest = await ledger.account({ email: 'soon@example.com' })
    const id = await ledger.machine(guest)
    await ledger.before(async (sql) => {
      await sql`insert into plans (name, charged) values ('team', true)`
      await sql`insert into rates (plan, kind, micros, effective) values ('team', 'fee', 100000000, '(,)')`
      await sql`insert into account_plans (account_id, plan, effective) values (${guest}, 'team', tstzrange('2026-02-22', null))`
    })
    // A quarter of the month: 25 dollars.
    await setLimit(ledger.gateway, guest, 'own', { micros: 20_000_000n, hard: true })
    expect(await checkLimit(ledger.gateway, guest, FEBRUARY)).toBe(false)
    expect(await checkLimit(ledger.gateway, guest, new Date('2026-02-21T23:59:59Z'))).toBe(false)
    expect(await wanted(id)).toBe('running')
    const forecast = await readForecast(ledger.gateway, guest, FEBRUARY)
    expect(dayOfReaching(forecast, 20_000_000n)).toBe('2026-02-22')
    expect(await checkLimit(ledger.gateway, guest, new Date('2026-02-22T00:00:00Z'))).toBe(true)
    expect(await wanted(id)).toBe('paused')
  })
})
