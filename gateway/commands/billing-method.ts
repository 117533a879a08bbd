import type { StripeMethod } from '../../migrations/schema.ts'
import type { App } from '../app.ts'
import { failureOf, modeOf, type Payments, paymentsOf } from '../billing/stripe/client.ts'
import { type Customer, openPage, readCustomer, refreshCustomer } from '../billing/stripe/customers.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { asked, sayFailure } from './stripe-answers.ts'
import { definitions, harmless } from './text.ts'
import { sayWhen } from './values.ts'
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
export async function currentCustomer(
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

function sayMethod({ kind, brand, last4, expires }: StripeMethod): string {
  const name = harmless((brand ?? kind).replaceAll('_', ' '))
  const ends = last4 === null ? '' : ` ending in ${harmless(last4)}`
  return `${name}${ends}${expires === null ? '' : `, good until ${expires}`}`
}

function methodDocument({ kind, brand, last4, expires }: StripeMethod) {
  return { kind, brand, last4, expires }
}
