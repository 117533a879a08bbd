/**
 * What a terminal shows in the end: carriage returns, erased lines and cursor movement played back, colours dropped.
 * Enough of ECMA-48 for a shell and a one-line progress display.
 */
export function transcriptOf(raw: string, columns: number): string {
  const lines: string[][] = [[]]
  let row = 0
  let column = 0
  const line = () => {
    while (lines.length <= row) lines.push([])
    return lines[row] ?? []
  }
  const token = /\x1b\[([?>=0-9;]*)([A-Za-z@])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()=>][0-9A-Z]?|[\s\S]/gu
  for (const [text, parameters = '', final] of raw.matchAll(token)) {
    const n = Number(parameters.split(';')[0] || '1')
    if (final === 'K') {
      if (parameters === '2') lines[row] = []
      else line().length = Math.min(line().length, column)
    } else if (final === 'A') row = Math.max(0, row - n)
    else if (final === 'B') row += n
    else if (final === 'C') column += n
    else if (final === 'D') column = Math.max(0, column - n)
    else if (final === 'G') column = n - 1
    else if (final === 'J') {
      line().length = Math.min(line().length, column)
      lines.length = row + 1
    } else if (text === '\r') column = 0
    else if (text === '\n') row++
    else if (text === '\b') column = Math.max(0, column - 1)
    else if (text.length === 1 ? text >= ' ' : !text.startsWith('\x1b')) {
      if (column >= columns) {
        row++
        column = 0
      }
      const cells = line()
      while (cells.length < column) cells.push(' ')
      cells[column++] = text
    }
  }
  return lines
    .map((cells) => cells.join('').trimEnd())
    .join('\n')
    .replace(/\n\$ ?$/, '')
    .trim()
}
