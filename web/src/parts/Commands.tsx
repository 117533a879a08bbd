/**
 * The bar at the foot of the page: the command of what is pointed at, those that run and what became of them. They are
 * what one would type, so each can be copied; what can be taken back has its button here.
 */
import { signal } from '@preact/signals'
import { commandLine, type Run, runs, takeBack } from '../api/exec.ts'
import { Code } from './Code.tsx'
import { Copy } from './Copy.tsx'
import { nowMs } from './time.tsx'
import { sayDuration } from './words.ts'

export type Preview = {
  words: readonly string[]
  /** runs it: where nothing can be pointed at, a first tap shows the command, and this is the second */
  act?: () => void
}

/** the command of the button that is pointed at or has the keyboard */
export const pointedAt = signal<Preview | undefined>(undefined)

/** whether all of the last commands are shown */
const isOpen = signal(false)
/** the newest one that was put away */
const seen = signal(0)

/** What ended well leaves by itself; what failed stays until it is put away. */
const SHOWN_MS = 12_000

export function Commands() {
  const all = runs.value
  const shown = isOpen.value ? all : all.slice(0, 1).filter(isWorthShowing)
  const preview = pointedAt.value
  return (
    <footer class="commands" hidden={!preview && shown.length === 0}>
      {preview && (
        <div class="preview">
          <span class="dim">Runs</span>
          {preview.act ? (
            <>
              <Copy text={commandLine(preview.words)} label="Copy the command" />
              <span class="buttons">
                <button
                  type="button"
                  onClick={() => {
                    pointedAt.value = undefined
                    preview.act?.()
                  }}
                >
                  Run
                </button>
                <button
                  type="button"
                  class="plain"
                  onClick={() => {
                    pointedAt.value = undefined
                  }}
                >
                  Leave it
                </button>
              </span>
            </>
          ) : (
            <Code text={commandLine(preview.words)} />
          )}
        </div>
      )}
      <div role="log" aria-label="Commands" class="runs">
        {shown.map((one) => (
          <RunLine key={one.id} one={one} />
        ))}
      </div>
      {shown.length > 0 && (
        <div class="more">
          {all.length > 1 && (
            <button
              type="button"
              class="small"
              aria-expanded={isOpen.value}
              onClick={() => (isOpen.value = !isOpen.value)}
            >
              {isOpen.value ? 'Only the last' : `${all.length} commands`}
            </button>
          )}
          <button type="button" class="small" onClick={putAway}>
            Put away
          </button>
        </div>
      )}
    </footer>
  )
}

function putAway(): void {
  isOpen.value = false
  seen.value = runs.value[0]?.id ?? 0
}

function isWorthShowing({ id, endedAtMs, error }: Run): boolean {
  if (id <= seen.value) return false
  return endedAtMs === undefined || error !== undefined || Math.max(nowMs.value, Date.now()) - endedAtMs < SHOWN_MS
}

function RunLine({ one }: { one: Run }) {
  const { line, startedAtMs, endedAtMs, error, wayOn, progress, undo, brings } = one
  const mood = endedAtMs === undefined ? 'wait' : error === undefined ? 'well' : 'bad'
  const word = { wait: 'running', well: 'done', bad: 'failed' }[mood]
  return (
    <div class="run">
      <span class={`dot ${mood}`}>
        {word}
        {mood === 'well' && endedAtMs !== undefined && endedAtMs - startedAtMs >= 1000
          ? ` in ${sayDuration(endedAtMs - startedAtMs)}`
          : ''}
      </span>
      <Copy text={line} label="Copy the command" />
      {undo && (
        <button type="button" class="small" onClick={() => void takeBack(one).catch(() => {})}>
          Undo
        </button>
      )}
      {brings !== undefined && <span class="dim">{brings}</span>}
      {progress !== undefined && endedAtMs === undefined && <span class="dim">{progress}</span>}
      {error !== undefined && (
        <p class="error">
          {error}
          {wayOn !== undefined && <span class="dim"> {wayOn}</span>}
        </p>
      )}
    </div>
  )
}
