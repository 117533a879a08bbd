/** What an account is told when an invoice of its was closed. */
import type { Message } from '../accounts/notices.ts'
import { type Month, sayMonth } from './calendar.ts'
import { sayMoney } from './money.ts'

/** Where it finds its invoice, and how that is paid. */
export type Where = {
  /** `https://host`: where people sign in */
  controlUrl?: string | undefined
  /** invoices are collected by themselves, with what the account gave to pay with */
  collects?: boolean
}

export function invoiceLetter(
  number: number,
  month: Month,
  total: bigint,
  { controlUrl, collects }: Where = {},
): Message {
  const paid =
    total === 0n
      ? ' Nothing is to be paid.'
      : collects
        ? ' It is collected with what you pay with: billing method.'
        : ''
  const see = controlUrl === undefined ? `billing invoices ${number}` : `${controlUrl}/invoices/${number}`
  const body = `${sayMonth(month)} (UTC) is closed, and invoice ${number} comes to ${sayMoney(total)}.${paid}\n\nTo see it, line by line: ${see}\n`
  return { subject: `invoice ${number} for ${sayMonth(month)}: ${sayMoney(total)}`, body }
}
