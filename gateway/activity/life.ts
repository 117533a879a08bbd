/** What a machine's row says of the connections to it. */
import type { DesiredState, ObservedState, StartStage } from '../../migrations/schema.ts'

/** The part of a machine's row that decides. */
export type LifeRow = {
  desiredState: DesiredState
  observedState: ObservedState
  desiredBoot: number
  observedBoot: number
  observedStage: StartStage
  observedReadyAt: Date | null
  /** it is to become what a checkpoint holds: see migrations/0016_checkpoints.sql */
  desiredRestore: number
  observedRestore: number
}

/**
 * - `up`: it answers, and what is sent to it arrives
 * - `held`: it sleeps, is about to, or is not back yet: its connections live on in its memory, and nothing may be sent
 * - `over`: it does not run, or runs anew: whatever was connected to it is not any more
 */
export type Life = 'up' | 'held' | 'over'

/** One life of what a machine has in its memory: it goes on through sleep, which makes it ready anew. */
export type Run = { boot: number; restore: number; readyAtMs: number }

/** @param wasHeld what was known before: one that comes back is `running` and not ready for a moment, as one that boots is */
export function lifeOf(row: LifeRow, wasHeld: boolean): Life {
  const { desiredState, observedState, observedReadyAt } = row
  const isWanted = desiredState === 'running' || desiredState === 'asleep' || desiredState === 'paused'
  // What it goes back to knows nothing of them, or knows them as they were.
  if (row.observedRestore < row.desiredRestore) return 'over'
  if (!isWanted || (observedState !== 'running' && observedState !== 'asleep')) return 'over'
  if (desiredState !== 'running' || observedState === 'asleep') return 'held'
  if (observedReadyAt !== null) return 'up'
  // It was about to fall asleep, stands still, and will go on.
  if (row.observedStage === 'ready') return 'held'
  return wasHeld ? 'held' : 'over'
}

export function runOf({ observedBoot, observedRestore, observedReadyAt }: LifeRow): Run {
  return { boot: observedBoot, restore: observedRestore, readyAtMs: observedReadyAt?.getTime() ?? 0 }
}

/**
 * Whether a run that was seen before may go on. One that became ready anew slept, seen by this gateway or not, or lost its
 * memory and booted, or was rebooted from inside: its own kernel says which to whoever is connected (RFC 9293, 3.5.2).
 */
export function goesOn(before: Run, now: Run): boolean {
  return before.boot === now.boot && before.restore === now.restore
}
