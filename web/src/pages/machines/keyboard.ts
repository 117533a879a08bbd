/** The keyboard in the list: it is at one row, moves, opens and chooses. */
import { machineOf } from '../../api/live.ts'
import { isForThePage } from '../../keyboard.ts'
import { go } from '../../router.ts'
import { active, chosen, opened, shownIds, toggled } from './choice.ts'

const PAGE_ROWS = 10
const MOVES: Record<string, number> = {
  ArrowDown: 1,
  ArrowUp: -1,
  PageDown: PAGE_ROWS,
  PageUp: -PAGE_ROWS,
  Home: Number.NEGATIVE_INFINITY,
  End: Number.POSITIVE_INFINITY,
}

/** @param rowHeight of a closed row, px */
export function listKey(event: KeyboardEvent, rowHeight: number): void {
  // A link, a button or a box that has the keyboard takes its own keys.
  if (!isForThePage(event) || (event.target as Element).closest('a, button, summary, input')) return
  const by = MOVES[event.key]
  const id = active.peek()
  if (by !== undefined) {
    if (event.shiftKey) choose(id)
    move(by, rowHeight)
    if (event.shiftKey) choose(active.peek())
  } else if (event.key === 'Escape' && chosen.peek().size > 0) chosen.value = new Set()
  else if (event.key === 'Escape' && opened.peek().size > 0) opened.value = new Set()
  else if (id === undefined || !act(event.key, id)) return
  event.preventDefault()
}

/** @returns whether the key means something at a row */
function act(key: string, id: number): boolean {
  if (key === 'Enter') opened.value = toggled(opened.peek(), id)
  else if (key === 'ArrowRight') opened.value = toggled(opened.peek(), id, true)
  else if (key === 'ArrowLeft') opened.value = toggled(opened.peek(), id, false)
  else if (key === 'x' || key === ' ') chosen.value = toggled(chosen.peek(), id)
  else if (key === 'o') go(`/machines/${machineOf(id)?.peek().vm_name}`)
  else return false
  return true
}

function choose(id: number | undefined): void {
  if (id !== undefined) chosen.value = toggled(chosen.peek(), id, true)
}

/** Moves the keyboard by so many rows, into view. @param by 0: to where it was, or to the first */
export function move(by: number, rowHeight: number): void {
  const shown = shownIds.peek() ?? []
  const at = shown.indexOf(active.peek() ?? -1)
  // From nowhere a step leads to the end that it comes from; Home and End lead to theirs.
  const from = at >= 0 || !Number.isFinite(by) ? Math.max(at, 0) + by : by < 0 ? shown.length - 1 : 0
  const index = Math.min(shown.length - 1, Math.max(0, from))
  const id = shown[index]
  if (id === undefined) return
  active.value = id
  if (focus(id)) return
  // A row far off is not drawn yet: first the page goes about there.
  const list = document.querySelector('.virtual')
  scrollTo(0, scrollY + (list?.getBoundingClientRect().top ?? 0) + index * rowHeight - innerHeight / 2)
  requestAnimationFrame(() => requestAnimationFrame(() => focus(id)))
}

function focus(id: number): boolean {
  const row = document.getElementById(`machine-${id}`)
  row?.focus({ preventScroll: true })
  row?.scrollIntoView({ block: 'nearest' })
  return row !== null
}
