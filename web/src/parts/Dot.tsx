/** What a status means for the person: it works, it is on its way, it needs them, or it is at rest. */
export type Mood = 'well' | 'wait' | 'bad' | 'rest'

const MOODS: Record<string, Mood> = {
  running: 'well',
  creating: 'wait',
  starting: 'wait',
  waking: 'wait',
  stopping: 'wait',
  'falling asleep': 'wait',
  failed: 'bad',
}

function moodOf(status: string): Mood {
  return MOODS[status] ?? 'rest'
}

/** A state as a dot with its word: colour alone says nothing to many. */
export function Dot({ status, mood = moodOf(status) }: { status: string; mood?: Mood }) {
  return <span class={`dot ${mood}${status === 'asleep' || status === 'paused' ? ' hollow' : ''}`}>{status}</span>
}
