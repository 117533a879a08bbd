import type { Sql } from '../../../migrations/connect.ts'

const GIBIBYTE = 2 ** 30

export type StandInHost = {
  name?: string
  cpus?: number
  memoryBytes?: number
  machineOverheadBytes?: number
  storeBytes?: number
  storeFreeBytes?: number
}

/**
 * A stand-in for vmhost: no machine is behind its rows. It takes a lease and plays the observed states that a real one
 * would report, under the same database role, in the same order.
 */
export class StandInVmhost {
  readonly #sql: Sql
  readonly #hostKey: Buffer
  readonly #loginUser: string
  #hostId = 0
  #unlisten: () => Promise<void> = async () => {}
  #work: Promise<void> = Promise.resolve()
  /** machines that shall not start, though they have a disk: name -> reason */
  readonly failures = new Map<string, string>()
  /** machines whose image cannot be had: name -> reason */
  readonly imageFailures = new Map<string, string>()
  /** machines that shall not fall asleep: name -> reason */
  readonly sleepFailures = new Map<string, string>()
  /** machines whose memory shall be lost when they wake: name -> reason */
  readonly memoryLosses = new Map<string, string>()
  /** machines whose checkpoints shall fail: name -> reason */
  readonly checkpointFailures = new Map<string, string>()
  /** of a machine that runs */
  readonly givesAtOnce = { cpu: false, memory: false }
  /** while set, nothing is reported */
  paused = false

  constructor(sql: Sql, options: { hostKey?: Buffer; loginUser?: string } = {}) {
    this.#sql = sql
    this.#hostKey = options.hostKey ?? Buffer.from('stand-in host key')
    this.#loginUser = options.loginUser ?? 'dev'
  }

  get hostId(): number {
    return this.#hostId
  }

  async start(host: StandInHost = {}): Promise<void> {
    const sql = this.#sql
    const [row] = await sql<{ id: number }[]>`insert into hosts (name) values (${host.name ?? 'server1'}) returning id`
    this.#hostId = row?.id ?? 0
    const images = ['base', 'minimal'].map((name) => ({
      name,
      hash: 'h',
      sizeBytes: GIBIBYTE,
      loginUser: this.#loginUser,
      description: '',
    }))
    await sql`update hosts set lease_expires_at = now() + interval '1 hour', lease_epoch = 1, cpus = ${host.cpus ?? 8},
      memory_bytes = ${host.memoryBytes ?? 64 * GIBIBYTE},
      machine_overhead_bytes = ${host.machineOverheadBytes ?? 0}, store_bytes = ${host.storeBytes ?? 500 * GIBIBYTE},
      store_free_bytes = ${host.storeFreeBytes ?? 400 * GIBIBYTE}, images = ${sql.json(images)} where id = ${this.#hostId}`
    const { unlisten } = await sql.listen('machines', () => this.look())
    this.#unlisten = unlisten
    this.look()
  }

  /** Looks at every row once, after what is being done already. */
  look(): void {
    this.#work = this.#work.then(() => this.#reconcile()).catch(() => {})
  }

