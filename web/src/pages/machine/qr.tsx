/** Light squares around, which readers want to see (ISO/IEC 18004 asks for four). */
const QUIET = 4

/** @param rows as `--qr --json` has them: `1` is dark */
export function Qr({ rows, label }: { rows: readonly string[]; label: string }) {
  const size = rows.length + 2 * QUIET
  // One path for all dark squares: 1,500 elements would be slow to lay out.
  const path = rows.flatMap((row, y) =>
    [...row].flatMap((square, x) => (square === '1' ? [`M${x + QUIET} ${y + QUIET}h1v1h-1z`] : [])),
  )
  return (
    <svg class="qr" role="img" aria-label={label} viewBox={`0 0 ${size} ${size}`} shape-rendering="crispEdges">
      <rect width={size} height={size} fill="#fff" />
      <path d={path.join('')} fill="#000" />
    </svg>
  )
}
