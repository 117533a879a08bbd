/**
 * Limits on what an account spends in a month: its own, and one of the operator's. At 80 and at 100 % a mail is written,
 * once each for a month and a limit. At a hard one
 *
 *   under   -> over     over_limit_at is set; machines that run, or are to, are paused, and keep all that is in them
 *   over                nothing of the account wakes or starts, whoever knocks; disks go on costing what they cost
 *   over    -> under    in a new month, or with a higher limit: over_limit_at is taken away; what was paused waits for
 *                       `resume`, since nobody should pay for machines that start by themselves
 *
 * Each step can be done again: a machine that another gateway woke in the same moment is paused by the next look.
 */
import type { Sql } from '../../migrations/connect.ts'
import type { Log } from '../log.ts'
import { firstDay, monthOf, sayMonth } from './calendar.ts'
import { forgetFailure, noteFailure } from './failures.ts'
import { sayMoney } from './money.ts'
import { totalOf } from './pricing.ts'
import type { Db } from './terms.ts'
import { readMonth } from './usage.ts'

export type Whose = 'own' | 'operator'
export type Limit = { whose: Whose; micros: bigint; hard: boolean }

const PERCENTS = [80n, 100n] as const

export async function readLimits(db: Db, accountId: number): Promise<Limit[]> {
  const rows = await db<{ whose: Whose; micros: number; hard: boolean }[]>`
    select whose, micros, hard from spend_limits where account_id = ${accountId} order by micros`
  return rows.map((row) => ({ ...row, micros: BigInt(row.micros) }))
}

/** @param limit null: none any more */
export async function setLimit(
  db: Db,
  accountId: number,
  whose: Whose,
  limit: { micros: bigint; hard: boolean } | null,
): Promise<void> {
  if (limit === null) await db`delete from spend_limits where account_id = ${accountId} and whose = ${whose}`
  else {
    await db`insert into spend_limits (account_id, whose, micros, hard)
      values (${accountId}, ${whose}, ${String(limit.micros)}::bigint, ${limit.hard})
      on conflict (account_id, whose) do update set micros = excluded.micros, hard = excluded.hard, set_at = now()`
  }
}

/** What is charged for the month so far. */
export async function spentIn(db: Db, accountId: number, now: Date): Promise<bigint> {
  return totalOf((await readMonth(db, accountId, monthOf(now))).filter(({ charged }) => charged))
}

/** Looks at every account that has a limit, or had one that it was over. */
export async function checkLimits(sql: Sql, now: Date, signal: AbortSignal, log: Log): Promise<void> {
  const accounts = await sql<{ id: number; failed: boolean }[]>`
    select id, id in (select account_id from billing_failures where task = 'limit') as failed
    from accounts where over_limit_at is not null or id in (select account_id from spend_limits)
      or id in (select account_id from billing_failures where task = 'limit') order by id`
  for (const { id, failed } of accounts) {
    if (signal.aborted) return
    try {
      await checkLimit(sql, id, now)
      if (failed) await forgetFailure(sql, id, 'limit')
    } catch (error) {
      // What one account spends keeps nobody else's from being looked at; it is looked at again each time.
      await noteFailure(sql, { accountId: id, task: 'limit', month: monthOf(now) }, error, now)
      log.error({ err: error, account: id }, 'a limit could not be looked at')
    }
  }
}

/** @returns whether the account is over a hard limit */
export async function checkLimit(sql: Sql, accountId: number, now: Date): Promise<boolean> {
  const spent = await spentIn(sql, accountId, now)
  return await sql.begin(async (tx) => {
    const [account] = await tx<{ email: string | null; over: boolean }[]>`
      select email, over_limit_at is not null as over from accounts where id = ${accountId} for no key update`
    if (!account) return false
    const limits = await readLimits(tx, accountId)
    for (const limit of limits) await tell(tx, accountId, account.email, limit, spent, now)
    const isOver = limits.some(({ hard, micros }) => hard && spent >= micros)
    if (isOver !== account.over) {
      await tx`update accounts set over_limit_at = ${isOver ? now : null} where id = ${accountId}`
      await tx`insert into events (account_id, actor, kind, detail) values (${accountId}, 'gateway',
        ${isOver ? 'account.over_limit' : 'account.under_limit'}, ${tx.json({ spent: sayMoney(spent) })})`
    }
    if (isOver) await pauseAll(tx, accountId)
    return isOver
  })
}

async function tell(
  tx: Db,
  accountId: number,
  email: string | null,
  limit: Limit,
  spent: bigint,
  now: Date,
): Promise<void> {
  const reached = PERCENTS.filter((percent) => spent * 100n >= limit.micros * percent)
  const month = firstDay(monthOf(now))
  let isNews = false
  for (const percent of reached) {
    const written = await tx`
      insert into limit_notices (account_id, whose, month, percent, micros, at)
      values (${accountId}, ${limit.whose}, ${month}::date, ${Number(percent)}, ${String(limit.micros)}::bigint, ${now})
      on conflict do nothing returning percent`
    isNews ||= written.length > 0
  }
  const most = reached.at(-1)
  // Who passed both at once hears of the second alone.
  if (!isNews || most === undefined || email === null) return
  const { subject, body } = letter(limit, spent, most === 100n, now)
  await tx`insert into mails (recipient, subject, body) values (${email}, ${subject}, ${body})`
}

function letter({ micros, hard, whose }: Limit, spent: bigint, isFull: boolean, now: Date) {
  const month = sayMonth(monthOf(now))
  const of = `${whose === 'own' ? 'your' : "the operator's"} limit of ${sayMoney(micros)}`
  const subject = isFull ? `Berth: your machines have reached ${of}` : `Berth: your machines have cost 80 % of ${of}`
  const happened = `In ${month} (UTC) your machines have cost ${sayMoney(spent)} so far; ${of} is ${isFull ? 'reached' : 'near'}.`
  const means = hard
    ? isFull
      ? 'Machines that ran are paused, with all that runs in them, and nothing wakes or starts one; disks go on costing. They are yours again when the month is over or the limit is higher: resume NAME.'
      : 'When it is reached, machines are paused, with all that runs in them, and nothing is deleted.'
    : 'Nothing is paused: it is a limit that only tells.'
  const next =
    whose === 'own'
      ? 'To see what costs what: billing usage. To change the limit: billing limit AMOUNT.'
      : 'To see what costs what: billing usage. The operator can change the limit.'
  return { subject, body: `${happened}\n\n${means}\n\n${next}\n` }
}

async function pauseAll(tx: Db, accountId: number): Promise<void> {
  await tx`
    with paused as (
      update machines set desired_state = 'paused', hold_until = null
      where account_id = ${accountId} and desired_state = 'running' and observed_state in ('creating', 'running', 'asleep', 'stopped')
      returning id, name)
    insert into events (account_id, machine_id, machine_name, actor, kind, detail)
    select ${accountId}, id, name, 'gateway', 'machine.paused', ${tx.json({ because: 'its account is over its limit' })} from paused`
}
