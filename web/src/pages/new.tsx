/** A new machine: what it is to be, how far it is while it is made, and how to reach it when it is there. */
import { type Signal, useSignal } from '@preact/signals'
import type { RefObject } from 'preact'
import { useEffect, useRef } from 'preact/hooks'
import { ExecError, exec, run } from '../api/exec.ts'
import { CommandLine } from '../parts/CommandLine.tsx'
import { Copy } from '../parts/Copy.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Field } from '../parts/Field.tsx'
import { Frame } from '../parts/Frame.tsx'
import { sayBytes } from '../parts/words.ts'
import { waysTo } from './machine/addresses.ts'
import type { MachineDocument } from './machine/documents.ts'
import { newWords, nothingTyped, type Wish } from './new/words.ts'
import './new/new.css'

/** What `new --dry-run` says: what a machine would be, under which name. */
type Offer = {
  vm_name: string
  image: string
  images: string[]
  allocated_cpus: number
  memory_capacity_bytes: number
  disk_capacity_bytes: number
}

type Step =
  | { is: 'asking' }
  | { is: 'making'; stages: readonly string[]; part?: { done: number; total: number } }
  | { is: 'made'; machine: MachineDocument; tookMs: number }

export function Page() {
  const step = useSignal<Step>({ is: 'asking' })
  const wish = useSignal<Wish>(nothingTyped())
  const offer = useSignal<Offer | undefined>(undefined)
  const failure = useSignal<ExecError | undefined>(undefined)
  const nameField = useRef<HTMLInputElement>(null)
  const suggest = async () => {
    try {
      failure.value = undefined
      offer.value = await exec<Offer>(['new', '--dry-run'])
      // Whoever is about to type finds nothing there that was not there before.
      const isTyping = nameField.current !== null && document.activeElement === nameField.current
      if (wish.peek().name === '' && !isTyping) wish.value = { ...wish.peek(), name: offer.value.vm_name }
    } catch (error) {
      if (error instanceof ExecError) failure.value = error
    }
  }
  useEffect(() => void suggest(), [])
  const make = async () => {
    const startedAtMs = Date.now()
    failure.value = undefined
    step.value = { is: 'making', stages: [] }
    try {
      const machine = await run<MachineDocument>(newWords(wish.value), {
        undo: (document) => ['rm', (document as MachineDocument).vm_name],
        onPiece(piece) {
          const now = step.peek()
          if (now.is !== 'making') return
          const said = 'progress' in piece ? piece.progress : 'remark' in piece ? piece.remark : undefined
          if (said === undefined) return
          const isPull = 'done_bytes' in piece && piece.done_bytes !== undefined
          step.value = {
            is: 'making',
            stages: stagesWith(now.stages, withoutName(said, wish.value.name)),
            ...(isPull ? { part: { done: piece.done_bytes ?? 0, total: piece.total_bytes ?? 1 } } : {}),
          }
        },
      })
      step.value = { is: 'made', machine, tookMs: Date.now() - startedAtMs }
    } catch (error) {
      if (error instanceof ExecError) failure.value = error
      step.value = { is: 'asking' }
    }
  }
  const now = step.value
  return (
    <Frame
      title={
        now.is === 'asking' ? 'New machine' : now.is === 'making' ? `Making ${wish.value.name}` : now.machine.vm_name
      }
    >
      {failure.value && (
        <Failed error={failure.value} wayOn={offer.value ? undefined : { label: 'Try again', act: suggest }} />
      )}
      {now.is === 'asking' && <Form {...{ wish, offer: offer.value, nameField, suggest, make }} />}
      {now.is === 'making' && <Making step={now} name={wish.value.name} />}
      {now.is === 'made' && (
        <Made
          machine={now.machine}
          tookMs={now.tookMs}
          again={() => {
            wish.value = nothingTyped()
            step.value = { is: 'asking' }
            void suggest()
          }}
        />
      )}
    </Frame>
  )
}

type FormProps = {
  wish: Signal<Wish>
  offer: Offer | undefined
  nameField: RefObject<HTMLInputElement | null>
  suggest: () => void
  make: () => void
}

