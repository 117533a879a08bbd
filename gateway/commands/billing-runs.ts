import type { Sql } from '../../migrations/connect.ts'
import type { Caller } from '../app.ts'
import { dayOf, monthOf, sayMonth } from '../billing/calendar.ts'
import { readWaiting, sayMonths, sayOver, type Waiting } from '../billing/clock.ts'
import { type Failure, readFailures, retryAll } from '../billing/failures.ts'
import { sayMoney } from '../billing/money.ts'
import { isLive } from '../billing/stripe/client.ts'
import { readUnsent, sendCommand, type Unsent } from '../billing/stripe/payments.ts'
import { closeMissed, type Unbilled, unbilledMonths } from '../billing/unbilled.ts'
import { defineCommand } from './command.ts'
import { usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { harmless, table } from './text.ts'
import { sayWhen, shown } from './values.ts'

type Run = { month: string; startedAt: Date; finishedAt: Date | null; invoices: number; total: number }

export const billingRuns = defineCommand({
  name: 'billing runs',
  group: 'operator',
  operator: true,
  summary: 'the months that were closed, and what failed or was not sent of them',
  description:
    'A month is closed in the first hours of the next, in UTC. An account whose invoice cannot be closed holds up nobody else: it is tried again by itself, after 5 minutes at first and every 6 hours at last, and its later months wait for it. Where it is not sure that a month is over (the clock jumped by days, the clocks of gateway and database differ, or more than two months are due at once) nothing is closed before the clock is set right, or --close says that this month and those before it are over. Of a month that was closed, --close has invoices made up for that billing recompute finds to be missing.',
  flags: {
    retry: { type: 'boolean', summary: 'try all that failed at the next look, within a minute' },
    close: {
      type: 'string',
      value: 'MONTH',
      summary: 'close months that wait, up to this one; or what was missed of one',
    },
  },
  examples: ['billing runs', 'billing runs --retry', 'billing runs --close 2026-11'],
  async run({ app, caller, signal }, { flags }) {
    const { sql } = app
    const retry = async () =>
      await sql.begin(async (tx) => {
        const failures = await retryAll(tx)
        if (failures > 0) await recordEvent(tx, caller, 'billing.retried', null, { failures })
        return failures
      })
    const closing = flags.close === undefined ? 0 : await closeByWord(sql, caller, flags.close, signal)
    const retried = flags.retry ? await retry() : 0
    const runs = await sql<Run[]>`
      select to_char(month, 'YYYY-MM') as month, started_at as "startedAt", finished_at as "finishedAt",
        (select count(*)::integer from invoices i where i.month = r.month) as invoices,
        (select coalesce(sum(total_micros), 0)::bigint from invoices i where i.month = r.month) as total
      from invoice_runs r order by month desc limit 24`
    const { stripe } = app.settings
    const unsent = stripe ? await readUnsent(sql, isLive(stripe)) : []
    const [failures, waiting] = [await readFailures(sql), await readWaiting(sql)]
    return {
      json: {
        runs: runs.map(({ month, startedAt, finishedAt, invoices, total }) => ({
          ...{ month, started_at: startedAt.toISOString(), finished_at: finishedAt?.toISOString() ?? null },
          ...{ invoices, total_micros: total, currency: 'USD' },
        })),
        failures: failures.map(failureDocument),
        not_sent: unsent.map((one) => ({
          ...{ month: one.month, invoices: one.count, total_micros: Number(one.total), way_on: sendCommand(one) },
        })),
        waiting: waiting
          ? { since: waiting.since.toISOString(), because: waiting.because, months: waiting.months }
          : null,
        ...(flags.close === undefined ? {} : closing > 0 ? { closing } : { said_over: flags.close }),
        ...(flags.retry ? { retried } : {}),
      },
      text: (view) => {
        const listed =
          runs.length === 0
            ? 'no month was closed yet\n'
            : table(
                runs,
                [
                  { title: 'month', value: ({ month }) => sayMonth(month) },
                  { title: 'begun', value: ({ startedAt }) => dayOf(startedAt) },
                  { title: 'ended', value: ({ finishedAt }) => (finishedAt ? dayOf(finishedAt) : 'goes on') },
                  { title: 'invoices', value: ({ invoices }) => String(invoices), right: true },
                  { title: 'total', value: ({ total }) => sayMoney(BigInt(total)), right: true },
                ],
                view,
              )
        const made = closing > 0 ? `${sayClosing(closing)}\n` : ''
        const closed = `${listed}${made}${waiting ? `\n${view.style.failure('waiting')}\n${sayWaiting(waiting, flags.close)}` : ''}${sayUnsent(unsent)}`
        if (failures.length === 0) return closed
        const failed = table(
          failures,
          [
            { title: 'account', value: (one) => harmless(one.email ?? String(one.accountId)), flexible: true },
            { title: 'what', value: ({ task, month }) => `${task} ${month}` },
            { title: 'tries', value: ({ attempts }) => String(attempts), right: true },
            { title: 'next', value: sayNext, optional: 1 },
            { title: 'problem', value: ({ problem }) => harmless(problem).replaceAll('\n', ' '), flexible: true },
          ],
          view,
        )
        const said = flags.retry ? `all that failed is tried again at the next look, within a minute\n` : ''
        return `${closed}\n${view.style.failure('failed')}\n${failed}${said}`
      },
    }
  },
})

/**
 * Months that wait are over by the operator's word; of one that was closed, what was missed is made up for.
 * @returns how many invoices are made up for @throws CommandError (usage)
 */
async function closeByWord(sql: Sql, caller: Caller, month: string, signal: AbortSignal): Promise<number> {
  if (!/^\d{4}-(?:0[1-9]|1[0-2])$/.test(month)) {
    throw usageError(`--close wants a month such as ${monthOf(new Date())}, not ${shown(month)}`)
  }
  const waiting = await readWaiting(sql)
  if (waiting?.months.includes(month)) {
    await sql.begin(async (tx) => {
      await sayOver(tx, month)
      await recordEvent(tx, caller, 'billing.months_over', null, { month })
    })
    return 0
  }
  const missed: Unbilled[] = []
  for await (const one of unbilledMonths(sql, signal, month)) if (one.because === 'missed') missed.push(one)
  if (missed.length === 0) {
    throw waiting
      ? usageError(`${month} is none of the months that wait`, `billing runs --close ${waiting.months[0]}`)
      : usageError(`${sayMonth(month)} waits for no word, and no invoice of it was missed`, 'billing runs')
  }
  return await sql.begin(async (tx) => {
    await recordEvent(tx, caller, 'billing.missed_closed', null, { month, accounts: missed.length })
    return await closeMissed(tx, missed, new Date())
  })
}

function sayClosing(count: number): string {
  return `${count === 1 ? 'one invoice that was missed is' : `${count} invoices that were missed are`} closed at the next look, within a minute`
}

function sayWaiting({ months, because }: Waiting, said: string | undefined): string {
  const way =
    said === undefined
      ? `set the clock right, or if it is: billing runs --close ${months.at(-1)}`
      : `what is over by your word (up to ${sayMonth(said)}) is closed at the next look, within a minute`
  return `${sayMonths(months)}: ${because}\n${way}\n`
}

function sayUnsent(unsent: readonly Unsent[]): string {
  if (unsent.length === 0) return ''
  const lines = unsent.map((one) => {
    const what = one.count === 1 ? 'one invoice' : `${one.count} invoices`
    return `${sayMonth(one.month)}: ${what}, ${sayMoney(one.total)}: ${sendCommand(one)}\n`
  })
  return `\nclosed before Stripe was switched on, and not sent there by themselves\n${lines.join('')}`
}

function sayNext({ nextAttemptAt }: Failure): string {
  return nextAttemptAt.getTime() <= Date.now() ? 'at the next look' : sayWhen(nextAttemptAt)
}

function failureDocument(one: Failure) {
  return {
    ...{ account: one.accountId, email: one.email, task: one.task, month: one.month },
    ...{ attempts: one.attempts, problem: one.problem, since: one.firstAt.toISOString() },
    ...{ last_at: one.lastAt.toISOString(), next_attempt_at: one.nextAttemptAt.toISOString() },
  }
}
