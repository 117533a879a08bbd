import { isDeepStrictEqual } from 'node:util'
import type { DoctorFinding, HostImage } from '../../migrations/schema.ts'
import type { Rows } from './rows.ts'

/** What a server says of itself in its row. */
export type HostFacts = {
  readonly boot_id: string
  readonly cpus: number
  readonly memory_bytes: number
  readonly machine_overhead_bytes: number
  readonly memory_available_bytes: number
  readonly memory_used_bytes: number
  readonly memory_reclaimed_bytes: number
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

/** Space and memory that move by less than this are no news. */
const grainBytes = 64 * 2 ** 20
const grained = ['store_free_bytes', 'memory_available_bytes', 'memory_used_bytes', 'memory_reclaimed_bytes'] as const

/** Writes facts that changed; unchanged columns are left out, since writing `images` is news for every gateway. */
export class FactsWriter {
  readonly #rows: Rows
  #written: Partial<HostFacts> = {}

  constructor(rows: Rows) {
    this.#rows = rows
  }

  async write(facts: HostFacts): Promise<void> {
    const coarse = Object.fromEntries(grained.map((key) => [key, facts[key] - (facts[key] % grainBytes)]))
    const told: HostFacts = { ...facts, ...coarse }
    const changed: Record<string, unknown> = {}
    for (const key of Object.keys(told) as (keyof HostFacts)[]) {
      if (isDeepStrictEqual(this.#written[key], told[key])) continue
      const value = told[key]
      changed[key] = typeof value === 'object' ? this.#rows.sql.json(value as never) : value
    }
    if (Object.keys(changed).length === 0) return
    const { sql, lease } = this.#rows
    await sql`update hosts set ${sql(changed)} where id = ${lease.hostId} and lease_epoch = ${lease.epoch}`
    this.#written = told
  }
}
