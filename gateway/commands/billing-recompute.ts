import { type Month, sayMonth } from '../billing/calendar.ts'
import { sayMonths } from '../billing/clock.ts'
import { sayExactly } from '../billing/money.ts'
import { missingNumbers, type Proof, proveInvoices } from '../billing/recompute.ts'
import { type Unbilled, unbilledMonths, unclosedMonths } from '../billing/unbilled.ts'
import { invoiceNumber } from './billing-words.ts'
import { defineCommand } from './command.ts'
import { CommandError } from './error.ts'
import { harmless } from './text.ts'
import { sayList } from './values.ts'

export const billingRecompute = defineCommand({
  name: 'billing recompute',
  group: 'operator',
  operator: true,
  summary: 'prove every invoice from the facts again, or one',
  description:
    'Each line is computed from the ledger, not from what was added up of it, under the rates that held then; the daily sums are compared with their facts; numbers have no gap, and no month that is over lacks one: what accounts without an invoice used is computed too. Exit status 1 when anything differs by a millionth. With NUMBER it is that invoice alone.',
  arguments: { number: { label: 'NUMBER', optional: true } },
  examples: ['billing recompute', 'billing recompute 12'],
  async run({ app, progress, signal }, { args }) {
    const { sql } = app
    const one = args.number === undefined ? undefined : invoiceNumber(args.number)
    const { last, missing } = one === undefined ? await missingNumbers(sql) : { last: one, missing: [] }
    const proofs: Proof[] = []
    for await (const proof of proveInvoices(sql, signal, one)) {
      proofs.push(proof)
      progress.show(`invoice ${proof.invoice.number} of ${last}`)
    }
    if (one !== undefined && proofs.length === 0) {
      throw new CommandError('invoice.not_found', 3, `no invoice ${one}`, {
        wayOn: 'billing recompute proves them all',
      })
    }
    const unbilled: Unbilled[] = []
    if (one === undefined) {
      progress.show('months without an invoice')
      for await (const lacking of unbilledMonths(sql, signal)) unbilled.push(lacking)
    }
    const unclosed = one === undefined ? await unclosedMonths(sql) : undefined
    const wrong = proofs.filter(({ problems }) => problems.length > 0)
    const late = proofs.filter(({ pending }) => pending)
    const right = proofs.length - wrong.length
    const failures = [
      ...wrong.map(
        ({ invoice, problems }) =>
          new CommandError(
            'invoice.unproved',
            1,
            `invoice ${invoice.number}, ${sayMonth(invoice.month)}: ${sayList(problems, 4, 'and')}`,
          ),
      ),
      ...(missing.length > 0
        ? [new CommandError('invoice.missing', 1, `there is no invoice ${sayList(missing.map(String), 8, 'and')}`)]
        : []),
      ...lackingInvoices(unbilled),
      ...(unclosed ? [notClosed(unclosed)] : []),
    ]
    return {
      json: {
        ...{ invoices: proofs.length, proved: right, missing },
        ...{ billed_micros: Number(totals(proofs, 'billed')), computed_micros: Number(totals(proofs, 'computed')) },
        pending: late.map(({ invoice }) => invoice.number),
        unbilled: unbilled.map(({ accountId, email, month, amount, because }) => ({
          ...{ account: accountId, email, month, amount_micros: Number(amount), because },
        })),
        months_not_closed: unclosed?.months ?? [],
        problems: wrong.map(({ invoice, problems }) => ({ invoice: invoice.number, problems })),
      },
      text: `${
        proofs.length === 0
          ? 'no invoice yet\n'
          : `${sayProved(one, right, proofs)}, ${sayExactly(totals(proofs, 'billed'))} in all\n`
      }${sayCorrected(late)}${sayLate(unbilled)}`,
      failures,
    }
  },
})

function sayProved(one: number | undefined, right: number, proofs: readonly Proof[]): string {
  if (one === undefined) return `${right} of ${proofs.length} invoices are what the facts give`
  return `invoice ${one} is ${right === 1 ? '' : 'not '}what the facts give`
}

function sayCorrected(late: readonly Proof[]): string {
  return late
    .map(({ invoice, billed, computed }) => {
      const more = sayExactly(computed - billed)
      return `invoice ${invoice.number}: facts came in later, and the next one corrects it by ${more}\n`
    })
    .join('')
}

function totals(proofs: readonly Proof[], key: 'billed' | 'computed'): bigint {
  return proofs.reduce((sum, proof) => sum + proof[key], 0n)
}

/** One of each month and reason, so that what went wrong for many is read at once. */
function lackingInvoices(unbilled: readonly Unbilled[]): CommandError[] {
  const wrong = unbilled.filter(({ because }) => because !== 'late')
  return [...Map.groupBy(wrong, ({ month, because }) => `${month} ${because}`).values()].flatMap((alike) => {
    const [first] = alike
    if (!first) return []
    const whose = sayList(
      alike.map((one) => `${sayAccount(one)} (${sayExactly(one.amount)})`),
      4,
    )
    return new CommandError('invoice.lacking', 1, `no invoice has ${sayMonth(first.month)} of ${whose}`, {
      wayOn: WAYS_ON[first.because](first.month),
    })
  })
}

const WAYS_ON: Record<Unbilled['because'], (month: Month) => string> = {
  late: () => 'the next invoice has it',
  failed: () => 'billing runs says why; when that is mended: billing runs --retry',
  missed: (month) => `to have it closed: billing runs --close ${month}`,
  partial: () => 'a later invoice has some of it: account credit and billing invoices help to settle the rest',
}

function notClosed({ months, because }: { months: Month[]; because: string | undefined }): CommandError {
  const what = `${sayMonths(months)} ${months.length === 1 ? 'was' : 'were'} not closed`
  return because === undefined
    ? new CommandError('month.not_closed', 1, `${what}, and nothing says why`, {
        wayOn: 'look whether a gateway runs, and into its log: billing runs shows when it is done',
      })
    : new CommandError('month.not_closed', 1, `${what}: ${because}`, {
        wayOn: `set the clock right, or if it is: billing runs --close ${months.at(-1)}`,
      })
}

function sayLate(unbilled: readonly Unbilled[]): string {
  return unbilled
    .filter(({ because }) => because === 'late')
    .map((one) => {
      const amount = sayExactly(one.amount)
      return `${sayMonth(one.month)} of ${sayAccount(one)}: facts came in later, and the next invoice has ${amount} of it\n`
    })
    .join('')
}

function sayAccount({ accountId, email }: Unbilled): string {
  return email === null ? `account ${accountId}` : harmless(email)
}
