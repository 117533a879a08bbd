import { isDeepStrictEqual } from 'node:util'
import type { DoctorFinding, HostImage } from '../../migrations/schema.ts'
import type { Rows } from './rows.ts'

/** What a server says of itself in its row. */
export type HostFacts = {
  readonly boot_id: string
  readonly cpus: number
  readonly memory_bytes: number
  readonly machine_overhead_bytes: number
  readonly store_bytes: number
  readonly store_free_bytes: number
  readonly hypervisor: string
  readonly accelerator: string
  readonly accelerator_reason: string
  readonly nested: boolean
  readonly images: readonly HostImage[]
  readonly doctor: readonly DoctorFinding[]
  readonly version: string
}

/** Free space that moves by less than this is no news. */
const spaceGrainBytes = 64 * 2 ** 20

/** Writes facts that changed; unchanged columns are left out, since writing `images` is news for every gateway. */
export class FactsWriter {
  readonly #rows: Rows
  #written: Partial<HostFacts> = {}

  constructor(rows: Rows) {
    this.#rows = rows
  }

  async write(facts: HostFacts): Promise<void> {
    const grained = { ...facts, store_free_bytes: facts.store_free_bytes - (facts.store_free_bytes % spaceGrainBytes) }
    const changed: Record<string, unknown> = {}
    for (const key of Object.keys(grained) as (keyof HostFacts)[]) {
      if (isDeepStrictEqual(this.#written[key], grained[key])) continue
      const value = grained[key]
      changed[key] = typeof value === 'object' ? this.#rows.sql.json(value as never) : value
    }
    if (Object.keys(changed).length === 0) return
    const { sql, lease } = this.#rows
    await sql`update hosts set ${sql(changed)} where id = ${lease.hostId} and lease_epoch = ${lease.epoch}`
    this.#written = grained
  }
}
