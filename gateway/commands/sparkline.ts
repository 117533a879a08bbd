/** Plots of one line, in Unicode's blocks. */

const BLOCKS = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'] as const

/**
 * @param values evenly apart; null: not known
 * @param top of the scale, which begins at 0
 * @param gap what stands where nothing is known, by the place in `values`
 * @returns at most `columns` characters, each the average of as many values as fall to it
 */
export function sparkline(
  values: readonly (number | null)[],
  top: number,
  columns: number,
  gap: (index: number) => string = () => ' ',
): string {
  const width = Math.min(columns, values.length)
  return Array.from({ length: width }, (_, column) => {
    const first = Math.floor((column * values.length) / width)
    const end = Math.floor(((column + 1) * values.length) / width)
    const known = values.slice(first, end).filter((value) => value !== null)
    if (known.length === 0) return gap(Math.floor((first + end - 1) / 2))
    const average = known.reduce((sum, value) => sum + value, 0) / known.length
    const level = top > 0 ? Math.ceil((average / top) * BLOCKS.length) - 1 : 0
    return BLOCKS[Math.min(Math.max(level, 0), BLOCKS.length - 1)]
  }).join('')
}

/** The next of 1, 2 or 5 times a power of ten that is no less. */
export function niceTop(value: number): number {
  if (!(value > 0)) return 1
  const power = 10 ** Math.floor(Math.log10(value))
  const factor = [1, 2, 5].find((one) => one * power >= value * (1 - 1e-9)) ?? 10
  return factor * power
}
