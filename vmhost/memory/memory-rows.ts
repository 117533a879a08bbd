import type { DesiredState, ObservedState } from '../../migrations/schema.ts'
import type { Rows } from '../reconcile/rows.ts'

/** A machine that runs and is wanted to, with what decides whether it sleeps when its server is short of memory. */
export type AwakeRow = {
  readonly id: number
  readonly memoryBytes: number
  readonly idleSince: Date | null
  readonly activityAt: Date | null
  readonly holdUntil: Date | null
}

/** A machine that its server has promised memory to, or is about to. */
export type PromisedRow = {
  readonly id: number
  /** that it has, or is to have at its next start; the larger */
  readonly memoryBytes: number
  readonly desiredState: DesiredState
  readonly observedState: ObservedState
}

export type Promises = {
  /** what may be promised: what there is, times what the operator allows */
  readonly capacityBytes: number
  readonly machines: readonly PromisedRow[]
}

export const shortOfMemory = 'its server was short of memory'

/** The database as far as a server's memory goes. Writes only under the lease. */
export class MemoryRows {
  readonly #rows: Rows

  constructor(rows: Rows) {
    this.#rows = rows
  }

  /** Index: machines_by_host. */
  async awake(): Promise<AwakeRow[]> {
    const { sql, lease } = this.#rows
    return sql<AwakeRow[]>`
      select m.id, greatest(memory_bytes, observed_memory_bytes) as "memoryBytes", observed_idle_since as "idleSince",
        activity.at as "activityAt", hold_until as "holdUntil"
      from machines m left join machine_activity activity on activity.machine_id = m.id
      where m.host_id = ${lease.hostId} and m.observed_state = 'running' and m.observed_ready_at is not null
        and m.desired_state = 'running' order by m.id`
  }

  /** Index: machines_by_host. */
  async promises(): Promise<Promises> {
    const { sql, lease } = this.#rows
    const [[host], machines] = await Promise.all([
      sql<{ capacityBytes: number }[]>`
        select floor(memory_bytes * memory_overcommit)::bigint as "capacityBytes" from hosts where id = ${lease.hostId}`,
      sql<PromisedRow[]>`
        select id, greatest(memory_bytes, observed_memory_bytes) as "memoryBytes", desired_state as "desiredState",
          observed_state as "observedState"
        from machines where host_id = ${lease.hostId} and observed_state <> 'gone'
          and (desired_state = 'running' or observed_state in ('creating', 'running')) order by id`,
    ])
    return { capacityBytes: host?.capacityBytes ?? 0, machines }
  }

  /**
   * Has a machine sleep whatever its owner set, since its server is short of memory; an idle one only if nothing came
   * since it was found idle.
   * @returns false: it does not run any more, or something came
   */
  async putToSleep({ id, idleSince, activityAt }: Omit<AwakeRow, 'memoryBytes'>): Promise<boolean> {
    const { sql, lease } = this.#rows
    const stillIdle =
      idleSince === null
        ? sql`true`
        : sql`(hold_until is null or hold_until <= now()) and not exists (
            select from machine_activity where machine_id = ${id}
              -- What was read has whole milliseconds.
              and date_trunc('milliseconds', at) > coalesce(${activityAt}::timestamptz, '-infinity'))`
    const written = await sql`
      update machines set desired_state = 'asleep', observed_asleep_because = ${shortOfMemory}
      where id = ${id} and host_id = ${lease.hostId} and desired_state = 'running' and observed_state = 'running'
        and ${stillIdle} and ${this.#underLease()}`
    return written.count > 0
  }

  /** Leaves a machine asleep that something came for, and says why. @returns false: it is not wanted awake any more */
  async leaveAsleep(id: number, because: string): Promise<boolean> {
    const { sql, lease } = this.#rows
    const written = await sql`
      with left_asleep as (
        update machines set desired_state = 'asleep', observed_reason = ${because}
        where id = ${id} and host_id = ${lease.hostId} and desired_state = 'running' and ${this.#underLease()}
        returning id, name, account_id)
      insert into events (account_id, machine_id, machine_name, actor, kind, detail)
      select account_id, id, name, ${`host:${lease.hostName}`}, 'machine.left_asleep', ${sql.json({ because })}
      from left_asleep`
    return written.count > 0
  }

  #underLease() {
    const { sql, lease } = this.#rows
    return sql`exists (select from hosts where id = ${lease.hostId} and lease_epoch = ${lease.epoch})`
  }
}

/**
 * By how much more is promised than may be, should these machines wake.
 * @param admitted that wake, and have been found to fit: those that only would like to wake promise nothing yet
 * @param overheadBytes what each hypervisor takes beside its guest
 */
export function overPromisedBytes(
  { capacityBytes, machines }: Promises,
  admitted: ReadonlySet<number>,
  overheadBytes: number,
): number {
  const isPromised = ({ id, observedState }: PromisedRow) => observedState !== 'asleep' || admitted.has(id)
  const sum = machines.filter(isPromised).reduce((bytes, { memoryBytes }) => bytes + memoryBytes + overheadBytes, 0)
  return Math.max(0, sum - capacityBytes)
}

/** Those that still run and are wanted otherwise: what they were promised is about to come back. */
export function leaving({ machines }: Promises): PromisedRow[] {
  return machines.filter(({ desiredState, observedState }) => desiredState !== 'running' && observedState === 'running')
}
