import type { Sql } from '../../migrations/connect.ts'
import {
  cannotRestore,
  type DesiredState,
  type ImageStep,
  type MachineReport,
  type ObservedState,
  type StartStage,
} from '../../migrations/schema.ts'
import { hasWork } from './checkpoint-rows.ts'
import type { Watched } from './idleness.ts'
import type { Lease } from './lease.ts'

/** A machine as the database wants it and as it was last reported. */
export type MachineRow = {
  readonly id: number
  readonly accountId: number
  readonly name: string
  readonly image: string
  readonly cpus: number
  readonly memoryBytes: number
  readonly diskBytes: number
  readonly env: Readonly<Record<string, string>>
  /** `auto`, `none`, or what runs as its service where the image has no init */
  readonly command: string
  readonly desiredState: DesiredState
  readonly desiredBoot: number
  readonly observedState: ObservedState
  readonly observedBoot: number
  readonly observedReason: string | null
  /** sshd of `observedBoot` listened */
  readonly isReady: boolean
  /** of its files: see ownership.ts */
  readonly token: string
  /** public part of its host key in SSH wire form, as it was reported; null: it never had a disk */
  readonly hostKey: Buffer | null
  /** size of its disk as its guest knows it */
  readonly observedDiskBytes: number | null
  /** null: none left, or taken away */
  readonly address: string | null
  /** what puts it to sleep, or did; null: nothing, or its owner */
  readonly asleepBecause: string | null
  /** it is to become what a checkpoint holds; null: it is not, or has already */
  readonly restore: RestoreWish | null
  /** checkpoints of it are to be taken, or removed */
  readonly hasCheckpointWork: boolean
}

export type RestoreWish = {
  readonly number: number
  /** id of the checkpoint */
  readonly from: number | null
  /** id of the checkpoint that its state before is kept as */
  readonly keeps: number | null
}

/** What a vmhost reports; fields left out stay as they are. */
export type Observation = {
  readonly observedState?: ObservedState
  readonly observedBoot?: number
  readonly observedReason?: string | null
  readonly observedStage?: StartStage
  readonly observedHostKey?: Buffer
  readonly observedLoginUser?: string
  /** what its image exposes; null: it does not say */
  readonly observedWebPort?: number | null
  readonly observedReadyAt?: Date | null
  readonly observedStartedAt?: Date | null
  readonly observedCpus?: number | null
  readonly observedMemoryBytes?: number | null
  readonly observedDiskBytes?: number
  /** the size in its row that it was given as far as that can be done while it runs */
  readonly observedResizeCpus?: number | null
  readonly observedResizeMemoryBytes?: number | null
  readonly observedAwakeBecause?: string | null
  readonly observedIdleSince?: Date | null
  readonly observedAsleepBecause?: string | null
  readonly observedAsleepAt?: Date | null
  readonly observedSavedBytes?: number | null
  readonly observedRestore?: number
  readonly observedRestoreProblem?: string | null
  /** the guest switched itself off during this boot: that is what is wanted now, unless something newer is */
  readonly switchedOffBoot?: number
}

/** What is reported of a machine that does not sleep. */
export const notAsleep = { observedAsleepBecause: null, observedAsleepAt: null, observedSavedBytes: null } as const

export type MachineEvent = {
  readonly machineId: number
  readonly machineName: string
  readonly accountId: number
  readonly kind: string
  readonly detail?: Readonly<Record<string, unknown>>
}

/** Bytes and layers where the step counts them. */
export type PullProgress = {
  readonly step: ImageStep
  readonly doneBytes?: number | undefined
  readonly totalBytes?: number
  readonly layersDone?: number
  readonly layers?: number
}

/** The lease was taken over by a newer vmhost: nothing may be written any more. */
export class LeaseLostError extends Error {
  override readonly name = 'LeaseLostError'
}

/** The database as the reconciler sees it: rows of this server only, writes only under its lease. */
export class Rows {
  readonly sql: Sql
  readonly lease: Lease

