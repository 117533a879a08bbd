import type { StripeMethod } from '../../migrations/schema.ts'
import type { App } from '../app.ts'
import { sayMonth } from '../billing/calendar.ts'
import { readInvoice } from '../billing/invoices.ts'
import { sayMoney } from '../billing/money.ts'
import { failureOf, modeOf, type Payments, paymentsOf, type StripeFailure } from '../billing/stripe/client.ts'
import { type Customer, openPage, readCustomer, refreshCustomer } from '../billing/stripe/customers.ts'
import { payInvoice } from '../billing/stripe/invoices.ts'
import { countPayments, enlistInvoice, type Payment, readPayments } from '../billing/stripe/payments.ts'
import { WEBHOOK_PATH } from '../billing/stripe/webhook.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { definitions, harmless, table } from './text.ts'
import { sayWhen, shown } from './values.ts'
import { controlUrl } from './web-links.ts'

/** What Stripe said of it is asked again when it is older. */
const FRESH_MS = 60_000

export const billingMethod = defineCommand({
  name: 'billing method',
  group: 'you',
  signsIn: true,
  summary: 'what you pay with, and a page to give or change it',
  description:
    'Cards and accounts are given on pages of Stripe, and never pass through here. What is given becomes what invoices are paid with, and those that are open are collected from it. A page is good for one visit, and whoever has its address can use it.',
  flags: {
    add: { type: 'boolean', summary: 'a page to give something to pay with' },
    manage: { type: 'boolean', summary: 'a page with what you gave and what you paid' },
  },
  examples: ['billing method', 'billing method --add'],
  async run({ app, caller }, { flags }) {
    const payments = await paymentsOf(app.settings)
    if (flags.add && flags.manage) throw usageError('--add and --manage are two pages')
    if (flags.add || flags.manage) {
      const page = flags.add ? 'setup' : 'portal'
      const mode = await modeOf(app.sql, payments.livemode)
      const back = `${controlUrl(app.settings)}/billing`
      const url = await asked(() => openPage(payments, app.sql, mode, { accountId: caller.accountId, page, back }))
      await recordEvent(app.sql, caller, 'billing.page_opened', null, { page })
      return { json: { url }, text: `${url}\n` }
    }
    const { customer, staleBecause } = await currentCustomer(app, payments, caller.accountId)
    const method = customer?.method ?? null
    return {
      json: {
        method: method && methodDocument(method),
        pending: customer?.setupSession != null,
        test: !payments.livemode,
        as_of: customer?.refreshedAt?.toISOString() ?? null,
        ...(staleBecause === undefined ? {} : { stale_because: staleBecause }),
      },
      text: (view) =>
        definitions(
          [
            ['paid with', method ? sayMethod(method) : 'nothing yet; billing method --add'],
            ...(payments.livemode ? [] : [['test', 'Stripe is in test mode: no money moves'] as const]),
            ...(staleBecause === undefined ? [] : [['as of', `${sayAsOf(customer)}: ${staleBecause}`] as const]),
          ],
          view,
          0,
        ),
    }
  },
})

function sayAsOf(customer: Customer | undefined): string {
  return customer?.refreshedAt ? sayWhen(customer.refreshedAt) : 'never'
}

/** What is kept, asked of Stripe again when it is old or something may have been given meanwhile. */
async function currentCustomer(
  app: App,
  payments: Payments,
  accountId: number,
): Promise<{ customer: Customer | undefined; staleBecause?: string }> {
  const kept = await readCustomer(app.sql, accountId, payments.livemode)
  const isFresh = kept?.refreshedAt != null && Date.now() - kept.refreshedAt.getTime() < FRESH_MS
  if (!kept || (isFresh && kept.setupSession === null)) return { customer: kept }
  try {
    return { customer: await refreshCustomer(payments, app.sql, accountId) }
  } catch (error) {
    const failure = failureOf(error)
    if (!failure && !(error instanceof CommandError)) throw error
    return { customer: kept, staleBecause: failure ? sayFailure(failure) : 'it is being asked for already' }
  }
}

export function sayMethod({ kind, brand, last4, expires }: StripeMethod): string {
  const name = harmless((brand ?? kind).replaceAll('_', ' '))
  const ends = last4 === null ? '' : ` ending in ${harmless(last4)}`
  return `${name}${ends}${expires === null ? '' : `, good until ${expires}`}`
}

