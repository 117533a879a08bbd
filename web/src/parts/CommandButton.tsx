import { useSignal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { run } from '../api/exec.ts'
import { pointedAt } from './Commands.tsx'
import { askForName } from './Confirm.tsx'

export type CommandButtonProps = {
  /** the command: `['stop', 'demo']`; a function when it follows from what was typed */
  words: readonly string[] | (() => readonly string[])
  /** what it does: `Stop` */
  children: ComponentChildren
  /** the command, or commands, that take it back; then nobody is asked beforehand */
  undo?: readonly string[] | readonly (readonly string[])[] | undefined
  /** what cannot be undone asks for this to be typed: a machine's name */
  confirm?: string
  kind?: 'main' | 'plain' | 'danger'
  disabled?: boolean
  onDone?: (document: unknown) => void
  onFailed?: (error: Error) => void
}

/**
 * A button that runs a command. The bar at the foot of the page shows the command while the button is pointed at or has
 * the keyboard, while it runs, and after it, ready to copy, with the way back. A finger cannot point: its first tap shows
 * the command, with a button that runs it. One of kind `main` runs at once: show its command beside it (CommandLine).
 */
export function CommandButton(props: CommandButtonProps) {
  const { words, children, undo, confirm, kind = 'plain', disabled = false, onDone, onFailed } = props
  const isRunning = useSignal(false)
  const now = () => (typeof words === 'function' ? words() : words)
  const show = () => {
    pointedAt.value = { words: now() }
  }
  const hide = () => {
    if (!pointedAt.peek()?.act) pointedAt.value = undefined
  }
  const act = async () => {
    if (isRunning.peek()) return
    if (confirm !== undefined && !(await askForName(confirm, now()))) return
    isRunning.value = true
    try {
      onDone?.(await run(now(), { undo }))
    } catch (error) {
      onFailed?.(error instanceof Error ? error : new Error(String(error)))
    } finally {
      isRunning.value = false
    }
  }
  return (
    <button
      type="button"
      class={kind === 'main' ? undefined : kind}
      disabled={disabled}
      aria-busy={isRunning.value}
      onClick={(event) => {
        // Where there is nothing to point with, the first tap is the pointing.
        if (kind !== 'main' && isTouch(event)) pointedAt.value = { words: now(), act }
        else void act()
      }}
      onPointerEnter={(event) => event.pointerType === 'mouse' && show()}
      onPointerLeave={hide}
      onFocus={(event) => event.currentTarget.matches(':focus-visible') && show()}
      onBlur={hide}
    >
      {children}
    </button>
  )
}

/** A click by a finger; by the keyboard, and by a screen reader's own click, there is no pointer at all. */
function isTouch(event: MouseEvent): boolean {
  return (event as PointerEvent).pointerType === 'touch'
}