  /** What the vmhost does once a minute. */
  async emptyTrash(days: number): Promise<void> {
    await this.#sql`update machines set desired_state = 'gone' where desired_state = 'trashed'
      and observed_state = 'trashed' and trashed_at < now() - make_interval(days => ${days})`
  }

  async stop(): Promise<void> {
    this.paused = true
    await this.#unlisten()
    await this.#work
  }

  async #reconcile(): Promise<void> {
    if (this.paused) return
    const sql = this.#sql
    await this.#tendCheckpoints()
    await this.#resize()
    const rows = await sql<
      {
        id: number
        name: string
        desired_state: string
        observed_state: string
        desired_boot: number
        observed_boot: number
      }[]
    >`select id, name, desired_state, observed_state, desired_boot, observed_boot from machines
      where host_id = ${this.#hostId} and observed_state <> 'gone'
        and (observed_restore = desired_restore or desired_state = 'gone') order by id`
    for (const row of rows) {
      const { id, desired_state: desired, observed_state: observed } = row
      const behind = row.observed_boot < row.desired_boot
      if (desired === 'running' && !behind && observed === 'asleep') await this.#wake(row)
      else if (desired === 'running' && (behind || !['running', 'failed'].includes(observed))) await this.#boot(row)
      if (['asleep', 'paused'].includes(desired) && observed === 'running') await this.#sleep(row)
      if (desired === 'stopped' && observed !== 'stopped') await this.#report(id, 'stopped')
      if (desired === 'trashed' && observed !== 'trashed') await this.#report(id, 'trashed')
      if (desired === 'gone') {
        await sql`delete from machine_names where machine_id = ${id}`
        await sql`delete from addresses where machine_id = ${id}`
        await this.#report(id, 'gone')
      }
    }
  }

  async #resize(): Promise<void> {
    const { cpu, memory } = this.givesAtOnce
    await this.#sql`update machines set observed_resize_cpus = cpus, observed_resize_memory_bytes = memory_bytes,
        observed_cpus = case when ${cpu} then greatest(cpus, observed_cpus) else observed_cpus end,
        observed_memory_bytes = case when ${memory} then greatest(memory_bytes, observed_memory_bytes) else observed_memory_bytes end
      where host_id = ${this.#hostId} and observed_ready_at is not null and desired_state = 'running'
        and (cpus, memory_bytes) is distinct from (observed_cpus, observed_memory_bytes)
        and (cpus, memory_bytes) is distinct from (observed_resize_cpus, observed_resize_memory_bytes)`
  }

  async #tendCheckpoints(): Promise<void> {
    const sql = this.#sql
    const work = await sql<
      { id: number; wanted: string; name: string; state: string; alone: boolean; made: boolean }[]
    >`
      select c.id, c.desired_state as wanted, name, m.observed_state as state, disk_only as alone,
        m.observed_restore < m.desired_restore and m.restore_keeps is null as made
      from checkpoints c join machines m on m.id = c.machine_id where m.host_id = ${this.#hostId}
        and (c.observed_state = 'waiting' or (c.desired_state = 'gone' and c.observed_state <> 'gone'))`
    for (const { id, wanted, name, state, alone, made } of work) {
      const reason = this.checkpointFailures.get(name)
      if (wanted === 'gone') await sql`update checkpoints set observed_state = 'gone' where id = ${id}`
      else if (made) continue
      else if (reason) {
        await sql`update checkpoints set observed_state = 'failed', observed_reason = ${reason} where id = ${id}`
      } else {
        const withMemory = !alone && (state === 'running' || state === 'asleep')
        await sql`update checkpoints c set observed_state = 'kept', observed_taken_at = now(), observed_disk_bytes = disk_bytes,
          observed_cpus = ${withMemory ? sql`cpus` : null}, observed_memory_bytes = ${withMemory ? sql`memory_bytes` : null},
          observed_saved_bytes = ${withMemory ? 100 * 2 ** 20 : null}, observed_held_bytes = ${withMemory ? 100 * 2 ** 20 : 0},
          observed_still_ms = ${withMemory && state === 'running' ? 300 : null}
          from machines where machines.id = machine_id and c.id = ${id}`
      }
    }
    const due = await sql<{ id: number; problem: string | null }[]>`
      select m.id, keeps.observed_reason as problem from machines m join checkpoints source on source.id = m.restore_from
        left join checkpoints keeps on keeps.id = m.restore_keeps
      where m.host_id = ${this.#hostId} and m.observed_restore < m.desired_restore and source.observed_state = 'kept'`
    for (const { id, problem } of due) {
      if (problem === null) await this.#report(id, 'stopped')
      await sql`update machines set observed_restore = desired_restore, observed_restore_problem = ${problem} where id = ${id}`
    }
    await sql`update checkpoints c set desired_state = 'gone' where for_copy and desired_state = 'kept' and not exists (
      select from machines where restore_from = c.id and observed_restore < desired_restore and desired_state <> 'gone')`
  }

  async #boot({ id, name, desired_boot }: { id: number; name: string; desired_boot: number }): Promise<void> {
    const sql = this.#sql
    const unmade = this.imageFailures.get(name)
    const reason = unmade ?? this.failures.get(name)
    if (reason) {
      await sql`update machines set observed_state = 'failed', observed_reason = ${reason}, observed_ready_at = null,
        observed_host_key = ${unmade ? null : this.#hostKey}, observed_boot = ${desired_boot} where id = ${id}`
      return
    }
    for (const stage of ['disk', 'network', 'boot', 'ssh']) {
      await sql`update machines set observed_stage = ${stage}, observed_stage_at = now() where id = ${id}`
    }
    await sql`update machines set observed_state = 'running', observed_stage = 'ready', observed_boot = ${desired_boot},
      observed_asleep_because = null, observed_asleep_at = null, observed_saved_bytes = null, observed_reason = null, observed_ready_at = now(), observed_started_at = now(), observed_host_key = ${this.#hostKey},
      observed_login_user = ${this.#loginUser} where id = ${id}`
  }

  async #sleep({ id, name }: { id: number; name: string }): Promise<void> {
    const reason = this.sleepFailures.get(name)
    if (reason) {
      await this.#sql`update machines set observed_reason = ${reason} where id = ${id}`
      return
    }
    await this.#sql`update machines set observed_state = 'asleep', observed_ready_at = null, observed_reason = null,
      observed_asleep_because = coalesce(observed_asleep_because, 'told to'), observed_asleep_at = now(),
      observed_saved_bytes = ${100 * 2 ** 20} where id = ${id}`
  }

  async #wake({ id, name }: { id: number; name: string }): Promise<void> {
    const sql = this.#sql
    await sql`update machines set observed_state = 'running', observed_stage = 'network', observed_ready_at = null
      where id = ${id}`
    await sql`update machines set observed_stage = 'ready', observed_ready_at = now(), observed_asleep_because = null,
      observed_asleep_at = null, observed_saved_bytes = null, observed_reason = ${this.memoryLosses.get(name) ?? null}
      where id = ${id} and observed_state = 'running'`
  }

  async #report(id: number, state: string): Promise<void> {
    await this
      .#sql`update machines set observed_state = ${state}, observed_ready_at = null, observed_asleep_because = null,
      observed_asleep_at = null, observed_saved_bytes = null where id = ${id}`
  }
}
