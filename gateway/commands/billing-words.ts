/** What commands of billing alone say, and take. */
import { sayMoney } from '../billing/money.ts'
import { usageError } from './error.ts'
import { shown } from './values.ts'

/** `, $12.00 of it the fee of days to come`; nothing where there is none. */
export function sayAhead(fee: bigint): string {
  return fee === 0n ? '' : `, ${sayMoney(fee)} of it the fee of days to come`
}

/** How many accounts a change was announced to; nothing where it is nobody's. */
export function sayTold(count: number): string {
  if (count === 0) return ''
  return count === 1 ? 'one account is told\n' : `${count} accounts are told\n`
}

/** @throws CommandError (usage) */
export function invoiceNumber(typed: string): number {
  if (!/^\d{1,9}$/.test(typed)) throw usageError(`${shown(typed)} is no number of an invoice`, 'billing invoices')
  return Number(typed)
}
