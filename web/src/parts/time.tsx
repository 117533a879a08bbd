import { signal } from '@preact/signals'
import { sayAgo, sayMoment } from './words.ts'

const TICK_MS = 10_000

/** Moves on by itself, for whatever is said of how long something is. */
export const nowMs = signal(Date.now())
setInterval(() => {
  if (document.visibilityState === 'visible') nowMs.value = Date.now()
}, TICK_MS)

/** `3 min ago`, exact when pointed at. @param at Unix milliseconds or ISO 8601 */
export function Ago({ at }: { at: number | string }) {
  const atMs = typeof at === 'number' ? at : Date.parse(at)
  return (
    <time
      dateTime={new Date(atMs).toISOString()}
      // Nobody sees it before.
      onPointerEnter={(event) => {
        event.currentTarget.title = sayMoment(atMs)
      }}
    >
      {sayAgo(atMs, Math.max(nowMs.value, atMs))}
    </time>
  )
}
