import '../operator/operator.css'
import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import type { Topic } from '../../api/live.ts'
import { type Asked, useExec } from '../../api/use-exec.ts'
import { CommandForm } from '../../parts/CommandForm.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { TextField } from '../../parts/inputs.tsx'

/** As `billing details --json` and `billing seller --json` have it. */
type Details = { name: string | null; address: string | null; tax_id: string | null }

const FIELDS = [
  { key: 'name', flag: '--name', label: 'Name', most: 120 },
  { key: 'address', flag: '--address', label: 'Address', most: 300 },
  { key: 'tax_id', flag: '--tax-id', label: 'Tax number', most: 40 },
] as const

type PartyProps = { title: string; label: string; command: readonly string[]; topics: readonly Topic[] }

/**
 * Who buys, or for the operator who sells: what the next invoices say of them.
 * @param command without flags it shows them
 * @param topics whose news say that they may be other than before
 */
export function Party({ title, label, command, topics }: PartyProps) {
  const asked = useExec<Details>(command, topics)
  return (
    <section>
      <h2>{title}</h2>
      <p class="dim">An invoice keeps what is set when it is closed. No tax is computed.</p>
      {asked.error && <Failed error={asked.error} wayOn={{ label: 'Try again', act: asked.reload }} />}
      {asked.value && <Form label={label} command={command} asked={asked} />}
    </section>
  )
}

function Form({ label, command, asked }: { label: string; command: readonly string[]; asked: Asked<Details> }) {
  const { name, address, tax_id: taxId } = asked.value ?? { name: null, address: null, tax_id: null }
  const is = { name: name ?? '', address: address ?? '', tax_id: taxId ?? '' }
  const typed = { name: useSignal(is.name), address: useSignal(is.address), tax_id: useSignal(is.tax_id) }
  const was = useRef(is)
  useEffect(() => {
    // A field that nobody has typed in follows; what is typed stays.
    for (const { key } of FIELDS) if (typed[key].peek() === was.current[key]) typed[key].value = is[key]
    was.current = is
  }, [is.name, is.address, is.tax_id])
  const changed = FIELDS.filter(({ key }) => typed[key].value.trim() !== is[key])
  const flags = changed.map(({ key, flag }) => `${flag}=${typed[key].value.trim() || 'none'}`)
  return (
    <CommandForm label={label} words={[...command, ...flags]} isReady={changed.length > 0} onDone={asked.reload}>
      {FIELDS.map(({ key, label: of, most }) => (
        <TextField key={key} label={of} value={typed[key]} maxLength={most} autocomplete="off" />
      ))}
    </CommandForm>
  )
}