function methodDocument({ kind, brand, last4, expires }: StripeMethod) {
  return { kind, brand, last4, expires }
}

function sayFailure({ status, message }: StripeFailure): string {
  return status === undefined ? 'Stripe does not answer' : `Stripe refuses: ${message}`
}

/** @throws CommandError in place of an error of Stripe's */
async function asked<T>(ask: () => Promise<T>): Promise<T> {
  try {
    return await ask()
  } catch (error) {
    const failure = failureOf(error)
    if (!failure) throw error
    const isAway = failure.status === undefined || failure.status >= 500 || failure.status === 429
    throw new CommandError(isAway ? 'payment.away' : 'payment.refused', isAway ? 5 : 1, sayFailure(failure), {
      wayOn: isAway ? 'try again in a moment; nothing is done twice' : 'the operator finds why with: billing stripe',
    })
  }
}

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
    return {
      json: { currency: 'USD', payments: after.map(paymentDocument) },
      text: after.length === 0 ? 'nothing is to be paid\n' : after.map((one) => `${sayOutcome(one)}\n`).join(''),
      failures: unpaid.map(
        (one) =>
          new CommandError(
            'payment.open',
            1,
            one.failure === null
              ? `invoice ${one.invoice} is not paid: ${customer?.method ? 'Stripe has not collected it yet' : 'nothing was given to pay with'}`
              : `invoice ${one.invoice} is not paid: ${harmless(one.failure)}`,
            {
              wayOn: one.url === null ? 'billing method --add' : `pay on Stripe's page: ${one.url}`,
            },
          ),
      ),
    }
  },
})

function sayOutcome(payment: Payment): string {
  return `invoice ${payment.invoice}, ${sayMonth(payment.month)}: ${sayMoney(payment.total)}, ${sayStatus(payment)}`
}

function invoiceNumber(typed: string): number {
  if (!/^\d{1,9}$/.test(typed)) throw usageError(`${shown(typed)} is no number of an invoice`, 'billing payments')
  return Number(typed)
}

export const billingPayments = defineCommand({
  name: 'billing payments',
  group: 'you',
  summary: 'what was paid, is open, was refused or given back',
  description:
    'Of invoices on which something was to be paid. The address that --json has leads to the invoice at Stripe.',
  flags: { all: { type: 'boolean', summary: 'of every account; for the operator' } },
  async run({ app, caller }, { flags }) {
    const { livemode } = await paymentsOf(app.settings)
    if (flags.all && !caller.isOwner) throw notTheirs()
    const payments = await readPayments(app.sql, livemode, flags.all ? null : caller.accountId)
    return {
      json: {
        currency: 'USD',
        test: !livemode,
        payments: payments.map((one) => ({
          ...paymentDocument(one),
          ...(flags.all ? { account: one.accountId, problem: one.problem } : {}),
        })),
      },
      text: (view) =>
        payments.length === 0
          ? 'nothing was to be paid yet\n'
          : table(
              payments,
              [
                { title: 'invoice', value: ({ invoice }) => String(invoice), right: true },
                ...(flags.all
                  ? [{ title: 'account', value: (one: Payment) => String(one.accountId), right: true } as const]
                  : []),
                { title: 'month', value: ({ month }) => sayMonth(month) },
                { title: 'total', value: ({ total }) => sayMoney(total), right: true },
                { title: 'state', value: sayStatus, flexible: true },
              ],
              view,
            ),
    }
  },
})

function notTheirs(): CommandError {
  return new CommandError('not_allowed', 4, 'payments of every account are the operator’s to see')
}

function paymentDocument({ invoice, month, total, status, paid, refunded, disputed, failure, url }: Payment) {
  return {
    ...{ invoice, month, total_micros: Number(total), status },
    ...{ paid_micros: Number(paid), refunded_micros: Number(refunded), disputed, failure, url },
  }
}

