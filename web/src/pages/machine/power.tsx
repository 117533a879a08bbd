import { CommandButton } from '../../parts/CommandButton.tsx'
import { actOn, POWER } from '../machines/actions.ts'
import { Until } from '../until.tsx'
import type { MachineDocument, WhyDocument } from './documents.ts'

/** On, off, asleep: what can be done with the machine as it is now. */
export function Power({ machine, why }: { machine: MachineDocument; why: WhyDocument | undefined }) {
  const { vm_name: name, status } = machine
  const held = why?.hold_until ?? null
  const hold = ['hold', name, '--for', '1h']
  const end = ['hold', name, '--end']
  // The way out of what it is in stands first.
  const hasMain = ['asleep', 'paused', 'stopped', 'failed'].includes(status)
  return (
    <div class="actions">
      {POWER.filter(({ fits }) => fits(machine)).map((action, index) => (
        <CommandButton key={action.verb} kind={hasMain && index === 0 ? 'main' : 'plain'} {...actOn(action, [machine])}>
          {action.label}
        </CommandButton>
      ))}
      {status === 'running' && (
        <CommandButton words={held === null ? hold : end} undo={held === null ? end : hold}>
          {held === null ? 'Hold for 1 h' : 'End the hold'}
        </CommandButton>
      )}
      {held !== null && (
        <span class="dim">
          Held awake; that ends <Until at={held} />.
        </span>
      )}
    </div>
  )
}