  constructor(sql: Sql, lease: Lease) {
    this.sql = sql
    this.lease = lease
  }

  /** Index: machines_by_host. */
  async all(): Promise<MachineRow[]> {
    return this.#select(this.sql`m.host_id = ${this.lease.hostId} and m.observed_state <> 'gone'`)
  }

  async one(machineId: number): Promise<MachineRow | undefined> {
    const found = await this.#select(this.sql`m.id = ${machineId} and m.host_id = ${this.lease.hostId}`)
    return found[0]
  }

  #select(condition: ReturnType<Sql>) {
    return this.sql<MachineRow[]>`
      select m.id, account_id as "accountId", name, image, cpus, memory_bytes as "memoryBytes", disk_bytes as "diskBytes",
        observed_disk_bytes as "observedDiskBytes", env, command, desired_state as "desiredState", desired_boot as "desiredBoot", observed_state as "observedState",
        observed_boot as "observedBoot", observed_reason as "observedReason",
        observed_ready_at is not null as "isReady", token, observed_host_key as "hostKey", host(a.address) as address,
        observed_asleep_because as "asleepBecause",
        case when observed_restore < desired_restore
          then jsonb_build_object('number', desired_restore, 'from', restore_from, 'keeps', restore_keeps) end as restore,
        exists (select from checkpoints c where c.machine_id = m.id and ${hasWork(this.sql)}) as "hasCheckpointWork"
      from machines m left join addresses a on a.machine_id = m.id
      where ${condition} order by m.id`
  }

  /** @throws LeaseLostError */
  async report(machineId: number, seen: Observation): Promise<void> {
    const { switchedOffBoot, ...observed } = seen
    const columns: Record<string, unknown> = { observed_at: new Date() }
    for (const [name, value] of Object.entries(observed))
      columns[name.replace(/[A-Z]/g, (c) => `_${c.toLowerCase()}`)] = value
    if (seen.observedStage !== undefined) columns.observed_stage_at = new Date()
    const off = switchedOffBoot ?? -1
    const written = await this.sql`
      update machines set ${this.sql(columns)},
        desired_state = case when desired_state = 'running' and desired_boot = ${off} then 'stopped' else desired_state end
      where id = ${machineId} and host_id = ${this.lease.hostId} and ${this.#underLease()}`
    if (written.count === 0) await this.#checkLease()
  }

  /** The last step of a machine: its address and name are free for others, so nothing of it may be left here. */
  async finishGone(machineId: number): Promise<void> {
    await this.sql.begin(async (sql) => {
      const written = await sql`
        update machines set observed_state = 'gone', observed_ready_at = null, observed_reason = null, observed_at = now()
        where id = ${machineId} and host_id = ${this.lease.hostId} and ${this.#underLease()}`
      if (written.count === 0) return
      await sql`delete from addresses where machine_id = ${machineId}`
      await sql`delete from machine_names where machine_id = ${machineId}`
      await sql`delete from console_chunks where machine_id = ${machineId}`
      await sql`delete from machine_reports where machine_id = ${machineId}`
    })
    await this.#checkLease()
  }

  /** Machines that have lain in the trash for too long. @returns their ids */
  async expireTrash(days: number): Promise<number[]> {
    const expired = await this.sql<{ id: number }[]>`
      update machines set desired_state = 'gone' where host_id = ${this.lease.hostId} and desired_state = 'trashed'
        and observed_state = 'trashed' and trashed_at < now() - make_interval(days => ${days}) and ${this.#underLease()}
      returning id`
    return expired.map(({ id }) => id)
  }

  /** Gives up the machine that has been in the trash longest, because its space is needed. */
  async sacrificeTrash(): Promise<number | undefined> {
    const [oldest] = await this.sql<{ id: number }[]>`
      update machines set desired_state = 'gone' where id = (
        select id from machines where host_id = ${this.lease.hostId} and desired_state = 'trashed'
          and observed_state = 'trashed' order by trashed_at nulls first limit 1)
        and desired_state = 'trashed' and ${this.#underLease()}
      returning id`
    return oldest?.id
  }

  /** Machines that run and could sleep, with what may keep them awake. Index: machines_by_host. */
  async awake(): Promise<(Watched & { readonly id: number })[]> {
    return this.sql<(Watched & { id: number })[]>`
      select m.id, hold_until as "holdUntil", activity.at as "activityAt", activity.what as activity,
        sleep_never as "sleepNever", sleep_after_seconds as "sleepAfterSeconds",
        accounts.defaults ->> 'sleep-after' as "defaultSleepAfter",
        observed_awake_because as "awakeBecause", observed_idle_since as "idleSince"
      from machines m join accounts on accounts.id = m.account_id
        left join machine_activity activity on activity.machine_id = m.id
      where m.host_id = ${this.lease.hostId} and m.observed_state = 'running' and m.observed_ready_at is not null
        and m.desired_state = 'running'`
  }

  /**
   * Has a machine sleep because it is idle, unless something came meanwhile that keeps it awake.
   * @param seen what it was found idle by
   * @returns false: it is not, any more
   */
  async putToSleep(machineId: number, because: string, seen: Watched): Promise<boolean> {
    const written = await this.sql`
      update machines set desired_state = 'asleep', observed_asleep_because = ${because}
      where id = ${machineId} and host_id = ${this.lease.hostId} and desired_state = 'running'
        and observed_state = 'running' and (hold_until is null or hold_until <= now())
        and sleep_never = ${seen.sleepNever} and sleep_after_seconds is not distinct from ${seen.sleepAfterSeconds}
        and not exists (select from machine_activity where machine_id = ${machineId}
          -- What was read has whole milliseconds.
          and date_trunc('milliseconds', at) > coalesce(${seen.activityAt}::timestamptz, '-infinity')) and ${this.#underLease()}`
    return written.count > 0
  }

  /**
   * Leaves a machine asleep that is wanted awake and cannot be restored now. Who comes for it meanwhile is told each time,
   * and its record once.
   * @param boot that was wanted: another one needs no memory
   */
  async leaveAsleep(machineId: number, boot: number, because: string): Promise<void> {
    const { hostId, hostName } = this.lease
    const written = await this.sql`
      with before as (
        select id, observed_asleep_because is not distinct from ${cannotRestore} as was_left
        from machines where id = ${machineId}),
      left_asleep as (
        update machines set desired_state = 'asleep', observed_asleep_because = ${cannotRestore},
          observed_reason = ${because}, observed_at = now()
        where id = ${machineId} and host_id = ${hostId} and desired_state = 'running' and desired_boot = ${boot}
          and ${this.#underLease()}
        returning id, name, account_id),
      recorded as (
        insert into events (account_id, machine_id, machine_name, actor, kind, detail)
        select account_id, id, name, ${`host:${hostName}`}, 'machine.left_asleep', ${this.sql.json({ because })}
        from left_asleep join before using (id) where not was_left)
      select id from left_asleep`
    if (written.length === 0) await this.#checkLease()
  }

  /** Has a machine that was left asleep wake after all, since it can be restored again. */
  async wakeLeftAsleep(machineId: number): Promise<void> {
    await this.sql`
      update machines set desired_state = 'running'
      where id = ${machineId} and host_id = ${this.lease.hostId} and desired_state = 'asleep'
        and observed_asleep_because = ${cannotRestore} and ${this.#underLease()}
        and exists (select from accounts where accounts.id = account_id and suspended_at is null and over_limit_at is null)`
  }

  /** Whether anything was ever carried to or from it. Index: machine_activity_pkey. */
  async wasUsed(machineId: number): Promise<boolean> {
    return (await this.sql`select from machine_activity where machine_id = ${machineId}`).length > 0
  }

  /** Whether anything was carried to or from a machine of this server in so many milliseconds. Index: machines_by_host. */
  async anyUsedWithin(ms: number): Promise<boolean> {
    const used = await this.sql`
      select from machines m join machine_activity activity on activity.machine_id = m.id
      where m.host_id = ${this.lease.hostId} and activity.at > now() - ${ms} * interval '1 millisecond' limit 1`
    return used.length > 0
  }

  async record(event: MachineEvent): Promise<void> {
    await this.sql`
      insert into events (account_id, machine_id, machine_name, actor, kind, detail)
      values (${event.accountId}, ${event.machineId}, ${event.machineName}, ${`host:${this.lease.hostName}`},
        ${event.kind}, ${this.sql.json((event.detail ?? {}) as never)})`
  }

  async replaceReport(machineId: number, report: MachineReport): Promise<void> {
    await this.sql`
      insert into machine_reports (machine_id, at, report)
      select ${machineId}::int, now(), ${this.sql.json(report)}::jsonb where ${this.#underLease()}
      on conflict (machine_id) do update set at = excluded.at, report = excluded.report`
  }

  /** Says how far its image is, for whoever waits for it; no news to anybody. */
  async tellPull(machineId: number, progress: PullProgress): Promise<void> {
    const { step, doneBytes = null, totalBytes = null, layersDone = null, layers = null } = progress
    await this.sql`
      insert into image_pulls (machine_id, at, step, done_bytes, total_bytes, layers_done, layers)
      select ${machineId}::int, now(), ${step}, ${doneBytes}::bigint, ${totalBytes}::bigint, ${layersDone}::int,
        ${layers}::int where ${this.#underLease()}
      on conflict (machine_id) do update set at = excluded.at, step = excluded.step, done_bytes = excluded.done_bytes,
        total_bytes = excluded.total_bytes, layers_done = excluded.layers_done, layers = excluded.layers`
  }

  async endPull(machineId: number): Promise<void> {
    await this.sql`delete from image_pulls where machine_id = ${machineId} and ${this.#underLease()}`
  }

  /** Public keys that may sign in to machines of an account, SSH wire form. Index: the foreign key's, few rows. */
  async keysOf(accountId: number): Promise<Buffer[]> {
    const found = await this.sql<{ publicKey: Buffer }[]>`
      select public_key as "publicKey" from keys where account_id = ${accountId} order by id`
    return found.map(({ publicKey }) => publicKey)
  }

  async setting(key: string): Promise<string | undefined> {
    const [found] = await this.sql<{ value: string }[]>`select value from settings where key = ${key}`
    return found?.value
  }

  async nextConsoleSeq(machineId: number): Promise<number> {
    const [found] = await this.sql<{ seq: number }[]>`
      select coalesce(max(seq), 0) + 1 as seq from console_chunks where machine_id = ${machineId}`
    return found?.seq ?? 1
  }

  /** Appends to what the gateway shows of a console and takes the oldest away beyond `keptBytes`. */
  async appendConsole(machineId: number, boot: number, seq: number, bytes: Buffer, keptBytes: number): Promise<void> {
    await this.sql`
      insert into console_chunks (machine_id, seq, boot, bytes)
      select ${machineId}::int, ${seq}::bigint, ${boot}::int, ${bytes}::bytea where ${this.#underLease()}
      on conflict do nothing`
    await this.sql`
      delete from console_chunks where machine_id = ${machineId} and seq < (
        select coalesce(max(seq), 0) from (
          select seq, sum(length(bytes)) over (order by seq desc) as newer from console_chunks
          where machine_id = ${machineId}) as sums where newer > ${keptBytes})`
  }

  #underLease() {
    return this.sql`exists (select from hosts where id = ${this.lease.hostId} and lease_epoch = ${this.lease.epoch})`
  }

  async #checkLease(): Promise<void> {
    const [held] = await this.sql`select where ${this.#underLease()}`
    if (!held) throw new LeaseLostError('Another vmhost has taken over this server')
  }
}
