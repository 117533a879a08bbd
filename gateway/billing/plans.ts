/** What the operator decides: plans, their rates, and who is on which. All of it from a day to come on, never before. */
import type { Db } from '../../migrations/connect.ts'
import type { RateKind } from '../../migrations/schema.ts'
import { addDays, type Day, dayOf, startOfDay } from './calendar.ts'
import { planOn, readPriceList, readSubscriber } from './terms.ts'

export type Plan = {
  name: string
  charged: boolean
  machinesMost: number | null
  cpusMost: number | null
  memoryBytesMost: number | null
  diskBytesMost: number | null
}

/** Caps of all machines of an account together. */
export type Caps = Omit<Plan, 'name' | 'charged'>

export async function readPlans(db: Db): Promise<Plan[]> {
  return await db<Plan[]>`
    select name, charged, machines_most as "machinesMost", cpus_most as "cpusMost",
      memory_bytes_most as "memoryBytesMost", disk_bytes_most as "diskBytesMost" from plans order by created_at, name`
}

/** The plan an account is on. */
export async function planOf(db: Db, accountId: number, day: Day = dayOf(new Date())): Promise<string> {
  return planOn(await readSubscriber(db, accountId), await readPriceList(db), day)
}

/** The first day that a change can be for: what a day costs is settled when it begins. */
export async function soonest(db: Db): Promise<Day> {
  const [row] = await db<{ now: Date }[]>`select now() as now`
  return addDays(dayOf(new Date(row?.now ?? Date.now())), 1)
}

/** Makes a plan, or gives one other caps; those left out stay. @returns whether it is new */
export async function setPlan(tx: Db, name: string, caps: Partial<Caps>): Promise<boolean> {
  const made = await tx`insert into plans (name, charged) values (${name}, true) on conflict do nothing returning name`
  const column: Record<keyof Caps, string> = {
    machinesMost: 'machines_most',
    cpusMost: 'cpus_most',
    memoryBytesMost: 'memory_bytes_most',
    diskBytesMost: 'disk_bytes_most',
  }
  for (const [cap, most] of Object.entries(caps) as [keyof Caps, number | null][]) {
    await tx`update plans set ${tx(column[cap])} = ${most} where name = ${name}`
  }
  return made.length > 0
}

/** Who keeps a plan: what was used on it is computed by it. */
export type Holder = {
  /** null: all that no plan is named for, but the operator's own */
  accountId: number | null
  email: string | null
  from: Day
  /** nothing was used on it yet, and another plan can take its place */
  isToCome: boolean
}

/** Those that are on a plan, were or will be; the first of each. */
export async function readHolders(db: Db, plan: string): Promise<Holder[]> {
  return await db<Holder[]>`
    select distinct on (coalesce(account_id, 0)) account_id as "accountId", email, lower(effective) > now() as "isToCome",
      coalesce(to_char(lower(effective) at time zone 'utc', 'YYYY-MM-DD'), '') as from
    from account_plans left join accounts on accounts.id = account_id
    where plan = ${plan} order by coalesce(account_id, 0), lower(effective)`
}

/**
 * Removes a plan with its rates, what was in force of them too: nobody can have used anything at them. The database
 * refuses it when somebody is on the plan, was or will be, or an invoice names it.
 * @returns whether there was one
 */
export async function removePlan(tx: Db, name: string): Promise<boolean> {
  const removed = await tx`delete from plans where name = ${name}`
  return removed.count > 0
}

/** From that day on, in place of all that was to come. Two operators at once take turns, in transactions of their own. */
export async function setRate(
  tx: Db,
  rate: { plan: string; kind: RateKind; micros: bigint; included: bigint; from: Day },
): Promise<void> {
  const { plan, kind, micros, included } = rate
  const from = startOfDay(rate.from)
  await tx`select from plans where name = ${plan} for update`
  await tx`delete from rates where plan = ${plan} and kind = ${kind} and lower(effective) >= ${from}`
  await tx`update rates set effective = effective * tstzrange(null, ${from})
    where plan = ${plan} and kind = ${kind} and effective @> ${from}::timestamptz`
  await tx`insert into rates (plan, kind, micros, included, effective)
    values (${plan}, ${kind}, ${String(micros)}::bigint, ${String(included)}::bigint, tstzrange(${from}, null))`
}

/** @param accountId null: all that no plan is named for, but the operator's own */
export async function assignPlan(
  tx: Db,
  { accountId, plan, from }: { accountId: number | null; plan: string; from: Day },
): Promise<void> {
  const starts = startOfDay(from)
  await tx`select pg_advisory_xact_lock(hashtextextended('berth.account_plans', 0))`
  await tx`delete from account_plans where coalesce(account_id, 0) = ${accountId ?? 0} and lower(effective) >= ${starts}`
  await tx`update account_plans set effective = effective * tstzrange(null, ${starts})
    where coalesce(account_id, 0) = ${accountId ?? 0} and effective @> ${starts}::timestamptz`
  await tx`insert into account_plans (account_id, plan, effective) values (${accountId}, ${plan}, tstzrange(${starts}, null))`
}
