/**
 * A month of three accounts, played event by event, and its bill computed a second time here: from the events, in
 * fractions, rounded at the very end. Nothing of gateway/billing is used for that.
 */
import { randomUUID } from 'node:crypto'
import { pino } from 'pino'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { random } from '../commands/testing/random.ts'
import { closeDueMonths } from './closing.ts'
import { readInvoice, readInvoices } from './invoices.ts'
import { proveInvoices } from './recompute.ts'
import { cut, type Ledger, type Span, testLedger } from './testing/ledger.ts'

const log = pino({ level: 'silent' })
const never = new AbortController().signal
const MONTH = '2026-02'
const START = Date.parse('2026-02-01T00:00:00Z')
const END = Date.parse('2026-03-01T00:00:00Z')
/** From here on vCPUs cost more. */
const DEARER = Date.parse('2026-02-11T00:00:00Z')
/** The second account comes to plan `team` here; before, nothing was charged. */
const JOINS = Date.parse('2026-02-15T00:00:00Z')

type State = Span['state']
type Event = {
  at: number
  machineId: number
  accountId: number
  state: State
  cpus: number
  memory: number
  disk: number
  held: number
}
type Sent = { at: number; accountId: number; machineId: number; direct: number; gateway: number }

describe('a simulated month', () => {
  let ledger: Ledger
  const accounts: number[] = []
  const events: Event[] = []
  const sent: Sent[] = []

  beforeAll(async () => {
    ledger = await testLedger()
    accounts.push(
      await ledger.account({ plan: 'usage' }),
      await ledger.account(),
      await ledger.account({ owner: true }),
    )
    await ledger.before(async (sql) => {
      await sql`update rates set effective = tstzrange(null, ${new Date(DEARER)}) where plan = 'usage' and kind = 'cpu'`
      await sql`insert into rates (plan, kind, micros, effective) values
        ('usage', 'cpu', 51234, tstzrange(${new Date(DEARER)}, null))`
      await sql`insert into plans (name, charged) values ('team', true)`
      await sql`insert into rates (plan, kind, micros, included, effective) values ('team', 'fee', 19990000, 0, '(,)'),
        ('team', 'cpu', 30001, 100, '(,)'), ('team', 'transfer', 55555, 7, '(,)')`
      await sql`insert into account_plans (account_id, plan, effective)
        values (${accounts[1] ?? 0}, 'team', tstzrange(${new Date(JOINS)}, null))`
    })
    const pick = random(2026)
    for (const accountId of accounts) {
      for (let n = 0; n < 3; n++) {
        const machineId = await ledger.machine(accountId)
        // Some begin before the month, one in its middle; all are there after its end.
        let at = START - 2 * 86_400_000 + pick(n === 2 ? 20 * 86_400_000 : 86_400_000)
        const clock = { cpus: 1 + pick(4), memory: (1 + pick(8)) * 2 ** 29, disk: (5 + pick(40)) * 2 ** 30, held: 0 }
        while (at < END + 86_400_000) {
          const state = (['running', 'running', 'asleep', 'stopped', 'failed'] as const)[pick(5)] ?? 'running'
          events.push({ at, machineId, accountId, state, ...clock })
          if (pick(3) === 0) clock.cpus = 1 + pick(8)
          if (pick(3) === 0) clock.disk += pick(10) * 2 ** 30
          if (pick(2) === 0) clock.held = pick(2 ** 32)
          at += 1 + pick(40 * 3_600_000)
        }
        const [series, readings] = [randomUUID(), [] as Parameters<Ledger['readings']>[0][number][]]
        let [direct, gateway, sequence] = [0, 0, 0]
        for (let time = START - 3_600_000; time < END + 3_600_000; time += 1 + pick(30 * 3_600_000)) {
          const more = { direct: pick(3) * pick(2 ** 31), gateway: pick(2 ** 26) }
          direct += more.direct
          gateway += more.gateway
          readings.push({ machineId, series, sequence: sequence++, at: new Date(time), direct, gateway })
          sent.push({ at: time, accountId, machineId, ...more })
        }
        await ledger.readings(readings)
      }
    }
    const spans = events.flatMap((event, index): Span[] => {
      const next = events[index + 1]
      const to = next?.machineId === event.machineId ? next.at : END + 86_400_000
      const { machineId, state, cpus } = event
      const whole = { machineId, from: new Date(event.at), to: new Date(to), state, cpus }
      const sizes = { memoryBytes: event.memory, diskBytes: event.disk, checkpointBytes: event.held }
      return cut({ ...whole, ...sizes }, (from) => new Date(from.getTime() + 1 + pick(5 * 3_600_000)))
    })
    await ledger.spans(spans.slice().sort((a, b) => a.from.getTime() - b.from.getTime()))
  }, 120_000)
  afterAll(() => ledger?.[Symbol.asyncDispose]())

  /** Milliseconds of an event that fall between two instants. */
  const inside = (index: number, from: number, to: number): bigint => {
    const event = events[index]
    const next = events[index + 1]
    if (!event) return 0n
    const ends = next?.machineId === event.machineId ? next.at : END + 86_400_000
    return BigInt(Math.max(0, Math.min(ends, to) - Math.max(event.at, from)))
  }
  const GIB = 2n ** 30n
  const HOUR_MS = 3_600_000n
  const MONTH_MS = BigInt(END - START)
  /** An exact amount of 10^-6 USD as a fraction, rounded at the very end. */
  const rounded = ([top, bottom]: readonly [bigint, bigint]): bigint => {
    const [whole, rest] = [top / bottom, top % bottom]
    if (2n * rest < bottom) return whole
    if (2n * rest > bottom) return whole + 1n
    return whole % 2n === 0n ? whole : whole + 1n
  }
  const total = (accountId: number, from: number, to: number, of: (event: Event) => bigint): bigint =>
    events.reduce(
      (sum, event, index) => (event.accountId === accountId ? sum + inside(index, from, to) * of(event) : sum),
      0n,
    )
  const isOn = ({ state }: Event) => (state === 'running' ? 1n : 0n)
  const bytes = (accountId: number, from: number, to: number, which: 'direct' | 'gateway') =>
    sent
      .filter((one) => one.accountId === accountId && one.at >= from && one.at < to)
      .reduce((sum, one) => sum + BigInt(one[which]), 0n)

  /** What the bill says, by hand. */
  const expected = (index: number): bigint[] => {
    const id = accounts[index] ?? 0
    if (index === 0) {
      return [
        rounded([total(id, START, DEARER, (e) => isOn(e) * BigInt(e.cpus)) * 40_000n, HOUR_MS]),
        rounded([total(id, DEARER, END, (e) => isOn(e) * BigInt(e.cpus)) * 51_234n, HOUR_MS]),
        rounded([total(id, START, END, (e) => isOn(e) * BigInt(e.memory)) * 6000n, HOUR_MS * GIB]),
        rounded([total(id, START, END, (e) => BigInt(e.disk)) * 80_000n, MONTH_MS * GIB]),
        rounded([total(id, START, END, (e) => BigInt(e.held)) * 80_000n, MONTH_MS * GIB]),
        rounded([bytes(id, START, END, 'direct') * 70_000n, 10n ** 9n]),
        rounded([bytes(id, START, END, 'gateway') * 70_000n, 10n ** 9n]),
      ]
    }
    // Fourteen of the month's 28 days: half the fee, half of what is included; of transfer, direct comes first.
    const cpu = total(id, JOINS, END, (e) => isOn(e) * BigInt(e.cpus)) - 50n * HOUR_MS
    const [direct, gateway] = [bytes(id, JOINS, END, 'direct'), bytes(id, JOINS, END, 'gateway')]
    const free = 3_500_000_000n
    const paid = direct > free ? direct - free : 0n
    const over = direct > free ? gateway : direct + gateway > free ? direct + gateway - free : 0n
    return [
      9_995_000n,
      cpu > 0n ? rounded([cpu * 30_001n, HOUR_MS]) : 0n,
      rounded([total(id, JOINS, END, (e) => isOn(e) * BigInt(e.memory)) * 6000n, HOUR_MS * GIB]),
      rounded([total(id, JOINS, END, (e) => BigInt(e.disk)) * 80_000n, MONTH_MS * GIB]),
      rounded([total(id, JOINS, END, (e) => BigInt(e.held)) * 80_000n, MONTH_MS * GIB]),
      rounded([paid * 55_555n, 10n ** 9n]),
      rounded([over * 55_555n, 10n ** 9n]),
    ]
  }

  it('is billed to the millionth as the events say', async () => {
    // January is closed, but servers may still be writing down the last of February.
    await closeDueMonths(ledger.gateway, new Date(END + 1_000_000), never, log)
    const months = async (accountId: number) =>
      (await readInvoices(ledger.gateway, accountId)).map(({ month }) => month)
    expect(await months(accounts[0] ?? 0)).toEqual(['2026-01'])
    const numbers = await closeDueMonths(ledger.gateway, new Date(END + 3 * 3_600_000), never, log)
    const [february] = await readInvoices(ledger.gateway, accounts[0] ?? 0)
    const [second] = await readInvoices(ledger.gateway, accounts[1] ?? 0)
    expect(february?.month === MONTH && second?.month === MONTH).toBe(true)
    expect(numbers.toSorted()).toEqual([february?.number, second?.number].toSorted())
    for (const [index, invoice] of [february, second].entries()) {
      const found = await readInvoice(ledger.gateway, invoice?.number ?? 0)
      const lines = found?.lines.filter(({ rateId, month }) => rateId !== null && month === MONTH) ?? []
      const amounts = lines.map(({ amount }) => amount)
      expect(amounts, `account ${index}`).toEqual(expected(index))
      expect(amounts.every((amount) => amount > 0n)).toBe(true)
      const due = amounts.reduce((sum, amount) => sum + amount, 0n)
      // To the cent: within half of one.
      const off = (invoice?.total ?? 0n) - due
      expect(off >= -5000n && off <= 5000n && (invoice?.total ?? 1n) % 10_000n === 0n, String(off)).toBe(true)
    }
    // On plan house nothing is charged.
    expect(await readInvoices(ledger.gateway, accounts[2] ?? 0)).toEqual([])
  })

  it('is proved from its facts, and from nothing else', async () => {
    const proofs = []
    for await (const proof of proveInvoices(ledger.gateway, never)) proofs.push(proof)
    expect(proofs.length).toBeGreaterThanOrEqual(2)
    for (const proof of proofs) {
      expect(proof).toMatchObject({ problems: [], pending: false })
      expect(proof.computed).toBe(proof.billed)
    }
  })
})
