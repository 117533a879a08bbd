import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { Field } from '../../parts/Field.tsx'
import { TextField } from '../../parts/inputs.tsx'
import { Skeleton } from '../../parts/Skeleton.tsx'
import { Ago } from '../../parts/time.tsx'
import { isPrivateKey, type Pasted, readPasted } from './fingerprint.ts'

type KeyDocument = {
  name: string
  type: string
  fingerprint: string
  public_key: string
  created_at: string
  last_used_at: string | null
}

export function SshKeys() {
  const { value, error, reload } = useExec<{ ssh_keys: KeyDocument[] }>(['ssh-key', 'list'], ['keys'])
  return (
    <section aria-labelledby="ssh-keys">
      <h2 id="ssh-keys">SSH keys</h2>
      {value ? (
        <List keys={value.ssh_keys} />
      ) : error ? (
        <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />
      ) : (
        <Skeleton lines={3} />
      )}
      <Add />
    </section>
  )
}

function List({ keys }: { keys: readonly KeyDocument[] }) {
  if (keys.length === 0) return <p class="dim">No key lets anybody in over SSH.</p>
  return (
    <ul class="rows">
      {keys.map((key) => (
        <li key={key.fingerprint}>
          <span class="name">{key.name}</span>
          <span class="mono fingerprint">{key.fingerprint}</span>
          <span class="dim">
            {key.last_used_at === null ? (
              'never used'
            ) : (
              <>
                used <Ago at={key.last_used_at} />
              </>
            )}
          </span>
          <Rename of={key} />
          <CommandButton
            words={['ssh-key', 'remove', key.name]}
            undo={['ssh-key', 'add', `--name=${key.name}`, ...key.public_key.split(' ')]}
            label={`Remove the key ${key.name}`}
          >
            Remove
          </CommandButton>
        </li>
      ))}
    </ul>
  )
}

/** Once, when it comes: what happens to the list meanwhile takes the keyboard from nobody. */
const focus = (input: HTMLInputElement | null) => input?.focus()

function Rename({ of }: { of: KeyDocument }) {
  const name = useSignal('')
  const isOpen = useSignal(false)
  const button = useRef<HTMLButtonElement>(null)
  const close = () => {
    isOpen.value = false
    name.value = ''
    // The keyboard goes on where it was.
    requestAnimationFrame(() => button.current?.focus())
  }
  if (!isOpen.value) {
    return (
      <button
        ref={button}
        type="button"
        class="plain"
        aria-label={`Rename the key ${of.name}`}
        onClick={() => {
          isOpen.value = true
        }}
      >
        Rename
      </button>
    )
  }
  return (
    <span class="joined">
      <input
        aria-label={`Another name for the key ${of.name}`}
        placeholder={of.name}
        ref={focus}
        value={name.value}
        onInput={(event) => {
          name.value = event.currentTarget.value
        }}
        onKeyDown={(event) => {
          if (event.key === 'Escape') close()
        }}
      />
      <CommandButton
        words={['ssh-key', 'rename', of.name, name.value || 'NAME']}
        undo={['ssh-key', 'rename', name.value, of.name]}
        disabled={name.value.trim() === ''}
        label={`Rename the key ${of.name}`}
        onDone={close}
      >
        Rename
      </CommandButton>
    </span>
  )
}

function Add() {
  const text = useSignal('')
  const name = useSignal('')
  const found = useSignal<readonly Pasted[] | undefined>(undefined)
  useEffect(() => {
    let isOver = false
    const look = async () => {
      const keys = await readPasted(text.value)
      if (!isOver) found.value = keys
    }
    void look()
    return () => {
      isOver = true
    }
  }, [text.value, found])
  const problem = isPrivateKey(text.value)
    ? 'That is the private key, which stays where it is: the public one is in the file that ends in .pub.'
    : text.value.trim() !== '' && !found.value
      ? 'That is no public key: a line such as ssh-ed25519 AAAA… you@laptop.'
      : undefined
  const keys = found.value ?? []
  const words = [
    'ssh-key',
    'add',
    ...(name.value.trim() === '' ? [] : [`--name=${name.value.trim()}`]),
    ...(keys.length === 1 ? text.value.trim().split(/\s+/) : [text.value.trim() || 'KEY']),
  ]
  const [only] = keys
  const undo = keys.length === 1 && only ? ['ssh-key', 'remove', name.value.trim() || only.comment] : undefined
  return (
    <div class="add">
      <Field label="Another key" hint="What is in id_ed25519.pub, or a whole authorized_keys" error={problem}>
        <textarea
          class="mono"
          rows={3}
          autocomplete="off"
          autocapitalize="none"
          spellcheck={false}
          placeholder="ssh-ed25519 AAAA… you@laptop"
          value={text.value}
          onInput={(event) => {
            text.value = event.currentTarget.value
          }}
        />
      </Field>
      <div role="status">
        {keys.map((key) => (
          <p key={key.fingerprint}>
            {key.algorithm.replace(/^ssh-/, '')} <span class="mono fingerprint">{key.fingerprint}</span>{' '}
            <span class="dim">{key.comment}</span>
          </p>
        ))}
      </div>
      <div class="line-form">
        <TextField label="Name in the list (optional)" placeholder={only?.comment} value={name} />
        <CommandButton
          words={words}
          {...(undo && undo[2] !== '' ? { undo } : {})}
          disabled={keys.length === 0 || problem !== undefined}
          kind="main"
          onDone={() => {
            text.value = ''
            name.value = ''
          }}
        >
          Let it in
        </CommandButton>
      </div>
    </div>
  )
}
