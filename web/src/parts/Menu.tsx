import type { ComponentChildren } from 'preact'
import { useEffect, useRef } from 'preact/hooks'

export type MenuProps = {
  /** what is always shown, and opens it */
  label: ComponentChildren
  class?: string
  children: ComponentChildren
}

/** Opens below its label. Esc and a press elsewhere close it, and the keyboard is at the label again. */
export function Menu({ label, class: className, children }: MenuProps) {
  const details = useRef<HTMLDetailsElement>(null)
  const summary = useRef<HTMLElement>(null)
  useEffect(() => {
    const onPress = ({ target }: PointerEvent) => {
      if (details.current?.open && isElsewhere(target as Element, details.current)) details.current.open = false
    }
    addEventListener('pointerdown', onPress)
    return () => removeEventListener('pointerdown', onPress)
  }, [])
  return (
    <details
      ref={details}
      class={className}
      onKeyDown={(event) => {
        if (event.key !== 'Escape' || !event.currentTarget.open) return
        event.preventDefault()
        event.currentTarget.open = false
      }}
      onToggle={({ currentTarget }) => {
        // What was pressed has the keyboard where it takes it.
        const { activeElement } = document
        const isLost = activeElement === document.body || currentTarget.contains(activeElement)
        if (!currentTarget.open && isLost) summary.current?.focus()
      }}
    >
      <summary ref={summary}>{label}</summary>
      <div>{children}</div>
    </details>
  )
}

/** What a button of the menu asks, and where a finger runs its command, belong to it. */
function isElsewhere(target: Element, menu: Element): boolean {
  return !menu.contains(target) && target.closest('dialog, .commands') === null
}
