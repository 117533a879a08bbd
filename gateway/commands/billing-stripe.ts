import { readInvoice } from '../billing/invoices.ts'
import { modeOf, paymentsOf } from '../billing/stripe/client.ts'
import { countPayments, enlistInvoice, readProblems } from '../billing/stripe/payments.ts'
import { WEBHOOK_PATH } from '../billing/stripe/webhook.ts'
import { invoiceNumber } from './billing-words.ts'
import { defineCommand } from './command.ts'
import { CommandError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { definitions, harmless } from './text.ts'
import { sayWhen } from './values.ts'
import { controlUrl } from './web-links.ts'

/** The rest shows when these are mended. */
const PROBLEMS_SHOWN = 20

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
    const shown = await readProblems(app.sql, livemode, PROBLEMS_SHOWN)
    const unseen = Math.max(0, counts.problems - shown.length)
    const webhook = `${controlUrl(app.settings)}${WEBHOOK_PATH}`
    return {
      json: {
        ...{ mode: livemode ? 'live' : 'test', since: since.toISOString(), webhook, signing_secret_set: hears },
        invoices: {
          ...{ waiting: counts.waiting + counts.draft, open: counts.open, paid: counts.paid },
          ...{ void: counts.void, uncollectible: counts.uncollectible },
        },
        ...{ events_waiting: counts.events, last_event_at: counts.lastEventAt?.toISOString() ?? null },
        problem_count: counts.problems,
        problems: shown.map(({ invoice, accountId, problem }) => ({ invoice, account: accountId, problem })),
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
            ...shown.map(({ invoice, problem }) => [`invoice ${invoice}`, harmless(problem)] as const),
            ...(unseen > 0 ? [['', `and ${unseen} more`] as const] : []),
          ],
          view,
          0,
        ),
      failures:
        counts.problems === 0
          ? []
          : [
              new CommandError(
                'payment.problems',
                1,
                counts.problems === 1
                  ? 'one invoice is kept from Stripe'
                  : `${counts.problems} invoices are kept from Stripe`,
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
    const isNew = await app.sql.begin(async (tx) => {
      const isEnlisted = await enlistInvoice(tx, livemode, number)
      if (isEnlisted) await recordEvent(tx, caller, 'invoice.send_asked', null, { invoice: number })
      return isEnlisted
    })
    return {
      json: { invoice: number, sending: isNew },
      text: isNew
        ? `invoice ${number} goes to Stripe within a minute\n`
        : `invoice ${number} is there already; billing payments --all\n`,
    }
  },
})
