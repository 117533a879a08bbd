import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { execPath } from 'node:process'
import { pino } from 'pino'
import { expect, it } from 'vitest'
import { closeDueMonths } from './closing.ts'
import { readFailures } from './failures.ts'
import { creditBalance, readCredits, readInvoice, readInvoices } from './invoices.ts'
import { assignPlan, setPlan, setRate, soonest } from './plans.ts'
import { proveInvoices } from './recompute.ts'
import { billingRound } from './service.ts'
import { readPriceList } from './terms.ts'
import { type Ledger, span, testLedger } from './testing/ledger.ts'

const log = pino({ level: 'silent' })
const never = new AbortController().signal
const MARCH = new Date('2026-03-01T02:30:00Z')
const APRIL = new Date('2026-04-01T02:30:00Z')

/** Accounts of plan usage with a machine that ran for an hour of February. */
async function users(ledger: Ledger, count: number): Promise<{ accountId: number; machineId: number }[]> {
  const made = []
  for (let n = 0; n < count; n++) {
    const accountId = await ledger.account({ plan: 'usage', since: '2026-02-01' })
    const machineId = await ledger.machine(accountId)
    await ledger.spans([span(machineId, '2026-02-10T10:00:00Z', '2026-02-10T11:00:00Z', { cpus: 1 + n })])
    made.push({ accountId, machineId })
  }
  return made
}

const total = async (ledger: Ledger) =>
  await ledger.gateway<{ numbers: number[]; last: number }[]>`
    select array_agg(number order by number) as numbers, (select last from invoice_counter) as last from invoices`

it('a month is closed once, however often and by however many gateways', async () => {
  await using ledger = await testLedger()
  await users(ledger, 12)
  const other = ledger.database.as('berth_gateway')
  const round = (sql: typeof other, now = MARCH) => billingRound({ sql, log, signal: never, now })
  await round(other, new Date('2026-02-28T22:00:00Z'))
  await Promise.all([round(ledger.gateway), round(other), round(ledger.gateway), round(other)])
  await round(other)
  // Without the lock it is no different.
  await Promise.all([closeDueMonths(ledger.gateway, MARCH, never, log), closeDueMonths(other, MARCH, never, log)])
  const [row] = await total(ledger)
  expect(row).toEqual({ numbers: Array.from({ length: 12 }, (_, n) => n + 1), last: 12 })
  expect(await ledger.gateway`select from invoice_runs where finished_at is not null`).toHaveLength(1)
})

it('a gateway killed in the middle leaves no gap and no second invoice, and the next one goes on', async () => {
  await using ledger = await testLedger()
  await users(ledger, 30)
  const written = async () => (await ledger.owner`select from invoices`).length
  for (let kill = 0; kill < 2; kill++) {
    const before = await written()
    const script = new URL('testing/closing-process.ts', import.meta.url).pathname
    const process = spawn(execPath, [script, ledger.database.url, MARCH.toISOString()], { stdio: 'inherit' })
    const gone = once(process, 'exit')
    // Somewhere in the middle of one of the next invoices.
    while (process.exitCode === null && (await written()) <= before + kill) {}
    process.kill('SIGKILL')
    await gone
  }
  expect(await written()).toBeGreaterThan(1)
  await closeDueMonths(ledger.gateway, MARCH, never, log)
  const [row] = await total(ledger)
  expect(row).toEqual({ numbers: Array.from({ length: 30 }, (_, n) => n + 1), last: 30 })
  expect(await ledger.owner`select account_id from invoices group by account_id having count(*) > 1`).toEqual([])
}, 180_000)

