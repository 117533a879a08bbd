import { usageError } from './error.ts'

const SIZE_UNITS: Record<string, number> = { k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 }
const DURATION_UNITS: Record<string, number> = {
  s: 1000,
  m: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 604_800_000,
}

/** The least that a machine can be given, whether a flag or a default of the account says so. */
export const MACHINE_SIZES = {
  memory: { min: 128 * 2 ** 20 },
  disk: { min: 64 * 2 ** 20 },
} as const

/**
 * `4G`, `512M`, `1.5T`, also with `B` or `iB`: powers of two whatever the spelling.
 * @param range in bytes
 * @returns bytes
 * @throws CommandError (usage)
 */
export function parseSize(text: string, what: string, { min = 0, max = Number.MAX_SAFE_INTEGER } = {}): number {
  const match = /^(\d+(?:\.\d{1,3})?) ?([kmgt])(?:i?b)?$/i.exec(text.trim())
  const unit = SIZE_UNITS[match?.[2]?.toLowerCase() ?? '']
  if (!match || !unit) {
    throw usageError(`${what} wants a size such as 4G or 512M, not ${shown(text)}`, withUnit(text, ['G', 'M']))
  }
  const bytes = Math.round(Number(match[1]) * unit)
  if (!Number.isSafeInteger(bytes)) throw usageError(`${what} is too large: ${shown(text)}`)
  if (bytes < min) throw usageError(`${what} is at least ${typedSize(min)}, not ${shown(text)}`)
  if (bytes > max) throw usageError(`${what} is at most ${typedSize(max)}, not ${shown(text)}`)
  return bytes
}

/** Of a number alone, which is what everybody types once. */
function withUnit(text: string, units: readonly [string, string]): string | undefined {
  return /^[1-9]\d{0,8}$/.test(text) ? `with its unit: ${text}${units[0]} or ${text}${units[1]}` : undefined
}

/** A size as `parseSize` takes it, in the largest unit that says it whole: `128M`, not 134217728. */
export function typedSize(bytes: number): string {
  const [letter = '', unit = 1] = Object.entries(SIZE_UNITS).findLast(([, one]) => bytes % one === 0) ?? []
  return `${bytes / unit}${letter.toUpperCase()}`
}

const DURATION_MOST_MS = 5200 * 7 * 86_400_000

/**
 * `30s`, `5m`, `1h30m`, `7d`, `2w`.
 * @param orWord what else may stand there, for the refusal to name
 * @returns milliseconds
 * @throws CommandError (usage)
 */
export function parseDuration(text: string, what: string, orWord?: string): number {
  const also = orWord === undefined ? '' : `, or ${orWord}`
  const wrong = () =>
    usageError(
      `${what} wants a duration such as 30m, 1h30m or 7d${also}, not ${shown(text)}`,
      withUnit(text, ['m', 'h']),
    )
  if (!/^(\d+[smhdw])+$/i.test(text)) throw wrong()
  let total = 0
  for (const [, count, unit] of text.matchAll(/(\d+)([smhdw])/gi)) {
    total += Number(count) * (DURATION_UNITS[unit?.toLowerCase() ?? ''] ?? 0)
  }
  if (total <= 0) throw wrong()
  // A date beyond the year 9999 has another form, and no program reads it.
  if (total > DURATION_MOST_MS) throw usageError(`${what} is at most 5200w, a hundred years`)
  return total
}

/**
 * A time in the past as one types it: `2h` ago, a day, or an instant, in UTC.
 * @throws CommandError (usage)
 */
export function parseInstant(typed: string, flag: string, now: Date): Date {
  if (/^(\d+[smhdw])+$/i.test(typed)) return new Date(now.getTime() - parseDuration(typed, flag))
  const match = /^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2})?(?:\.\d{1,6})?Z?)?$/.exec(typed)
  const at = new Date(match ? `${match[1]}T${match[2] ?? '00:00'}${match[3] ?? ':00'}Z` : Number.NaN)
  if (Number.isNaN(at.getTime()) || at.toISOString().slice(0, 10) !== match?.[1]) {
    throw usageError(`${flag} wants a time such as 2h, 7d, 2026-11-01 or 2026-11-01T14:30 (UTC), not ${shown(typed)}`)
  }
  return at
}

/** Text from a person or a machine made fit to be shown in a message: short, printable, quoted when it must be. */
export function shown(text: string, limit = 60): string {
  const clean = text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, '?')
  const cut = clean.length > limit ? `${clean.slice(0, limit - 1)}…` : clean
  return /^[^\s'"]+$/.test(cut) ? cut : `'${cut}'`
}

/** `4 GiB`, `512 MiB`, `1.5 GiB`: three digits at most. */
export function sayBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  const digits = value >= 100 || Number.isInteger(value) ? 0 : 1
  return `${value.toFixed(digits).replace(/\.0$/, '')} ${units[unit]}`
}

/** `0.4 s`, `12 s`, `3 min`, `2 h 5 min`, `4 days`. */
export function sayDuration(ms: number): string {
  const seconds = ms / 1000
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`
  if (seconds < 59.5) return `${Math.round(seconds)} s`
  const minutes = Math.round(seconds / 60)
  if (minutes < 60) return `${minutes} min`
  if (minutes < 48 * 60) {
    const rest = minutes % 60
    return rest && minutes < 10 * 60 ? `${Math.floor(minutes / 60)} h ${rest} min` : `${Math.round(minutes / 60)} h`
  }
  return `${Math.round(minutes / 1440)} days`
}

/** `just now`, `3 min ago`, `in 6 days`. */
export function sayWhen(at: Date, now = new Date()): string {
  const ms = now.getTime() - at.getTime()
  if (Math.abs(ms) < 10_000) return 'just now'
  return ms > 0 ? `${sayDuration(ms)} ago` : `in ${sayDuration(-ms)}`
}

/** For how long something has been so: `12 s`, `3 min`. */
export function sayAge(since: Date, now = new Date()): string {
  return sayDuration(Math.max(0, now.getTime() - since.getTime()))
}

/** `demo`, `demo and api`, `demo, api and 3 more`. */
export function sayList(items: readonly string[], limit = 8, joint = 'and'): string {
  const shownItems = items.slice(0, limit)
  const more = items.length - shownItems.length
  if (more > 0) return `${shownItems.join(', ')} ${joint} ${more} more`
  const last = shownItems.pop()
  return shownItems.length ? `${shownItems.join(', ')} ${joint} ${last}` : (last ?? 'none')
}
