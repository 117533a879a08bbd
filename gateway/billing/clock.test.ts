import { pino } from 'pino'
import { expect, it } from 'vitest'
import { readWaiting, sayMonths, sayOver } from './clock.ts'
import { closeDueMonths } from './closing.ts'
import { proveInvoices } from './recompute.ts'
import { billingRound } from './service.ts'
import { type Ledger, span, testLedger } from './testing/ledger.ts'

const log = pino({ level: 'silent' })
const never = new AbortController().signal

const round = (ledger: Ledger, now: string, own = now) =>
  billingRound({ sql: ledger.gateway, log, signal: never, now: new Date(now), own: new Date(own) })
const closed = async (ledger: Ledger) =>
  (
    await ledger.gateway<{ month: string }[]>`
    select to_char(month, 'YYYY-MM') as month from invoice_runs order by month`
  ).map(({ month }) => month)

/** Who pays since November 2026, and ran for an hour of it. */
async function payer(ledger: Ledger) {
  await ledger.account({ owner: true, email: 'operator@example.com' })
  const accountId = await ledger.account({ plan: 'usage', since: '2026-11-01' })
  const machineId = await ledger.machine(accountId)
  await ledger.spans([span(machineId, '2026-11-23T10:00:00Z', '2026-11-23T11:00:00Z')])
  return { machineId }
}

it('a server that boots years ahead closes nothing, and goes on when its clock is right', async () => {
  await using ledger = await testLedger()
  const { machineId } = await payer(ledger)
  await round(ledger, '2026-11-23T12:00:00Z')
  // Its servers count by the same clock.
  await ledger.spans([span(machineId, '2036-01-05T10:00:00Z', '2036-01-05T10:05:00Z', { state: 'asleep' })])
  for (let look = 0; look < 3; look++) await round(ledger, `2036-01-05T10:0${look}:30Z`)
  expect(await closed(ledger)).toEqual([])
  const waiting = await readWaiting(ledger.gateway)
  expect(waiting?.because).toBe(
    'the clock says 2036-01-05 10:02 UTC, and it was last known to say 2026-11-23 12:00 UTC',
  )
  expect(sayMonths(waiting?.months ?? [])).toBe('November 2026 to December 2035 (110 months)')
  expect(await ledger.gateway`select subject from mails where recipient = 'operator@example.com'`).toEqual([
    { subject: 'Berth: months wait to be closed' },
  ])
  await round(ledger, '2026-11-23T12:05:00Z')
  expect(await readWaiting(ledger.gateway)).toBeUndefined()
  for (let day = 24; day <= 30; day++) await round(ledger, `2026-11-${day}T12:00:00Z`)
  expect(await closed(ledger)).toEqual([])
  await round(ledger, '2026-12-01T02:30:00Z')
  expect(await closed(ledger)).toEqual(['2026-11'])
})

it('a clock that is days ahead for one round closes no month that goes on', async () => {
  await using ledger = await testLedger()
  await payer(ledger)
  await round(ledger, '2026-11-23T12:00:00Z')
  await round(ledger, '2026-12-05T12:00:00Z')
  await round(ledger, '2026-11-23T12:02:00Z')
  expect(await closed(ledger)).toEqual([])
  // Nor the database's alone, however little it is past the end.
  await round(ledger, '2026-11-30T20:00:00Z')
  await round(ledger, '2026-12-01T02:30:00Z', '2026-11-30T21:00:00Z')
  expect(await closed(ledger)).toEqual([])
  expect((await readWaiting(ledger.gateway))?.because).toBe('the clocks of gateway and database differ by 19800 s')
  await round(ledger, '2026-12-01T02:30:00Z')
  expect(await closed(ledger)).toEqual(['2026-11'])
})

