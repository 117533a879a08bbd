/** How long a machine may be idle before it is put to sleep, as it was set. Its server decides by the same rule. */
import type { Machine } from '../machines.ts'
import type { Defaults } from './defaults.ts'
import { parseDuration } from './values.ts'

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

/** As the columns hold what was typed. @param typed milliseconds; undefined: as the account's default is */
export function settingOf(typed: number | 'never' | undefined): Setting {
  return {
    sleepAfterSeconds: typeof typed === 'number' ? secondsOf(typed) : null,
    sleepNever: typed === 'never',
  }
}

function secondsOf(ms: number): number {
  return Math.max(1, Math.round(ms / 1000))
}
