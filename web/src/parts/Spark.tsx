/**
 * A small line without axes, for a row of a list; `label` says what it shows and in words how it is.
 * @param values oldest first; null is a gap, which is shown as one
 */
export function Spark({ values, most, label }: { values: readonly (number | null)[]; most: number; label: string }) {
  const [width, height] = [80, 20]
  const step = width / Math.max(1, values.length - 1)
  let path = ''
  let isDrawing = false
  for (const [index, value] of values.entries()) {
    if (value === null) {
      isDrawing = false
      continue
    }
    const y = height - 1 - Math.min(1, value / (most || 1)) * (height - 2)
    // What stands alone between gaps is a dot.
    path += `${isDrawing ? 'L' : 'M'}${(index * step).toFixed(1)} ${y.toFixed(1)}${isDrawing ? '' : 'h0'}`
    isDrawing = true
  }
  return (
    <svg class="spark" role="img" aria-label={label} viewBox={`0 0 ${width} ${height}`} width={width} height={height}>
      <path d={path} />
    </svg>
  )
}