/** `paid, $4.00 given back`, `not paid: your card was declined` */
function sayStatus({ status, failure, refunded, disputed, problem }: Payment): string {
  const words = {
    waiting: problem === null ? 'on its way to Stripe' : 'not at Stripe yet',
    draft: problem === null ? 'on its way to Stripe' : 'not at Stripe yet',
    open: failure === null ? 'open' : `not paid: ${harmless(failure)}`,
    ...{ paid: 'paid', void: 'taken back', uncollectible: 'given up' },
  }
  return [
    words[status],
    ...(refunded > 0n ? [`${sayMoney(refunded)} given back`] : []),
    ...(disputed ? ['disputed'] : []),
  ].join(', ')
}

export const billingStripe = defineCommand({
  name: 'billing stripe',
  group: 'operator',
  operator: true,
  summary: 'how payments stand, and what keeps one from Stripe',
  description:
    'Invoices closed since Stripe was switched on go there by themselves; billing send takes one of before. Nothing is charged twice, whatever is cut off and repeated.',
  async run({ app }) {
    const { livemode } = await paymentsOf(app.settings)
    const { since } = await modeOf(app.sql, livemode)
    const counts = await countPayments(app.sql, livemode)
    const hears = (app.settings.stripe?.webhookSecrets.length ?? 0) > 0
    const troubled = (await readPayments(app.sql, livemode, null)).filter(({ problem }) => problem !== null)
    const webhook = `${controlUrl(app.settings)}${WEBHOOK_PATH}`
    return {
      json: {
        ...{ mode: livemode ? 'live' : 'test', since: since.toISOString(), webhook, signing_secret_set: hears },
        invoices: {
          ...{ waiting: counts.waiting + counts.draft, open: counts.open, paid: counts.paid },
          ...{ void: counts.void, uncollectible: counts.uncollectible },
        },
        ...{ events_waiting: counts.events, last_event_at: counts.lastEventAt?.toISOString() ?? null },
        problems: troubled.map(({ invoice, accountId, problem }) => ({ invoice, account: accountId, problem })),
      },
      text: (view) =>
        definitions(
          [
            ['mode', livemode ? 'live' : 'test: no money moves'],
            ['since', `${since.toISOString().slice(0, 16).replace('T', ' ')} UTC; invoices closed before are not sent`],
            [
              'invoices',
              `${counts.waiting + counts.draft} on the way, ${counts.open} open, ${counts.paid} paid, ${counts.void + counts.uncollectible} taken back or given up`,
            ],
            [
              'events',
              hears
                ? `to ${webhook}; ${counts.lastEventAt ? `the last one ${sayWhen(counts.lastEventAt)}` : 'none came yet'}`
                : `none: set BERTH_STRIPE_WEBHOOK to the signing secret of ${webhook}`,
            ],
            ...troubled
              .slice(0, 20)
              .map(({ invoice, problem }) => [`invoice ${invoice}`, harmless(problem ?? '')] as const),
          ],
          view,
          0,
        ),
      failures:
        troubled.length === 0
          ? []
          : [
              new CommandError(
                'payment.problems',
                1,
                troubled.length === 1
                  ? 'one invoice is kept from Stripe'
                  : `${troubled.length} invoices are kept from Stripe`,
              ),
            ],
    }
  },
})

export const billingSend = defineCommand({
  name: 'billing send',
  group: 'operator',
  operator: true,
  summary: 'send an invoice to Stripe that was closed before Stripe was switched on',
  description: 'It is collected then, from what its account pays with. One that is there already stays the only one.',
  arguments: { number: { label: 'NUMBER' } },
  examples: ['billing send 12'],
  async run({ app, caller }, { args }) {
    const { livemode } = await paymentsOf(app.settings)
    const number = invoiceNumber(args.number)
    const found = await readInvoice(app.sql, number)
    if (!found) throw new CommandError('invoice.not_found', 3, `no invoice ${number}`)
    if (found.invoice.total === 0n)
      throw new CommandError('payment.nothing', 1, `of invoice ${number} nothing is to be paid`)
    await modeOf(app.sql, livemode)
    const isNew = await enlistInvoice(app.sql, livemode, number)
    if (isNew) await recordEvent(app.sql, caller, 'invoice.send_asked', null, { invoice: number })
    return {
      json: { invoice: number, sending: isNew },
      text: isNew
        ? `invoice ${number} goes to Stripe within a minute\n`
        : `invoice ${number} is there already; billing payments --all\n`,
    }
  },
})
