import { isAtLeast, type Level } from './policy.ts'

/** A machine that could be put to sleep. */
export type Sleeper = {
  readonly id: number
  /** that its hypervisor holds, and the server has when it sleeps */
  readonly heldBytes: number
  /** that it was promised, with its hypervisor's share */
  readonly promisedBytes: number
  /** null: it works */
  readonly idleSince: Date | null
  readonly activityAt: Date | null
  readonly holdUntil: Date | null
  /** its sleep was tried lately and failed */
  readonly couldNotSleep: boolean
}

export type SleepNeed = {
  readonly level: Level
  readonly levelForMs: number
  /** that no balloon can give, to the server or to a machine that waits to be woken */
  readonly missingBytes: number
  /** a machine waits to be woken */
  readonly isForWake: boolean
  /** by which more is promised than the operator allows, counting those that wait to be woken */
  readonly overPromisedBytes: number
  /** of machines that are on their way to sleep already, and can be counted on to get there */
  readonly falling: { readonly count: number; readonly heldBytes: number; readonly promisedBytes: number }
}

/** Each writes its memory as fast as the disk takes it; more of them only make each slower. */
const atOnce = 2
/** A peak that is over by then is nobody's trouble. */
const scarceLeastMs = 3_000

/**
 * Who is put to sleep now, since balloons do not do: those idle longest; one that works only when the kernel is about
 * to end programs and nobody is idle, and one that its owner holds awake last of all. Those that could not sleep lately
 * only when nobody else is left, nor on the way: whoever has its machine fail must not keep the server from the others.
 */
export function chooseSleepers(need: SleepNeed, sleepers: readonly Sleeper[], now: Date): Sleeper[] {
  const able = sleepers.filter(({ couldNotSleep }) => !couldNotSleep)
  const chosen = choose(need, able, now)
  if (chosen.length > 0 || need.falling.count > 0) return chosen
  const others = sleepers.filter(({ couldNotSleep }) => couldNotSleep)
  return choose(need, others, now)
}

function choose(need: SleepNeed, sleepers: readonly Sleeper[], now: Date): Sleeper[] {
  const { level, levelForMs, isForWake, falling } = need
  const isScarce = level === 'desperate' || (isAtLeast(level, 'scarce') && levelForMs >= scarceLeastMs)
  let missing = isScarce || isForWake ? need.missingBytes - falling.heldBytes : 0
  let over = need.overPromisedBytes - falling.promisedBytes
  const chosen: Sleeper[] = []
  const take = (one: Sleeper) => {
    chosen.push(one)
    missing -= one.heldBytes
    over -= one.promisedBytes
  }
  const idle = sleepers
    .filter(({ idleSince }) => idleSince !== null)
    .sort((a, b) => (a.idleSince?.getTime() ?? 0) - (b.idleSince?.getTime() ?? 0))
  for (const one of idle) {
    if ((missing <= 0 && over <= 0) || falling.count + chosen.length >= atOnce) break
    take(one)
  }
  if (level !== 'desperate' || missing <= 0 || falling.count + chosen.length > 0) return chosen
  const [quietest] = sleepers
    .filter(({ idleSince }) => idleSince === null)
    .sort((a, b) => Number(isHeld(a, now)) - Number(isHeld(b, now)) || lastUse(a) - lastUse(b))
  if (quietest) take(quietest)
  return chosen
}

function isHeld({ holdUntil }: Sleeper, now: Date): boolean {
  return holdUntil !== null && holdUntil > now
}

function lastUse({ activityAt }: Sleeper): number {
  return activityAt?.getTime() ?? 0
}
