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
  /** the command that takes it back; then nobody is asked beforehand */
  undo?: readonly string[]
  /** what cannot be undone asks for this to be typed: a machine's name */
  confirm?: string
  kind?: 'main' | 'plain' | 'danger'
  disabled?: boolean
  onDone?: (document: unknown) => void
  onFailed?: (error: Error) => void
}

/**
 * A button that runs a command. The bar at the foot of the page shows the command while the button is pointed at or has
 * the keyboard, while it runs, and after it, ready to copy, with the way back.
 */
export function CommandButton(props: CommandButtonProps) {
  const { words, children, undo, confirm, kind = 'plain', disabled = false, onDone, onFailed } = props
  const isRunning = useSignal(false)
  const now = () => (typeof words === 'function' ? words() : words)
  const show = () => {
    pointedAt.value = now()
  }
  const hide = () => {
    pointedAt.value = undefined
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
      onClick={act}
      onPointerEnter={show}
      onPointerLeave={hide}
      onFocus={show}
      onBlur={hide}
    >
      {children}
    </button>
  )
}
