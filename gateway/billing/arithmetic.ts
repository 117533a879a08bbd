/** Whole numbers only: an amount that went through a floating-point number could not be computed again. */

/**
 * The quotient rounded to a whole number, halves to the even one (IEEE 754, 4.3.1: roundTiesToEven), so that many
 * roundings do not add up to one side.
 * @param denominator above zero
 */
export function divideHalfEven(numerator: bigint, denominator: bigint): bigint {
  if (denominator <= 0n) throw new RangeError(`cannot divide by ${denominator}`)
  const truncated = numerator / denominator
  const floor = truncated * denominator > numerator ? truncated - 1n : truncated
  const twice = 2n * (numerator - floor * denominator)
  if (twice === denominator) return floor + (floor & 1n)
  return twice > denominator ? floor + 1n : floor
}

/**
 * Parts of a whole amount in proportion to weights, by the largest remainder: each is within one of its exact share,
 * and they always sum to the whole. Equal remainders are served in order.
 * @param weights none below zero; if all are zero, the parts are as equal as can be
 */
export function shares(amount: bigint, weights: readonly bigint[]): bigint[] {
  if (weights.length === 0) {
    if (amount === 0n) return []
    throw new RangeError(`nobody is there to take a share of ${amount}`)
  }
  if (amount < 0n) return shares(-amount, weights).map((part) => -part)
  const total = sum(weights)
  if (total === 0n) {
    return shares(
      amount,
      weights.map(() => 1n),
    )
  }
  const parts: bigint[] = []
  const remainders: { index: number; rest: bigint }[] = []
  let left = amount
  for (const [index, weight] of weights.entries()) {
    if (weight < 0n) throw new RangeError(`a share of weight ${weight}`)
    const exact = amount * weight
    const part = exact / total
    parts.push(part)
    left -= part
    const rest = exact - part * total
    if (rest > 0n) remainders.push({ index, rest })
  }
  // What is left is fewer than there are remainders, for these sum to it.
  if (left > 0n) remainders.sort((a, b) => (a.rest === b.rest ? a.index - b.index : a.rest < b.rest ? 1 : -1))
  for (const { index } of remainders.slice(0, Number(left))) parts[index] = (parts[index] ?? 0n) + 1n
  return parts
}

export function sum(values: Iterable<bigint>): bigint {
  let total = 0n
  for (const value of values) total += value
  return total
}

/** `numerator / denominator` as a decimal number with that many digits after the point, rounded half to even. */
export function decimal(numerator: bigint, denominator: bigint, digits: number): string {
  const scaled = divideHalfEven(numerator * 10n ** BigInt(digits), denominator)
  const text = (scaled < 0n ? -scaled : scaled).toString().padStart(digits + 1, '0')
  const sign = scaled < 0n ? '-' : ''
  return digits === 0 ? sign + text : `${sign}${text.slice(0, -digits)}.${text.slice(-digits)}`
}
