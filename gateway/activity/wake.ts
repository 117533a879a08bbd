import type { Sql } from '../../migrations/connect.ts'

/**
 * Wants a machine awake again, when nothing but sleep is wanted of it: what is paused stays so until `resume`, what is
 * stopped until `start`, and nothing of an account wakes that is suspended or over its hard limit.
 * @param because who came, for the record: `an SSH session`
 * @returns whether this was what woke it
 */
export async function wakeMachine(sql: Sql, machineId: number, because: string): Promise<boolean> {
  const woken = await sql`
    with woken as (
      update machines set desired_state = 'running' from accounts
      where machines.id = ${machineId} and desired_state = 'asleep'
        and accounts.id = machines.account_id and accounts.suspended_at is null and accounts.over_limit_at is null
      returning machines.id, machines.name, machines.account_id)
    insert into events (account_id, machine_id, machine_name, actor, kind, detail)
    select account_id, id, name, 'gateway', 'machine.woken', ${sql.json({ because })} from woken returning id`
  return woken.length > 0
}
