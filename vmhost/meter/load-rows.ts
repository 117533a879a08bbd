import type { Sql } from '../../migrations/connect.ts'
import type { LoadState } from '../../migrations/schema.ts'
import type { Lease } from '../reconcile/lease.ts'
import { LeaseLostError } from '../reconcile/rows.ts'

/** A row of load_samples, as add_load() takes it. Times in ISO 8601; null: not known. */
export type LoadSample = {
  readonly machine_id: number
  readonly at: string
  readonly ms: number
  readonly cpus: number
  readonly cpu_ms: number
  readonly memory_limit_bytes: number
  readonly memory_held_bytes: number
  readonly memory_used_bytes: number | null
  readonly disk_ms: number | null
  readonly disk_read_bytes: number | null
  readonly disk_written_bytes: number | null
  readonly network_ms: number | null
  readonly network_out_bytes: number | null
  readonly network_in_bytes: number | null
  readonly filesystem_used_bytes: number | null
  readonly filesystem_bytes: number | null
}

export type LoadMark = { readonly machine_id: number; readonly at: string; readonly state: LoadState }

/** Load as a vmhost appends it: of its own machines, under its lease. A repeat changes nothing. */
export class LoadRows {
  readonly #sql: Sql
  readonly #lease: Lease

  constructor(sql: Sql, lease: Lease) {
    this.#sql = sql
    this.#lease = lease
  }

  /** One statement, which sums what is new of it too. @throws LeaseLostError, and what the database refuses: none is there then */
  async add(samples: readonly LoadSample[], marks: readonly LoadMark[]): Promise<void> {
    const [row] = await this.#sql<{ added: number | null }[]>`
      select add_load(${this.#lease.hostId}, ${this.#lease.epoch}, ${this.#sql.json(samples as never)},
        ${this.#sql.json(marks as never)}) as added`
    if (row?.added === null) throw new LeaseLostError('Another vmhost has taken over this server')
  }

  /** Makes the tables' parts for the days to come, and drops those that are too old. */
  async keepPartitions(): Promise<void> {
    await this.#sql`select keep_load_partitions()`
  }
}
