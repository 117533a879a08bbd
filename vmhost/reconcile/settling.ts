import { setTimeout as sleep } from 'node:timers/promises'
import type { Hypervisor } from '../hypervisor/driver.ts'
import type { Slots } from './slots.ts'

/** Whoever asked for the machine is about to sign in, and waits for that. */
const yieldAfterMs = 8_000
const yieldMostMs = 600_000
const lookMs = 1_000

/**
 * A machine that can be reached goes on starting services for a long time, emulated three times what it took to get
 * there. While others are coming up, they come first: twenty at once are all ready in a third of the time.
 * @param isOver the machine is off, or its hypervisor let go of
 */
export async function settle(
  hypervisor: Pick<Hypervisor, 'yieldToOthers'>,
  slots: Pick<Slots, 'busy'>,
  isOver: () => boolean,
): Promise<void> {
  const until = Date.now() + yieldMostMs
  await sleep(yieldAfterMs, undefined, { ref: false })
  if (isOver() || !slots.busy) return
  await hypervisor.yieldToOthers(true)
  while (!isOver() && slots.busy && Date.now() < until) await sleep(lookMs, undefined, { ref: false })
  if (!isOver()) await hypervisor.yieldToOthers(false)
}
