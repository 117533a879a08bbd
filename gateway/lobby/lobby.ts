import type { RunLobby } from '../app.ts'
import { completeLine } from '../commands/complete.ts'
import { runInSeat } from '../commands/run.ts'
import { commandsFor } from '../commands/table.ts'
import { type View, viewOf, wrap } from '../commands/text.ts'
import { splitLines } from '../commands/words.ts'
import { faultSentence } from '../fault.ts'
import { readLine } from './editor.ts'
import { greeting } from './greeting.ts'
import { historyOf } from './history.ts'
import { Keyboard } from './keyboard.ts'
import { learnName } from './learn-name.ts'
import { openSeat } from './seat.ts'

const PROMPT_NAME = 'berth'
const PROMPT = `${PROMPT_NAME}> `

/**
 * The lobby on a terminal: reads a line, runs it, until `exit`, Ctrl-D or the client is gone.
 * @returns the status of the last command, as a shell's `exit` does
 */
export const runLobby: RunLobby = async (app, caller, io, notice) => {
  const keyboard = new Keyboard(io.stdin)
  const history = historyOf(caller.accountId)
  const table = commandsFor(caller)
  let status = 0
  /** Whoever only looks at the notice and leaves has used no lobby. */
  let used = false
  const say = (text: string) => {
    if (!io.stdout.destroyed && !io.stdout.writableEnded) io.stdout.write(text.replaceAll('\n', '\r\n'))
  }
  try {
    if (notice) say(`${noticeText(notice, viewOf(io.terminal, io.env))}\n`)
    say(await greeting(app, caller, viewOf(io.terminal, io.env)))
    while (!io.signal.aborted) {
      const view = viewOf(io.terminal, io.env)
      const read = await readLine({
        keyboard,
        stdout: io.stdout,
        terminal: io.terminal,
        prompt: PROMPT,
        paintPrompt: () => `${view.style.accent(PROMPT_NAME)}> `,
        history,
        complete: (before) => completeLine(table, { app, caller }, before),
        signal: io.signal,
      })
      if (read.kind === 'closed') break
      if (read.kind === 'interrupted') {
        status = 130
        continue
      }
      history.add(read.text)
      // A paste may hold several lines; each is a command, as in a shell.
      const { lines, rest } = splitLines(read.text)
      for (const line of [...lines, rest]) {
        if (/^\s*(exit|logout|quit)\s*$/.test(line)) return status
        if (!line.trim()) continue
        using seat = openSeat(io, keyboard)
        status = await runInSeat(app, caller, line, io, seat)
        used ||= status === 0
        if (status === 130) break
      }
    }
  } catch (error) {
    say(`${faultSentence(error, app.log, 'the lobby broke off')}\n`)
    status = 1
  } finally {
    keyboard.release()
    // At the end and not before: `ssh demo@host` may have been typed in order to make demo.
    if (used) await learnName(app, caller)
  }
  return status
}

function noticeText(notice: string, view: View): string {
  return wrap(notice, view.columns).join('\n')
}
