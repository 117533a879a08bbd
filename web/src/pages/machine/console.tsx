import { useComputed, useSignal } from '@preact/signals'
import { useEffect, useLayoutEffect, useRef } from 'preact/hooks'
import { commandLine, ExecError, follow, type Piece } from '../../api/exec.ts'
import { Code } from '../../parts/Code.tsx'
import { CopyButton } from '../../parts/Copy.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { Check } from '../../parts/inputs.tsx'

/** As much as the gateway keeps. */
const KEPT_CHARACTERS = 512 * 1024
const AGAIN_MS = 3_000
/** So near to the end a person is reading what comes. */
const NEAR_PX = 40

/** What kernel and init say, as they say it. */
export function Console({ name }: { name: string }) {
  const text = useSignal('')
  const isBootOnly = useSignal(false)
  const error = useSignal<ExecError | undefined>(undefined)
  const isFollowing = useSignal(false)
  const screen = useRef<HTMLPreElement>(null)
  const isAtEnd = useRef(true)
  const words = ['logs', name, '-f', ...(isBootOnly.value ? ['--boot'] : [])]
  const line = words.join(' ')
  useEffect(() => {
    const left = new AbortController()
    let timer: ReturnType<typeof setTimeout> | undefined
    const listen = async () => {
      let isFirst = true
      try {
        isFollowing.value = true
        const take = (piece: Piece) => {
          error.value = undefined
          if (!('text' in piece)) return
          // All of it comes anew after a cut.
          text.value = ((isFirst ? '' : text.value) + piece.text).slice(-KEPT_CHARACTERS)
          isFirst = false
        }
        await follow(words, take, { signal: left.signal })
      } catch (failure) {
        if (left.signal.aborted) return
        if (failure instanceof ExecError) error.value = failure
        timer = setTimeout(listen, AGAIN_MS)
      } finally {
        isFollowing.value = false
      }
    }
    text.value = ''
    void listen()
    return () => {
      clearTimeout(timer)
      left.abort()
    }
  }, [line])
  const shown = text.value
  useLayoutEffect(() => {
    const place = screen.current
    if (place && isAtEnd.current) place.scrollTop = place.scrollHeight
  }, [shown])
  const lines = useComputed(() => text.value.split('\n').length)
  return (
    <section aria-labelledby="console-title">
      <div class="console-bar">
        <h2 id="console-title">Console</h2>
        <Check value={isBootOnly}>Only since its last start</Check>
        <CopyButton text={shown}>Copy all</CopyButton>
      </div>
      {error.value && shown === '' ? (
        <Failed error={error.value} />
      ) : (
        <pre
          ref={screen}
          class="console"
          role="log"
          aria-label={`Console of ${name}`}
          // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reached by the keyboard
          tabIndex={0}
          onScroll={(event) => {
            const { scrollHeight, scrollTop, clientHeight } = event.currentTarget
            isAtEnd.current = scrollHeight - scrollTop - clientHeight < NEAR_PX
          }}
        >
          {shown === '' ? <span class="dim">Nothing was said yet.</span> : shown}
        </pre>
      )}
      <p class="dim">
        {isFollowing.value ? 'It goes on as it grows.' : 'The connection was lost; it is tried again.'}{' '}
        {lines.value > 1 && `${lines.value - 1} lines. `}The same in a terminal: <Code text={commandLine(words)} />
      </p>
    </section>
  )
}
