import { graphemeWidth, splitGraphemes } from '../commands/width.ts'

/** Where a position of a wrapped line is on the screen, from the first column of its first row. */
export type Place = { row: number; column: number }
export type Layout = { cursor: Place; end: Place }

/** How a character of the line is shown: a line feed of a paste as a mark, other controls as `^X`. */
export function visible(grapheme: string): string {
  if (grapheme === '\n') return '↵'
  const code = grapheme.charCodeAt(0)
  if (code < 0x20) return `^${String.fromCharCode(code + 64)}`
  return grapheme
}

/**
 * Wraps a prompt and a line as a terminal of `columns` does: a wide character that does not fit in the last column
 * goes to the next row, and a full row counts as wrapped at once (the painter makes that true).
 * @param prompt without control sequences
 */
export function layOut(prompt: string, graphemes: readonly string[], cursor: number, columns: number): Layout {
  let row = 0
  let column = 0
  const put = (shown: string) => {
    // Nearly all are one letter already, and a long line has thousands of them at each key.
    for (const cell of shown.length === 1 ? [shown] : splitGraphemes(shown)) {
      const width = Math.min(graphemeWidth(cell), columns)
      if (column + width > columns) {
        row++
        column = 0
      }
      column += width
      if (column >= columns) {
        row++
        column = 0
      }
    }
  }
  put(prompt)
  let place: Place = { row, column }
  for (const [index, grapheme] of graphemes.entries()) {
    if (index === cursor) place = { row, column }
    put(visible(grapheme))
  }
  const end = { row, column }
  if (cursor >= graphemes.length) place = end
  return { cursor: place, end }
}
