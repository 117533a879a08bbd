import { usageError } from '../commands/error.ts'
import { shown } from '../commands/values.ts'
import { decimal } from './arithmetic.ts'

/** Amounts are whole millionths of a USD. */
export const MICROS = 1_000_000n
/** What is paid is in whole ones. */
export const CENT = 10_000n

/** `$4.94`, as lists show it: to the cent, half to even. */
export function sayMoney(micros: bigint): string {
  return dollars(micros, 2)
}

/** `$4.938271`: all of it. */
export function sayExactly(micros: bigint): string {
  return dollars(micros, 6)
}

/** `$0.04`, `$0.006`, of what somebody has set: as many digits as it has, and never less than cents. */
export function sayRate(micros: bigint): string {
  return micros % CENT === 0n ? sayMoney(micros) : sayExactly(micros).replace(/0+$/, '')
}

/** `4.938271` for programs and spreadsheets. */
export function plainAmount(micros: bigint): string {
  return decimal(micros, MICROS, 6)
}

function dollars(micros: bigint, digits: number): string {
  const text = decimal(micros < 0n ? -micros : micros, MICROS, digits)
  return `${micros < 0n && /[1-9]/.test(text) ? '-' : ''}$${text}`
}

/**
 * `50`, `12.5`, `$0.045`: at most millionths, below a billion.
 * @throws CommandError (usage)
 */
export function parseMoney(text: string, what: string): bigint {
  const match = /^\$?(\d+)(?:\.(\d+))?$/.exec(text.trim())
  if (!match) throw usageError(`${what} wants an amount in USD such as 50 or 12.50, not ${shown(text)}`)
  const [, dollars = '0', parts = ''] = match
  if (dollars.length > 9) throw usageError(`${what} is less than a billion USD, not ${shown(text)}`)
  if (parts.length > 6) throw usageError(`${what} is in millionths of a USD at most, not ${shown(text)}`)
  return BigInt(dollars) * MICROS + BigInt(parts.padEnd(6, '0'))
}
