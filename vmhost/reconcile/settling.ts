import { setTimeout as sleep } from 'node:timers/promises'
import type { Hypervisor } from '../hypervisor/driver.ts'
import type { Slots } from './slots.ts'

/** Whoever asked for the machine is about to sign in, and waits for that. */
const timeToSignInMs = 8_000
const yieldMostMs = 600_000
const lookMs = 1_000

/**
 * A machine that can be reached goes on starting services for a long time, emulated three times what it took to get
 * there. While others are coming up, and while somebody signs in to the last of them, they come first: twenty at once
 * are all ready in a third of the time.
 * @param isOver the machine is off, or its hypervisor let go of
 */
export async function settle(
  hypervisor: Pick<Hypervisor, 'yieldToOthers'>,
  slots: Pick<Slots, 'busyWithin'>,
  isOver: () => boolean,
  signInMs = timeToSignInMs,
): Promise<void> {
  const until = Date.now() + yieldMostMs
  await sleep(signInMs, undefined, { ref: false })
  if (isOver() || !slots.busyWithin(signInMs)) return
  await hypervisor.yieldToOthers(true)
  while (!isOver() && slots.busyWithin(signInMs) && Date.now() < until) await sleep(lookMs, undefined, { ref: false })
  if (!isOver()) await hypervisor.yieldToOthers(false)
}

const placeMostMs = 30_000
const usedLookMs = 250

/**
 * A machine of a registry's image is ready, on a template, before its services have begun to start: emulated, it keeps its place
 * among those that come up until whoever made it has signed in. Twenty that start theirs together let in nobody for minutes.
 * @param isUsed whether somebody has reached it
 * @param isOver as in `settle`
 */
export async function keepPlace(
  slot: Disposable,
  isUsed: () => Promise<boolean>,
  isOver: () => boolean,
  mostMs = placeMostMs,
): Promise<void> {
  using _place = slot
  const until = Date.now() + mostMs
  // While the database is away nobody is known to have come, and the time runs all the same.
  while (!isOver() && Date.now() < until && !(await isUsed().catch(() => false)))
    await sleep(usedLookMs, undefined, { ref: false })
}
