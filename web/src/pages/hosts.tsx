import './operator/operator.css'
import { useSignal } from '@preact/signals'
import { useExec } from '../api/use-exec.ts'
import { CommandButton } from '../parts/CommandButton.tsx'
import { CommandForm } from '../parts/CommandForm.tsx'
import { Dot, type Mood } from '../parts/Dot.tsx'
import { Empty } from '../parts/Empty.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Frame } from '../parts/Frame.tsx'
import { Bytes } from '../parts/figures.tsx'
import { SelectField, TextField } from '../parts/inputs.tsx'
import { Skeleton } from '../parts/Skeleton.tsx'
import { Bar } from './operator/Bar.tsx'

/** As `host ls --json` has it. */
type Host = {
  name: string
  status: string
  cpus: number
  machines: number
  memory_bytes: number
  memory_promised_bytes: number
  memory_used_bytes: number
  memory_reclaimed_bytes: number
  memory_available_bytes: number
  memory_overcommit: number
  store_bytes: number
  store_free_bytes: number
  hypervisor: string
  accelerator: string
  accelerator_reason: string
}

/** The servers: what they have, what is promised of it, and what machines really take. */
export function Page() {
  const { value, error, reload } = useExec<{ hosts: Host[] }>(['host', 'ls'], ['hosts'])
  return (
    <Frame title="Hosts" wide>
      {!value && !error && <Skeleton lines={6} label="Loading the servers" />}
      {error && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value?.hosts.length === 0 && (
        <Empty words={['doctor']}>No server has reported yet. One does as soon as its vmhost runs.</Empty>
      )}
      {value?.hosts.map((host) => (
        <One key={host.name} host={host} onChanged={reload} />
      ))}
      {value && value.hosts.length > 0 && <Overcommit hosts={value.hosts} onChanged={reload} />}
    </Frame>
  )
}

const MOODS: Record<string, Mood> = { up: 'well', draining: 'wait', silent: 'bad' }

function One({ host, onChanged }: { host: Host; onChanged: () => void }) {
  const { name, status, machines, memory_bytes: memory, memory_overcommit: ratio } = host
  const isDraining = status === 'draining'
  const drain = ['host', 'drain', name]
  const undrain = ['host', 'undrain', name]
  return (
    <section class="host" aria-labelledby={`host-${name}`}>
      <div class="title">
        <div>
          <h2 id={`host-${name}`} class="mono">
            {name}
          </h2>
          <Dot status={status} mood={MOODS[status] ?? 'rest'} />
          <span class="dim">
            {machines === 1 ? 'one machine' : `${machines} machines`},{' '}
            {host.cpus === 1 ? 'one CPU' : `${host.cpus} CPUs`}
          </span>
        </div>
        <CommandButton
          words={isDraining ? undrain : drain}
          undo={isDraining ? drain : undrain}
          onDone={onChanged}
          onFailed={onChanged}
        >
          {isDraining ? 'Take machines again' : 'No new machines'}
        </CommandButton>
      </div>
      <dl class="measures">
        <Measure label="Memory promised" part={host.memory_promised_bytes} whole={Math.floor(memory * ratio)} />
        <Measure label="Memory used" part={host.memory_used_bytes} whole={memory} />
        <Measure label="Memory reclaimed" part={host.memory_reclaimed_bytes} whole={memory} />
        <Measure label="Disk used" part={host.store_bytes - host.store_free_bytes} whole={host.store_bytes} />
      </dl>
      <p class="dim">
        {ratio === 1
          ? 'What there is of memory is promised once'
          : `${ratio} GiB of memory are promised for each that there is`}
        {host.hypervisor !== '' &&
          `; machines run under ${[host.hypervisor, host.accelerator].filter(Boolean).join(' with ')}`}
        {host.accelerator_reason !== '' && `: ${host.accelerator_reason}`}.
      </p>
    </section>
  )
}

function Measure({ label, part, whole }: { label: string; part: number; whole: number }) {
  return (
    <div>
      <dt>{label}</dt>
      <dd class="drawn">
        <Bar part={part} whole={whole} />
      </dd>
      <dd class="said">
        <Bytes bytes={part} /> <span class="dim">of</span> <Bytes bytes={whole} />
      </dd>
    </div>
  )
}

const RATIO = /^\d{1,2}(\.\d{1,2})?$/

function Overcommit({ hosts, onChanged }: { hosts: readonly Host[]; onChanged: () => void }) {
  const ratio = useSignal('')
  const of = useSignal('')
  const typed = ratio.value
  const isRight = RATIO.test(typed) && Number(typed) >= 0.1 && Number(typed) <= 20
  return (
    <section>
      <h2>Overcommit memory</h2>
      <p class="dim">
        More than 1 relies on machines that do not use all of theirs. A server that runs short takes what they do not
        use, and puts those to sleep that are idle longest.
      </p>
      <CommandForm
        label="Set the ratio"
        words={['host', 'overcommit', typed || 'RATIO', ...(of.value === '' ? [] : [of.value])]}
        isReady={isRight}
        onDone={onChanged}
      >
        <TextField
          label="GiB promised for each"
          isExact
          inputMode="decimal"
          placeholder="1.5"
          error={typed === '' || isRight ? undefined : 'A number from 0.1 to 20'}
          value={ratio}
        />
        <SelectField
          label="Of"
          value={of}
          choices={[['', 'every server'], ...hosts.map(({ name }) => [name, name] as const)]}
        />
      </CommandForm>
    </section>
  )
}
