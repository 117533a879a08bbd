import { useEffect, useReducer, useRef } from 'preact/hooks'
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
 * happened to `topics`, and when a command that was given here has ended.
 * @param words undefined: nothing is asked for yet
 */
export function useExec<T>(words: readonly string[] | undefined, topics: readonly Topic[] = []): Asked<T> {
  const [, redraw] = useReducer((count: number) => count + 1, 0)
  const state = useRef<{ line: string; value?: T; error?: ExecError; isLoading: boolean }>({
    line: '',
    isLoading: true,
  })
  const [turn, reload] = useReducer((count: number) => count + 1, 0)
  const line = words && quoted(words)
  const news = [ended.value, ...topics.map((topic) => newsOf(topic).value)].join(' ')
  // What another question was answered with says nothing about this one.
  if (line !== undefined && state.current.line !== line) state.current = { line, isLoading: true }
  // The line stands for the words; news and turn ask again.
  useEffect(() => {
    if (words === undefined) return
    const left = new AbortController()
    state.current.isLoading = true
    exec<T>(words, { signal: left.signal }).then(
      (value) => {
        if (left.signal.aborted) return
        state.current = { line: quoted(words), value, isLoading: false }
        redraw(undefined)
      },
      (error: unknown) => {
        if (left.signal.aborted) return
        const failure =
          error instanceof ExecError ? error : new ExecError(String(error), { code: 'exec.failed', status: 0 })
        state.current = { ...state.current, error: failure, isLoading: false }
        redraw(undefined)
      },
    )
    return () => left.abort()
  }, [line, news, turn])
  const { value, error, isLoading } = state.current
  return { value, error, isLoading, reload: () => reload(undefined) }
}
