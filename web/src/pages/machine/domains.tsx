import { useSignal } from '@preact/signals'
import type { ExecError } from '../../api/exec.ts'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Copy } from '../../parts/Copy.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { Check, TextField } from '../../parts/inputs.tsx'
import { Skeleton } from '../../parts/Skeleton.tsx'
import { Ago } from '../../parts/time.tsx'
import { Until } from '../until.tsx'
import type { DnsRecord, DomainDocument } from './documents.ts'

/** What DNS has to hold, as an answer or a refusal of `domain add` says. */
type Wanted = { domain: string; records?: DnsRecord[]; records_instead?: DnsRecord[]; points_here?: boolean }

/** Domains of people's own that show the machine. */
export function Domains({ name }: { name: string }) {
  const { value, error, reload } = useExec<{ domains: DomainDocument[] }>(['domain', 'ls', name], ['audit'])
  const wanted = useSignal<Wanted | undefined>(undefined)
  if (!value)
    return error ? <Failed error={error} wayOn={{ label: 'Try again', act: reload }} /> : <Skeleton lines={4} />
  const hear = (answer: Wanted) => {
    wanted.value = answer.points_here === true ? undefined : answer
  }
  return (
    <section aria-labelledby="domains">
      <h2 id="domains">Domains</h2>
      {value.domains.length === 0 ? (
        <p class="dim">
          {name} can be shown under a domain of yours, with a certificate. Name it, and the records to set are said.
        </p>
      ) : (
        <ul class="rows">
          {value.domains.map((one) => (
            <Domain key={one.domain} name={name} domain={one} hear={hear} />
          ))}
        </ul>
      )}
      {wanted.value?.records && <Records wanted={wanted.value} />}
      <Add name={name} hear={hear} />
    </section>
  )
}

type DomainProps = { name: string; domain: DomainDocument; hear: (answer: Wanted) => void }

function Domain({ name, domain: one, hear }: DomainProps) {
  const { expires_at, failures, problem, next_try_at } = one.certificate
  const words = ['domain', 'add', name, one.domain, ...(one.wildcard ? ['--wildcard'] : [])]
  return (
    <li>
      <a class="name mono" href={one.https_url} target="_blank" rel="noreferrer">
        {one.domain}
      </a>
      {one.wildcard && <span class="dim">and every name below it</span>}
      <span class={failures > 0 ? 'bad' : 'dim'}>
        {expires_at !== null && `certificate until ${expires_at.slice(0, 10)}`}
        {failures > 0 && (
          <>
            {expires_at === null ? 'no certificate: ' : ', not renewed: '}
            {problem ?? 'it failed'}
            {next_try_at !== null && (
              <>
                ; tried again <Until at={next_try_at} />
              </>
            )}
          </>
        )}
        {expires_at === null && failures === 0 && (
          <>
            added <Ago at={one.added_at} />
          </>
        )}
      </span>
      <CommandButton
        words={words}
        label={`Look up ${one.domain} again`}
        onDone={(document) => hear(document as Wanted)}
        onFailed={(failure) => hear(failure.document as Wanted)}
      >
        Check
      </CommandButton>
      <CommandButton words={['domain', 'rm', name, one.domain]} undo={words} label={`Remove ${one.domain}`}>
        Remove
      </CommandButton>
    </li>
  )
}

function Add({ name, hear }: { name: string; hear: (answer: Wanted) => void }) {
  const domain = useSignal('')
  const wildcard = useSignal(false)
  return (
    <div class="line-form">
      <TextField label="Domain" isExact class="mono" placeholder="www.example.com" value={domain} />
      <Check value={wildcard}>every name below it too</Check>
      <CommandButton
        words={['domain', 'add', name, domain.value || 'DOMAIN', ...(wildcard.value ? ['--wildcard'] : [])]}
        undo={['domain', 'rm', name, domain.value]}
        disabled={domain.value === ''}
        onDone={(document) => {
          domain.value = ''
          hear(document as Wanted)
        }}
        onFailed={(failure: ExecError) => hear(failure.document as Wanted)}
      >
        Add
      </CommandButton>
    </div>
  )
}

function Records({ wanted }: { wanted: Wanted }) {
  const { domain, records = [], records_instead = [] } = wanted
  return (
    <div class="once" role="status">
      <p>
        Set in the DNS of <b class="mono">{domain}</b>, then add it again:
      </p>
      <RecordTable records={records} label={`Records for ${domain}`} />
      {records_instead.length > 0 && (
        <details>
          <summary>Where a name heads its zone and can have no CNAME</summary>
          <RecordTable records={records_instead} label={`Records for ${domain} without a CNAME at its head`} />
        </details>
      )}
    </div>
  )
}

function RecordTable({ records, label }: { records: readonly DnsRecord[]; label: string }) {
  return (
    <div class="scroll">
      <table class="records" aria-label={label}>
        <thead>
          <tr>
            <th scope="col">Type</th>
            <th scope="col">Name</th>
            <th scope="col">Value</th>
          </tr>
        </thead>
        <tbody>
          {records.map((record) => (
            <tr key={`${record.type} ${record.name} ${record.value}`}>
              <td class="mono">{record.type}</td>
              <td class="mono">
                <Copy text={record.name} label="Copy the name" />
              </td>
              <td class="mono">
                <Copy text={record.value} label="Copy the value" />
              </td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  )
}
