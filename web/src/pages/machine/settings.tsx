import { useSignal } from '@preact/signals'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Field } from '../../parts/Field.tsx'
import { Check, TextField } from '../../parts/inputs.tsx'
import { go } from '../../router.ts'
import { actOn, TRASH } from '../machines/actions.ts'
import type { MachineDocument } from './documents.ts'
import { Size } from './size.tsx'

export function Settings({ machine }: { machine: MachineDocument }) {
  return (
    <>
      <Size machine={machine} />
      <Names machine={machine} />
      <Copying machine={machine} />
      <Removal machine={machine} />
    </>
  )
}

function Names({ machine }: { machine: MachineDocument }) {
  const { vm_name: name, tags, comment } = machine
  const next = useSignal('')
  const tag = useSignal('')
  const line = useSignal<string | undefined>(undefined)
  return (
    <section aria-labelledby="names">
      <h2 id="names">Name, tags and comment</h2>
      <div class="line-form">
        <TextField label="Another name" isExact class="mono" maxLength={40} placeholder={name} value={next} />
        <CommandButton
          words={['rename', name, next.value || 'NEW']}
          undo={['rename', next.value, name]}
          disabled={next.value === '' || next.value === name}
          onDone={() => go(`/machines/${next.value}${location.hash}`)}
        >
          Rename
        </CommandButton>
      </div>
      <div class="line-form">
        {tags.length > 0 && (
          <ul class="tags" aria-label="Tags">
            {tags.map((one) => (
              <li key={one}>
                <span class="mono">{one}</span>
                <CommandButton
                  words={['tag', '-d', name, one]}
                  undo={['tag', name, one]}
                  label={`Take the tag ${one} away`}
                  kind="small"
                >
                  ×
                </CommandButton>
              </li>
            ))}
          </ul>
        )}
        <TextField label="Another tag" isExact class="mono" value={tag} />
        <CommandButton
          words={['tag', name, tag.value || 'TAG']}
          undo={['tag', '-d', name, tag.value]}
          disabled={tag.value === ''}
          onDone={() => {
            tag.value = ''
          }}
        >
          Add
        </CommandButton>
      </div>
      <div class="line-form">
        <Field label="Comment">
          <input
            maxLength={200}
            value={line.value ?? comment}
            onInput={(event) => {
              line.value = event.currentTarget.value
            }}
          />
        </Field>
        <CommandButton
          words={['comment', name, line.value ?? comment]}
          undo={['comment', name, comment]}
          disabled={line.value === undefined || line.value === comment}
          onDone={() => {
            line.value = undefined
          }}
        >
          Note it
        </CommandButton>
      </div>
    </section>
  )
}

function Copying({ machine }: { machine: MachineDocument }) {
  const { vm_name: name, status } = machine
  const copy = useSignal('')
  const diskOnly = useSignal(false)
  const words = ['cp', name, ...(copy.value === '' ? [] : [copy.value]), ...(diskOnly.value ? ['--disk-only'] : [])]
  return (
    <section aria-labelledby="copy">
      <h2 id="copy">Copy</h2>
      <p class="dim">
        {status === 'stopped'
          ? 'The copy boots from a copy of the disk.'
          : 'The copy goes on with every program where the machine is.'}{' '}
        It has a name, address and host key of its own, and is private.
      </p>
      <div class="line-form">
        <TextField label="Name of the copy (optional)" isExact class="mono" maxLength={40} value={copy} />
        {status !== 'stopped' && <Check value={diskOnly}>without memory</Check>}
        <CommandButton
          words={words}
          undo={(document) => ['rm', (document as { vm_name: string }).vm_name]}
          onDone={(document) => go(`/machines/${(document as { vm_name: string }).vm_name}`)}
        >
          Copy it
        </CommandButton>
      </div>
    </section>
  )
}

function Removal({ machine }: { machine: MachineDocument }) {
  return (
    <section aria-labelledby="removal">
      <h2 id="removal">Delete</h2>
      <p class="dim">
        What runs ends. In the trash it costs nothing. For 7 days its disk can be had back, unless its space is needed.
      </p>
      <div class="actions">
        <CommandButton {...actOn(TRASH, [machine])} kind="danger">
          Put it into the trash
        </CommandButton>
      </div>
    </section>
  )
}
