import { expect, it } from 'vitest'
import { random } from '../../commands/testing/random.ts'
import { divideHalfEven, sum } from '../arithmetic.ts'
import type { Invoice, InvoiceLine } from '../invoices.ts'
import { CENT } from '../money.ts'
import { stripeLines } from './lines.ts'

function invoiceOf(amounts: readonly bigint[]): { invoice: Invoice; lines: InvoiceLine[] } {
  const line = (kind: InvoiceLine['kind'], amount: bigint, creditId: number | null = null): InvoiceLine => ({
    ...{ kind, class: '', month: '2026-02', plan: null, rateId: null, quantity: 0n, included: 0n },
    ...{ machines: [], days: [], creditId, amount },
  })
  const lines = amounts.map((amount) => (amount < 0n ? line('credit', amount, 1) : line('cpu', amount)))
  const due = sum(amounts)
  const total = divideHalfEven(due, CENT) * CENT
  if (total !== due) lines.push(line('rounding', total - due))
  return {
    invoice: { number: 1, accountId: 1, month: '2026-02', closedAt: new Date(0), total, seller: null, buyer: null },
    lines,
  }
}

const reasons = new Map([[1, 'an outage\u001b[31m\nof Tuesday']])

it('whatever an invoice’s lines are, at Stripe each is to the cent, and they sum to its total', () => {
  const pick = random(3)
  for (let round = 0; round < 2000; round++) {
    const count = 1 + pick(round % 50 === 0 ? 400 : 12)
    const amounts = Array.from({ length: count }, () =>
      BigInt([pick(3), pick(20_000), pick(2 ** 31), 5000 * pick(9)][pick(4)] ?? 0),
    )
    if (pick(3) === 0) amounts.push(-sum(amounts) / BigInt(1 + pick(4)))
    const { invoice, lines } = invoiceOf(amounts)
    const there = stripeLines(invoice, lines, [], reasons)
    expect(there.reduce((cents, line) => cents + line.cents, 0)).toBe(Number(invoice.total / CENT))
    expect(there.length).toBeLessThanOrEqual(250)
    const rounding = there.at(-1)?.metadata.berth_line === 'rounding' ? (there.at(-1)?.cents ?? 0) : 0
    expect(Math.abs(rounding)).toBeLessThanOrEqual(there.length / 2)
    for (const { cents, metadata } of there.slice(0, Math.min(count, 248))) {
      const ours = lines[Number(metadata.berth_line) - 1]?.amount ?? 0n
      const off = BigInt(cents) * CENT - ours
      expect(2n * (off < 0n ? -off : off) <= CENT).toBe(true)
    }
  }
})

it('halves of a cent go to the even one, what is missing to the total is one line more, and nothing harmful is in a text', () => {
  const { invoice, lines } = invoiceOf([5_000n, 15_000n, 25_000n, 5_000n, -7_000n])
  expect(stripeLines(invoice, lines, [], reasons).map(({ cents, description }) => [cents, description])).toEqual([
    [0, 'vCPU ($0.005000)'],
    [2, 'vCPU ($0.015000)'],
    [2, 'vCPU ($0.025000)'],
    [0, 'vCPU ($0.005000)'],
    [-1, 'credit: an outage of Tuesday'],
    [1, 'rounding to cents'],
  ])
})
