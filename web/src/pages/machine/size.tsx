import { useSignal } from '@preact/signals'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Field } from '../../parts/Field.tsx'
import { sayBytes } from '../../parts/words.ts'
import type { MachineDocument, ResizeDocument } from './documents.ts'
import { GIBIBYTE, inGibibytes, resizeOf, toldOf } from './resize.ts'

export function Size({ machine }: { machine: MachineDocument }) {
  const { vm_name: name } = machine
  const cpus = useSignal('')
  const memory = useSignal('')
  const disk = useSignal('')
  const told = useSignal<readonly string[]>([])
  const { words, undo, growsDisk, problem } = resizeOf(machine, {
    cpus: cpus.value,
    memory: memory.value,
    disk: disk.value,
  })
  const number = (value: typeof cpus, placeholder: number) => ({
    class: 'short mono',
    inputMode: 'decimal' as const,
    placeholder: String(placeholder),
    value: value.value,
    onInput: (event: { currentTarget: HTMLInputElement }) => {
      value.value = event.currentTarget.value.trim()
    },
  })
  return (
    <section aria-labelledby="size">
      <h2 id="size">Size</h2>
      <p class="dim">
        More is given at once where the machine runs and its server can; fewer CPUs and less memory it has from its next
        start on. A disk only grows, and its filesystem with it.
      </p>
      <div class="line-form">
        <Field label="CPUs">
          <input {...number(cpus, machine.allocated_cpus)} />
        </Field>
        <Field label="Memory, GiB">
          <input {...number(memory, inGibibytes(machine.memory_capacity_bytes))} />
        </Field>
        <Field label="Disk, GiB">
          <input {...number(disk, inGibibytes(machine.disk_capacity_bytes))} />
        </Field>
        <CommandButton
          words={words}
          {...(undo ? { undo } : {})}
          disabled={problem !== undefined}
          {...(growsDisk
            ? {
                confirm: name,
                warning: `A disk never shrinks: ${sayBytes(growsDisk * GIBIBYTE)} are paid for from then on.`,
              }
            : {})}
          onDone={(document) => {
            told.value = toldOf(name, document as ResizeDocument)
            cpus.value = ''
            memory.value = ''
            disk.value = ''
          }}
        >
          Resize
        </CommandButton>
      </div>
      {problem !== undefined && problem !== '' && <p class="bad">{problem}</p>}
      <div role="status">
        {told.value.map((line) => (
          <p key={line}>{line}</p>
        ))}
      </div>
    </section>
  )
}
