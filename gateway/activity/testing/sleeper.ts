/** For tests: what a vmhost would write of a machine that sleeps and wakes. No machine is behind the rows. */
import type { Sql } from '../../../migrations/connect.ts'

/** Its owner, or its server, has it sleep, and it does. */
export async function putToSleep(sql: Sql, machineId: number, desired: 'asleep' | 'paused' = 'asleep'): Promise<void> {
  await sql`
    update machines set desired_state = ${desired}, observed_state = 'asleep', observed_ready_at = null,
      observed_asleep_at = now(), observed_asleep_because = 'told to' where id = ${machineId}`
}

/** It goes on from its memory, whether anybody wanted it or not. */
export async function bringBack(sql: Sql, machineId: number): Promise<void> {
  await sql`
    update machines set observed_state = 'running', observed_ready_at = now(), observed_asleep_at = null,
      observed_asleep_because = null where id = ${machineId} and observed_state = 'asleep'`
}

export type Sleeper = {
  /** how often it was woken */
  wakes: number
} & AsyncDisposable

/** Wakes the machine as soon as it is wanted, as its server would. @param before what is done first */
export async function wakeWhenWanted(sql: Sql, machineId: number, before = async () => {}): Promise<Sleeper> {
  return await whenWanted(sql, machineId, async () => {
    await before()
    await bringBack(sql, machineId)
  })
}

/** Leaves it asleep as often as it is wanted, as a server without memory would, or one that cannot restore it. */
export async function refuseWhenWanted(
  sql: Sql,
  machineId: number,
  reason: string,
  because = 'told to',
): Promise<Sleeper> {
  return await whenWanted(sql, machineId, async () => {
    await sql`update machines set desired_state = 'asleep', observed_reason = ${reason},
      observed_asleep_because = ${because}, observed_at = now() where id = ${machineId}`
  })
}

async function whenWanted(sql: Sql, machineId: number, act: () => Promise<void>): Promise<Sleeper> {
  let work = Promise.resolve()
  const look = async () => {
    const [row] = await sql`
      select from machines where id = ${machineId} and desired_state = 'running' and observed_state = 'asleep'`
    if (!row) return
    sleeper.wakes++
    await act()
  }
  const { unlisten } = await sql.listen('machines', () => {
    work = work.then(look).catch(() => {})
  })
  const sleeper: Sleeper = {
    wakes: 0,
    async [Symbol.asyncDispose]() {
      await unlisten()
      await work
    },
  }
  return sleeper
}
