/**
 * Whether it is as late as a clock says. Closing a month cannot be taken back, and is collected, so it takes more than
 * one clock: a server can boot with a date years ahead until it has asked for the time.
 *
 *   believed -> waiting   months are due, and the time is no proof that they are over: the clocks of this process and of
 *                         the database differ, or it is days since the last round (or, before the first one, since the
 *                         newest fact), or more months are due than a Berth leaves behind that runs
 *   waiting               nothing is closed, limits are looked at; `doctor` and `billing runs` say it, and one mail
 *   waiting -> believed   the clock was set right; or the operator's word, `billing runs --close MONTH`, which holds for
 *                         that month and those before it, so that a clock that is wrong closes no more than was said
 *
 * A jump while nothing is due is believed: there is nothing that it could close.
 */
import type { Db, Sql } from '../../migrations/connect.ts'
import { addMonths, firstDay, type Month, monthsBetween, sayMonth } from './calendar.ts'

/** Between this process and the database. */
const CLOCKS_APART_MS = 60_000
/** Longer than a Berth stands still for an update, shorter than what a month more would be. */
const JUMP_MS = 3 * 86_400_000
/** So many are due after a month in which something kept them from being closed. */
const MONTHS_AT_ONCE = 2
const RECORDED_EVERY_MS = 3_600_000

/** The same moment by two clocks. */
export type Clocks = { database: Date; own: Date }

/** Months that are due by a clock that is not believed, in order. */
export type Waiting = { since: Date; because: string; months: Month[] }

type State = {
  lastRoundAt: Date | null
  since: Date | null
  because: string | null
  from: Month | null
  to: Month | null
  over: Month | null
}

/**
 * Looks at the time once a round, and keeps what it finds.
 * @param due months that are over by the database's clock, in order
 * @returns those that are proved to be
 */
export async function provenMonths(sql: Sql, due: readonly Month[], clocks: Clocks): Promise<Month[]> {
  const now = clocks.database
  const state = await readState(sql)
  const { over } = state
  const isSaid = (month: Month) => over !== null && month <= over
  const unproved = due.filter((month) => !isSaid(month))
  const isApart = Math.abs(clocks.database.getTime() - clocks.own.getTime()) > CLOCKS_APART_MS
  const because = unproved.length === 0 ? undefined : await doubt(sql, unproved, clocks, state.lastRoundAt)
  if (because !== undefined) {
    await wait(sql, state, { since: now, because, months: unproved })
    return due.filter(isSaid)
  }
  const lastMs = state.lastRoundAt?.getTime()
  const isOld = lastMs === undefined || Math.abs(now.getTime() - lastMs) >= RECORDED_EVERY_MS
  const isSettled = state.since !== null || (due.length === 0 && over !== null)
  if (isSettled || (isOld && !isApart)) {
    await sql`update billing_clock set last_round_at = ${isApart ? state.lastRoundAt : now}, waits_since = null,
      waits_because = null, waits_from = null, waits_to = null,
      over_month = ${over === null || due.length === 0 ? null : firstDay(over)}::date`
  }
  return [...due]
}

export async function readWaiting(db: Db): Promise<Waiting | undefined> {
  const { since, because, from, to } = await readState(db)
  if (since === null || because === null || from === null || to === null) return undefined
  return { since, because, months: monthsBetween(from, addMonths(to, 1)) }
}

/** The operator says that this month and those before it are over. */
export async function sayOver(db: Db, month: Month): Promise<void> {
  await db`update billing_clock set over_month = ${firstDay(month)}::date`
}

/** `November 2026`, `November 2026 to December 2035 (110 months)` */
export function sayMonths(months: readonly Month[]): string {
  const [first, last] = [months[0], months.at(-1)]
  if (first === undefined || last === undefined) return 'no month'
  return first === last ? sayMonth(first) : `${sayMonth(first)} to ${sayMonth(last)} (${months.length} months)`
}

async function doubt(
  db: Db,
  due: readonly Month[],
  { database, own }: Clocks,
  lastRoundAt: Date | null,
): Promise<string | undefined> {
  const apartMs = Math.abs(database.getTime() - own.getTime())
  if (apartMs > CLOCKS_APART_MS) {
    return `the clocks of gateway and database differ by ${Math.round(apartMs / 1000)} s`
  }
  const before = lastRoundAt ?? (await newestFact(db))
  if (before === null || database.getTime() - before.getTime() > JUMP_MS) {
    const earlier =
      before === null ? 'nothing says what it said before' : `it was last known to say ${sayMinute(before)}`
    return `the clock says ${sayMinute(database)}, and ${earlier}`
  }
  if (due.length > MONTHS_AT_ONCE) return `${due.length} months are due at once`
  return undefined
}

/** A look at each machine's last span, in the index of the primary key. */
async function newestFact(db: Db): Promise<Date | null> {
  const [row] = await db<{ at: Date | null }[]>`
    select max(at) as at from machines cross join lateral (
      select ended_at as at from machine_spans where machine_id = machines.id order by started_at desc limit 1) s`
  return row?.at ?? null
}

async function wait(sql: Sql, state: State, { since, because, months }: Waiting): Promise<void> {
  const [from, to] = [months[0] ?? '', months.at(-1) ?? '']
  const isNews = state.since === null
  if (!isNews && state.from === from && state.to === to && state.because === because) return
  await sql.begin(async (tx) => {
    await tx`update billing_clock set waits_since = ${state.since ?? since}, waits_because = ${because},
      waits_from = ${firstDay(from)}::date, waits_to = ${firstDay(to)}::date`
    if (!isNews) return
    const body = `${sayMonths(months)} would be closed now, but it is not sure that it is so late: ${because}.\n\nNothing is closed meanwhile, and what is used is counted. If the clock is wrong, set it right: then this is over by itself. If it is right, say so: billing runs --close ${to}. How it stands: billing runs.\n`
    await tx`insert into mails (recipient, subject, body)
      select email, 'Berth: months wait to be closed', ${body} from accounts where is_owner and email is not null`
  })
}

async function readState(db: Db): Promise<State> {
  const [state] = await db<State[]>`
    select last_round_at as "lastRoundAt", waits_since as since, waits_because as because,
      to_char(waits_from, 'YYYY-MM') as from, to_char(waits_to, 'YYYY-MM') as to, to_char(over_month, 'YYYY-MM') as over
    from billing_clock`
  if (!state) throw new Error('billing_clock has no row')
  return state
}

/** `2026-11-23 10:05 UTC` */
function sayMinute(at: Date): string {
  return `${at.toISOString().slice(0, 16).replace('T', ' ')} UTC`
}
