import './billing/billing.css'
import { useSignal } from '@preact/signals'
import { useEffect, useRef } from 'preact/hooks'
import { machineNames, newsOf } from '../api/live.ts'
import { useExec } from '../api/use-exec.ts'
import { installation } from '../installation.ts'
import { Code } from '../parts/Code.tsx'
import { CommandLine } from '../parts/CommandLine.tsx'
import { Empty } from '../parts/Empty.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Field } from '../parts/Field.tsx'
import { Frame } from '../parts/Frame.tsx'
import { Skeleton } from '../parts/Skeleton.tsx'
import { type Column, Table } from '../parts/Table.tsx'
import { Ago } from '../parts/time.tsx'
import { query, setQuery } from '../router.ts'

/** As `audit --json` has it. */
type Event = {
  id: number
  at: string
  kind: string
  machine_name: string | null
  who: string
  address: string | null
  via: 'ssh' | 'exec' | 'web' | null
  command: string | null
  detail: Record<string, unknown>
  account_id?: number | null
}
type Audit = { events: Event[]; older: number | null }

const SHOWN = '50'
/** A start is a handful of records; they are shown together. */
const SETTLE_MS = 300

const FAMILIES = [
  'machine',
  'share',
  'domain',
  'token',
  'key',
  'browser',
  'account',
  'billing',
  'invoice',
  'defaults',
  'invitation',
  'host',
]
const ACTORS = [
  ['', 'Anybody'],
  ['you', 'You'],
  ['operator', 'The operator'],
  ['token', 'Tokens'],
  ['gateway', 'Berth itself'],
  ['host', 'Servers'],
] as const
const TIMES = [
  ['', 'Any time'],
  ['1h', 'Last hour'],
  ['24h', 'Last 24 hours'],
  ['7d', 'Last 7 days'],
  ['30d', 'Last 30 days'],
] as const
const FILTERS = ['machine', 'kind', 'actor', 'since', 'account'] as const

/** Who did what, when, from where and by which command: filtered, page by page, and live where the newest are shown. */
export function Page() {
  const given = (name: string) => query.value.get(name) ?? ''
  const before = given('before')
  const words = [
    ...['audit', ...(given('machine') === '' ? [] : [given('machine')])],
    ...['kind', 'actor', 'since', 'account'].flatMap((name) => (given(name) === '' ? [] : [`--${name}`, given(name)])),
    ...(before === '' ? [] : ['--before', before]),
  ]
  const { value, error, reload, isLoading } = useExec<Audit>([...words, '-n', SHOWN])
  const news = newsOf('audit').value
  const settling = useRef<ReturnType<typeof setTimeout> | undefined>(undefined)
  useEffect(() => {
    // Older pages do not change. Where records never cease, they are shown all the same.
    if (news === 0 || before !== '') return
    settling.current ??= setTimeout(() => {
      settling.current = undefined
      reload()
    }, SETTLE_MS)
  }, [news, before])
  useEffect(() => () => clearTimeout(settling.current), [])
  const isFiltered = FILTERS.some((name) => given(name) !== '')
  return (
    <Frame title="Audit" wide>
      <Filters given={given} />
      {value === undefined && error === undefined && <Skeleton lines={10} />}
      {error !== undefined && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value !== undefined && error === undefined && (
        <div aria-busy={isLoading}>
          {value.events.length === 0 ? (
            <Empty words={words}>{isFiltered ? 'Nothing like that was done.' : 'Nothing was done yet.'}</Empty>
          ) : (
            <Trail events={value.events} />
          )}
          <nav class="pages" aria-label="Pages of the record">
            {before !== '' && (
              <button type="button" class="plain" onClick={() => setQuery({ before: undefined })}>
                Newest
              </button>
            )}
            {value.older !== null && (
              <button type="button" class="plain" onClick={() => older(value.older)}>
                Older
              </button>
            )}
          </nav>
          <p class="dim same">The same in a terminal:</p>
          <CommandLine words={words} />
        </div>
      )}
    </Frame>
  )
}

function older(before: number | null): void {
  setQuery({ before: String(before) })
  scrollTo(0, 0)
}