it('an account that fails holds up nobody, waits longer each time, and gets its months in order when it is mended', async () => {
  await using ledger = await testLedger()
  await ledger.account({ owner: true, email: 'operator@example.com' })
  const [first, broken, last] = await users(ledger, 3)
  for (const { machineId } of [first, broken, last].filter((user) => user !== undefined)) {
    await ledger.spans([span(machineId, '2026-03-10T10:00:00Z', '2026-03-10T11:00:00Z')])
  }
  await ledger.gateway`insert into credits (account_id, micros, reason) values (${broken?.accountId ?? 0}, 100000, 'both months')`
  await ledger.owner.unsafe(`create function break_one() returns trigger language plpgsql as $$ begin
    if new.account_id = ${broken?.accountId} then raise exception 'this account is broken'; end if; return new; end $$;
    create trigger break_one before insert on invoices for each row execute function break_one()`)
  const at = (start: Date, minutes: number) => new Date(start.getTime() + minutes * 60_000)
  const close = (now: Date) => closeDueMonths(ledger.gateway, now, never, log)
  const failures = async () =>
    (await readFailures(ledger.gateway)).map(({ month, attempts, nextAttemptAt, problem }) => {
      return [month, attempts, problem, Math.round((nextAttemptAt.getTime() - MARCH.getTime()) / 60_000)]
    })
  const why = 'this account is broken'
  expect(await close(MARCH)).toEqual([1, 2])
  expect(await ledger.gateway`select month from invoice_runs where finished_at is null`).toEqual([])
  expect(await failures()).toEqual([['2026-02', 1, why, 5]])
  // Not before its time, and then alone.
  expect(await close(at(MARCH, 4))).toEqual([])
  expect(await failures()).toEqual([['2026-02', 1, why, 5]])
  expect(await close(at(MARCH, 5))).toEqual([])
  expect(await failures()).toEqual([['2026-02', 2, why, 15]])
  for (const minutes of [15, 35, 75, 155, 315, 635]) await close(at(MARCH, minutes))
  expect(await failures()).toEqual([['2026-02', 8, why, 635 + 360]])
  expect(await ledger.gateway`select recipient from mails`).toEqual([{ recipient: 'operator@example.com' }])
  const told = await ledger.gateway`select account_id, detail from events where kind = 'invoice.failed'`
  expect(told).toEqual([{ account_id: null, detail: { account: broken?.accountId, month: '2026-02', problem: why } }])
  // The next month is everybody's but its own.
  expect(await close(APRIL)).toEqual([3, 4])
  expect((await failures()).map(([month, attempts]) => [month, attempts])).toEqual([
    ['2026-02', 9],
    ['2026-03', 0],
  ])
  await ledger.owner`drop trigger break_one on invoices`
  expect(await close(at(APRIL, 24 * 60))).toEqual([5, 6])
  expect(await failures()).toEqual([])
  const [fifth, sixth] = [await readInvoice(ledger.gateway, 5), await readInvoice(ledger.gateway, 6)]
  expect([fifth?.invoice.month, sixth?.invoice.month]).toEqual(['2026-02', '2026-03'])
  expect(fifth?.lines.find(({ kind }) => kind === 'credit')?.amount).toBe(-86_000n)
  expect(sixth?.lines.find(({ kind }) => kind === 'credit')?.amount).toBe(-14_000n)
  for await (const proof of proveInvoices(ledger.gateway, never)) expect(proof.problems).toEqual([])
  expect(await close(at(APRIL, 25 * 60))).toEqual([])
})

it('a database that goes away in the middle is no failure of any account', async () => {
  await using ledger = await testLedger()
  await users(ledger, 3)
  await ledger.owner.unsafe(`create function cut() returns trigger language plpgsql as $$ begin
    if new.number = 2 then raise exception 'going away' using errcode = 'admin_shutdown'; end if; return new; end $$;
    create trigger cut before insert on invoices for each row execute function cut()`)
  await expect(closeDueMonths(ledger.gateway, MARCH, never, log)).rejects.toThrow(/going away/)
  expect(await readFailures(ledger.gateway)).toEqual([])
  await ledger.owner`drop trigger cut on invoices`
  expect(await closeDueMonths(ledger.gateway, MARCH, never, log)).toEqual([2, 3])
})

