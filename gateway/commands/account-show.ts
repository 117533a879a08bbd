import { dayOf, monthOf, sayMonth } from '../billing/calendar.ts'
import { creditBalance, type Invoice, readCredits, readInvoices } from '../billing/invoices.ts'
import { readLimits } from '../billing/limits.ts'
import { sayMoney } from '../billing/money.ts'
import { changeDocument, changesOf, outlookOf, sayChange } from '../billing/outlook.ts'
import { feeAhead, totalOf } from '../billing/pricing.ts'
import { readPriceList, readSubscriber } from '../billing/terms.ts'
import { readMonth } from '../billing/usage.ts'
import { ACCOUNT, accountNamed, nameOf, standing } from './account-find.ts'
import { limitDocument, sayLimit } from './billing.ts'
import { sayAhead } from './billing-words.ts'
import { defineCommand } from './command.ts'
import { statusOf } from './machine-document.ts'
import { definitions } from './text.ts'
import { sayBytes, sayList, sayWhen } from './values.ts'

/** Of more machines, and of older invoices, only how many there are is told. */
const MACHINES_TOLD = 500
const INVOICES_TOLD = 24

export const accountShow = defineCommand({
  name: 'account show',
  group: 'operator',
  operator: true,
  summary: 'an account: its machines, plan, limits, credit and what it costs',
  arguments: { account: ACCOUNT },
  examples: ['account show ada@example.com'],
  async run({ app }, { args }) {
    const { sql } = app
    const account = await accountNamed(sql, args.account)
    const now = new Date()
    const lines = await readMonth(sql, account.id, monthOf(now))
    const charged = totalOf(lines.filter((line) => line.charged))
    const limits = await readLimits(sql, account.id)
    const credits = await readCredits(sql, account.id)
    const invoices = await readInvoices(sql, account.id)
    const subscriber = await readSubscriber(sql, account.id)
    const changes = changesOf(outlookOf(subscriber, await readPriceList(sql), dayOf(now)))
    const machines = (await app.machines.list({ accountId: account.id })).filter(
      (machine) => machine.accountId === account.id,
    )
    const [keys] = await sql<{ count: number }[]>`
      select count(*)::integer as count from keys where account_id = ${account.id}`
    const memory = machines.reduce((bytes, machine) => bytes + machine.memoryBytes, 0)
    const disk = machines.reduce((bytes, machine) => bytes + machine.diskBytes, 0)
    const credit = creditBalance(credits)
    const total = totalOf(lines)
    const ahead = feeAhead(lines, dayOf(now))
    return {
      json: {
        ...{ id: account.id, email: account.email, owner: account.isOwner, suspended: account.suspendedAt !== null },
        ...{ suspended_at: account.suspendedAt?.toISOString() ?? null, over_limit: account.isOverLimit },
        ...{ created_at: account.createdAt.toISOString(), keys: keys?.count ?? 0, plan: account.plan },
        changes: changes.map(changeDocument),
        ...{ machines_most: account.machinesMost, memory_bytes: memory, disk_bytes: disk },
        machines: machines.slice(0, MACHINES_TOLD).map((machine) => ({
          ...{ vm_name: machine.name, status: statusOf(machine), image: machine.image, allocated_cpus: machine.cpus },
          ...{ memory_capacity_bytes: machine.memoryBytes, disk_capacity_bytes: machine.diskBytes },
          created_at: machine.createdAt.toISOString(),
        })),
        ...{ machine_count: machines.length, currency: 'USD', month: monthOf(now) },
        ...{ spent_micros: Number(charged), total_micros: Number(total), credit_micros: Number(credit) },
        fee_ahead_micros: Number(ahead),
        limits: limits.map(limitDocument),
        credits: credits.map((one) => ({
          ...{ id: one.id, amount_micros: Number(one.micros), left_micros: Number(one.left), reason: one.reason },
          granted_at: one.grantedAt.toISOString(),
        })),
        invoices: invoices.slice(0, INVOICES_TOLD).map(({ number, month, total: due }) => ({
          ...{ number, month, total_micros: Number(due) },
        })),
        invoice_count: invoices.length,
      },
      text: (view) =>
        definitions(
          [
            ['account', `${account.id}${account.email === null ? '' : `, ${nameOf(account)}`}`],
            ['since', sayWhen(account.createdAt)],
            ...(standing(account) ? [['state', standing(account)] as const] : []),
            ['plan', account.plan],
            ...changes.map((change) => ['next', sayChange(change)] as const),
            [
              'machines',
              `${machines.length}${account.machinesMost === null ? '' : ` of ${account.machinesMost}`}${machines.length > 0 ? `: ${sayList(machines.map(({ name }) => name))}` : ''}`,
            ],
            ...(machines.length > 0 ? [['size', `${sayBytes(memory)} memory, ${sayBytes(disk)} disk`] as const] : []),
            [
              'this month',
              `${charged > 0n || total === 0n ? sayMoney(charged) : `it would cost ${sayMoney(total)}`} for ${sayMonth(monthOf(now))} so far, in UTC${sayAhead(ahead)}`,
            ],
            ...limits.map(
              (limit) => ['limit', `${sayLimit(limit)}${limit.whose === 'own' ? ', its own' : ''}`] as const,
            ),
            ...(credit > 0n ? [['credit', `${sayMoney(credit)} left`] as const] : []),
            ['invoices', sayInvoices(invoices)],
            ['keys', String(keys?.count ?? 0)],
          ],
          view,
          0,
        ),
    }
  },
})

/** `3; the newest is 12, November 2026, $4.00`: what `billing invoices NUMBER` wants. */
function sayInvoices([newest, ...others]: readonly Invoice[]): string {
  if (!newest) return '0'
  const { number, month, total } = newest
  return `${others.length + 1}; the newest is ${number}, ${sayMonth(month)}, ${sayMoney(total)}`
}
