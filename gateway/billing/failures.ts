/**
 * What could not be done for one account, so that the others' is done once and its own is tried again: soon at first,
 * then more and more rarely, for it is a person who will have to look. The operator is told the first time, by mail and in
 * the audit record; `billing runs` and `doctor` show what still fails.
 *
 * A database that is away is nobody's failure: that ends the round, and nothing of it is noted here.
 */
import type { Db, Sql } from '../../migrations/connect.ts'
import { noteEvent } from '../accounts/events.ts'
import { databaseIsAway } from '../fault.ts'
import { firstDay, type Month, sayMonth } from './calendar.ts'

export type Task = 'invoice' | 'limit'

export type Failure = {
  accountId: number
  email: string | null
  task: Task
  month: Month
  attempts: number
  problem: string
  firstAt: Date
  lastAt: Date
  nextAttemptAt: Date
}

const FIRST_WAIT_MS = 5 * 60_000
const LONGEST_WAIT_MS = 6 * 3_600_000
const PROBLEM_MOST = 500

/** @throws the error when it is no account's own */
export async function noteFailure(
  sql: Sql,
  { accountId, task, month }: { accountId: number; task: Task; month: Month },
  error: unknown,
  now: Date,
): Promise<void> {
  if (databaseIsAway(error)) throw error
  const problem = sayChain(error).slice(0, PROBLEM_MOST)
  await sql.begin(async (tx) => {
    const [row] = await tx<{ attempts: number }[]>`
      insert into billing_failures as f (account_id, task, month, problem, first_at, last_at, next_attempt_at)
      values (${accountId}, ${task}, ${firstDay(month)}::date, ${problem}, ${now}, ${now}, ${now})
      on conflict (account_id, task, month) do update
        set attempts = f.attempts + 1, problem = excluded.problem, last_at = excluded.last_at
      returning attempts`
    const attempts = row?.attempts ?? 1
    await tx`update billing_failures set next_attempt_at = ${after(now, attempts)}
      where account_id = ${accountId} and task = ${task} and month = ${firstDay(month)}::date`
    if (attempts > 1) return
    // In the installation's record, which is the operator's alone.
    const detail = { account: accountId, month, problem }
    await noteEvent(tx, { accountId: null, actor: 'gateway', kind: `${KINDS[task]}.failed`, detail })
    const { subject, body } = letter(accountId, task, month, problem)
    await tx`insert into mails (recipient, subject, body)
      select email, ${subject}, ${body} from accounts where is_owner and email is not null`
  })
}

/**
 * An invoice that is still to be closed: no failure of its own, and nothing to tell anybody.
 * @param because what it waits for @returns whether it was not noted before
 */
export async function noteWaiting(
  db: Db,
  accountId: number,
  month: Month,
  because: string,
  now: Date,
): Promise<boolean> {
  const noted = await db`
    insert into billing_failures (account_id, task, month, attempts, problem, first_at, last_at, next_attempt_at)
    values (${accountId}, 'invoice', ${firstDay(month)}::date, 0, ${because}, ${now}, ${now}, ${now})
    on conflict do nothing`
  return noted.count > 0
}

export async function forgetFailure(db: Db, accountId: number, task: Task, month?: Month): Promise<void> {
  await db`delete from billing_failures where account_id = ${accountId} and task = ${task}
    ${month === undefined ? db`` : db`and month = ${firstDay(month)}::date`}`
}

/** Oldest months of an account first. */
export async function readFailures(db: Db, task?: Task): Promise<Failure[]> {
  return await db<Failure[]>`
    select account_id as "accountId", email, task, to_char(month, 'YYYY-MM') as month, attempts, problem,
      first_at as "firstAt", last_at as "lastAt", next_attempt_at as "nextAttemptAt"
    from billing_failures join accounts on accounts.id = account_id
    ${task === undefined ? db`` : db`where task = ${task}`} order by account_id, task, month`
}

/** @returns how many will be */
export async function retryAll(db: Db): Promise<number> {
  return (await db`update billing_failures set next_attempt_at = now() where next_attempt_at > now()`).count
}

const KINDS: Record<Task, string> = { invoice: 'invoice', limit: 'billing.limit' }

function after(now: Date, attempts: number): Date {
  return new Date(now.getTime() + Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** Math.min(attempts - 1, 10)))
}

function sayChain(error: unknown): string {
  const links: string[] = []
  for (let link = error; link instanceof Error && links.length < 4; link = link.cause) links.push(link.message)
  return links.length > 0 ? links.join(': ') : String(error)
}

function letter(accountId: number, task: Task, month: Month, problem: string) {
  const what =
    task === 'invoice'
      ? `The invoice of account ${accountId} for ${sayMonth(month)} (UTC) could not be closed`
      : `What account ${accountId} spends in ${sayMonth(month)} (UTC) could not be held against its limit`
  return {
    subject: `Berth: ${task === 'invoice' ? 'an invoice' : 'a limit'} of account ${accountId} wants to be looked at`,
    body: `${what}:\n\n${problem}\n\nOther accounts are not held up. It is tried again by itself, more and more rarely. To see how it stands: billing runs. To try at once, when you have mended it: billing runs --retry.\n`,
  }
}