it('what comes to light later is a correction on the next invoice, and then it is proved', async () => {
  await using ledger = await testLedger()
  const [user] = await users(ledger, 1)
  const { accountId = 0, machineId = 0 } = user ?? {}
  await closeDueMonths(ledger.gateway, MARCH, never, log)
  const before = await readInvoice(ledger.gateway, 1)
  // Its server had no database for weeks.
  await ledger.spans([span(machineId, '2026-02-20T00:00:00Z', '2026-02-21T00:00:00Z', { cpus: 2 })])
  const pending = []
  for await (const proof of proveInvoices(ledger.gateway, never)) pending.push(proof)
  expect(pending).toMatchObject([{ pending: true, problems: [] }])
  await closeDueMonths(ledger.gateway, APRIL, never, log)
  expect(await readInvoice(ledger.gateway, 1)).toEqual(before)
  const after = await readInvoice(ledger.gateway, 2)
  const day = 24n * 3_600_000_000n
  expect(after?.lines.filter(({ rateId }) => rateId !== null)).toMatchObject([
    {
      kind: 'cpu',
      month: '2026-02',
      quantity: 2n * day,
      amount: 1_920_000n,
      machines: [[machineId, 2n * day]],
      days: [['2026-02-20', 2n * day]],
    },
    { kind: 'memory', month: '2026-02', quantity: day * 2n ** 30n, amount: 144_000n },
  ])
  const proofs = []
  for await (const proof of proveInvoices(ledger.gateway, never)) proofs.push(proof)
  expect(proofs).toMatchObject([
    { pending: false, problems: [] },
    { pending: false, problems: [] },
  ])
  // And is not corrected again.
  await closeDueMonths(ledger.gateway, new Date('2026-05-01T02:30:00Z'), never, log)
  expect(await readInvoices(ledger.gateway, accountId)).toHaveLength(2)
})

it('credit is taken oldest first, what is left is kept, and the rest is paid in cents', async () => {
  await using ledger = await testLedger()
  const accountId = await ledger.account({ plan: 'usage', since: '2026-02-01' })
  const machineId = await ledger.machine(accountId)
  const run = (from: string, to: string) => ledger.spans([span(machineId, from, to, { cpus: 4 })])
  // Four vCPUs and a GiB for an hour: 0.166. Ten hours and a bit: 1.66 and a fraction.
  await run('2026-02-01T00:00:00Z', '2026-02-01T10:00:07.123456Z')
  await run('2026-03-01T00:00:00Z', '2026-03-01T10:00:00Z')
  await ledger.gateway`insert into credits (account_id, micros, reason) values (${accountId}, 1000000, 'a welcome'), (${accountId}, 1234567, 'an outage')`
  await closeDueMonths(ledger.gateway, MARCH, never, log)
  const first = await readInvoice(ledger.gateway, 1)
  expect(first?.invoice.total).toBe(0n)
  expect(first?.lines.filter(({ kind }) => kind === 'credit')).toMatchObject([
    { amount: -1_000_000n, creditId: 1 },
    { amount: -660_329n, creditId: 2 },
  ])
  expect(creditBalance(await readCredits(ledger.gateway, accountId))).toBe(574_238n)
  await closeDueMonths(ledger.gateway, APRIL, never, log)
  const second = await readInvoice(ledger.gateway, 2)
  // 1.66 less 0.574238 is 1.085762.
  expect(second?.lines.slice(-2)).toMatchObject([
    { kind: 'credit', amount: -574_238n },
    { kind: 'rounding', amount: 4_238n },
  ])
  expect(second?.invoice.total).toBe(1_090_000n)
  for await (const proof of proveInvoices(ledger.gateway, never)) expect(proof.problems).toEqual([])
})

