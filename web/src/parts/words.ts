/** Figures as people say them; the lobby says them alike (gateway/commands/values.ts). */

/** What the lobby says after a name, as a sentence of its own. */
export function sentence(text: string): string {
  const begun = `${text.charAt(0).toUpperCase()}${text.slice(1)}`
  return /[.?!]$/.test(begun) ? begun : `${begun}.`
}

const BINARY = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
const DECIMAL = ['B', 'kB', 'MB', 'GB', 'TB', 'PB']

/** `4 GiB`, `1.5 MiB`; transfer is told in powers of ten, as it is sold. */
export function sayBytes(bytes: number, kind: 'memory' | 'transfer' = 'memory'): string {
  const [base, units] = kind === 'memory' ? [1024, BINARY] : [1000, DECIMAL]
  let value = bytes
  let unit = 0
  while (Math.abs(value) >= base && unit < units.length - 1) {
    value /= base
    unit++
  }
  return `${figure(value)} ${units[unit]}`
}

/** Three digits at most, and no zeros behind the point. */
export function figure(value: number): string {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2
  return String(Number(value.toFixed(digits)))
}

/**
 * Money in a list: to the cent.
 * @param micros millionths of a dollar
 */
export function sayMoney(micros: number | bigint): string {
  const cents = divideHalfEven(BigInt(micros), 10_000n)
  return signed(cents, 100n, 2)
}

/** Money as a fact: to the millionth. */
export function sayMicros(micros: number | bigint): string {
  return signed(BigInt(micros), 1_000_000n, 6)
}

function signed(amount: bigint, unit: bigint, digits: number): string {
  const positive = amount < 0n ? -amount : amount
  const whole = String(positive / unit).replace(/\B(?=(\d{3})+$)/g, ',')
  return `${amount < 0n ? '−' : ''}$${whole}.${String(positive % unit).padStart(digits, '0')}`
}

function divideHalfEven(value: bigint, by: bigint): bigint {
  const positive = value < 0n ? -value : value
  const rest = (positive % by) * 2n
  const whole = positive / by
  const rounded = rest > by || (rest === by && whole % 2n === 1n) ? whole + 1n : whole
  return value < 0n ? -rounded : rounded
}

const UNITS: [ms: number, word: string][] = [
  [86_400_000, 'd'],
  [3_600_000, 'h'],
  [60_000, 'min'],
  [1000, 's'],
]

/** `3 min`, `2 h`; the largest unit alone, two while it is below 10 of an hour or a day. */
export function sayDuration(ms: number): string {
  for (const [index, [size, word]] of UNITS.entries()) {
    if (ms < size) continue
    const whole = Math.floor(ms / size)
    const next = UNITS[index + 1]
    const rest = next && size >= 3_600_000 && whole < 10 ? Math.floor((ms - whole * size) / next[0]) : 0
    return rest > 0 && next ? `${whole} ${word} ${rest} ${next[1]}` : `${whole} ${word}`
  }
  return 'a moment'
}

export function sayAgo(atMs: number, nowMs: number): string {
  const ms = nowMs - atMs
  return ms < 10_000 ? 'just now' : `${sayDuration(ms)} ago`
}

/** Made at the first need, and once: a format of dates takes a browser as long to make as twenty rows of a list. */
export function lazily<T>(make: () => T): () => T {
  let made: T | undefined
  return () => {
    made ??= make()
    return made
  }
}

const moments = lazily(() => new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'long' }))
const counts = lazily(() => new Intl.NumberFormat('en'))

/** A moment in the person's own time zone, which is named. */
export function sayMoment(atMs: number): string {
  return moments().format(atMs)
}

/** `4,294,967,296` */
export function sayCount(count: number): string {
  return counts().format(count)
}
