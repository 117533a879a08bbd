/**
 * Limits on what an account spends in a month: its own, and one of the operator's. At 80 and at 100 % the account is told,
 * once each for a month and a limit. At a hard one
 *
 *   under   -> over     over_limit_at is set; machines that run, or are to, are paused, and keep all that is in them
 *   over                nothing of the account wakes or starts, whoever knocks; disks go on costing what they cost
 *   over    -> under    in a new month, or with a higher limit: over_limit_at is taken away; what was paused waits for
 *                       `resume`, since nobody should pay for machines that start by themselves
 *
 * What is spent is what the ledger says, which a running machine's time comes into in pieces of five minutes, looked at
 * every minute as what it sends is (BERTH_METER); limits are looked at once a minute. So a machine may run on for seven minutes after
 * the limit is reached, and for as long as its server cannot reach the database; that is charged. A fee is spent whole
 * on the first day of its plan. Where nothing was charged in the month so far, no limit is reached.
 *
 * Each step can be done again: a machine that another gateway woke in the same moment is paused by the next look.
 */
import type { Db, Sql } from '../../migrations/connect.ts'
import { tellAccounts } from '../accounts/notices.ts'
import type { Log } from '../log.ts'
import { addMonths, dayOf, firstDay, monthOf, sayMonth } from './calendar.ts'
import { forgetFailure, noteFailure } from './failures.ts'
import { sayMoney, sayRate } from './money.ts'
import { countedOf } from './pricing.ts'
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

/** What is charged for the month so far; a fee is from the first day of its plan on, and then whole. */
export async function spentIn(db: Db, accountId: number, now: Date): Promise<bigint> {
  return countedOf(await readMonth(db, accountId, monthOf(now)), dayOf(now))
}

/** Of accounts whose limits were looked at, what they had used then; kept from one look to the next. */
export type LookedAt = Map<number, string>

/**
 * Looks at accounts that have a limit, or had one that they were over. Those are many, and most have used nothing since
 * the last look: such a one is passed over, for an hour at most, but for what is over its limit.
 */
export async function checkLimits(
  sql: Sql,
  now: Date,
  signal: AbortSignal,
  log: Log,
  lookedAt: LookedAt = new Map(),
): Promise<void> {
  const month = monthOf(now)
  // Facts are only added, so that a sum of all there are says whether there are new ones. Indexes: primary keys.
  const accounts = await sql<{ id: number; over: boolean; failed: boolean; used: string }[]>`
    select id, over_limit_at is not null as over,
      id in (select account_id from billing_failures where task = 'limit') as failed,
      coalesce((select sum(cpu + memory + disk + checkpoints + direct + gateway) from usage_account_days
        where account_id = accounts.id and day >= ${firstDay(month)}::date
          and day < ${firstDay(addMonths(month, 1))}::date), 0)::text as used
    from accounts where over_limit_at is not null or id in (select account_id from spend_limits)
      or id in (select account_id from billing_failures where task = 'limit') order by id`
  for (const { id, over, failed, used } of accounts) {
    if (signal.aborted) return
    const seen = `${now.toISOString().slice(0, 13)} ${used}`
    if (!over && !failed && lookedAt.get(id) === seen) continue
    try {
      await checkLimit(sql, id, now)
      lookedAt.set(id, seen)
      if (failed) await forgetFailure(sql, id, 'limit')
    } catch (error) {
      // What one account spends keeps nobody else's from being looked at; it is looked at again each time.
      await noteFailure(sql, { accountId: id, task: 'limit', month }, error, now)
      log.error({ err: error, account: id }, 'a limit could not be looked at')
    }
  }
}

/** @returns whether the account is over a hard limit */
export async function checkLimit(sql: Sql, accountId: number, now: Date): Promise<boolean> {
  const spent = await spentIn(sql, accountId, now)
  return await sql.begin(async (tx) => {
    const [account] = await tx<{ over: boolean }[]>`
      select over_limit_at is not null as over from accounts where id = ${accountId} for no key update`
    if (!account) return false
    const limits = await readLimits(tx, accountId)
    for (const limit of limits) await tell(tx, accountId, limit, spent, now)
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

async function tell(tx: Db, accountId: number, limit: Limit, spent: bigint, now: Date): Promise<void> {
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
  if (!isNews || most === undefined) return
  await tellAccounts(tx, [{ accountId, ...letter(limit, spent, most === 100n, now) }])
}

function letter({ micros, hard, whose }: Limit, spent: bigint, isFull: boolean, now: Date) {
  const month = sayMonth(monthOf(now))
  const of = `${whose === 'own' ? 'your' : "the operator's"} limit of ${sayRate(micros)}`
  const subject = isFull ? `your machines have reached ${of}` : `your machines have cost 80 % of ${of}`
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
