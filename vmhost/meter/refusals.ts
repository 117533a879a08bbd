/**
 * What the database refuses for good, as against a database that is away, half upgraded or broken, which gets the same
 * again later. Only what is known to be the fact's own fault is its end.
 *
 * @see https://www.postgresql.org/docs/current/errcodes-appendix.html
 */

/** Figures and times that no column holds. */
const unreadable = ['22003', '22007', '22008', '22P02']
/** A check, and what is there already in another way. */
const constrained = ['23514', '23P01']
const ofLedger = /^(machine_spans|transfer_readings)_/

function isRefused(error: unknown): boolean {
  const { code, constraint_name: constraint } = error as { code?: unknown; constraint_name?: unknown }
  if (typeof code !== 'string') return false
  return unreadable.includes(code) || (constrained.includes(code) && ofLedger.test(String(constraint)))
}

/**
 * Appends all at once, or, where that is refused for good, each alone.
 * @throws what `append` does for other reasons: some of them may be there
 */
export async function eachOrAll<T>(
  items: readonly T[],
  append: (some: readonly T[]) => Promise<void>,
  onRefused: (item: T, error: unknown) => void | Promise<void>,
): Promise<void> {
  if (items.length === 0) return
  try {
    await append(items)
  } catch (error) {
    if (!isRefused(error)) throw error
    const [only, ...others] = items
    if (only !== undefined && others.length === 0) await onRefused(only, error)
    else for (const item of items) await eachOrAll([item], append, onRefused)
  }
}
