/** The last hour of all machines at a glance, for the list: asked for as long as somebody looks at it. */
import { signal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { exec } from '../api/exec.ts'
import { live } from '../api/live.ts'
import type { Values } from './series.ts'

type Glance = { vms: readonly { vm_name: string; cpu_cores: Values | null }[] }

/** Processors in use, in steps of 5 minutes, by the machine's name; none of whom nothing is known. */
export const glances = signal<ReadonlyMap<string, Values>>(new Map())

const EVERY_MS = 60_000

/** Keeps `glances` fresh while the component is there. What is not had is not shown, and asked for again. */
export function useGlances(): void {
  useEffect(() => {
    const left = new AbortController()
    const ask = async () => {
      if (document.visibilityState === 'hidden' || live.peek().state === 'stale') return
      const told = await exec<Glance>(['stat'], { signal: left.signal }).catch(() => undefined)
      if (!told || left.signal.aborted) return
      glances.value = new Map(told.vms.flatMap(({ vm_name, cpu_cores }) => (cpu_cores ? [[vm_name, cpu_cores]] : [])))
    }
    void ask()
    const timer = setInterval(ask, EVERY_MS)
    document.addEventListener('visibilitychange', ask)
    return () => {
      left.abort()
      clearInterval(timer)
      document.removeEventListener('visibilitychange', ask)
    }
  }, [])
}
