import { useEffect, useReducer, useRef } from 'preact/hooks'
import { isSeen } from '../parts/media.ts'
import { ExecError, ended, exec } from './exec.ts'
import { newsOf, type Topic } from './live.ts'
import { quoted } from './words.ts'

/** What a page asked for: still on its way, not had, or there. What was there before stays until the new is. */
export type Asked<T> = {
  value: T | undefined
  error: ExecError | undefined
  isLoading: boolean
  /** asks again */
  reload: () => void
}

/**
 * The document of a command, asked for when the component is first shown, whenever the words change, when something
 * happened to `topics`, and when a command that was given here has ended. What happens while it is asked is asked for
 * once more when the answer is there: however much happens, an answer is shown each time one has come. A
 * page that nobody sees asks when it is seen.
 * @param words undefined: nothing is asked for yet
 */
export function useExec<T>(words: readonly string[] | undefined, topics: readonly Topic[] = []): Asked<T> {
  const [, redraw] = useReducer((count: number) => count + 1, 0)
  const state = useRef<{ line: string; value?: T; error?: ExecError; isLoading: boolean }>({
    line: '',
    isLoading: true,
  })
  const asking = useRef<Asking | undefined>(undefined)
  const [turn, reload] = useReducer((count: number) => count + 1, 0)
  const line = words && quoted(words)
  const happened = [ended.value, ...topics.map((topic) => newsOf(topic).value)].join(' ')
  const seen = useRef(happened)
  if (isSeen.value) seen.current = happened
  const news = seen.current
  // What another question was answered with says nothing about this one.
  if (line !== undefined && state.current.line !== line) state.current = { line, isLoading: true }
  // The line stands for the words; news and turn ask again.
  useEffect(() => {
    if (asking.current?.line !== line) {
      asking.current?.left.abort()
      asking.current =
        line === undefined ? undefined : { line, left: new AbortController(), isOnItsWay: false, isDue: false }
    }
    const now = asking.current
    if (words === undefined || !now) return
    if (now.isOnItsWay) now.isDue = true
    else void askAgain(now, words)
  }, [line, news, turn])
  useEffect(() => () => asking.current?.left.abort(), [])
  async function askAgain(now: Asking, words: readonly string[]): Promise<void> {
    now.isOnItsWay = true
    do {
      now.isDue = false
      state.current.isLoading = true
      const answer = await exec<T>(words, { signal: now.left.signal }).then(
        (value) => ({ line: now.line, value }),
        (error: unknown) => ({ error: asExecError(error) }),
      )
      if (now.left.signal.aborted) return
      const isLoading = now.isDue
      // What was there before stays where the answer is none.
      state.current = 'error' in answer ? { ...state.current, ...answer, isLoading } : { ...answer, isLoading }
      redraw(undefined)
    } while (now.isDue)
    now.isOnItsWay = false
  }
  const { value, error, isLoading } = state.current
  return { value, error, isLoading, reload: () => reload(undefined) }
}

/** One question as it is asked: once at a time. */
type Asking = {
  line: string
  /** ends it: another is asked, or nobody looks any more */
  left: AbortController
  isOnItsWay: boolean
  /** something happened meanwhile */
  isDue: boolean
}

function asExecError(error: unknown): ExecError {
  return error instanceof ExecError ? error : new ExecError(String(error), { code: 'exec.failed', status: 0 })
}
