import type { Readable } from 'node:stream'
import type { CommandIo, Terminal } from '../app.ts'
import { readLine } from './editor.ts'
import { Keyboard } from './keyboard.ts'

/** A person at a terminal, as a running command sees them. */
export type Seat = {
  /** aborted by Ctrl-C */
  readonly interrupt: AbortSignal
  /** @returns the line typed; undefined when the person left with Ctrl-C or Ctrl-D, or is gone */
  ask(question: string): Promise<string | undefined>
  /** Takes the keyboard over, Ctrl-C included, until released. */
  rawInput(): { stdin: Readable; release: () => void }
  [Symbol.dispose](): void
}

/** Characters of an answer: a code, an address, a machine's name. Who has no account yet is asked as well. */
const ANSWER_LIMIT = 1024

type TerminalIo = CommandIo & { terminal: Terminal }

/** A seat for one command; without a keyboard of a lobby's own it reads the terminal itself. */
export function openSeat(io: TerminalIo, lobbyKeyboard?: Keyboard): Seat {
  const keyboard = lobbyKeyboard ?? new Keyboard(io.stdin)
  const interrupted = new AbortController()
  const unwatch = keyboard.watch(() => {
    if (!interrupted.signal.aborted) io.stdout.write('^C\r\n')
    interrupted.abort()
  })
  return {
    interrupt: interrupted.signal,
    async ask(question) {
      const answer = await readLine({
        keyboard,
        stdout: io.stdout,
        terminal: io.terminal,
        prompt: question,
        limit: ANSWER_LIMIT,
        signal: AbortSignal.any([io.signal, interrupted.signal]),
      })
      return answer.kind === 'line' ? answer.text : undefined
    },
    rawInput: () => keyboard.raw(),
    [Symbol.dispose]() {
      unwatch()
      if (!lobbyKeyboard) keyboard.release()
    },
  }
}
