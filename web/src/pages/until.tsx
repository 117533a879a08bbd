import { nowMs } from '../parts/time.tsx'
import { sayDuration, sayMoment } from '../parts/words.ts'

/** A moment to come: `in 6 d`, exact when pointed at. @param at ISO 8601 */
export function Until({ at }: { at: string }) {
  const atMs = Date.parse(at)
  const leftMs = atMs - Math.max(nowMs.value, Date.now())
  return (
    <time
      dateTime={at}
      onPointerEnter={(event) => {
        event.currentTarget.title = sayMoment(atMs)
      }}
    >
      {leftMs > 0 ? `in ${sayDuration(leftMs)}` : 'any moment'}
    </time>
  )
}
