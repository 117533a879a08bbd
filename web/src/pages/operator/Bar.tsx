/** How much of something is taken; the figures stand beside it, so it says nothing to a screen reader. */
export function Bar({ part, whole }: { part: number; whole: number }) {
  const share = whole <= 0 ? 0 : Math.min(1, Math.max(0, part / whole))
  return (
    <svg
      class={part > whole ? 'bar-of over' : 'bar-of'}
      viewBox="0 0 100 1"
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      <rect width={100 * share} height="1" />
    </svg>
  )
}