it('a figure that was changed does not stand the proof, nor does a rollup that is off', async () => {
  await using ledger = await testLedger()
  await users(ledger, 1)
  await closeDueMonths(ledger.gateway, MARCH, never, log)
  await ledger.owner`delete from late_usage`
  const problems = async () => {
    for await (const proof of proveInvoices(ledger.gateway, never)) return proof.problems
    return []
  }
  expect(await problems()).toEqual([])
  const meanwhile = async (change: string, back: string) => {
    await ledger.owner.unsafe(
      `set session_replication_role = replica; ${change}; set session_replication_role = origin`,
    )
    const found = await problems()
    await ledger.owner.unsafe(`set session_replication_role = replica; ${back}; set session_replication_role = origin`)
    expect(await problems()).toEqual([])
    return found.join('; ')
  }
  const line = 'update invoice_lines set amount_micros = amount_micros'
  expect(await meanwhile(`${line} + 1 where kind = 'cpu'`, `${line} - 1 where kind = 'cpu'`)).toMatch(
    /sum to \$0\.050001.*its rate gives \$0\.040000, not \$0\.040001.*facts give \$0\.000001 less/,
  )
  for (const [table, sums] of [
    ['usage_days', '3 sums of usage differ'],
    ['usage_machine_months', 'one sum of usage differs'],
    ['usage_account_days', 'one sum of usage differs'],
  ]) {
    const change = `update ${table} set cpu = cpu`
    expect(await meanwhile(`${change} + 1`, `${change} - 1`)).toBe(`${sums} from the facts`)
  }
  const fact = `update machine_spans set cpus`
  expect(await meanwhile(`${fact} = 2`, `${fact} = 1`)).toMatch(
    /cpu: the facts give \$0\.040000 more.*one sum of usage differs from/,
  )
  expect(
    await meanwhile('update invoices set total_micros = 60000', 'update invoices set total_micros = 50000'),
  ).toMatch(/not \$0\.06/)
  await expect(ledger.gateway`update invoices set total_micros = 0`).rejects.toThrow(/permission denied/)
  await expect(ledger.owner`update invoice_lines set amount_micros = 0`).rejects.toThrow(/append only/)
})

it('credits, what is carried and the rounding are proved too', async () => {
  await using ledger = await testLedger()
  const accountId = await ledger.account({ plan: 'usage', since: '2026-02-01' })
  const machineId = await ledger.machine(accountId)
  await ledger.spans([span(machineId, '2026-02-01T00:00:00Z', '2026-02-01T10:00:07.123456Z', { cpus: 4 })])
  await ledger.gateway`insert into credits (account_id, micros, reason) values (${accountId}, 1000000, 'a welcome')`
  await closeDueMonths(ledger.gateway, MARCH, never, log)
  const problems = async () => {
    for await (const proof of proveInvoices(ledger.gateway, never)) return proof.problems.join('; ')
    return undefined
  }
  expect(await problems()).toBe('')
  const meanwhile = async (change: string, back: string) => {
    await ledger.owner.unsafe(
      `set session_replication_role = replica; ${change}; set session_replication_role = origin`,
    )
    const found = await problems()
    await ledger.owner.unsafe(`set session_replication_role = replica; ${back}; set session_replication_role = origin`)
    expect(await problems()).toBe('')
    return found
  }
  const line = (kind: string, micros: number) =>
    `update invoice_lines set amount_micros = amount_micros + ${micros} where kind = '${kind}';
     update invoices set total_micros = total_micros + ${micros}`
  // 1.660329 less a dollar is 66 cents; a cent more on the rounding, and on the total.
  expect(await meanwhile(line('rounding', 10_000), line('rounding', -10_000))).toBe(
    'the rounding is $0.009671, not -$0.000329',
  )
  expect(await meanwhile(line('credit', -100_000), line('credit', 100_000))).toBe(
    '$1.100000 of credit 1 are taken, which is of $1.000000',
  )
  const credit = "update invoice_lines set amount_micros = amount_micros + 0 where kind = 'credit'"
  expect(await meanwhile(credit.replace('+ 0', '- 1000000'), credit.replace('+ 0', '+ 1000000'))).toMatch(
    /; credits take \$0\.339671 more than there is to pay; /,
  )
  const carried = (kind: string, to: string) => `update invoice_lines set kind = '${to}' where kind = '${kind}'`
  expect(await meanwhile(carried('credit', 'carried'), carried('carried', 'credit'))).toMatch(
    /^what is carried is -\$1\.000000, not \$0\.000000; /,
  )
})

