import { useSignal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { ExecError, run, type Undo } from '../api/exec.ts'
import { pointedAt } from './Commands.tsx'
import { ask, type Question } from './Confirm.tsx'

export type CommandButtonProps = Partial<Question> & {
  /** the command: `['stop', 'demo']`; a function when it follows from what was typed */
  words: readonly string[] | (() => readonly string[])
  /** what it does: `Stop` */
  children: ComponentChildren
  /** what takes it back, or how that follows from the document; without `confirm` nobody is asked beforehand */
  undo?: Undo | undefined
  /** what comes back by that and what does not, a sentence, where not all of it does */
  brings?: string | undefined
  /** what a screen reader calls it, where the words on it are those of others too */
  label?: string
  kind?: 'main' | 'plain' | 'danger' | 'small'
  disabled?: boolean
  onDone?: (document: unknown) => void
  onFailed?: (error: ExecError) => void
}

/**
 * A button that runs a command. The bar at the foot of the page shows the command while the button is pointed at or has
 * the keyboard, while it runs, and after it, ready to copy, with the way back. A finger cannot point: its first tap shows
 * the command, with a button that runs it. One of kind `main` runs at once: show its command beside it (CommandLine).
 */
export function CommandButton(props: CommandButtonProps) {
  const { words, children, undo, brings, label, kind = 'plain', disabled = false, onDone, onFailed } = props
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
    const { confirm, warning, title } = props
    if (confirm !== undefined && !(await ask({ confirm, warning, title }, now()))) return
    isRunning.value = true
    try {
      // Not as the argument of what may not be there: then it would not be run at all.
      const document = await run(now(), { undo, brings })
      onDone?.(document)
    } catch (error) {
      if (!(error instanceof ExecError)) throw error
      onFailed?.(error)
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
      aria-label={label}
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
