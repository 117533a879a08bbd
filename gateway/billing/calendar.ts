/** Days and months in UTC, as text that sorts in order of time. */

/** `2026-11-23` */
export type Day = string
/** `2026-11` */
export type Month = string

export const DAY_MS = 86_400_000

export const dayOf = (at: Date): Day => at.toISOString().slice(0, 10)
export const monthOf = (at: Date | Day): Month => (typeof at === 'string' ? at : dayOf(at)).slice(0, 7)
/** Midnight UTC, at which it begins. */
export const startOfDay = (day: Day): Date => new Date(`${day}T00:00:00Z`)
export const firstDay = (month: Month): Day => `${month}-01`
export const startOfMonth = (month: Month): Date => startOfDay(firstDay(month))

export function addDays(day: Day, count: number): Day {
  return dayOf(new Date(startOfDay(day).getTime() + count * DAY_MS))
}

export function addMonths(month: Month, count: number): Month {
  const start = startOfMonth(month)
  return monthOf(new Date(Date.UTC(start.getUTCFullYear(), start.getUTCMonth() + count)))
}

export function daysIn(month: Month): number {
  return (startOfMonth(addMonths(month, 1)).getTime() - startOfMonth(month).getTime()) / DAY_MS
}

/** All days from the first to before the second. */
export function daysBetween(from: Day, to: Day): Day[] {
  const days: Day[] = []
  for (let day = from; day < to; day = addDays(day, 1)) days.push(day)
  return days
}

export function monthsBetween(from: Month, to: Month): Month[] {
  const months: Month[] = []
  for (let month = from; month < to; month = addMonths(month, 1)) months.push(month)
  return months
}

const NAMES = [
  'January',
  'February',
  'March',
  'April',
  'May',
  'June',
  'July',
  'August',
  'September',
  'October',
  'November',
  'December',
]

/** `November 2026` */
export function sayMonth(month: Month): string {
  return `${NAMES[Number(month.slice(5)) - 1]} ${month.slice(0, 4)}`
}
