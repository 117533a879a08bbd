import { expect, it } from 'vitest'
import type { Db } from '../../migrations/connect.ts'
import { readNotices } from '../accounts/notices.ts'
import { announced, announcedCaps } from './announce.ts'
import { addDays } from './calendar.ts'
import { assignPlan, setPlan, setRate, soonest } from './plans.ts'
import { type Ledger, testLedger } from './testing/ledger.ts'

const inTransaction = async (ledger: Ledger, change: (tx: Db) => Promise<unknown>) =>
  await ledger.gateway.begin(async (tx) => await announced(tx, () => change(tx)))

it('whoever is to pay otherwise is told, with or without an address, and nobody else', async () => {
  await using ledger = await testLedger()
  const { gateway } = ledger
  const operator = await ledger.account({ owner: true, email: 'operator@example.com' })
  const ada = await ledger.account({ email: 'ada@example.com' })
  const bob = await ledger.account()
  const eve = await ledger.account({ plan: 'usage', email: 'eve@example.com' })
  const tomorrow = await soonest(gateway)
  const told = async () => {
    const rows = await gateway<{ account_id: number; subject: string }[]>`
      select account_id, subject from notices order by id`
    return rows.map(({ account_id: id, subject }) => [id, subject])
  }
  const others = (plan: string, from = tomorrow) =>
    inTransaction(ledger, (tx) => assignPlan(tx, { accountId: null, plan, from }))
  const cpu = (micros: bigint) =>
    inTransaction(ledger, (tx) => setRate(tx, { plan: 'usage', kind: 'cpu', micros, included: 0n, from: tomorrow }))

  // Those on plan house would only be shown another figure.
  expect(await cpu(50_000n)).toBe(1)
  expect(await told()).toEqual([[eve, `the rates of plan usage change on ${tomorrow}`]])
  expect((await readNotices(gateway, eve))[0]?.body).toMatch(
    new RegExp(`^From ${tomorrow} on plan usage asks for:\n {2}cpu: \\$0\\.05 per vCPU-hour, until then \\$0\\.04 per`),
  )
  // All that no plan is named for, and not the operator.
  expect(await others('usage')).toBe(2)
  const subject = `from ${tomorrow} on what your machines use is charged, by plan usage`
  expect((await told()).slice(1)).toEqual([
    [ada, subject],
    [bob, subject],
  ])
  const [notice] = await readNotices(gateway, bob)
  expect(notice?.body).toMatch(
    /what your machines use is charged:\n {2}cpu: \$0\.05 per vCPU-hour\n {2}memory: \$0\.006/,
  )
  expect(await gateway`select recipient, subject from mails order by id`).toEqual([
    { recipient: 'eve@example.com', subject: `Berth: the rates of plan usage change on ${tomorrow}` },
    { recipient: 'ada@example.com', subject: `Berth: ${subject}` },
  ])
  // What changes nothing for anybody is no news; what is to come does not change for those who are on another plan.
  expect(await others('usage')).toBe(0)
  expect(await cpu(50_000n)).toBe(0)
  // A rate of a plan that somebody will be on, a later day, and all of it withdrawn.
  expect(await cpu(60_000n)).toBe(3)
  expect(await others('usage', addDays(tomorrow, 3))).toBe(0)
  expect(await others('house', addDays(tomorrow, 5))).toBe(2)
  expect((await readNotices(gateway, bob))[0]?.body).toMatch(
    new RegExp(`${addDays(tomorrow, 5)} on you are on plan house, where nothing is charged`),
  )
  expect(await others('house')).toBe(2)
  expect((await readNotices(gateway, ada))[0]?.subject).toBe('you stay on plan house, and nothing changes')
  expect(await readNotices(gateway, operator)).toEqual([])
})

it('of a plan of their own an account is told alone, by what differs; and of caps all that are on it', async () => {
  await using ledger = await testLedger()
  const { gateway } = ledger
  const ada = await ledger.account({ plan: 'usage' })
  const bob = await ledger.account({ plan: 'usage' })
  const tomorrow = await soonest(gateway)
  await setPlan(gateway, 'team', {})
  await setRate(gateway, { plan: 'team', kind: 'fee', micros: 20_000_000n, included: 0n, from: tomorrow })
  await setRate(gateway, { plan: 'team', kind: 'cpu', micros: 40_000n, included: 500n, from: tomorrow })
  const assign = (tx: Db) => assignPlan(tx, { accountId: ada, plan: 'team', from: tomorrow })
  expect(await inTransaction(ledger, assign)).toBe(1)
  const [notice] = await readNotices(gateway, ada)
  expect(notice?.subject).toBe(`from ${tomorrow} on you are on plan team`)
  expect(notice?.body).toMatch(
    /where what differs is:\n {2}fee: \$20\.00 per month\n {2}cpu: \$0\.04 per vCPU-hour, 500 vCPU-hours a month included, until then \$0\.04 per vCPU-hour\n\nUntil then/,
  )
  expect(await readNotices(gateway, bob)).toEqual([])
  const caps = (plan: string, machinesMost: number) =>
    gateway.begin(async (tx) => await announcedCaps(tx, plan, () => setPlan(tx, plan, { machinesMost })))
  // Somebody will be on it.
  expect(await caps('team', 3)).toEqual({ outcome: false, told: 1 })
  expect((await readNotices(gateway, ada))[0]?.subject).toBe('plan team is for 3 machines now')
  expect(await inTransaction(ledger, (tx) => assignPlan(tx, { accountId: bob, plan: 'team', from: tomorrow }))).toBe(1)
  expect((await readNotices(gateway, bob))[0]?.body).toMatch(
    /\nIt is for 3 machines, all machines of an account together; what is there stays\.\n\nUntil then/,
  )
  expect(await caps('usage', 5)).toEqual({ outcome: false, told: 2 })
  expect(await caps('usage', 5)).toEqual({ outcome: false, told: 0 })
  expect(await caps('other', 1)).toEqual({ outcome: true, told: 0 })
  expect((await readNotices(gateway, bob)).map(({ subject }) => subject)[0]).toBe('plan usage is for 5 machines now')
})
