import { once } from 'node:events'
import type { Writable } from 'node:stream'
import type { Terminal } from '../app.ts'
import { commonPrefix, inColumns } from './candidates.ts'
import type { History } from './history.ts'
import type { Keyboard } from './keyboard.ts'
import { type Key, KeyDecoder } from './keys.ts'
import { LineBuffer } from './line.ts'
import { Painter } from './painter.ts'
import { HistorySearch } from './search.ts'

export type Completion = {
  /** where in the text before the cursor the completed word begins (UTF-16 index) */
  start: number
  /** what can stand there, as it would be typed, with a blank behind it when the word is then finished */
  candidates: readonly string[]
}

export type ReadLineOptions = {
  keyboard: Keyboard
  stdout: Writable
  terminal: Terminal
  /** the prompt as text, and as it is drawn */
  prompt: string
  paintPrompt?: (prompt: string) => string
  history?: History
  complete?: (beforeCursor: string) => Promise<Completion>
  /** characters at most; 16 Ki unless given */
  limit?: number
  signal: AbortSignal
}

/** `interrupted`: Ctrl-C. `closed`: Ctrl-D on an empty line, or the client is gone. */
export type ReadLine = { kind: 'line'; text: string } | { kind: 'interrupted' } | { kind: 'closed' }

const BELL = '\x07'

/** Reads one line from a terminal in raw mode, with readline's emacs keys. The cursor ends on a fresh row. */
export async function readLine(options: ReadLineOptions): Promise<ReadLine> {
  const editor = new Editor(options)
  try {
    return await editor.run()
  } finally {
    editor.close()
  }
}

