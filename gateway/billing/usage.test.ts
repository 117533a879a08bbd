import { randomUUID } from 'node:crypto'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { random } from '../commands/testing/random.ts'
import { sum } from './arithmetic.ts'
import { dayShares, machineShares } from './pricing.ts'
import { cut, type Ledger, type Reading, type Span, span, testLedger } from './testing/ledger.ts'
import { readMonth, readRange } from './usage.ts'

const MINUTE_MS = 60_000
const at = (from: Date, ms: number) => new Date(from.getTime() + ms)

describe('usage', () => {
  let ledger: Ledger
  beforeAll(async () => {
    ledger = await testLedger()
  })
  afterAll(() => ledger?.[Symbol.asyncDispose]())

  /** Rows of the rollup, and what the facts give. */
  const both = async (machineId: number) => {
    const kept = await ledger.gateway`
      select day::text, cpu::text, memory::text, disk::text, checkpoints::text, direct::text, gateway::text
      from usage_days where machine_id = ${machineId} order by day`
    const facts = await ledger.gateway`
      select day::text, cpu::text, memory::text, disk::text, checkpoints::text, direct::text, gateway::text
      from ledger_usage(array[${machineId}::integer], '2020-01-01', '2030-01-01') order by day`
    return { kept: kept.map((row) => ({ ...row })), facts: facts.map((row) => ({ ...row })) }
  }

  it('is the same however its time was cut into pieces', async () => {
    const pick = random(7)
    const states = ['running', 'asleep', 'stopped', 'failed', 'creating'] as const
    const accountId = await ledger.account()
    const machines = [await ledger.machine(accountId), await ledger.machine(accountId), await ledger.machine(accountId)]
    const spans: Omit<Span, 'machineId'>[] = []
    for (let from = new Date('2026-02-26T21:13:07.123Z'); spans.length < 40; ) {
      const to = at(from, 1 + pick(30 * 3_600_000))
      spans.push({
        ...{ from, to, state: states[pick(5)] ?? 'running', cpus: 1 + pick(8) },
        ...{ memoryBytes: (1 + pick(64)) * 2 ** 28, diskBytes: pick(1000) * 2 ** 20, checkpointBytes: pick(2 ** 31) },
      })
      from = pick(3) ? to : at(to, pick(3_600_000))
    }
    const cuts = [
      (from: Date) => at(from, 5 * MINUTE_MS),
      (from: Date) => at(from, 1 + pick(20 * 3_600_000)),
      (from: Date) => at(from, 40 * 3_600_000),
    ]
    for (const [index, next] of cuts.entries()) {
      const pieces = spans.flatMap((one) => cut({ ...one, machineId: machines[index] ?? 0 }, next))
      // In several statements and not in order, as from a server that was cut off.
      const half = Math.floor(pieces.length / 2)
      await ledger.spans(pieces.slice(half))
      await ledger.spans(pieces.slice(0, half))
      // Sent again: nothing is counted twice.
      await ledger.spans(pieces.slice(0, 10))
    }
    const [first, ...others] = await Promise.all(machines.map(both))
    expect(first?.kept.length).toBeGreaterThan(10)
    expect(first?.kept).toEqual(first?.facts)
    for (const other of others) {
      expect(other.kept).toEqual(first?.kept)
      expect(other.facts).toEqual(first?.kept)
    }
    for (const line of await readMonth(ledger.gateway, accountId, '2026-03')) {
      const quantities = new Set(line.machines.map(([, quantity]) => quantity))
      expect(quantities.size, line.kind).toBe(1)
      expect(sum(machineShares(line).map(([, amount]) => amount))).toBe(line.amount)
      expect(sum(dayShares(line).map(([, amount]) => amount))).toBe(line.amount)
    }
  })

  it('of counters is the same in whatever order their readings arrive, and counts no repeat', async () => {
    const pick = random(11)
    const accountId = await ledger.account()
    const [inOrder, shuffled] = [await ledger.machine(accountId), await ledger.machine(accountId)]
    const series: Omit<Reading, 'machineId' | 'series'>[][] = [0, 1, 2].map((life) => {
      let [direct, gateway] = [0, 0]
      return Array.from({ length: 30 }, (_, sequence) => {
        direct += pick(5) ? pick(2 ** 31) : 0
        gateway += pick(3) ? 0 : pick(100_000)
        return {
          sequence: sequence * 2,
          at: at(new Date(`2026-03-0${1 + life * 3}T22:00:00Z`), sequence * 11 * MINUTE_MS),
          direct,
          gateway,
        }
      })
    })
    for (const [machineId, isShuffled] of [
      [inOrder, false],
      [shuffled, true],
    ] as const) {
      for (const readings of series) {
        const name = randomUUID()
        const all = readings.map((reading) => ({ ...reading, machineId, series: name }))
        const order = isShuffled
          ? all.map((one) => ({ one, key: pick(1000) })).sort((a, b) => a.key - b.key)
          : all.map((one) => ({ one }))
        await ledger.readings(order.map(({ one }) => one))
        await ledger.readings(all.slice(3, 6))
      }
    }
    const [a, b] = [await both(inOrder), await both(shuffled)]
    expect(a.kept.length).toBeGreaterThan(3)
    expect(a.kept).toEqual(a.facts)
    expect(b.kept).toEqual(a.kept)
    expect(b.facts).toEqual(a.kept)
    const used = (column: 'direct' | 'gateway') =>
      sum(a.kept.map((row) => BigInt((row as Record<string, string>)[column] ?? '')))
    expect(used('direct')).toBe(sum(series.map((readings) => BigInt(readings.at(-1)?.direct ?? 0))))
    expect(used('gateway')).toBe(sum(series.map((readings) => BigInt(readings.at(-1)?.gateway ?? 0))))
  })

  it('of many readings in one statement is each less the one before it', async () => {
    const machineId = await ledger.machine(await ledger.account())
    const name = randomUUID()
    const insert = (sequences: number[]) => ledger.vmhost`
      insert into transfer_readings select ${name}, n, ${machineId}, 1, ${name}, '2026-03-01'::timestamptz + n * interval '5 hours',
        n * n * 1000, 0, 0, 0, n, 0, 0, 0 from unnest(${sequences}::bigint[]) as n`
    await insert([2, 5, 9])
    await insert([1, 3, 4, 7, 8, 12])
    await insert([6, 10, 11, 5])
    const { kept, facts } = await both(machineId)
    expect(kept).toEqual(facts)
    expect(sum(kept.map((row) => BigInt((row as Record<string, string>).direct ?? '')))).toBe(144_000n)
  })

  it('asleep and stopped is disk alone, and so is a failure', async () => {
    const machineId = await ledger.machine(await ledger.account())
    const size = { memoryBytes: 2 ** 31, diskBytes: 2 ** 30, checkpointBytes: 2 ** 20, cpus: 2 }
    const states = ['running', 'asleep', 'stopped', 'failed', 'creating'] as const
    await ledger.spans(
      states.map((state, hour) =>
        span(machineId, `2026-03-01T0${hour}:00:00Z`, `2026-03-01T0${hour + 1}:00:00Z`, { ...size, state }),
      ),
    )
    const hour = 3_600_000_000n
    expect((await both(machineId)).kept).toEqual([
      {
        ...{ day: '2026-03-01', cpu: String(2n * hour), memory: String(hour * 2n ** 31n) },
        ...{
          disk: String(5n * hour * 2n ** 30n),
          checkpoints: String(5n * hour * 2n ** 20n),
          direct: '0',
          gateway: '0',
        },
      },
    ])
  })

  it('of a range is a share of its months, and ranges that meet sum to them', async () => {
    const pick = random(3)
    const accountId = await ledger.account({ plan: 'usage' })
    await ledger.before(
      (sql) => sql`insert into rates (plan, kind, micros, effective) values ('usage', 'fee', 9999999, '(,)')`,
    )
    const machines = [await ledger.machine(accountId), await ledger.machine(accountId)]
    for (const machineId of machines) {
      const busy = span(machineId, '2026-03-25T07:31:00Z', '2026-04-07T19:02:11Z', {
        cpus: 3,
        diskBytes: 12345678 * 1024,
      })
      await ledger.spans(cut(busy, (from) => at(from, 1 + pick(7 * 3_600_000))))
      await ledger.readings([
        {
          machineId,
          series: randomUUID(),
          sequence: 1,
          at: new Date('2026-04-02T10:00:00Z'),
          direct: 123_456_789,
          gateway: 0,
        },
      ])
    }
    const whole = [
      ...(await readMonth(ledger.gateway, accountId, '2026-03')),
      ...(await readMonth(ledger.gateway, accountId, '2026-04')),
    ]
    const edges = [
      '2026-03-01T00:00:00Z',
      '2026-03-28T00:00:00Z',
      '2026-03-31T05:00:00Z',
      '2026-03-31T13:37:00.5Z',
      '2026-04-02T00:00:00Z',
      '2026-05-01T00:00:00Z',
    ]
    const parts = []
    for (const [index, from] of edges.slice(0, -1).entries()) {
      parts.push(...(await readRange(ledger.gateway, accountId, new Date(from), new Date(edges[index + 1] ?? ''))))
    }
    const total = (lines: { amount: bigint }[]) => sum(lines.map(({ amount }) => amount))
    expect(total(parts)).toBe(total(whole))
    for (const line of parts) {
      expect(sum(line.days.map(({ amount }) => amount))).toBe(line.amount)
      if (line.kind !== 'fee') expect(sum(line.machines.map(({ amount }) => amount)), line.kind).toBe(line.amount)
    }
    const used = (lines: { kind: string; quantity: bigint }[]) =>
      sum(lines.filter(({ kind }) => kind !== 'fee').map(({ quantity }) => quantity))
    expect(used(parts)).toBe(used(whole))
  })

  it('of months and of accounts is the sum of its days', async () => {
    const rows = await ledger.gateway<{ wrong: number; days: number }[]>`
      select wrong_usage_sums(id, '2026-01-01', '2027-01-01') as wrong,
        (select count(*)::integer from usage_days where account_id = id) as days from accounts`
    expect(rows.filter(({ wrong }) => wrong !== 0)).toEqual([])
    expect(rows.some(({ days }) => days > 20)).toBe(true)
  })

  it('is nobody’s to write but the facts’', async () => {
    await expect(ledger.gateway`update usage_days set cpu = 0`).rejects.toThrow(/permission denied/)
    await expect(ledger.vmhost`update usage_days set cpu = 0`).rejects.toThrow(/permission denied/)
    await expect(ledger.gateway`insert into machine_spans default values`).rejects.toThrow(/permission denied/)
  })
})
