import { signal } from '@preact/signals'
import { useRef } from 'preact/hooks'
import { CommandLine } from './CommandLine.tsx'
import { Dialog } from './Dialog.tsx'

type Asked = { name: string; words: readonly string[]; warning: string | undefined; answer: (yes: boolean) => void }

const asked = signal<Asked | undefined>(undefined)

/**
 * Asks for a name to be typed, before what cannot be undone.
 * @param words the command that will run
 * @param warning what will be lost
 * @returns whether it was typed
 */
export function askForName(name: string, words: readonly string[], warning?: string): Promise<boolean> {
  asked.peek()?.answer(false)
  return new Promise((resolve) => {
    asked.value = {
      name,
      words,
      warning,
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
  if (!one) return null
  const isRight = () => input.current?.value.trim() === one.name
  return (
    <Dialog title="This cannot be undone" onClose={() => one.answer(false)}>
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
          Type <code>{one.name}</code> to go on
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
