import { describe, expect, it } from 'vitest'
import { random } from '../commands/testing/random.ts'
import { decimal, divideHalfEven, shares, sum } from './arithmetic.ts'

const ROUNDS = 2000

/** Numbers of all sizes, with many zeros and equal ones among them. */
function numbers(seed: number) {
  const pick = random(seed)
  const big = () => BigInt(pick(2 ** 31)) ** BigInt(1 + pick(3)) / BigInt(1 + pick(1000))
  return { pick, number: () => [0n, 1n, BigInt(pick(10)), BigInt(pick(1_000_000)), big()][pick(5)] ?? 0n }
}

describe('division', () => {
  it('is to the nearest whole number, and from the middle to the even one', () => {
    const halves = [-5n, -3n, -1n, 1n, 3n, 5n, 7n].map((half) => divideHalfEven(half, 2n))
    expect(halves).toEqual([-2n, -2n, 0n, 0n, 2n, 2n, 4n])
    const { number, pick } = numbers(1)
    for (let round = 0; round < ROUNDS; round++) {
      const denominator = number() + 1n
      const numerator = number() * (pick(2) ? 1n : -1n)
      const quotient = divideHalfEven(numerator, denominator)
      const off = numerator - quotient * denominator
      const twice = 2n * (off < 0n ? -off : off)
      expect(twice <= denominator, `${numerator} / ${denominator}`).toBe(true)
      if (twice === denominator) expect(quotient % 2n).toBe(0n)
    }
  })

  it('shows as many digits as were asked for', () => {
    expect(decimal(1n, 8n, 2)).toBe('0.12')
    expect(decimal(3n, 8n, 2)).toBe('0.38')
    expect(decimal(-1n, 3n, 6)).toBe('-0.333333')
    expect(decimal(5n, 2n, 0)).toBe('2')
    expect(decimal(1_000_000n, 1_000_000n, 6)).toBe('1.000000')
  })
})

describe('shares', () => {
  it('always sum to the whole, and none is off by one or more', () => {
    const { number, pick } = numbers(2)
    for (let round = 0; round < ROUNDS; round++) {
      const weights = Array.from({ length: 1 + pick(40) }, number)
      const whole = number() * (pick(4) ? 1n : -1n)
      const parts = shares(whole, weights)
      expect(sum(parts)).toBe(whole)
      const total = sum(weights)
      if (total === 0n) continue
      const wrong = parts.filter((part, index) => {
        const weight = weights[index] ?? 0n
        const off = part * total - whole * weight
        return off >= total || -off >= total || (weight === 0n && part !== 0n)
      })
      expect(wrong, `${whole} by ${weights}`).toEqual([])
    }
  })

  it('do not depend on anything but the weights', () => {
    expect(shares(10n, [1n, 1n, 1n])).toEqual([4n, 3n, 3n])
    expect(shares(-10n, [1n, 1n, 1n])).toEqual([-4n, -3n, -3n])
    expect(shares(100n, [0n, 0n, 0n])).toEqual([34n, 33n, 33n])
    expect(shares(5n, [1n, 8n, 1n])).toEqual([1n, 4n, 0n])
    expect(shares(0n, [])).toEqual([])
    expect(() => shares(1n, [])).toThrow(/nobody/)
    expect(() => shares(1n, [-1n, 2n])).toThrow(/weight -1/)
  })
})
