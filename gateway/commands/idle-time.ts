/** How long a machine may be idle before it is put to sleep, as it was set. Its server decides by the same rule. */
import type { Machine } from '../machines.ts'
import type { Defaults } from './defaults.ts'
import { usageError } from './error.ts'
import { parseDuration } from './values.ts'

const MOST_SECONDS = 520 * 7 * 86_400

export type IdleTime = {
  /** null: it is never put to sleep for being idle */
  seconds: number | null
  /** it has none of its own, and follows its account's default */
  isDefault: boolean
}

type Setting = Pick<Machine, 'sleepAfterSeconds' | 'sleepNever'>

export function idleTimeOf({ sleepAfterSeconds, sleepNever }: Setting, defaults: Defaults): IdleTime {
  if (sleepNever) return { seconds: null, isDefault: false }
  if (sleepAfterSeconds !== null) return { seconds: sleepAfterSeconds, isDefault: false }
  const { 'sleep-after': text = 'never' } = defaults
  return { seconds: text === 'never' ? null : secondsOf(parseDuration(text, 'sleep-after')), isDefault: true }
}

/**
 * As the columns hold what was typed.
 * @param typed milliseconds; undefined: as the account's default is
 * @throws CommandError (usage) for more than ten years
 */
export function settingOf(typed: number | 'never' | undefined): Setting {
  return {
    sleepAfterSeconds: typeof typed === 'number' ? refuseTooLong(secondsOf(typed)) : null,
    sleepNever: typed === 'never',
  }
}

/**
 * What is typed where `never` is a word for it too.
 * @returns milliseconds
 * @throws CommandError (usage)
 */
export function parseIdleTime(typed: string): number | 'never' {
  if (typed === 'never') return typed
  const ms = parseDuration(typed, 'sleep-after', 'never')
  refuseTooLong(secondsOf(ms))
  return ms
}

function refuseTooLong(seconds: number): number {
  if (seconds > MOST_SECONDS) throw usageError('the idle time is at most 520w, ten years', 'for good it is: never')
  return seconds
}

function secondsOf(ms: number): number {
  return Math.max(1, Math.round(ms / 1000))
}
