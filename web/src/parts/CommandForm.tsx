import { useSignal } from '@preact/signals'
import type { ComponentChildren } from 'preact'
import { run } from '../api/exec.ts'
import { CommandLine } from './CommandLine.tsx'
import { ask, type Question } from './Confirm.tsx'

/** Fields that make up a command, which stands below them as it grows; Enter in a field runs it. */
export function CommandForm({
  label,
  words,
  children,
  isReady = true,
  question,
  onDone,
}: {
  /** on the button */
  label: string
  words: readonly string[]
  children: ComponentChildren
  /** false while something is still missing */
  isReady?: boolean
  /** asked before it runs */
  question?: Question | undefined
  onDone?: (document: unknown) => void
}) {
  const isRunning = useSignal(false)
  const error = useSignal<string | undefined>(undefined)
  const act = async () => {
    if (isRunning.peek()) return
    if (question && !(await ask(question, words))) return
    isRunning.value = true
    error.value = undefined
    try {
      onDone?.(await run(words))
    } catch (failure) {
      error.value = failure instanceof Error ? failure.message : String(failure)
    } finally {
      isRunning.value = false
    }
  }
  return (
    <form
      class="command"
      onSubmit={(event) => {
        event.preventDefault()
        void act()
      }}
    >
      <div class="fields">{children}</div>
      <CommandLine words={words} />
      <div class="buttons">
        <button type="submit" disabled={!isReady} aria-busy={isRunning.value}>
          {label}
        </button>
        {error.value !== undefined && (
          <p class="error" role="alert">
            {error.value}
          </p>
        )}
      </div>
    </form>
  )
}
