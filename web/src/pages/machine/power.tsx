import { CommandButton } from '../../parts/CommandButton.tsx'
import { Until } from '../until.tsx'
import type { MachineDocument, WhyDocument } from './documents.ts'
import { powerOf } from './power-of.ts'

/** On, off, asleep: what can be done with the machine as it is now. */
export function Power({ machine, why }: { machine: MachineDocument; why: WhyDocument | undefined }) {
  const { vm_name: name } = machine
  const held = why?.hold_until ?? null
  return (
    <div class="actions">
      {powerOf(machine, held !== null).map(({ label, words, undo, ends, kind }) => (
        <CommandButton
          key={words[0]}
          words={words}
          {...(undo ? { undo } : {})}
          {...(kind ? { kind } : {})}
          {...(ends ? { confirm: name, warning: endsInWords(machine) } : {})}
        >
          {label}
        </CommandButton>
      ))}
      {held !== null && (
        <span class="dim">
          Held awake; that ends <Until at={held} />.
        </span>
      )}
    </div>
  )
}

function endsInWords({ vm_name: name, status }: MachineDocument): string {
  return status === 'running'
    ? `What runs in ${name} ends. Sleep keeps it.`
    : `What ${name} had in memory is lost. To have it end in order, wake it first.`
}
