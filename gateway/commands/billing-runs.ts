import { dayOf, sayMonth } from '../billing/calendar.ts'
import { type Failure, readFailures, retryAll } from '../billing/failures.ts'
import { defineCommand } from './command.ts'
import { recordEvent } from './machine-steps.ts'
import { harmless, table } from './text.ts'
import { sayWhen } from './values.ts'

type Run = { month: string; startedAt: Date; finishedAt: Date | null; invoices: number; total: number }

export const billingRuns = defineCommand({
  name: 'billing runs',
  group: 'operator',
  operator: true,
  summary: 'the months that were closed, and accounts whose invoice or limit failed',
  description:
    'A month is closed in the first hours of the next, in UTC. An account whose invoice cannot be closed holds up nobody else: it is tried again by itself, after 5 minutes at first and every 6 hours at last, and its later months wait for it.',
  flags: { retry: { type: 'boolean', summary: 'try all that failed at the next look, within 5 minutes' } },
  examples: ['billing runs', 'billing runs --retry'],
  async run({ app, caller }, { flags }) {
    const { sql } = app
    const retried = flags.retry ? await retryAll(sql) : 0
    if (retried > 0) await recordEvent(sql, caller, 'billing.retried', null, { failures: retried })
    const runs = await sql<Run[]>`
      select to_char(month, 'YYYY-MM') as month, started_at as "startedAt", finished_at as "finishedAt",
        (select count(*)::integer from invoices i where i.month = r.month) as invoices,
        (select coalesce(sum(total_micros), 0)::bigint from invoices i where i.month = r.month) as total
      from invoice_runs r order by month desc limit 24`
    const failures = await readFailures(sql)
    return {
      json: {
        runs: runs.map(({ month, startedAt, finishedAt, invoices, total }) => ({
          ...{ month, started_at: startedAt.toISOString(), finished_at: finishedAt?.toISOString() ?? null },
          ...{ invoices, total_micros: total, currency: 'USD' },
        })),
        failures: failures.map(failureDocument),
        ...(flags.retry ? { retried } : {}),
      },
      text: (view) => {
        const closed =
          runs.length === 0
            ? 'no month was closed yet\n'
            : table(
                runs,
                [
                  { title: 'month', value: ({ month }) => sayMonth(month) },
                  { title: 'begun', value: ({ startedAt }) => dayOf(startedAt) },
                  { title: 'ended', value: ({ finishedAt }) => (finishedAt ? dayOf(finishedAt) : 'goes on') },
                  { title: 'invoices', value: ({ invoices }) => String(invoices), right: true },
                ],
                view,
              )
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
        const said = flags.retry ? `all that failed is tried again at the next look, within 5 minutes\n` : ''
        return `${closed}\n${view.style.failure('failed')}\n${failed}${said}`
      },
    }
  },
})

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
