import { useSignal } from '@preact/signals'
import { machineNames } from '../../api/live.ts'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Copy } from '../../parts/Copy.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { SelectField, TextField } from '../../parts/inputs.tsx'
import { Skeleton } from '../../parts/Skeleton.tsx'
import { Ago } from '../../parts/time.tsx'
import { Until } from '../until.tsx'

type TokenDocument = {
  id: number
  label: string
  machine: string | null
  tag: string | null
  cmds: string[] | null
  created_at: string
  last_used_at: string | null
  expires_at: string
}

type NewToken = { id: number; token: string }

export function Tokens() {
  const { value, error, reload } = useExec<{ tokens: TokenDocument[] }>(['token', 'ls'], ['audit'])
  const made = useSignal<NewToken | undefined>(undefined)
  return (
    <section aria-labelledby="tokens">
      <h2 id="tokens">Tokens</h2>
      <p class="dim">With a token programs see your machines' pages and run commands.</p>
      {made.value && (
        <div class="once" role="status">
          <p>Token {made.value.id}. It is shown this once; here only its hash is kept.</p>
          <Copy text={made.value.token} label="Copy the token" />
        </div>
      )}
      {value ? (
        <List tokens={value.tokens} />
      ) : error ? (
        <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />
      ) : (
        <Skeleton lines={3} />
      )}
      <Make
        onDone={(token) => {
          made.value = token
        }}
      />
    </section>
  )
}

function List({ tokens }: { tokens: readonly TokenDocument[] }) {
  if (tokens.length === 0) return <p class="dim">No token is good.</p>
  return (
    <ul class="rows">
      {tokens.map((one) => {
        const called = one.label || `token ${one.id}`
        return (
          <li key={one.id}>
            <span class="name">{called}</span>
            <span>
              {opens(one)}
              {', '}
              {runs(one)}
            </span>
            <span class="dim">
              {one.last_used_at === null ? (
                'never used'
              ) : (
                <>
                  used <Ago at={one.last_used_at} />
                </>
              )}
              , ends <Until at={one.expires_at} />
            </span>
            <CommandButton
              words={['token', 'rm', String(one.id)]}
              confirm={called}
              warning="Programs that have it are cut off, and it is good for nothing any more."
              label={`Take back ${called}`}
            >
              Take back
            </CommandButton>
          </li>
        )
      })}
    </ul>
  )
}

function opens({ machine, tag }: TokenDocument): string {
  if (machine !== null) return `for ${machine}`
  return tag === null ? 'for all machines' : `for the tag ${tag}`
}

function runs({ cmds }: TokenDocument): string {
  if (cmds === null) return 'any command'
  return cmds.length === 0 ? 'no command' : `runs ${cmds.join(', ')}`
}

const SCOPES = [
  ['any', 'any but signing in'],
  ['some', 'these:'],
  ['none', 'none, pages alone'],
] as const
const GOOD_FOR = [1, 7, 30, 90, 400].map((days) => [`${days}d`, days === 1 ? '1 day' : `${days} days`] as const)

function Make({ onDone }: { onDone: (token: NewToken) => void }) {
  const label = useSignal('')
  const machine = useSignal('')
  const scope = useSignal('any')
  const commands = useSignal('ls, ssh')
  const expires = useSignal('30d')
  const cmds = scope.value === 'some' ? commands.value.trim() : scope.value === 'none' ? 'none' : ''
  const words = [
    'token',
    'new',
    ...(label.value.trim() === '' ? [] : [`--label=${label.value.trim()}`]),
    ...(machine.value === '' ? [] : [`--machine=${machine.value}`]),
    ...(cmds === '' ? [] : [`--cmds=${cmds}`]),
    `--expires=${expires.value}`,
  ]
  return (
    <div class="line-form">
      <TextField label="What it is for" maxLength={100} placeholder="ci" value={label} />
      <SelectField
        label="Machines"
        value={machine}
        choices={[['', 'all'], ...machineNames.value.map((name) => [name, name] as const)]}
      />
      <SelectField label="Commands" value={scope} choices={SCOPES} />
      {scope.value === 'some' && (
        <TextField
          label="Which commands"
          hint="With commas between them; help lists them"
          class="mono"
          autocapitalize="none"
          spellcheck={false}
          value={commands}
        />
      )}
      <SelectField label="Good for" value={expires} choices={GOOD_FOR} />
      <CommandButton
        words={words}
        undo={(document) => ['token', 'rm', String((document as NewToken).id)]}
        disabled={scope.value === 'some' && cmds === ''}
        onDone={(document) => {
          label.value = ''
          onDone(document as NewToken)
        }}
      >
        Make a token
      </CommandButton>
    </div>
  )
}
