import { useSignal } from '@preact/signals'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { TextField } from '../../parts/inputs.tsx'
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
  const number = { isExact: true, class: 'short mono', inputMode: 'decimal' } as const
  return (
    <section aria-labelledby="size">
      <h2 id="size">Size</h2>
      <p class="dim">
        More is given at once where the machine runs and its server can; fewer CPUs and less memory it has from its next
        start on. A disk only grows, and its filesystem with it.
      </p>
      <div class="line-form">
        <TextField label="CPUs" {...number} placeholder={String(machine.allocated_cpus)} value={cpus} />
        <TextField
          label="Memory, GiB"
          {...number}
          placeholder={String(inGibibytes(machine.memory_capacity_bytes))}
          value={memory}
        />
        <TextField
          label="Disk, GiB"
          {...number}
          placeholder={String(inGibibytes(machine.disk_capacity_bytes))}
          value={disk}
        />
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
