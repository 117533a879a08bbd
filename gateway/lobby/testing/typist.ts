import { PassThrough } from 'node:stream'
import type { Terminal } from '../../app.ts'
import { type ReadLine, type ReadLineOptions, readLine } from '../editor.ts'
import { Keyboard } from '../keyboard.ts'
import { Screen } from './screen.ts'

/** Somebody who types bytes at an editor and looks at the screen. */
export type Typist = {
  screen: Screen
  keyboard: Keyboard
  stdin: PassThrough
  read(options?: Partial<ReadLineOptions>): Promise<ReadLine>
  /** resolves when the editor has seen it */
  type(bytes: string | Buffer): Promise<void>
  resize(columns: number): void
  raw(): string
}

export function typist(columns = 80, term = 'xterm-256color'): Typist {
  const stdin = new PassThrough()
  const stdout = new PassThrough()
  let screen = new Screen(columns)
  let raw = ''
  stdout.on('data', (chunk: Buffer) => {
    raw += chunk
    screen.write(chunk.toString())
  })
  const listeners = new Set<() => void>()
  const size = { columns }
  const terminal: Terminal = {
    term,
    get columns() {
      return size.columns
    },
    rows: 24,
    onResize: (listener) => {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
  }
  const keyboard = new Keyboard(stdin)
  return {
    get screen() {
      return screen
    },
    keyboard,
    stdin,
    read: (options = {}) =>
      readLine({ keyboard, stdout, terminal, prompt: 'berth> ', signal: new AbortController().signal, ...options }),
    async type(bytes) {
      stdin.write(bytes)
      // Streams and lookups answer within a few turns of the event loop.
      for (let turn = 0; turn < 6; turn++) await new Promise((resolve) => setImmediate(resolve))
    },
    resize(next) {
      // As if the terminal had been cleared: how its rows re-wrap is the terminal's own affair (see the tmux test).
      size.columns = next
      const before = screen
      screen = new Screen(next)
      screen.write(before.lines.slice(0, -1).join('\r\n'))
      for (const listener of listeners) listener()
    },
    raw: () => raw,
  }
}
