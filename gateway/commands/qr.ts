import { create } from 'qrcode'

/** Light modules on each side, which readers want to see (ISO/IEC 18004 asks for four). */
const QUIET = 2
const BLACK_ON_WHITE = '\x1b[30;107m'
const PLAIN = '\x1b[0m'

/**
 * A QR code of half blocks, two rows a line. In colour it is black on white whatever the terminal's own colours are;
 * without, light modules are drawn, which reads well on the usual dark terminal, and most phones read the reverse.
 */
export function qrText(text: string, colour: boolean): string {
  const { modules } = create(text, { errorCorrectionLevel: 'L' })
  const { size } = modules
  const isDark = (row: number, column: number) =>
    row >= 0 && column >= 0 && row < size && column < size && modules.get(row, column) !== 0
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
