import { sayMonth } from '../billing/calendar.ts'
import { readInvoice } from '../billing/invoices.ts'
import { sayMoney } from '../billing/money.ts'
import { type Payment, readPayments } from '../billing/payments.ts'
import { isLive, modeOf, notConfigured, paymentsOf } from '../billing/stripe/client.ts'
import { payInvoice } from '../billing/stripe/invoices.ts'
import { sayPayment } from '../billing/words.ts'
import { currentCustomer } from './billing-method.ts'
import { invoiceNumber } from './billing-words.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, wayOnOf } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { asked } from './stripe-answers.ts'
import { harmless, table, wrap } from './text.ts'

const openInvoices: Completer = async ({ app, caller }) => {
  const { stripe } = app.settings
  if (!stripe) return []
  const { livemode } = await paymentsOf(app.settings)
  const payments = await readPayments(app.sql, livemode, caller.accountId)
  return payments.filter(({ status }) => status === 'open').map(({ invoice }) => String(invoice))
}

export const billingPay = defineCommand({
  name: 'billing pay',
  group: 'you',
  summary: 'pay what is open now, with what you gave',
  description:
    'Invoices are collected by themselves; this is for one that was refused, or for who will not wait. Given twice it charges once. Where nothing was given to pay with, or the bank wants to ask you, it shows the page to pay on.',
  arguments: { number: { label: 'NUMBER', optional: true, complete: openInvoices } },
  examples: ['billing pay', 'billing pay 12'],
  async run({ app, caller, progress }, { args }) {
    const payments = await paymentsOf(app.settings)
    const mode = await modeOf(app.sql, payments.livemode)
    const all = await readPayments(app.sql, payments.livemode, caller.accountId)
    const wanted = args.number === undefined ? undefined : invoiceNumber(args.number)
    if (wanted !== undefined && !all.some(({ invoice }) => invoice === wanted)) {
      const closed = await readInvoice(app.sql, wanted)
      const isTheirs = closed?.invoice.accountId === caller.accountId
      throw new CommandError(
        'invoice.not_found',
        3,
        isTheirs ? `of invoice ${wanted} nothing is to be paid here` : `no invoice ${wanted}`,
        {
          wayOn: 'billing payments lists what is open',
        },
      )
    }
    const open = all.filter(({ invoice, status }) => status === 'open' && (wanted === undefined || invoice === wanted))
    const { customer } = await currentCustomer(app, payments, caller.accountId)
    if (open.length > 0 && customer?.method) {
      // Oldest first.
      for (const { invoice } of open.toReversed()) {
        progress.show(`invoice ${invoice}: asking Stripe`)
        await asked(() => payInvoice(payments, app.sql, mode, invoice))
        await recordEvent(app.sql, caller, 'invoice.payment_asked', null, { invoice })
      }
    }
    const numbers = new Set(wanted === undefined ? open.map(({ invoice }) => invoice) : [wanted])
    const after = (await readPayments(app.sql, payments.livemode, caller.accountId)).filter(({ invoice }) =>
      numbers.has(invoice),
    )
    const unpaid = after.filter(({ status }) => status === 'open')
    const failures = unpaid.map((one) => notPaid(one, Boolean(customer?.method)))
    const [first] = failures
    return {
      json: {
        ...{ currency: 'USD', payments: after.map(paymentDocument) },
        ...(first ? { error: first.message, code: first.code, ...wayOnOf(first) } : {}),
      },
      text: after.length === 0 ? 'nothing is to be paid\n' : after.map((one) => `${sayOutcome(one)}\n`).join(''),
      failures,
    }
  },
})

function notPaid({ invoice, failure, url }: Payment, hasMethod: boolean): CommandError {
  const waits = hasMethod ? 'Stripe has not collected it yet' : 'nothing was given to pay with'
  const why = failure === null ? waits : harmless(failure)
  return new CommandError('payment.open', 1, `invoice ${invoice} is not paid: ${why}`, {
    wayOn: url === null ? 'billing method --add' : `pay on Stripe's page: ${url}`,
  })
}

function sayOutcome(payment: Payment): string {
  return `invoice ${payment.invoice}, ${sayMonth(payment.month)}: ${sayMoney(payment.total)}, ${sayPayment(payment)}`
}

/** The newest. */
const PAYMENTS_SHOWN = 1000

export const billingPayments = defineCommand({
  name: 'billing payments',
  group: 'you',
  summary: 'what was paid, is open, was refused or given back',
  description:
    'Of invoices on which something was to be paid; what was paid otherwise than by Stripe as the operator noted it. The address that --json has leads to the invoice at Stripe.',
  flags: { all: { type: 'boolean', summary: 'of every account; for the operator' } },
  async run({ app, caller }, { flags }) {
    const { stripe } = app.settings
    const livemode = stripe ? isLive(stripe) : null
    if (flags.all && !caller.isOwner) throw notTheirs()
    const found = await readPayments(app.sql, livemode, flags.all ? null : caller.accountId, PAYMENTS_SHOWN + 1)
    if (!stripe && found.length === 0) throw notConfigured()
    const payments = found.slice(0, PAYMENTS_SHOWN)
    const isCut = found.length > payments.length
    return {
      json: {
        currency: 'USD',
        test: livemode === false,
        payments: payments.map((one) => ({
          ...paymentDocument(one),
          ...(flags.all ? { account: one.accountId, problem: one.problem } : {}),
        })),
        cut: isCut,
      },
      text: (view) => {
        if (payments.length === 0) return 'nothing was to be paid yet\n'
        const body = table(
          payments,
          [
            { title: 'invoice', value: ({ invoice }) => String(invoice), right: true },
            ...(flags.all
              ? [{ title: 'account', value: (one: Payment) => String(one.accountId), right: true } as const]
              : []),
            { title: 'month', value: ({ month }) => sayMonth(month) },
            { title: 'total', value: ({ total }) => sayMoney(total), right: true },
            { title: 'state', value: sayPayment, flexible: true },
          ],
          view,
        )
        if (!isCut) return body
        const line = `the newest ${PAYMENTS_SHOWN}; there are more, and billing invoices NUMBER says how an older one stands`
        return `${body}${wrap(line, view.columns).map(view.style.dim).join('\n')}\n`
      },
    }
  },
})

function notTheirs(): CommandError {
  return new CommandError('not_allowed', 4, "payments of every account are the operator's to see", {
    wayOn: 'to see yours: billing payments',
  })
}

function paymentDocument(payment: Payment) {
  const { invoice, month, total, status, paid, carried, refunded, disputed, lost, failure, url, noted } = payment
  return {
    ...{ invoice, month, total_micros: Number(total), status, paid_micros: Number(paid) },
    ...{ carried_micros: Number(carried), refunded_micros: Number(refunded), disputed, lost_micros: Number(lost) },
    ...{ failure, url, noted },
  }
}
