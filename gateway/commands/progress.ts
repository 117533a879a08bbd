import type { CommandIo } from '../app.ts'
import type { View } from './text.ts'
import { truncate } from './width.ts'

/** One line on a terminal that rewrites itself, or pieces of an answer that is told as it comes. Nothing at all elsewhere. */
export type Progress = {
  /** nobody sees it */
  readonly isSilent: boolean
  /**
   * Shows a stage; the seconds since the first one are counted behind it.
   * @param part how much of it is done, where that is known; the stage says it in words
   */
  show(stage: string, part?: { doneBytes: number; totalBytes: number }): void
  /** Takes the line away. May be called again and again. */
  clear(): void
}

const TICK_MS = 1000

export const SILENT: Progress = { isSilent: true, show: () => {}, clear: () => {} }

/** @param write takes terminal bytes; `view.columns` is read at each drawing, so a narrowed window never wraps */
export function createProgress(view: View, columns: () => number, write: (bytes: string) => void): Progress {
  if (!view.rewrites) return SILENT
  let stage = ''
  let startedAt = 0
  let timer: NodeJS.Timeout | undefined
  const draw = () => {
    const seconds = Math.floor((Date.now() - startedAt) / 1000)
    const suffix = seconds > 0 ? `  ${seconds} s` : ''
    const room = Math.max(1, columns() - 1 - suffix.length)
    write(`\r${view.style.accent('·')} ${truncate(stage, room - 2)}${view.style.dim(suffix)}\x1b[K`)
  }
  return {
    isSilent: false,
    show(next) {
      if (!timer) {
        startedAt = Date.now()
        timer = setInterval(draw, TICK_MS)
        timer.unref()
      }
      if (next === stage) return
      stage = next
      draw()
    },
    clear() {
      if (!timer) return
      clearInterval(timer)
      timer = undefined
      stage = ''
      write('\r\x1b[K')
    },
  }
}

/** For a program that hears of each stage as it begins. */
export function tellingProgress(tell: NonNullable<CommandIo['tell']>): Progress {
  let said = ''
  return {
    isSilent: false,
    show(stage, part) {
      if (stage === said) return
      said = stage
      void tell({ progress: stage, ...(part === undefined ? {} : { part }) })
    },
    clear() {},
  }
}
