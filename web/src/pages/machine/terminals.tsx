import { useSignal } from '@preact/signals'
import type { MachineDocument } from './documents.ts'

type Held = { name: string; attached: number }

/**
 * The terminal is a page of its own: what draws it writes styles, which the policy of this page does not let anything
 * do. Which sessions the machine holds is asked only when somebody wants to know: it is a session over SSH, which keeps
 * a machine awake.
 */
export function Terminals({ machine }: { machine: MachineDocument }) {
  const { vm_name: name, status } = machine
  return (
    <section aria-labelledby="terminal">
      <h2 id="terminal">Terminal</h2>
      <p class="row">
        <a class="button" href={`/terminal/${name}`}>
          Open a terminal
        </a>
        <span class="dim">
          {status === 'asleep' ? `It wakes ${name}. ` : ''}Its sessions go on in the machine when the page is closed.
        </span>
      </p>
      {status === 'running' && <Sessions key={name} name={name} />}
    </section>
  )
}

function Sessions({ name }: { name: string }) {
  const held = useSignal<readonly Held[] | undefined>(undefined)
  const problem = useSignal('')
  const ask = async () => {
    problem.value = ''
    try {
      const answer = await fetch(`/terminal/${name}`, { headers: { accept: 'application/json' } })
      const document = (await answer.json()) as { sessions?: Held[]; error?: string }
      held.value = document.sessions
      problem.value = document.error ?? ''
    } catch {
      problem.value = 'The list cannot be had now.'
    }
  }
  return (
    <details class="sessions" onToggle={(event) => event.currentTarget.open && void ask()}>
      <summary>Sessions it holds</summary>
      <div role="status">
        {problem.value !== '' && <p class="bad">{problem.value}</p>}
        {held.value?.length === 0 && <p class="dim">None.</p>}
        {held.value !== undefined && held.value.length > 0 && (
          <ul class="plain-list">
            {held.value.map((one) => (
              <li key={one.name}>
                <a class="mono" href={`/terminal/${name}/${one.name}`}>
                  {one.name}
                </a>
                {one.attached > 0 && <span class="dim"> open elsewhere</span>}
              </li>
            ))}
          </ul>
        )}
      </div>
    </details>
  )
}
