import type { Writable } from 'node:stream'
import type { Terminal } from '../app.ts'
import { textWidth } from '../commands/width.ts'
import { type Layout, layOut, visible } from './layout.ts'

export type Picture = {
  prompt: string
  paint?: ((prompt: string) => string) | undefined
  graphemes: readonly string[]
  cursor: number
}

/**
 * Draws the line being edited. On a terminal with control sequences it wraps over as many rows as it needs; after a
 * change of width the rows are counted anew, because terminals re-wrap what they show. On TERM=dumb it stays on one
 * row that scrolls sideways, drawn with carriage returns and blanks only.
 */
export class Painter {
  readonly #stdout: Writable
  readonly #terminal: Terminal
  readonly #dumb: boolean
  #shown: Picture | undefined
  #dumbWidth = 0

  constructor({ stdout, terminal }: { stdout: Writable; terminal: Terminal }) {
    this.#stdout = stdout
    this.#terminal = terminal
    this.#dumb = terminal.term === 'dumb' || terminal.term === ''
  }

  get #columns(): number {
    return Math.max(2, this.#terminal.columns || 80)
  }

  start(): void {
    // Bracketed paste: a paste does not press Enter.
    if (!this.#dumb) this.write('\x1b[?2004h')
  }

  write(bytes: string): void {
    if (!this.#stdout.destroyed && !this.#stdout.writableEnded) this.#stdout.write(bytes)
  }

  draw(picture: Picture): void {
    if (this.#dumb) {
      this.#drawDumb(picture)
      return
    }
    const columns = this.#columns
    const next = layOut(picture.prompt, picture.graphemes, picture.cursor, columns)
    let bytes = this.#toStart()
    bytes += (picture.paint?.(picture.prompt) ?? picture.prompt) + picture.graphemes.map(visible).join('')
    // Where the last column is filled the terminal has not wrapped yet. A blank makes it, and unlike a line feed it
    // leaves the rows one line, which the terminal re-wraps when its width changes.
    if (next.end.column === 0 && next.end.row > 0) bytes += ' \r\x1b[K'
    bytes += moves(next)
    this.#shown = picture
    this.write(bytes)
  }

  /** Leaves the line on the screen, prints something under it, and draws anew below at the next `draw`. */
  leave(text: string): void {
    this.write(`${this.#toEnd()}\r\n${text}\r\n`)
    this.#shown = undefined
    this.#dumbWidth = 0
  }

  clearScreen(): void {
    if (this.#dumb) return
    this.write('\x1b[H\x1b[2J')
    this.#shown = undefined
  }

  /** The line is finished: the cursor goes to a fresh row. */
  finish(mark: string): void {
    this.write(`${this.#toEnd()}${mark}${this.#dumb ? '' : '\x1b[?2004l'}\r\n`)
    this.#shown = undefined
  }

  #toStart(): string {
    if (!this.#shown) return '\r\x1b[J'
    const { cursor } = layOut(this.#shown.prompt, this.#shown.graphemes, this.#shown.cursor, this.#columns)
    return `${cursor.row ? `\x1b[${cursor.row}A` : ''}\r\x1b[J`
  }

  #toEnd(): string {
    if (!this.#shown || this.#dumb) return ''
    const { prompt, graphemes, cursor } = this.#shown
    const layout = layOut(prompt, graphemes, cursor, this.#columns)
    const down = layout.end.row - layout.cursor.row
    return `${down ? `\x1b[${down}B` : ''}\r${layout.end.column ? `\x1b[${layout.end.column}C` : ''}`
  }

  #drawDumb({ prompt, graphemes, cursor }: Picture): void {
    const cells = graphemes.map(visible)
    const room = Math.max(1, this.#columns - 1 - textWidth(prompt))
    let from = cursor
    for (let width = 0; from > 0; from--) {
      width += textWidth(cells[from - 1] ?? '')
      if (width > room) break
    }
    let to = from
    for (let width = 0; to < cells.length; to++) {
      width += textWidth(cells[to] ?? '')
      if (width > room) break
    }
    const before = prompt + cells.slice(from, cursor).join('')
    const whole = prompt + cells.slice(from, to).join('')
    const width = textWidth(whole)
    const erased = ' '.repeat(Math.max(0, this.#dumbWidth - width))
    this.write(`\r${whole}${erased}\r${before}`)
    this.#dumbWidth = width
    this.#shown = { prompt, graphemes, cursor }
  }
}

function moves({ cursor, end }: Layout): string {
  if (cursor.row === end.row && cursor.column === end.column) return ''
  const up = end.row - cursor.row
  return `${up ? `\x1b[${up}A` : ''}\r${cursor.column ? `\x1b[${cursor.column}C` : ''}`
}
