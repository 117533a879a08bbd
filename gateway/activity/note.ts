import type { Sql } from '../../migrations/connect.ts'
import type { ActivityKind } from '../../migrations/schema.ts'

export type Carried = {
  machineId: number
  /** how long ago something was last carried, in milliseconds: the database's clock is everybody's */
  agoMs: number
  what: ActivityKind
}

/**
 * Writes down when something was last carried to or from machines. Several gateways may: the latest time stays. Rows in
 * the order of their key, so that two statements never wait for each other in a circle.
 */
export async function noteCarried(sql: Sql, carried: readonly Carried[]): Promise<void> {
  // A machine whose row is gone must not spoil the others'. Index: machines_pkey.
  await sql`
    insert into machine_activity (machine_id, at, what)
    select m.id, now() - c.ago_ms * interval '1 millisecond', c.what
    from unnest(${carried.map(({ machineId }) => machineId)}::int[], ${carried.map(({ agoMs }) => agoMs)}::float8[],
      ${carried.map(({ what }) => what)}::text[]) as c (id, ago_ms, what) join machines m on m.id = c.id
    order by m.id
    on conflict (machine_id) do update set at = excluded.at, what = excluded.what
    where machine_activity.at < excluded.at`
}