it('says why months wait as it is now, though it was another reason at first', async () => {
  await using ledger = await testLedger()
  await payer(ledger)
  await round(ledger, '2026-11-27T12:00:00Z')
  await round(ledger, '2026-12-01T02:30:00Z', '2026-12-01T02:00:00Z')
  expect((await readWaiting(ledger.gateway))?.because).toBe('the clocks of gateway and database differ by 1800 s')
  await round(ledger, '2026-12-02T02:30:00Z')
  expect(await readWaiting(ledger.gateway)).toMatchObject({
    since: new Date('2026-12-01T02:30:00Z'),
    because: 'the clock says 2026-12-02 02:30 UTC, and it was last known to say 2026-11-27 12:00 UTC',
  })
})

it('after weeks of standing still the operator says which months are over, and no others are closed', async () => {
  await using ledger = await testLedger()
  await payer(ledger)
  await round(ledger, '2026-11-23T12:00:00Z')
  await round(ledger, '2027-02-03T12:00:00Z')
  expect((await readWaiting(ledger.gateway))?.months).toEqual(['2026-11', '2026-12', '2027-01'])
  await sayOver(ledger.gateway, '2026-12')
  await round(ledger, '2027-02-03T12:01:00Z')
  expect(await closed(ledger)).toEqual(['2026-11', '2026-12'])
  expect((await readWaiting(ledger.gateway))?.months).toEqual(['2027-01'])
  await sayOver(ledger.gateway, '2027-01')
  await round(ledger, '2027-02-03T12:02:00Z')
  expect(await closed(ledger)).toEqual(['2026-11', '2026-12', '2027-01'])
  expect(await readWaiting(ledger.gateway)).toBeUndefined()
  // The word was of these months: the next jump waits again.
  await round(ledger, '2027-02-03T12:03:00Z')
  await round(ledger, '2027-03-20T12:00:00Z')
  expect((await readWaiting(ledger.gateway))?.months).toEqual(['2027-02'])
})

it('before the first round the newest fact says what the time was', async () => {
  await using ledger = await testLedger()
  const { machineId } = await payer(ledger)
  await round(ledger, '2026-12-05T12:00:00Z')
  expect(await closed(ledger)).toEqual([])
  await ledger.spans([span(machineId, '2026-12-05T11:55:00Z', '2026-12-05T12:00:00Z')])
  await round(ledger, '2026-12-05T12:01:00Z')
  expect(await closed(ledger)).toEqual(['2026-11'])
})

it('what is used in a month that was closed before its end is a correction on the next invoice', async () => {
  await using ledger = await testLedger()
  const accountId = await ledger.account({ plan: 'usage', since: '2026-01-01' })
  const machineId = await ledger.machine(accountId)
  // This month is closed, while it goes on, by a clock that is 50 days ahead.
  const month = new Date().toISOString().slice(0, 7)
  const at = (offset: number, day: string) => {
    const start = new Date(`${month}-01T00:00:00Z`)
    start.setUTCMonth(start.getUTCMonth() + offset)
    return new Date(`${start.toISOString().slice(0, 8)}${day}T02:30:00Z`)
  }
  await ledger.spans([span(machineId, `${month}-01T00:00:00Z`, `${month}-01T00:00:01Z`)])
  await closeDueMonths(ledger.gateway, at(0, '01'), never, log)
  await ledger.owner`update invoice_runs set started_at = started_at - interval '1 day'`
  await closeDueMonths(ledger.gateway, at(1, '20'), never, log)
  await ledger.spans([span(machineId, `${month}-01T00:00:01Z`, `${month}-01T10:00:01Z`)])
  await closeDueMonths(ledger.gateway, at(2, '01'), never, log)
  const lines = await ledger.gateway<{ micros: number }[]>`
    select amount_micros as micros from invoice_lines join invoices i on i.number = invoice
    where i.account_id = ${accountId} and kind = 'cpu' and invoice_lines.month = ${`${month}-01`}::date order by invoice`
  expect(lines).toHaveLength(2)
  expect(lines.reduce((all, { micros }) => all + Number(micros), 0)).toBe(400_011)
  for await (const proof of proveInvoices(ledger.gateway, never)) expect(proof).toMatchObject({ problems: [] })
})
