import type { Mood } from '../../parts/Dot.tsx'

type Standing = { owner: boolean; suspended: boolean; over_limit: boolean }

/** How an account stands, in a word. */
export function stateOfAccount({ owner, suspended, over_limit: isOver }: Standing): string {
  if (suspended) return 'suspended'
  if (isOver) return 'over its limit'
  return owner ? 'operator' : 'active'
}

export function moodOfAccount({ suspended, over_limit: isOver }: Standing): Mood {
  if (suspended) return 'bad'
  return isOver ? 'wait' : 'well'
}
