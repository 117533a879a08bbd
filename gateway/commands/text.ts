import type { Terminal } from '../app.ts'
import { textWidth, truncate } from './width.ts'

/** How a result is shown: on which width, with or without colour. */
export type View = {
  /** a person looks at it; columns are then a limit */
  terminal: boolean
  /** the terminal understands control sequences: TERM is not dumb */
  rewrites: boolean
  columns: number
  style: Style
}

/** The few ways a word can stand out. Without colour each gives its text back unchanged. */
export type Style = {
  accent(text: string): string
  dim(text: string): string
  bold(text: string): string
  failure(text: string): string
}

const plain: Style = { accent: (t) => t, dim: (t) => t, bold: (t) => t, failure: (t) => t }
const sgr = (on: number, off: number) => (text: string) => (text ? `\x1b[${on}m${text}\x1b[${off}m` : '')
const coloured: Style = { accent: sgr(36, 39), dim: sgr(2, 22), bold: sgr(1, 22), failure: sgr(31, 39) }

const PLAIN_COLUMNS = 80

/**
 * Colour only on a terminal that has it and whose owner did not say no.
 * @see no-color.org
 */
export function viewOf(terminal: Terminal | undefined, env: Record<string, string>): View {
  if (!terminal) return { terminal: false, rewrites: false, columns: PLAIN_COLUMNS, style: plain }
  const rewrites = terminal.term !== 'dumb' && terminal.term !== ''
  const colour = rewrites && !env.NO_COLOR
  // A terminal that never told its size says 0.
  return { terminal: true, rewrites, columns: terminal.columns || PLAIN_COLUMNS, style: colour ? coloured : plain }
}

export type Column<Row> = {
  title: string
  value: (row: Row) => string
  style?: (text: string, row: Row) => string
  /** numbers stand right */
  right?: boolean
  /** may be cut with an ellipsis when the terminal is narrow */
  flexible?: boolean
  /** left out first, highest number first, when even that does not help */
  optional?: number
}

const GAP = 2

/**
 * Aligned columns under dim titles. On a terminal it fits the width: optional columns go, then flexible ones are cut.
 * Elsewhere nothing is lost, whatever the width. A column that is empty in every row is left out.
 */
export function table<Row>(rows: readonly Row[], columns: readonly Column<Row>[], view: View): string {
  let shown = columns.filter((column) => rows.some((row) => column.value(row) !== ''))
  let widths = naturalWidths(rows, shown)
  const total = () => widths.reduce((sum, width) => sum + width, 0) + GAP * (widths.length - 1)
  if (view.terminal) {
    for (let over = total() - view.columns; over > 0; over = total() - view.columns) {
      // What is least needed is cut, then left out; what the table is about is cut last.
      const shrunk = shrink(shown, widths, over, (column) => column.optional !== undefined)
      const least = shown.reduce((most, column) => Math.max(most, column.optional ?? 0), 0)
      if (shrunk) continue
      if (least > 0) {
        shown = shown.filter((column) => column.optional !== least)
        widths = naturalWidths(rows, shown)
      } else if (!shrink(shown, widths, over, () => true)) break
    }
  }
  const line = (cells: { text: string; paint: (text: string) => string }[]) =>
    cells
      .map(({ text, paint }, index) => {
        const width = widths[index] ?? 0
        const cut = view.terminal ? truncate(text, Math.min(width, view.columns)) : text
        const padding = ' '.repeat(Math.max(0, width - textWidth(cut)))
        if (shown[index]?.right) return padding + paint(cut)
        return paint(cut) + (index === shown.length - 1 ? '' : padding)
      })
      .join(' '.repeat(GAP))
      .trimEnd()
  const head = line(shown.map((column) => ({ text: column.title, paint: view.style.dim })))
  const body = rows.map((row) =>
    line(shown.map((c) => ({ text: c.value(row), paint: (text) => (c.style ? c.style(text, row) : text) }))),
  )
  return `${[head, ...body].join('\n')}\n`
}

const LEAST_COLUMNS = 12

/** Takes up to `over` columns from the widest of those that may be cut. @returns whether that was anything */
function shrink<Row>(
  columns: readonly Column<Row>[],
  widths: number[],
  over: number,
  may: (column: Column<Row>) => boolean,
): boolean {
  const widest = columns
    .map((column, index) => ({ index, width: widths[index] ?? 0, may: column.flexible === true && may(column) }))
    .filter((column) => column.may && column.width > LEAST_COLUMNS)
    .sort((a, b) => b.width - a.width)[0]
  if (!widest) return false
  widths[widest.index] = Math.max(LEAST_COLUMNS, widest.width - over)
  return true
}

function naturalWidths<Row>(rows: readonly Row[], columns: readonly Column<Row>[]): number[] {
  return columns.map((column) =>
    rows.reduce((width, row) => Math.max(width, textWidth(column.value(row))), textWidth(column.title)),
  )
}

/**
 * Two columns, the left as wide as it must be, the right one wrapped under itself.
 * @param leftColumns at least this wide on the left, where several lists are to align
 */
export function definitions(
  pairs: readonly (readonly [string, string])[],
  view: View,
  indent = 2,
  leftColumns = 0,
): string {
  const widest = pairs.reduce((width, [left]) => Math.max(width, textWidth(left)), leftColumns)
  const left = Math.min(widest, Math.max(12, Math.floor(view.columns * 0.45)))
  const start = indent + left + 2
  return pairs
    .map(([term, meaning]) => {
      const lines = wrap(meaning, Math.max(16, view.columns - start))
      const padded = view.style.accent(term) + ' '.repeat(Math.max(2, left + 2 - textWidth(term)))
      const fits = textWidth(term) <= left
      const head = fits ? padded + (lines.shift() ?? '') : view.style.accent(term)
      return [' '.repeat(indent) + head, ...lines.map((line) => ' '.repeat(start) + line)].join('\n').trimEnd()
    })
    .join('\n')
    .concat('\n')
}

/** Lines for a terminal's width; elsewhere a sentence stays one line. */
export function fitted(text: string, view: View): string[] {
  return view.terminal ? wrap(text, view.columns) : text.split('\n')
}

/** Breaks a paragraph at spaces; a word longer than the width stays whole, so that it can be copied. */
export function wrap(text: string, columns: number): string[] {
  const lines: string[] = []
  for (const paragraph of text.split('\n')) {
    let line = ''
    for (const word of paragraph.split(' ')) {
      if (line && textWidth(line) + 1 + textWidth(word) > columns) {
        lines.push(line)
        line = word
      } else line = line ? `${line} ${word}` : word
    }
    lines.push(line)
  }
  return lines
}

/** Text from elsewhere (a machine's console, a comment) with everything that could drive a terminal taken out. */
export function harmless(text: string): string {
  return (
    text
      // Sequences that reach to a terminator: OSC, DCS, SOS, PM, APC (ECMA-48, 5.6), in both codings.
      .replaceAll(/(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)?/g, '')
      .replaceAll(/(?:\x1b\[|\x9b)[\x30-\x3f]*[\x20-\x2f]*[\x40-\x7e]?/g, '')
      .replaceAll(/\x1b[\x20-\x2f]*[\x30-\x7e]?/g, '')
      .replaceAll('\r\n', '\n')
      .replaceAll(/[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]/g, '')
  )
}
