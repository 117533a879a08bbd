import { CommandError } from '../commands/error.ts'
import { sayBytes } from '../commands/values.ts'
import { dayOf } from './calendar.ts'
import { type Caps, planOf, readPlans } from './plans.ts'
import type { Db } from './terms.ts'

type Had = { machines: number; cpus: number; memory: number; disk: number }

/**
 * Refuses what the account's plan does not have room for, with the change written already and inside its transaction.
 * What was there before a cap was lowered stays.
 * @throws CommandError 'account.limit' (4)
 */
export async function refuseBeyondCaps(tx: Db, accountId: number): Promise<void> {
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
  refuse(name, had.machines, caps.machinesMost, (count) => (count === 1 ? 'one machine' : `${count} machines`))
  refuse(name, had.cpus, caps.cpusMost, (count) => (count === 1 ? 'one CPU' : `${count} CPUs`))
  refuse(name, had.memory, caps.memoryBytesMost, (bytes) => `${sayBytes(bytes)} of memory`)
  refuse(name, had.disk, caps.diskBytesMost, (bytes) => `${sayBytes(bytes)} of disk`)
}

function hasCap({ machinesMost, cpusMost, memoryBytesMost, diskBytesMost }: Caps): boolean {
  return [machinesMost, cpusMost, memoryBytesMost, diskBytesMost].some((most) => most !== null)
}

function refuse(plan: string, has: number, most: number | null, say: (count: number) => string): void {
  if (most === null || has <= most) return
  throw new CommandError('account.limit', 4, `plan ${plan} is for ${say(most)}, and this would make it ${say(has)}`, {
    wayOn: 'rm a machine, or ask the operator for another plan (account plan)',
  })
}
