/** The last hour of all machines at a glance, for the list: asked for as long as somebody looks at it. */
import { signal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { exec } from '../api/exec.ts'
import { live } from '../api/live.ts'
import { isSeen } from '../parts/media.ts'
import { followed, type GlanceDocument, type Glances } from './series.ts'

/** Processors in use, in steps of 5 minutes; undefined until they are known. */
export const glances = signal<Glances | undefined>(undefined)

const EVERY_MS = 60_000

/** Keeps `glances` fresh while the component is there. What is not had is not shown, and asked for again. */
export function useGlances(): void {
  useEffect(() => {
    const left = new AbortController()
    const ask = async () => {
      if (!isSeen.peek() || live.peek().state === 'stale') return
      const known = glances.peek()
      // The last step is not over, and of the one before it some may have been on its way.
      const since = known && ['--since', String(known.to - 2 * known.stepSeconds)]
      const told = await exec<GlanceDocument>(['stat', ...(since ?? [])], { signal: left.signal }).catch(
        () => undefined,
      )
      if (told && !left.signal.aborted) glances.value = followed(known, told)
    }
    const timer = setInterval(ask, EVERY_MS)
    // At once, and whenever the page is seen again.
    const forget = isSeen.subscribe(() => void ask())
    return () => {
      left.abort()
      clearInterval(timer)
      forget()
    }
  }, [])
}