function Filters({ given }: { given: (name: string) => string }) {
  const machine = useSignal(given('machine'))
  const account = useSignal(given('account'))
  const choose = (name: string, value: string) => setQuery({ [name]: value, before: undefined })
  const typed = () => setQuery({ machine: machine.value.trim(), account: account.value.trim(), before: undefined })
  return (
    <form
      class="filters"
      role="search"
      aria-label="Audit"
      onSubmit={(event) => {
        event.preventDefault()
        typed()
      }}
    >
      <Field label="Machine">
        <input
          list="machines-known"
          autocomplete="off"
          autocapitalize="none"
          spellcheck={false}
          value={machine.value}
          onInput={({ currentTarget }) => {
            machine.value = currentTarget.value
          }}
          onChange={typed}
        />
      </Field>
      <datalist id="machines-known">
        {machineNames.value.map((name) => (
          <option key={name} value={name} />
        ))}
      </datalist>
      <Field label="What">
        <select value={given('kind')} onChange={({ currentTarget }) => choose('kind', currentTarget.value)}>
          <option value="">Anything</option>
          {[...new Set([...FAMILIES, ...(given('kind') === '' ? [] : [given('kind')])])].map((kind) => (
            <option key={kind}>{kind}</option>
          ))}
        </select>
      </Field>
      <Field label="Who">
        <Select choices={ACTORS} value={given('actor')} choose={(value) => choose('actor', value)} />
      </Field>
      <Field label="When">
        <Select choices={TIMES} value={given('since')} choose={(value) => choose('since', value)} />
      </Field>
      {installation.isOperator && (
        <Field label="Account">
          <input
            autocomplete="off"
            placeholder="number or e-mail"
            value={account.value}
            onInput={({ currentTarget }) => {
              account.value = currentTarget.value
            }}
            onChange={typed}
          />
        </Field>
      )}
    </form>
  )
}

/** With what stands in the address although it is none of the choices. */
function Select({
  choices,
  value,
  choose,
  ...rest
}: {
  choices: readonly (readonly [value: string, label: string])[]
  value: string
  choose: (value: string) => void
}) {
  const all = choices.some(([one]) => one === value) ? choices : [...choices, [value, value] as const]
  return (
    <select {...rest} value={value} onChange={({ currentTarget }) => choose(currentTarget.value)}>
      {all.map(([one, label]) => (
        <option key={one} value={one}>
          {label}
        </option>
      ))}
    </select>
  )
}

function Trail({ events }: { events: readonly Event[] }) {
  const there = new Set(machineNames.value)
  const columns: Column<Event>[] = [
    {
      title: 'When (UTC)',
      value: ({ at }) => (
        <span class="figure">
          <time dateTime={at}>{at.slice(0, 19).replace('T', ' ')}</time>{' '}
          <span class="dim wide-only">{<Ago at={at} />}</span>
        </span>
      ),
    },
    { title: 'What', head: true, value: ({ kind }) => kind },
    {
      title: 'Machine',
      value: ({ machine_name: name }) =>
        name === null ? (
          ''
        ) : there.has(name) ? (
          <a href={`/machines/${name}`}>{name}</a>
        ) : (
          <span class="mono">{name}</span>
        ),
    },
    { title: 'Who', value: ({ who }) => who },
    ...(installation.isOperator
      ? [{ title: 'Account', right: true, value: (event: Event) => event.account_id ?? '' } as const]
      : []),
    {
      title: 'From',
      value: ({ address, via }) =>
        (address !== null || via !== null) && (
          <span>
            {address !== null && <span class="mono">{address} </span>}
            {via !== null && <span class="dim">{VIA[via]}</span>}
          </span>
        ),
    },
    { title: 'Command', value: ({ command }) => command !== null && <Code text={command} /> },
    { title: 'Detail', value: ({ detail }) => <Detail text={sayDetail(detail)} /> },
  ]
  return (
    <div class="trail">
      <Table
        caption="What was done, newest first"
        rows={events.toReversed()}
        keyOf={({ id }) => id}
        columns={columns}
      />
    </div>
  )
}

/** As many characters as are two or three lines of a phone. */
const DETAIL_FIRST = 120

/** A long one is opened by whoever wants to read on. */
function Detail({ text }: { text: string }) {
  if (text === '') return null
  if (text.length <= DETAIL_FIRST) return <span class="dim">{text}</span>
  return (
    <details class="detail dim">
      <summary>
        <span class="short">{text.slice(0, DETAIL_FIRST - 20)}…</span>
        <span class="less">Less</span>
      </summary>
      {text}
    </details>
  )
}

const VIA = { ssh: 'SSH', exec: 'API', web: 'web' }

function sayDetail(detail: Record<string, unknown>): string {
  return Object.entries(detail)
    .map(([key, value]) => `${key} ${typeof value === 'string' ? value : JSON.stringify(value)}`)
    .join(', ')
}