class Editor {
  readonly #options: ReadLineOptions
  readonly #line: LineBuffer
  readonly #decoder = new KeyDecoder()
  readonly #painter: Painter
  readonly #result = Promise.withResolvers<ReadLine>()
  readonly #released: (() => void)[] = []
  #finished = false
  #historyIndex: number
  #draft = ''
  #search: HistorySearch | undefined
  #lastWasTab = false
  /** while a completion is looked up nothing is read, so that no key overtakes it */
  #completing = false
  #stopReading = () => {}
  #drawing: NodeJS.Immediate | undefined
  #waitsForRoom = false
  readonly #onRoom = () => {
    this.#waitsForRoom = false
    this.#drawSoon()
  }

  constructor(options: ReadLineOptions) {
    this.#options = options
    this.#line = new LineBuffer(options.limit)
    this.#historyIndex = options.history?.lines.length ?? 0
    this.#painter = new Painter(options)
  }

  run(): Promise<ReadLine> {
    const { keyboard, terminal, signal } = this.#options
    this.#painter.start()
    this.#draw()
    const onAbort = () => this.#finish({ kind: 'closed' })
    signal.addEventListener('abort', onAbort, { once: true })
    this.#released.push(
      () => signal.removeEventListener('abort', onAbort),
      terminal.onResize(() => this.#drawSoon()),
      () => this.#options.stdout.off('drain', this.#onRoom),
    )
    this.#read()
    keyboard.closed.then(() => this.#finish({ kind: 'closed' }))
    if (signal.aborted) onAbort()
    return this.#result.promise
  }

  close(): void {
    clearImmediate(this.#drawing)
    this.#stopReading()
    for (const release of this.#released) release()
  }

  #read(): void {
    this.#stopReading = this.#options.keyboard.read((bytes) => this.#onBytes(bytes))
  }

  #onBytes(bytes: Buffer): void {
    // Only up to the first Enter: what follows was typed ahead for the command that is about to run.
    let rest = bytes
    while (rest.length && !this.#finished && !this.#completing) {
      const enter = rest.findIndex((byte) => byte === 0x0d || byte === 0x0a || byte === 0x09)
      const part = enter < 0 ? rest : rest.subarray(0, enter + 1)
      rest = rest.subarray(part.length)
      for (const key of this.#decoder.feed(part)) this.#onKey(key)
    }
    if (rest.length) {
      // A client that sends CR LF pressed Enter once.
      const skip = this.#finished && bytes[bytes.length - rest.length - 1] === 0x0d && rest[0] === 0x0a ? 1 : 0
      this.#options.keyboard.unread(rest.subarray(skip))
    }
    this.#drawSoon()
    const { stdout, keyboard } = this.#options
    if (stdout.writableNeedDrain && !stdout.destroyed)
      keyboard.pauseUntil(Promise.race([once(stdout, 'drain'), once(stdout, 'close')]))
  }

  #onKey(key: Key): void {
    if (this.#finished) return
    const tab = key.kind === 'key' && key.name === 'tab'
    if (this.#search && this.#onSearchKey(key)) return
    if (key.kind !== 'key') {
      if (!this.#line.insert(key.text)) this.#painter.write(BELL)
    } else if (tab) this.#complete()
    else this.#onCommand(key.name)
    this.#lastWasTab = tab
  }

  #onCommand(name: string): void {
    const line = this.#line
    const done = (() => {
      switch (name) {
        case 'enter':
          return this.#finish({ kind: 'line', text: line.text })
        case 'ctrl-c':
          return this.#finish({ kind: 'interrupted' }, '^C')
        case 'ctrl-d':
          if (line.text === '') return this.#finish({ kind: 'closed' })
          return line.deleteForward()
        case 'ctrl-a':
        case 'home':
          return line.moveTo(0)
        case 'ctrl-e':
        case 'end':
          return line.moveTo(line.graphemes.length)
        case 'ctrl-b':
        case 'left':
          return line.move(-1)
        case 'ctrl-f':
        case 'right':
          return line.move(1)
        case 'alt-b':
        case 'alt-left':
        case 'ctrl-left':
          return line.moveWord(-1)
        case 'alt-f':
        case 'alt-right':
        case 'ctrl-right':
          return line.moveWord(1)
        case 'backspace':
          return line.deleteBack()
        case 'delete':
          return line.deleteForward()
        case 'ctrl-k':
          return line.killToEnd()
        case 'ctrl-u':
          return line.killToStart()
        case 'ctrl-w':
          return line.killBlankBack()
        case 'alt-backspace':
          return line.killWordBack()
        case 'alt-d':
          return line.killWordForward()
        case 'ctrl-y':
          return line.yank()
        case 'ctrl-t':
          return line.transpose()
        case 'ctrl-l':
          this.#painter.clearScreen()
          return true
        case 'ctrl-p':
        case 'up':
          return this.#recall(this.#historyIndex - 1)
        case 'ctrl-n':
        case 'down':
          return this.#recall(this.#historyIndex + 1)
        case 'ctrl-r':
          return this.#startSearch()
        default:
          return true
      }
    })()
    if (done === false) this.#painter.write(BELL)
  }

  #recall(index: number): boolean {
    const lines = this.#options.history?.lines ?? []
    if (index < 0 || index > lines.length) return false
    if (this.#historyIndex === lines.length) this.#draft = this.#line.text
    this.#historyIndex = index
    this.#line.set(lines[index] ?? this.#draft)
    return true
  }

  #startSearch(): boolean {
    const { history } = this.#options
    if (!history) return false
    this.#search = new HistorySearch(history.lines)
    return true
  }

  /** @returns whether the search took the key; any other key ends it and acts on the line found */
  #onSearchKey(key: Key): boolean {
    const search = this.#search
    if (!search) return false
    if (key.kind !== 'key') {
      if (!search.extend(key.text)) this.#painter.write(BELL)
      return true
    }
    if (key.name === 'ctrl-r') {
      if (!search.older()) this.#painter.write(BELL)
      return true
    }
    if (key.name === 'backspace') {
      search.shorten()
      return true
    }
    this.#search = undefined
    if (key.name === 'ctrl-g' || key.name === 'ctrl-c') return true
    if (search.found !== undefined) this.#line.set(search.found)
    return false
  }

  #complete(): void {
    const { complete } = this.#options
    if (!complete) {
      this.#painter.write(BELL)
      return
    }
    const again = this.#lastWasTab
    this.#completing = true
    this.#stopReading()
    complete(this.#line.beforeCursor)
      .then(
        (completion) => this.#applyCompletion(completion, again),
        () => this.#painter.write(BELL),
      )
      .finally(() => {
        this.#completing = false
        if (this.#finished) return
        this.#drawSoon()
        this.#read()
      })
  }

  #applyCompletion({ start, candidates }: Completion, again: boolean): void {
    if (this.#finished) return
    const typed = this.#line.beforeCursor.slice(start)
    const common = commonPrefix(candidates)
    if (candidates.length > 0 && common.length > typed.length) {
      this.#line.replaceBeforeCursor(start, common)
    } else if (candidates.length > 1 && again) this.#list(candidates)
    else if (candidates.length === 1 && common !== typed) this.#line.replaceBeforeCursor(start, common)
    else this.#painter.write(BELL)
  }

  #list(candidates: readonly string[]): void {
    // Under the line as it is.
    this.#draw()
    const rows = inColumns(candidates, this.#options.terminal.columns || 80)
    this.#painter.leave(rows.join('\r\n'))
  }

  /**
   * Draws once for all keys and sizes that came in one turn of the event loop, and not while the client leaves what was
   * drawn before: a byte of a client is worth a whole line of ours, and news of a window's size are held up by nothing.
   */
  #drawSoon(): void {
    if (this.#finished || this.#drawing || this.#waitsForRoom) return
    const { stdout, keyboard } = this.#options
    if (stdout.writableNeedDrain && !stdout.destroyed) {
      this.#waitsForRoom = true
      stdout.once('drain', this.#onRoom)
      return
    }
    this.#drawing = setImmediate(() => {
      this.#draw()
      if (stdout.writableNeedDrain && !stdout.destroyed)
        keyboard.pauseUntil(Promise.race([once(stdout, 'drain'), once(stdout, 'close')]))
    })
  }

  #draw(): void {
    clearImmediate(this.#drawing)
    this.#drawing = undefined
    if (this.#finished) return
    const search = this.#search
    const { prompt, paintPrompt } = this.#options
    if (search) {
      const found = Array.from(search.found ?? '')
      this.#painter.draw({ prompt: search.prompt, graphemes: found, cursor: found.length })
    } else
      this.#painter.draw({ prompt, paint: paintPrompt, graphemes: this.#line.graphemes, cursor: this.#line.cursor })
  }

  #finish(result: ReadLine, mark = ''): boolean {
    if (this.#finished) return true
    this.#search = undefined
    this.#line.moveTo(this.#line.graphemes.length)
    this.#draw()
    this.#finished = true
    this.#stopReading()
    this.#painter.finish(mark)
    this.#result.resolve(result)
    return true
  }
}
