/** Keys that every page has; `?` shows them all. */
import { hasShortcuts, helpIsOpen } from './parts/Help.tsx'
import { go } from './router.ts'

export function startKeyboard(): void {
  addEventListener('keydown', (event) => {
    if (!isForThePage(event)) return
    if (event.key === '?') helpIsOpen.value = true
    else if (event.key === 'n') go('/new')
    else if (event.key === '/') document.querySelector<HTMLInputElement>('main input[type=search]')?.focus()
    else return
    event.preventDefault()
  })
}

/** Whether a key was pressed for the page, and not for what is typed in, a dialog or the browser. */
export function isForThePage(event: KeyboardEvent): boolean {
  // A letter, a figure, a sign.
  if (event.key.length === 1 && event.key !== ' ' && !hasShortcuts.peek()) return false
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || event.isComposing) return false
  return (event.target as Element).closest('input:not([type=checkbox]), textarea, select, dialog, .xterm') === null
}
