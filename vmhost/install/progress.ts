/**
 * Says how far the set-up is: the stage, bytes or seconds, and what comes next. One rewriting line on a terminal, a
 * plain line per event elsewhere.
 */
export type Progress = {
  /** Begins a stage that others may run beside. */
  stage(title: string): Stage
  /** Names what has not begun yet, for "then …". */
  next(titles: readonly string[]): void
  close(): void
}

export type Stage = {
  /** What it is doing, with a number in it: `31 of 54 MB`, `unpacking 40 %`. */
  detail(text: string): void
  done(): void
  failed(): void
}

type Output = { isTTY?: boolean; columns?: number; write(text: string): unknown }

const REDRAW_MS = 200
/** Off a terminal, a stage that is still going says so this often. */
const HEARTBEAT_MS = 20_000

export function startProgress(output: Output = process.stderr): Progress {
  const running = new Map<string, { detail: string; startedAt: number; heardAt: number }>()
  let upcoming: readonly string[] = []
  let drawn = false
  const terminal = output.isTTY === true

  const redraw = (): void => {
    const parts = [...running].map(([title, stage]) => {
      const seconds = Math.round((Date.now() - stage.startedAt) / 1000)
      return stage.detail === '' ? `${title} ${seconds} s` : `${title}: ${stage.detail}, ${seconds} s`
    })
    if (parts.length === 0) return
    const then = upcoming.find((title) => !running.has(title))
    const line = `${parts.join(' · ')}${then ? `; then ${then}` : ''}`
    output.write(`\r\x1b[K${clip(line, (output.columns ?? 80) - 1)}`)
    drawn = true
  }
  const wipe = (): void => {
    if (drawn) output.write('\r\x1b[K')
    drawn = false
  }
  const end = (title: string, startedAt: number, how: string): void => {
    running.delete(title)
    wipe()
    output.write(`${title}: ${((Date.now() - startedAt) / 1000).toFixed(1)} s${how}\n`)
  }
  const tick = (): void => {
    if (terminal) {
      redraw()
      return
    }
    for (const [title, stage] of running) {
      if (Date.now() - stage.heardAt < HEARTBEAT_MS) continue
      stage.heardAt = Date.now()
      const seconds = Math.round((Date.now() - stage.startedAt) / 1000)
      output.write(`${title}: ${stage.detail || 'working'}, ${seconds} s so far\n`)
    }
  }
  const timer = setInterval(tick, terminal ? REDRAW_MS : 1000)
  timer.unref()

  return {
    stage(title) {
      const startedAt = Date.now()
      running.set(title, { detail: '', startedAt, heardAt: startedAt })
      if (!terminal) output.write(`${title} …\n`)
      return {
        detail(text) {
          const stage = running.get(title)
          if (stage) stage.detail = text
        },
        done: () => end(title, startedAt, ''),
        failed: () => end(title, startedAt, ' (failed)'),
      }
    },
    next(titles) {
      upcoming = titles
    },
    close() {
      clearInterval(timer)
      wipe()
    },
  }
}

function clip(text: string, columns: number): string {
  return text.length <= columns ? text : `${text.slice(0, Math.max(0, columns - 1))}…`
}

export function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`
}
