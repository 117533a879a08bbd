import { useSignal } from '@preact/signals'
import { useEffect } from 'preact/hooks'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { Check, TextField } from '../../parts/inputs.tsx'
import { Skeleton } from '../../parts/Skeleton.tsx'
import { Ago } from '../../parts/time.tsx'
import { sayBytes } from '../../parts/words.ts'
import type { CheckpointDocument, MachineDocument } from './documents.ts'

const LOOK_MS = 2_000

/** What was kept of the machine, and the ways back to it. */
export function Checkpoints({ machine }: { machine: MachineDocument }) {
  const { vm_name: name } = machine
  const { value, error, reload } = useExec<{ checkpoints: CheckpointDocument[] }>(['checkpoints', name], ['machines'])
  const isBusy = value?.checkpoints.some(({ state, held_bytes }) => state === 'waiting' || held_bytes === null) === true
  useEffect(() => {
    if (!isBusy) return
    const timer = setInterval(reload, LOOK_MS)
    return () => clearInterval(timer)
  }, [isBusy, reload])
  if (!value)
    return error ? <Failed error={error} wayOn={{ label: 'Try again', act: reload }} /> : <Skeleton lines={4} />
  const all = [...value.checkpoints].reverse()
  return (
    <section aria-labelledby="checkpoints">
      <h2 id="checkpoints">Checkpoints</h2>
      {all.length === 0 ? (
        <p class="dim">
          None yet. A checkpoint keeps {name} as it is in this moment: its disk, and its memory where it has any. What
          it shares with the machine takes no space.
        </p>
      ) : (
        <ul class="rows">
          {all.map((one) => (
            <Checkpoint key={one.id} name={name} checkpoint={one} />
          ))}
        </ul>
      )}
      <Take machine={machine} />
    </section>
  )
}

function Take({ machine }: { machine: MachineDocument }) {
  const { vm_name: name, status } = machine
  const comment = useSignal('')
  const diskOnly = useSignal(false)
  return (
    <div class="line-form">
      <TextField label="What it is for (optional)" maxLength={200} value={comment} />
      {status !== 'stopped' && <Check value={diskOnly}>without memory</Check>}
      <CommandButton
        words={[
          'checkpoint',
          name,
          ...(comment.value.trim() === '' ? [] : [comment.value.trim()]),
          ...(diskOnly.value ? ['--disk-only'] : []),
        ]}
        kind="main"
        onDone={() => {
          comment.value = ''
        }}
      >
        Take a checkpoint
      </CommandButton>
    </div>
  )
}

type Props = { name: string; checkpoint: CheckpointDocument }

function Checkpoint({ name, checkpoint: one }: Props) {
  const id = String(one.id)
  const as = useSignal('')
  const removal = (
    <CommandButton
      words={['checkpoint', 'rm', name, id]}
      label={`Remove checkpoint ${id}`}
      confirm={name}
      warning={`What checkpoint ${id} keeps is gone for good.`}
    >
      Remove
    </CommandButton>
  )
  return (
    <li class="checkpoint">
      <div class="row">
        <span class="name">
          {id}
          {one.comment !== '' && ` ${one.comment}`}
        </span>
        <span class="dim">
          {one.state === 'waiting' && 'is being taken'}
          {one.state === 'failed' && `failed: ${one.reason ?? 'no reason was reported'}`}
          {one.state === 'kept' && (
            <>
              taken <Ago at={one.taken_at ?? one.created_at} />, {contentOf(one)}
            </>
          )}
        </span>
      </div>
      {one.state === 'kept' ? (
        <div class="actions">
          <CommandButton
            words={['restore', name, id]}
            undo={(document) => undoOf(name, document)}
            label={`Go back to it: checkpoint ${id}`}
          >
            Go back to it
          </CommandButton>
          <span class="joined">
            <input
              class="mono"
              aria-label={`Name of a machine made of checkpoint ${id}`}
              placeholder="new name"
              autoCapitalize="none"
              spellcheck={false}
              value={as.value}
              onInput={(event) => {
                as.value = event.currentTarget.value.trim()
              }}
            />
            <CommandButton
              words={['restore', name, id, `--as=${as.value || 'NEW'}`]}
              undo={['rm', as.value]}
              disabled={as.value === ''}
              label={`Make another of it: of checkpoint ${id}`}
              onDone={() => {
                as.value = ''
              }}
            >
              Make another of it
            </CommandButton>
          </span>
          {removal}
        </div>
      ) : (
        one.state === 'failed' && <div class="actions">{removal}</div>
      )}
    </li>
  )
}

function contentOf({ with_memory, memory_bytes, disk_bytes, held_bytes, still_ms }: CheckpointDocument): string {
  const disk = disk_bytes === null ? 'disk' : `disk of ${sayBytes(disk_bytes)}`
  const parts = [
    with_memory ? `${disk} and ${sayBytes(memory_bytes ?? 0)} of memory` : disk,
    held_bytes === null ? '' : `${sayBytes(held_bytes)} held by it alone`,
    with_memory && still_ms !== null ? `stood still for ${(still_ms / 1000).toFixed(1)} s` : '',
  ]
  return parts.filter((part) => part !== '').join(', ')
}

/** The state before was kept, so a restore is taken back by another. */
function undoOf(name: string, document: unknown): readonly string[] | undefined {
  const { kept_as } = document as { kept_as?: number }
  return kept_as === undefined ? undefined : ['restore', name, String(kept_as)]
}
