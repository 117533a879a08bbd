import type { Sql } from '../../migrations/connect.ts'
import type { CheckpointState } from '../../migrations/schema.ts'
import type { Lease } from './lease.ts'

/** A checkpoint as the database wants it and as it was last reported. */
export type CheckpointRow = {
  readonly id: number
  readonly machineId: number
  readonly accountId: number
  readonly token: string
  readonly forCopy: boolean
  readonly diskOnly: boolean
  readonly desiredState: 'kept' | 'gone'
  readonly observedState: CheckpointState
  readonly observedReason: string | null
  readonly heldBytes: number | null
}

export type CheckpointObservation = {
  readonly observedState?: CheckpointState
  readonly observedReason?: string | null
  readonly observedTakenAt?: Date
  readonly observedDiskBytes?: number
  readonly observedCpus?: number | null
  readonly observedMemoryBytes?: number | null
  readonly observedSavedBytes?: number | null
  readonly observedHeldBytes?: number | null
  readonly observedStillMs?: number | null
}

/** Checkpoints of this server's machines; written only under its lease. */
export class CheckpointRows {
  readonly #sql: Sql
  readonly #lease: Lease

  constructor(sql: Sql, lease: Lease) {
    this.#sql = sql
    this.#lease = lease
  }

  async one(id: number): Promise<CheckpointRow | undefined> {
    const found = await this.#select(this.#sql`c.id = ${id}`)
    return found[0]
  }

  /** Those of a machine that are to be taken, or removed, in that order. Index: checkpoints_by_machine. */
  async workOf(machineId: number): Promise<CheckpointRow[]> {
    return this.#select(this.#sql`c.machine_id = ${machineId} and ${hasWork(this.#sql)}`)
  }

  /** Those that are there, for the bytes that they hold. */
  async kept(): Promise<CheckpointRow[]> {
    return this.#select(this.#sql`c.observed_state = 'kept' and c.desired_state = 'kept'`)
  }

  #select(condition: ReturnType<Sql>) {
    return this.#sql<CheckpointRow[]>`
      select c.id, c.machine_id as "machineId", c.account_id as "accountId", c.token, c.for_copy as "forCopy",
        c.disk_only as "diskOnly", c.desired_state as "desiredState", c.observed_state as "observedState",
        c.observed_reason as "observedReason", c.observed_held_bytes as "heldBytes"
      from checkpoints c join machines m on m.id = c.machine_id
      where m.host_id = ${this.#lease.hostId} and ${condition} order by c.desired_state desc, c.id`
  }

  async report(id: number, seen: CheckpointObservation): Promise<void> {
    const columns = Object.fromEntries(
      Object.entries(seen).map(([name, value]) => [name.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`), value]),
    )
    await this.#sql`update checkpoints set ${this.#sql(columns)} where id = ${id} and ${this.#underLease()}`
  }

  /** Nothing is wanted any more of those that were taken for copies which are there, or will not be made. */
  async endCopies(): Promise<void> {
    await this.#sql`
      update checkpoints c set desired_state = 'gone' from machines of
      where of.id = c.machine_id and of.host_id = ${this.#lease.hostId} and for_copy and c.desired_state = 'kept'
        and ${notAwaited(this.#sql)} and ${this.#underLease()}`
  }

  /** Whether another machine is just being made of what a machine was; one that failed, or is wanted no more, is not waited for. */
  async areAwaited(machineId: number): Promise<boolean> {
    const awaited = await this.#sql`
      select from checkpoints c join machines awaiting on awaiting.restore_from = c.id
      where c.machine_id = ${machineId} and awaiting.id <> ${machineId} and c.observed_state in ('waiting', 'kept')
        and awaiting.observed_restore < awaiting.desired_restore and awaiting.observed_state not in ('failed', 'gone')
        and awaiting.desired_state not in ('trashed', 'gone') limit 1`
    return awaited.length > 0
  }

  /** Their machine is gone, and they with it. */
  async endAllOf(machineId: number): Promise<CheckpointRow[]> {
    await this.#sql`
      update checkpoints set desired_state = 'gone'
      where machine_id = ${machineId} and desired_state = 'kept' and ${this.#underLease()}`
    return this.#select(this.#sql`c.machine_id = ${machineId} and c.observed_state <> 'gone'`)
  }

  #underLease() {
    return this.#sql`exists (select from hosts where id = ${this.#lease.hostId} and lease_epoch = ${this.#lease.epoch})`
  }
}

/**
 * Whether there is something to be done about a checkpoint `c`. One that a machine is about to become is not removed
 * before.
 */
export function hasWork(sql: Sql) {
  return sql`((c.observed_state = 'waiting' and c.desired_state = 'kept')
    or (c.desired_state = 'gone' and c.observed_state <> 'gone' and ${notAwaited(sql)}))`
}

/** Index: machines_restored. */
function notAwaited(sql: Sql) {
  return sql`not exists (select from machines awaiting where awaiting.restore_from = c.id
    and awaiting.observed_restore < awaiting.desired_restore and awaiting.desired_state <> 'gone'
    and awaiting.observed_state <> 'gone')`
}
