import { create } from 'qrcode'

/** Light modules on each side, which readers want to see (ISO/IEC 18004 asks for four). */
const QUIET = 2
const BLACK_ON_WHITE = '\x1b[30;107m'
const PLAIN = '\x1b[0m'

/** A QR code for a page to draw: one text a row, `1` where it is dark, without the light margin. */
export function qrRows(text: string): string[] {
  const { modules } = create(text, { errorCorrectionLevel: 'L' })
  const { size, data } = modules
  return Array.from({ length: size }, (_, row) => data.slice(row * size, (row + 1) * size).join(''))
}

/**
 * A QR code of half blocks, two rows a line. In colour it is black on white whatever the terminal's own colours are;
 * without, light modules are drawn, which reads well on the usual dark terminal, and most phones read the reverse.
 */
export function qrText(text: string, colour: boolean): string {
  const rows = qrRows(text)
  const size = rows.length
  const isDark = (row: number, column: number) => rows[row]?.[column] === '1'
  const lines: string[] = []
  for (let row = -QUIET; row < size + QUIET; row += 2) {
    let line = ''
    for (let column = -QUIET; column < size + QUIET; column++) {
      const upper = isDark(row, column) === colour
      const lower = isDark(row + 1, column) === colour
      line += upper ? (lower ? '█' : '▀') : lower ? '▄' : ' '
    }
    lines.push(colour ? `${BLACK_ON_WHITE}${line}${PLAIN}` : line)
  }
  return `${lines.join('\n')}\n`
}
