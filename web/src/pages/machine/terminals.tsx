import { useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import type { MachineDocument } from './documents.ts'

type Held = { name: string; attached: number }

/**
 * The sessions that the machine holds. The terminal is a page of its own: what draws it writes styles, which the policy
 * of this page does not let anything do.
 */
export function Terminals({ machine }: { machine: MachineDocument }) {
  const { vm_name: name, status } = machine
  const held = useSignal<readonly Held[]>([])
  const isUp = status === 'running'
  useEffect(() => {
    // A sleeper is not woken for a list.
    if (!isUp) return
    const left = new AbortController()
    fetch(`/terminal/${name}`, { headers: { accept: 'application/json' }, signal: left.signal })
      .then(async (answer) => {
        if (answer.ok) held.value = ((await answer.json()) as { sessions: Held[] }).sessions
      })
      .catch(() => {})
    return () => left.abort()
  }, [name, isUp, held])
  const others = held.value.filter((one) => one.name !== 'main')
  return (
    <section aria-labelledby="terminal">
      <h2 id="terminal">Terminal</h2>
      <p class="row">
        <a class="button" href={`/terminal/${name}`}>
          Open a terminal
        </a>
        {status === 'asleep' && <span class="dim">It wakes {name}.</span>}
      </p>
      {others.length > 0 && (
        <ul class="plain-list">
          {others.map((one) => (
            <li key={one.name}>
              <a class="mono" href={`/terminal/${name}/${one.name}`}>
                {one.name}
              </a>
              {one.attached > 0 && <span class="dim"> open elsewhere</span>}
            </li>
          ))}
        </ul>
      )}
      <p class="dim">Its sessions go on in the machine when the page is closed.</p>
    </section>
  )
}
