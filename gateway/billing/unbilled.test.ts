import { pino } from 'pino'
import { expect, it } from 'vitest'
import { addMonths, monthOf, startOfMonth } from './calendar.ts'
import { closeDueMonths, dueMonths } from './closing.ts'
import { readInvoices } from './invoices.ts'
import { proveInvoices } from './recompute.ts'
import { type Ledger, span, testLedger } from './testing/ledger.ts'
import { closeMissed, type Unbilled, unbilledMonths, unclosedMonths } from './unbilled.ts'

const log = pino({ level: 'silent' })
const never = new AbortController().signal

async function unbilled({ gateway }: Ledger): Promise<Unbilled[]> {
  const all: Unbilled[] = []
  for await (const one of unbilledMonths(gateway, never)) all.push(one)
  return all
}

/** Accounts that were passed over when February was closed: one that used something, one with a fee, and ones without either. */
async function passedOver(ledger: Ledger): Promise<{ user: number; payer: number; machineId: number }> {
  const [user, idle] = [await ledger.account({ plan: 'usage' }), await ledger.account({ plan: 'usage' })]
  await ledger.account()
  await ledger.before(
    (sql) => sql`with plan as (insert into plans (name, charged) values ('team', true))
      insert into rates (plan, kind, micros, effective) values ('team', 'fee', 20000000, '[2026-02-01,2026-03-01)')`,
  )
  const payer = await ledger.account({ email: 'payer@example.com', plan: 'team' })
  const machineId = await ledger.machine(user)
  await ledger.machine(idle)
  await ledger.spans([span(machineId, '2026-02-10T10:00:00Z', '2026-02-10T11:00:00Z')])
  await ledger.owner`insert into invoice_runs (month, started_at, finished_at) values ('2026-02-01', '2026-03-01', '2026-03-01')`
  return { user, payer, machineId }
}

it('what accounts without an invoice used, or a fee, is found, closed when asked for, and then proved', async () => {
  await using ledger = await testLedger()
  const { user, payer } = await passedOver(ledger)
  await ledger.owner`delete from late_usage`
  expect(await unbilled(ledger)).toEqual([
    { accountId: user, email: null, month: '2026-02', amount: 46_000n, because: 'missed' },
    { accountId: payer, email: 'payer@example.com', month: '2026-02', amount: 20_000_000n, because: 'missed' },
  ])
  const now = new Date('2026-03-10T00:00:00Z')
  expect(await closeMissed(ledger.gateway, await unbilled(ledger), now)).toBe(2)
  expect(await unbilled(ledger)).toMatchObject([{ because: 'failed' }, { because: 'failed' }])
  expect(await closeMissed(ledger.gateway, await unbilled(ledger), now)).toBe(0)
  expect(await closeDueMonths(ledger.gateway, now, never, log)).toEqual([1, 2])
  expect(await unbilled(ledger)).toEqual([])
  for await (const { problems } of proveInvoices(ledger.gateway, never)) expect(problems).toEqual([])
})

it('what the next invoice corrects is said to be late, and is on it once', async () => {
  await using ledger = await testLedger()
  const { user, machineId } = await passedOver(ledger)
  const [late] = await unbilled(ledger)
  expect(late).toMatchObject({ accountId: user, because: 'late' })
  expect(await closeMissed(ledger.gateway, late ? [late] : [], new Date())).toBe(0)
  await ledger.spans([span(machineId, '2026-03-10T10:00:00Z', '2026-03-10T11:00:00Z')])
  await closeDueMonths(ledger.gateway, new Date('2026-04-01T03:00:00Z'), never, log)
  expect(await readInvoices(ledger.gateway, user)).toMatchObject([{ month: '2026-03', total: 90_000n }])
  expect((await unbilled(ledger)).filter(({ accountId }) => accountId === user)).toEqual([])
  // A later correction that says something else than the facts is found, too.
  await ledger.owner`delete from late_usage`
  await ledger.owner.unsafe(`set session_replication_role = replica;
    update invoice_lines set amount_micros = amount_micros - 1 where kind = 'cpu' and month = '2026-02-01';
    set session_replication_role = origin`)
  expect(await unbilled(ledger)).toContainEqual({
    accountId: user,
    email: null,
    month: '2026-02',
    amount: 1n,
    because: 'partial',
  })
})

it('months that nobody closed are found when they have been over for a day', async () => {
  await using ledger = await testLedger()
  const now = new Date()
  expect(await unclosedMonths(ledger.gateway)).toBeUndefined()
  await ledger.account({ plan: 'usage', since: '2026-01-01' })
  const due = await dueMonths(ledger.gateway, new Date(now.getTime() - 86_400_000))
  expect(due[0]).toBe('2026-01')
  expect(await unclosedMonths(ledger.gateway)).toEqual({ months: due, because: undefined })
  await closeDueMonths(ledger.gateway, startOfMonth(addMonths(monthOf(now), 1)), never, log)
  expect(await unclosedMonths(ledger.gateway)).toBeUndefined()
})
