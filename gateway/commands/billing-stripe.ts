import type { Sql } from '../../migrations/connect.ts'
import { sayMonth } from '../billing/calendar.ts'
import { readInvoice } from '../billing/invoices.ts'
import { standingPayment } from '../billing/payments.ts'
import { isLive, modeOf, paymentsOf } from '../billing/stripe/client.ts'
import { countPayments, enlistInvoice, readProblems, readUnsent } from '../billing/stripe/payments.ts'
import { WEBHOOK_PATH } from '../billing/stripe/webhook.ts'
import { sayNoted } from '../billing/words.ts'
import { invoiceNumber } from './billing-words.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { definitions, harmless } from './text.ts'
import { sayWhen, shown } from './values.ts'
import { controlUrl } from './web-links.ts'

const unsentNumbers: Completer = async ({ app, caller }) => {
  const { stripe } = app.settings
  if (!stripe || !caller.isOwner) return []
  return (await readUnsent(app.sql, isLive(stripe))).flatMap(({ numbers }) => numbers.map(String))
}

/** The rest shows when these are mended. */
const PROBLEMS_SHOWN = 20

export const billingStripe = defineCommand({
  name: 'billing stripe',
  group: 'operator',
  operator: true,
  summary: 'how payments stand, and what keeps one from Stripe',
  description:
    'Invoices closed since Stripe was switched on go there by themselves; those of before with billing send. Nothing is charged twice, whatever is cut off and repeated.',
  async run({ app }) {
    const { livemode } = await paymentsOf(app.settings)
    const { since } = await modeOf(app.sql, livemode)
    const counts = await countPayments(app.sql, livemode)
    const hears = (app.settings.stripe?.webhookSecrets.length ?? 0) > 0
    const shown = await readProblems(app.sql, livemode, PROBLEMS_SHOWN)
    const unseen = Math.max(0, counts.problems - shown.length)
    const unsent = (await readUnsent(app.sql, livemode)).reduce((sum, { count }) => sum + count, 0)
    const webhook = `${controlUrl(app.settings)}${WEBHOOK_PATH}`
    return {
      json: {
        ...{ mode: livemode ? 'live' : 'test', since: since.toISOString(), webhook, signing_secret_set: hears },
        invoices: {
          ...{ waiting: counts.waiting + counts.draft, open: counts.open, paid: counts.paid },
          ...{ void: counts.void, uncollectible: counts.uncollectible, not_sent: unsent },
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
            ...(unsent > 0
              ? [['not sent', `${unsent === 1 ? 'one' : unsent} of before; billing runs has the command`] as const]
              : []),
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
  summary: 'send invoices to Stripe that were closed before Stripe was switched on',
  description:
    'They are collected then, from what their accounts pay with. One that is there already stays the only one. billing runs says which are not there.',
  flags: { month: { type: 'string', value: 'MONTH', summary: 'all of that month which are not there' } },
  arguments: { number: { label: 'NUMBER', optional: true, repeated: true, complete: unsentNumbers } },
  examples: ['billing send 12', 'billing send --month 2026-10'],
  async run({ app, caller }, { flags, args }) {
    const { livemode } = await paymentsOf(app.settings)
    if ((flags.month === undefined) === (args.number.length === 0)) {
      throw usageError(
        'billing send wants NUMBERs of invoices, or --month',
        'billing runs says which are not at Stripe',
      )
    }
    await modeOf(app.sql, livemode)
    const numbers =
      flags.month === undefined
        ? await payable(app.sql, args.number.map(invoiceNumber))
        : await unsentOf(app.sql, livemode, flags.month)
    const sending = await app.sql.begin(async (tx) => {
      const news: number[] = []
      for (const number of numbers) {
        if (!(await enlistInvoice(tx, livemode, number))) continue
        await recordEvent(tx, caller, 'invoice.send_asked', null, { invoice: number })
        news.push(number)
      }
      return news
    })
    const there = numbers.filter((number) => !sending.includes(number))
    return {
      json: { invoices: numbers, sending },
      text: `${sending.length > 0 ? `${sayInvoices(sending)} to Stripe within a minute\n` : ''}${there.map((number) => `invoice ${number} is there already; billing payments --all\n`).join('')}`,
    }
  },
})

/** @throws CommandError of the first of which nothing can be paid */
async function payable(sql: Sql, numbers: readonly number[]): Promise<number[]> {
  for (const number of numbers) {
    const found = await readInvoice(sql, number)
    if (!found) {
      throw new CommandError('invoice.not_found', 3, `no invoice ${number}`, {
        wayOn: 'billing runs says which are not at Stripe',
      })
    }
    if (found.invoice.total === 0n)
      throw new CommandError('payment.nothing', 1, `of invoice ${number} nothing is to be paid`)
    const noted = await sql.begin((tx) => standingPayment(tx, number))
    if (noted) {
      throw new CommandError('payment.noted', 1, `invoice ${number} is noted as ${sayNoted(noted)}`, {
        wayOn: `if that is a mistake: billing paid ${number} --undo`,
      })
    }
  }
  return [...new Set(numbers)]
}

/** @throws CommandError (usage); 'invoice.not_found' (3) where all of that month are there */
async function unsentOf(sql: Sql, livemode: boolean, month: string): Promise<number[]> {
  if (!/^\d{4}-(?:0[1-9]|1[0-2])$/.test(month)) {
    throw usageError(`--month wants a month such as 2026-10, not ${shown(month)}`)
  }
  const unsent = (await readUnsent(sql, livemode)).find((one) => one.month === month)
  if (unsent) return unsent.numbers
  throw new CommandError('invoice.not_found', 3, `no invoice of ${sayMonth(month)} is to be sent`, {
    wayOn: 'billing runs says which are not at Stripe',
  })
}

function sayInvoices(numbers: readonly number[]): string {
  return numbers.length === 1 ? `invoice ${numbers[0]} goes` : `${numbers.length} invoices go`
}
