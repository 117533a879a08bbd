import type { Sql } from '../../migrations/connect.ts'
import type { App, Caller } from '../app.ts'
import { type Day, dayOf, firstDay, startOfDay } from '../billing/calendar.ts'
import { type Invoice, readInvoice } from '../billing/invoices.ts'
import { sayMoney } from '../billing/money.ts'
import {
  type Noted,
  notePayment,
  type Standing,
  standingPayment,
  stripesOwn,
  undoPayment,
} from '../billing/payments.ts'
import { isLive } from '../billing/stripe/client.ts'
import { sayNoted } from '../billing/words.ts'
import { invoiceNumber } from './billing-words.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { shown } from './values.ts'

const NOTE_MOST = 200

export const billingPaid = defineCommand({
  name: 'billing paid',
  group: 'operator',
  operator: true,
  summary: 'note that an invoice was paid otherwise than by Stripe, or take that back',
  description:
    'For a bank transfer, say, of the whole invoice, which stays as it is: billing invoices and the pages show it as paid from then on. Given twice it is noted once. --undo takes back what was noted by mistake; both stay in the record, and where Stripe collects, the invoice goes there like any other that is not paid. One that is at Stripe already is marked as paid there, so that nobody pays twice.',
  flags: {
    on: { type: 'string', value: '2026-11-20', summary: 'the day it was paid on, in UTC; today unless given' },
    note: { type: 'string', value: 'TEXT', summary: 'how, as on the bank statement; its account sees it' },
    undo: { type: 'boolean', summary: 'it was noted by mistake; --note says why' },
  },
  arguments: { number: { label: 'NUMBER' } },
  examples: ['billing paid 12', "billing paid 12 --on 2026-11-20 --note 'transfer 4711'", 'billing paid 12 --undo'],
  async run({ app, caller }, { flags, args }) {
    const number = invoiceNumber(args.number)
    const found = await readInvoice(app.sql, number)
    if (!found)
      throw new CommandError('invoice.not_found', 3, `no invoice ${number}`, { wayOn: 'account show ACCOUNT' })
    const { invoice } = found
    const note = flags.note === undefined ? null : noteOf(flags.note)
    if (flags.undo) {
      if (flags.on !== undefined) throw usageError('--on belongs to a payment, not to --undo')
      const undone = await takeBack(app.sql, caller, invoice, note)
      return {
        json: { invoice: number, paid: false, changed: undone !== undefined },
        text: undone
          ? `invoice ${number} is not noted as ${sayNoted(undone)} any more\n`
          : `invoice ${number} is not noted as paid\n`,
      }
    }
    const { standing, isNew } = await take(app, caller, invoice, {
      on: flags.on === undefined ? undefined : dayPaid(flags.on, invoice),
      note,
    })
    return {
      json: { invoice: number, paid: true, changed: isNew, on: standing.on, note: standing.note },
      text: `invoice ${number}, ${sayMoney(invoice.total)}, is noted as ${sayNoted(standing)}${isNew ? '' : ' already'}\n`,
    }
  },
})

type Given = { on: Day | undefined; note: string | null }

async function take(
  { sql, settings: { stripe } }: App,
  caller: Caller,
  { number, total, accountId }: Invoice,
  { on, note }: Given,
): Promise<{ standing: Noted; isNew: boolean }> {
  if (total === 0n) throw new CommandError('payment.nothing', 1, `of invoice ${number} nothing is to be paid`)
  return await sql.begin(async (tx) => {
    const standing = await standingPayment(tx, number)
    if (standing) {
      if ((on ?? standing.on) !== standing.on || (note ?? standing.note) !== standing.note) {
        throw new CommandError('payment.noted', 1, `invoice ${number} is noted as ${sayNoted(standing)} already`, {
          wayOn: `if that is a mistake, first: billing paid ${number} --undo`,
        })
      }
      return { standing, isNew: false }
    }
    const status = await stripesOwn(tx, stripe ? isLive(stripe) : null, number)
    if (status !== undefined) throw isStripes(number, status === 'paid')
    const noted = { on: on ?? dayOf(new Date()), note }
    await notePayment(tx, number, noted, caller.accountId)
    const detail = { invoice: number, amount: sayMoney(total), on: noted.on, ...(note === null ? {} : { note }) }
    await recordEvent(tx, caller, 'invoice.paid', null, detail, accountId)
    return { standing: noted, isNew: true }
  })
}

/** @returns what was noted; undefined where nothing is any more @throws CommandError where nothing ever was */
async function takeBack(
  sql: Sql,
  caller: Caller,
  { number, total, accountId }: Invoice,
  note: string | null,
): Promise<Standing | undefined> {
  return await sql.begin(async (tx) => {
    const standing = await standingPayment(tx, number)
    if (!standing) {
      const [before] = await tx`select from noted_payments where invoice = ${number}`
      if (before) return undefined
      throw new CommandError('payment.not_noted', 1, `invoice ${number} was never noted as paid`, {
        wayOn: `how it stands: billing invoices ${number}`,
      })
    }
    await undoPayment(tx, number, standing, note, caller.accountId)
    const detail = { invoice: number, amount: sayMoney(total), on: standing.on, ...(note === null ? {} : { note }) }
    await recordEvent(tx, caller, 'invoice.payment_undone', null, detail, accountId)
    return standing
  })
}

function isStripes(number: number, isPaid: boolean): CommandError {
  return isPaid
    ? new CommandError('payment.at_stripe', 1, `invoice ${number} was paid by Stripe`, {
        wayOn: `how it stands: billing invoices ${number}`,
      })
    : new CommandError('payment.at_stripe', 1, `invoice ${number} is Stripe's to collect`, {
        wayOn: 'mark it as paid outside of Stripe there, and it shows here',
      })
}

/** @throws CommandError (usage) */
function dayPaid(typed: string, { number, month }: Invoice): Day {
  const today = dayOf(new Date())
  const isDay = /^\d{4}-\d{2}-\d{2}$/.test(typed) && !Number.isNaN(startOfDay(typed).getTime())
  if (!isDay || dayOf(startOfDay(typed)) !== typed) {
    throw usageError(`--on wants a day such as ${today}, not ${shown(typed)}`)
  }
  if (typed > today) throw usageError(`--on is today, ${today} in UTC, at the latest`)
  if (typed < firstDay(month))
    throw usageError(`--on is ${firstDay(month)} at the soonest: invoice ${number} is of then`)
  return typed
}

/** @throws CommandError (usage) */
function noteOf(typed: string): string {
  const note = typed.trim()
  if (note === '') throw usageError('--note is empty', 'leave it out where there is nothing to say')
  if (note.length > NOTE_MOST) throw usageError(`--note wants at most ${NOTE_MOST} characters`)
  return note
}