it('what an invoice below nothing leaves is proved to be its credit', async () => {
  await using ledger = await testLedger()
  const accountId = await ledger.account({ plan: 'usage', since: '2026-02-01' })
  const machineId = await ledger.machine(accountId)
  await ledger.spans([span(machineId, '2026-02-01T00:00:00Z', '2026-02-01T10:00:00Z', { cpus: 4 })])
  await closeDueMonths(ledger.gateway, MARCH, never, log)
  // What was charged too much, as a rate that was wrong would have had it.
  await ledger.owner.unsafe(`set session_replication_role = replica;
    update invoice_lines set amount_micros = amount_micros + 500000 where kind = 'cpu';
    update invoices set total_micros = total_micros + 500000; set session_replication_role = origin`)
  await closeDueMonths(ledger.gateway, APRIL, never, log)
  const second = await readInvoice(ledger.gateway, 2)
  expect(second?.lines.map(({ kind, amount }) => [kind, amount])).toEqual([
    ['cpu', -500_000n],
    ['carried', 500_000n],
  ])
  const problems = async () => {
    const all = []
    for await (const proof of proveInvoices(ledger.gateway, never))
      if (proof.invoice.number === 2) all.push(...proof.problems)
    return all
  }
  expect(await problems()).toEqual([])
  await ledger.owner.unsafe(`set session_replication_role = replica;
    update credits set micros = 600000; set session_replication_role = origin`)
  expect(await problems()).toEqual(['credit 1 is of $0.600000, and $0.500000 were left'])
})

it('rates and plans change from tomorrow on, one at a time, and never what was', async () => {
  await using ledger = await testLedger()
  const { gateway } = ledger
  const accountId = await ledger.account()
  const tomorrow = await soonest(gateway)
  await setPlan(gateway, 'team', { machinesMost: 5 })
  await setRate(gateway, { plan: 'usage', kind: 'cpu', micros: 50_000n, included: 0n, from: '2099-01-01' })
  await setRate(gateway, { plan: 'usage', kind: 'cpu', micros: 45_000n, included: 0n, from: tomorrow })
  await assignPlan(gateway, { accountId, plan: 'team', from: '2099-01-01' })
  await assignPlan(gateway, { accountId, plan: 'usage', from: tomorrow })
  await assignPlan(gateway, { accountId: null, plan: 'usage', from: tomorrow })
  const { rates } = await readPriceList(gateway)
  expect(rates.filter(({ kind }) => kind === 'cpu')).toMatchObject([
    { micros: 40_000n, from: null, to: tomorrow },
    { micros: 45_000n, from: tomorrow, to: null },
  ])
  expect(await gateway`select plan from account_plans where account_id = ${accountId}`).toMatchObject([
    { plan: 'usage' },
  ])
  for (const write of [
    gateway`update rates set effective = tstzrange(null, '2026-01-01') where kind = 'cpu' and lower(effective) is null`,
    gateway`delete from rates where kind = 'disk'`,
    gateway`insert into rates (plan, kind, micros, effective) values ('team', 'cpu', 1, tstzrange('2026-01-01', null))`,
    gateway`insert into account_plans (account_id, plan, effective) values (${accountId}, 'team', '(,)')`,
    ledger.owner`update rates set micros = 1 where kind = 'disk'`,
  ]) {
    await expect(write).rejects.toThrow(/from tomorrow on, and never what was/)
  }
  await expect(gateway`update rates set micros = 1 where kind = 'disk'`).rejects.toThrow(/permission denied/)
  await expect(
    gateway`insert into rates (plan, kind, micros, effective) values ('usage', 'cpu', 1, tstzrange('2099-05-05', null))`,
  ).rejects.toThrow(/rates_one_at_a_time/)
  await expect(
    gateway`insert into rates (plan, kind, micros, effective) values ('team', 'cpu', 1, tstzrange('2099-05-05 12:00Z', null))`,
  ).rejects.toThrow(/rates_by_day/)
})
