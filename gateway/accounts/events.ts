import type { Sql } from '../../migrations/connect.ts'

/** What a transaction and the pool have in common. */
export type Tx = Pick<Sql, 'unsafe'>

export type AuditEvent = {
  /** whose record it is; null: the installation's */
  accountId: number | null
  /** as events.actor says: `account:<id>`, `token:<id>`, `reader:<address>`, `visitor`, `gateway` */
  actor: string
  kind: string
  machine?: { id: number; name: string } | null
  /** where it came from; left out where nobody asked */
  address?: string | null
  via?: 'ssh' | 'exec' | 'web' | null
  /** as typed, without what may be secret */
  command?: string | null
  detail?: Record<string, unknown>
}

/** Appends to the record that `audit` shows; in the transaction of the change where there is one. */
export async function noteEvent(sql: Tx, event: AuditEvent): Promise<void> {
  const { accountId, actor, kind, machine, address, via, command, detail } = event
  await sql.unsafe(
    `insert into events (account_id, machine_id, machine_name, actor, address, via, command, kind, detail)
     values ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb)`,
    [
      ...[accountId, machine?.id ?? null, machine?.name ?? null, actor, address ?? null, via ?? null, command ?? null],
      ...[kind, JSON.stringify(detail ?? {})],
    ],
  )
}

/** The same about a machine, in the record of the account that has it. */
export async function noteOnMachine(
  sql: Tx,
  machineId: number,
  event: Omit<AuditEvent, 'accountId' | 'machine'>,
): Promise<void> {
  const [machine] = await sql.unsafe<{ accountId: number; name: string }[]>(
    'select account_id as "accountId", name from machines where id = $1',
    [machineId],
  )
  if (!machine) throw new RangeError(`there is no machine ${machineId}`)
  const { accountId, name } = machine
  await noteEvent(sql, { ...event, accountId, machine: { id: machineId, name } })
}
