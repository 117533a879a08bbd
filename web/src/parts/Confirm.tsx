import { signal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { CommandLine } from './CommandLine.tsx'
import { Dialog } from './Dialog.tsx'

export type Question = {
  /** what has to be typed: a machine's name, or how many they are */
  confirm: string
  /** what will be lost, a sentence */
  warning?: string | undefined
  /** what is about to happen, in a few words */
  title?: string | undefined
}

type Asked = Question & { words: readonly string[]; answer: (yes: boolean) => void }

const asked = signal<Asked | undefined>(undefined)

/**
 * Asks for a name to be typed, before what cannot be undone, or not all of it.
 * @param words the command that will run
 * @returns whether it was typed
 */
export function ask(question: Question, words: readonly string[]): Promise<boolean> {
  asked.peek()?.answer(false)
  return new Promise((resolve) => {
    asked.value = {
      ...question,
      words,
      answer: (yes) => {
        asked.value = undefined
        resolve(yes)
      },
    }
  })
}

/** Stands once in the page. */
export function Confirm() {
  const input = useRef<HTMLInputElement>(null)
  const one = asked.value
  // What is to be done comes first; the dialog itself would begin with the button that closes it.
  useEffect(() => input.current?.focus(), [one])
  if (!one) return null
  const isRight = () => input.current?.value.trim() === one.confirm
  return (
    <Dialog title={one.title ?? 'This cannot be undone'} onClose={() => one.answer(false)}>
      {one.warning !== undefined && <p>{one.warning}</p>}
      <CommandLine words={one.words} />
      <form
        onSubmit={(event) => {
          event.preventDefault()
          if (isRight()) one.answer(true)
          else input.current?.select()
        }}
      >
        <label for="confirm-name">
          Type <code>{one.confirm}</code> to go on
        </label>
        <input id="confirm-name" ref={input} autocomplete="off" autocapitalize="none" spellcheck={false} required />
        <div class="buttons">
          <button type="submit" class="danger">
            Go on
          </button>
          <button type="button" class="plain" onClick={() => one.answer(false)}>
            Leave it
          </button>
        </div>
      </form>
    </Dialog>
  )
}