function Form({ wish, offer, nameField, suggest, make }: FormProps) {
  const typed = (key: keyof Wish) => ({
    value: wish.value[key],
    onInput: (event: { currentTarget: HTMLInputElement | HTMLTextAreaElement | HTMLSelectElement }) => {
      wish.value = { ...wish.value, [key]: event.currentTarget.value }
    },
  })
  const words = newWords(wish.value)
  const plain = { autocapitalize: 'none', autocomplete: 'off', spellcheck: false } as const
  return (
    <form
      class="new-machine"
      onSubmit={(event) => {
        event.preventDefault()
        make()
      }}
    >
      <div class="line-form">
        <Field label="Name">
          <input
            ref={nameField}
            class="mono"
            maxLength={40}
            pattern="[a-z](-?[a-z0-9])*"
            title="a-z, 0-9 and single hyphens, a letter first"
            {...plain}
            {...typed('name')}
          />
        </Field>
        <button
          type="button"
          class="plain"
          onClick={() => {
            wish.value = { ...wish.value, name: '' }
            suggest()
          }}
        >
          Another name
        </button>
      </div>
      <Field label="Image" hint="One of this installation, or of a registry: debian:13, ghcr.io/owner/image@sha256:…">
        <input class="mono" list="images" placeholder={offer?.image ?? 'base'} {...plain} {...typed('image')} />
      </Field>
      <datalist id="images">
        {offer?.images.map((image) => (
          <option key={image} value={image} />
        ))}
      </datalist>
      <div class="line-form">
        <Field label="CPUs">
          <input
            class="short mono"
            inputMode="numeric"
            pattern="[0-9]+"
            placeholder={String(offer?.allocated_cpus ?? 2)}
            {...typed('cpus')}
          />
        </Field>
        <Field label="Memory">
          <input
            class="short mono"
            placeholder={shortSize(offer?.memory_capacity_bytes ?? 4 * 2 ** 30)}
            {...plain}
            {...typed('memory')}
          />
        </Field>
        <Field label="Disk">
          <input
            class="short mono"
            placeholder={shortSize(offer?.disk_capacity_bytes ?? 20 * 2 ** 30)}
            {...plain}
            {...typed('disk')}
          />
        </Field>
        <Field label="Sleep when idle for">
          <select {...typed('sleepAfter')}>
            <option value="">what my account has</option>
            <option value="30m">30 minutes</option>
            <option value="1h">1 hour</option>
            <option value="8h">8 hours</option>
            <option value="never">never</option>
          </select>
        </Field>
      </div>
      <details>
        <summary>Tags, variables, setup script</summary>
        <Field label="Tags" hint="Words to group machines by, with blanks between them">
          <input class="mono" {...plain} {...typed('tags')} />
        </Field>
        <Field label="Comment">
          <input maxLength={200} {...typed('comment')} />
        </Field>
        <Field label="Variables" hint="One a line, NAME=value; every session and service sees them">
          <textarea class="mono" rows={3} {...plain} {...typed('env')} />
        </Field>
        <Field label="Setup script" hint="Run once as its user when it has started">
          <textarea class="mono" rows={6} {...plain} {...typed('script')} />
        </Field>
      </details>
      <div class="run-line">
        <CommandLine words={words} />
      </div>
      <button type="submit">Make it</button>
    </form>
  )
}

function Making({ step, name }: { step: Extract<Step, { is: 'making' }>; name: string }) {
  const seconds = useSignal(0)
  useEffect(() => {
    const timer = setInterval(() => {
      seconds.value++
    }, 1000)
    return () => clearInterval(timer)
  }, [seconds])
  const { stages, part } = step
  const last = stages.at(-1)
  return (
    <section aria-label="Progress" class="making">
      <ol>
        {stages.map((stage) => (
          <li key={stage} class={stage === last ? 'dot wait' : 'dot well dim'}>
            {stage}
          </li>
        ))}
      </ol>
      {part && (
        <p>
          <progress aria-label="Image" value={part.done} max={part.total} />{' '}
          <span class="dim">
            {sayBytes(part.done)} of {sayBytes(part.total)}
          </span>
        </p>
      )}
      <p class="hidden" role="status">
        {last ?? 'It is asked for'}
      </p>
      <p class="dim">
        {seconds.value} s. The machine is made whether this page stays open or not:{' '}
        <a href={`/machines/${name}`}>its page</a> shows how far it is.
      </p>
    </section>
  )
}

function Made({ machine, tookMs, again }: { machine: MachineDocument; tookMs: number; again: () => void }) {
  const heading = useRef<HTMLParagraphElement>(null)
  useEffect(() => heading.current?.focus(), [])
  const [ssh] = waysTo(machine)
  return (
    <section aria-label="Made" class="made">
      <p ref={heading} tabIndex={-1} role="status">
        {machine.vm_name} is ready after {(tookMs / 1000).toFixed(1)} s. In a terminal:
      </p>
      {ssh && <Copy text={ssh.text} label="Copy the SSH line" />}
      <p class="actions">
        <a class="button" href={`/machines/${machine.vm_name}`}>
          Its page
        </a>
        <a href={`/terminal/${machine.vm_name}`}>A terminal here</a>
        <button type="button" class="plain" onClick={again}>
          Another machine
        </button>
      </p>
    </section>
  )
}

/** Progress of one image is one line that changes. */
function stagesWith(stages: readonly string[], next: string): readonly string[] {
  const kind = (stage: string) => stage.split(',')[0]
  const last = stages.at(-1)
  if (last === next) return stages
  return last !== undefined && kind(last) === kind(next) ? [...stages.slice(0, -1), next] : [...stages, next]
}

function withoutName(stage: string, name: string): string {
  const rest = stage.startsWith(`${name}: `) ? stage.slice(name.length + 2) : stage
  return `${rest.charAt(0).toUpperCase()}${rest.slice(1)}`
}

function shortSize(bytes: number): string {
  return bytes % 2 ** 30 === 0 ? `${bytes / 2 ** 30}G` : `${Math.round(bytes / 2 ** 20)}M`
}
