import { useSignal } from '@preact/signals'
import type { ComponentChildren, HTMLAttributes } from 'preact'
import { useCallback, useEffect, useLayoutEffect, useRef } from 'preact/hooks'

/** Rows beyond the window that are drawn all the same, so that scrolling a little draws nothing. */
const BEYOND = 12
/** Scrolling draws anew once in so many rows. */
const STEP = 4

export type VirtualProps = {
  count: number
  /** of a row that is closed, px */
  rowHeight: number
  /** what a row takes besides, px; 0 for most */
  extraOf: (index: number) => number
  row: (index: number) => ComponentChildren
  /** attributes of the element that holds the rows */
  attributes?: HTMLAttributes<HTMLDivElement>
}

/**
 * A long list, of which only what can be seen is drawn; it scrolls with the page. All rows but those that are open have
 * one height, so that where each stands is known without drawing it. A row that stays stays where it is: space above
 * the first takes the place of those that are not drawn, and nothing else is laid out or painted anew.
 */
export function Virtual({ count, rowHeight, extraOf, row, attributes }: VirtualProps) {
  const element = useRef<HTMLDivElement>(null)
  // As many as a window has, to begin with: the page is drawn once.
  const range = useSignal<readonly [first: number, last: number]>([0, Math.ceil(innerHeight / rowHeight)])
  const tops = topsOf(count, rowHeight, extraOf)
  const current = useRef(tops)
  current.current = tops

  /** @param most rows more than there are at the end. @returns whether that was too few */
  const look = useCallback(
    (most = Number.POSITIVE_INFINITY): boolean => {
      if (!element.current) return false
      const all = current.current
      const above = -element.current.getBoundingClientRect().top
      const [was, wasLast] = range.peek()
      const first = Math.max(0, roundDown(indexAt(all, above) - BEYOND))
      const wanted = Math.min(all.length - 1, roundDown(indexAt(all, above + innerHeight) + BEYOND) + STEP)
      const last = Math.min(wanted, wasLast + most)
      if (first !== was || last !== wasLast) range.value = [first, last]
      return last < wanted
    },
    [range],
  )
  const hasRested = useRef(false)
  useLayoutEffect(() => {
    if (hasRested.current) look()
  })
  useEffect(() => {
    const onMove = () => {
      hasRested.current = true
      look()
    }
    // Those beyond the window when there is nothing else to do, and so few at once that nobody waits for them.
    let cancel = () => {}
    const more = () => {
      cancel = whenIdle(() => {
        if (hasRested.current) return
        if (look(STEP)) more()
        else hasRested.current = true
      })
    }
    more()
    addEventListener('scroll', onMove, { passive: true })
    addEventListener('resize', onMove)
    return () => {
      cancel()
      removeEventListener('scroll', onMove)
      removeEventListener('resize', onMove)
    }
  }, [look])

  const [first, last] = range.value
  const indexes = Array.from({ length: Math.max(0, Math.min(last, count) - first) }, (_, offset) => first + offset)
  return (
    <div {...attributes} ref={element} style={{ height: `${tops[count] ?? 0}px` }} class="virtual">
      <div role="presentation" style={{ paddingTop: `${tops[Math.min(first, count)] ?? 0}px` }}>
        {indexes.map((index) => row(index))}
      </div>
    </div>
  )
}

/** Safari has no idle callbacks. @returns takes it back */
function whenIdle(act: () => void): () => void {
  if (typeof requestIdleCallback === 'function') {
    const id = requestIdleCallback(act)
    return () => cancelIdleCallback(id)
  }
  const timer = setTimeout(act, 50)
  return () => clearTimeout(timer)
}

/** Where each row begins, and where the last one ends. */
function topsOf(count: number, rowHeight: number, extraOf: (index: number) => number): number[] {
  const tops = [0]
  for (let index = 0; index < count; index++) tops.push((tops[index] ?? 0) + rowHeight + extraOf(index))
  return tops
}

/** The row at a distance from the top of the list. */
function indexAt(tops: readonly number[], distance: number): number {
  let low = 0
  let high = tops.length - 1
  while (low < high) {
    const middle = (low + high + 1) >> 1
    if ((tops[middle] ?? 0) <= distance) low = middle
    else high = middle - 1
  }
  return low
}

function roundDown(index: number): number {
  return Math.floor(index / STEP) * STEP
}
