import type { Db } from '../../migrations/connect.ts'
import { CommandError } from '../commands/error.ts'
import { sayBytes } from '../commands/values.ts'
import { dayOf } from './calendar.ts'
import { type Caps, planOf, readPlans } from './plans.ts'

type Had = { machines: number; cpus: number; memory: number; disk: number }
/** What a change makes more of. */
export type Raised = readonly (keyof Had)[]
/** By one machine more. */
export const ANOTHER_MACHINE: Raised = ['machines', 'cpus', 'memory', 'disk']

/**
 * Refuses what the account's plan does not have room for, with the change written already and inside its transaction.
 * What was there before a cap was lowered stays, and may be changed in what is not more than before.
 * @throws CommandError 'account.limit' (4)
 */
export async function refuseBeyondCaps(tx: Db, accountId: number, raised: Raised): Promise<void> {
  const plans = await readPlans(tx)
  if (!plans.some(hasCap)) return
  const name = await planOf(tx, accountId, dayOf(new Date()))
  const caps = plans.find((plan) => plan.name === name)
  if (!caps || !hasCap(caps)) return
  // Of two changes of one account at once neither would see the other's.
  await tx`select pg_advisory_xact_lock(hashtextextended('berth.caps', ${accountId}))`
  const [had] = await tx<Had[]>`
    select count(*)::integer as machines, coalesce(sum(cpus), 0)::integer as cpus,
      coalesce(sum(memory_bytes), 0)::bigint as memory, coalesce(sum(disk_bytes), 0)::bigint as disk
    from machines where account_id = ${accountId} and desired_state not in ('trashed', 'gone') and observed_state <> 'gone'`
  if (!had) return
  const refuseBeyond = (kind: keyof Had, most: number | null, say: (count: number) => string) => {
    if (raised.includes(kind) && most !== null && had[kind] > most) throw beyond(name, say(most), say(had[kind]))
  }
  refuseBeyond('machines', caps.machinesMost, (count) => (count === 1 ? 'one machine' : `${count} machines`))
  refuseBeyond('cpus', caps.cpusMost, (count) => (count === 1 ? 'one CPU' : `${count} CPUs`))
  refuseBeyond('memory', caps.memoryBytesMost, (bytes) => `${sayBytes(bytes)} of memory`)
  refuseBeyond('disk', caps.diskBytesMost, (bytes) => `${sayBytes(bytes)} of disk`)
}

function hasCap({ machinesMost, cpusMost, memoryBytesMost, diskBytesMost }: Caps): boolean {
  return [machinesMost, cpusMost, memoryBytesMost, diskBytesMost].some((most) => most !== null)
}

function beyond(plan: string, most: string, would: string): CommandError {
  return new CommandError('account.limit', 4, `plan ${plan} is for ${most}, and this would make it ${would}`, {
    wayOn: 'rm a machine, or ask the operator for another plan (account plan)',
  })
}
