import { graphemeWidth, splitGraphemes } from '../../commands/width.ts'

/**
 * The few things of a terminal that the lobby relies on, strictly: deferred wrap in the last column, and any sequence
 * it does not know is an error, so a test sees what real terminals might not all have.
 */
export class Screen {
  readonly columns: number
  rows: string[][] = [[]]
  row = 0
  column = 0
  bells = 0
  #wrapPending = false

  constructor(columns: number) {
    this.columns = columns
  }

  write(text: string): void {
    let rest = text
    while (rest) {
      const sequence = /^\x1b\[([?0-9;]*)([A-Za-z])/.exec(rest)
      if (sequence) {
        this.#control(sequence[1] ?? '', sequence[2] ?? '')
        rest = rest.slice(sequence[0].length)
        continue
      }
      if (rest[0] === '\x1b') throw new Error(`unknown sequence ${JSON.stringify(rest.slice(0, 12))}`)
      const plain = /^[^\x00-\x1f\x7f]+/.exec(rest)?.[0]
      if (plain) {
        for (const grapheme of splitGraphemes(plain)) this.#put(grapheme)
        rest = rest.slice(plain.length)
        continue
      }
      this.#controlCharacter(rest[0] ?? '')
      rest = rest.slice(1)
    }
  }

  /** Lines without trailing blanks, and without empty ones at the end. */
  get lines(): string[] {
    const lines = this.rows.map((row) =>
      row
        .map((cell) => cell ?? ' ')
        .join('')
        .trimEnd(),
    )
    while (lines.length && lines.at(-1) === '') lines.pop()
    return lines
  }

  #line(row: number): string[] {
    while (this.rows.length <= row) this.rows.push([])
    return this.rows[row] ?? []
  }

  #put(grapheme: string): void {
    const width = graphemeWidth(grapheme)
    if (width === 0) return
    if (this.#wrapPending || this.column + width > this.columns) {
      this.row++
      this.column = 0
      this.#wrapPending = false
    }
    const line = this.#line(this.row)
    while (line.length < this.column) line.push(' ')
    line[this.column] = grapheme
    // The second cell of a wide character is there, and empty.
    if (width === 2) line[this.column + 1] = ''
    this.column += width
    if (this.column >= this.columns) {
      this.column = this.columns - 1
      this.#wrapPending = true
    }
  }

  #controlCharacter(character: string): void {
    this.#wrapPending = false
    if (character === '\r') this.column = 0
    else if (character === '\n') {
      this.row++
      this.#line(this.row)
    } else if (character === '\b') this.column = Math.max(0, this.column - 1)
    else if (character === '\x07') this.bells++
    else throw new Error(`unknown control character ${JSON.stringify(character)}`)
  }

  #control(parameters: string, final: string): void {
    const count = Math.max(1, Number(parameters || 1))
    if (final === 'm' || parameters.startsWith('?2004')) return
    this.#wrapPending = false
    if (final === 'A') this.row = Math.max(0, this.row - count)
    else if (final === 'B') this.row += count
    else if (final === 'C') this.column = Math.min(this.columns - 1, this.column + count)
    else if (final === 'D') this.column = Math.max(0, this.column - count)
    else if (final === 'K') this.#line(this.row).splice(this.column)
    else if (final === 'J' && parameters === '') {
      this.#line(this.row).splice(this.column)
      this.rows.splice(this.row + 1)
    } else if (final === 'J' && parameters === '2') this.rows = this.rows.map(() => [])
    else if (final === 'H' && parameters === '') [this.row, this.column] = [0, 0]
    else throw new Error(`unknown sequence CSI ${parameters}${final}`)
    this.#line(this.row)
  }
}
