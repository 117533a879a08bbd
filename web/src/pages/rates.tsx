import './operator/operator.css'
import { signal, useSignal } from '@preact/signals'
import { useMemo } from 'preact/hooks'
import { useExec } from '../api/use-exec.ts'
import { CommandForm } from '../parts/CommandForm.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Frame } from '../parts/Frame.tsx'
import { AmountField, microsIn, SelectField, TextField } from '../parts/inputs.tsx'
import { Skeleton } from '../parts/Skeleton.tsx'
import { Table } from '../parts/Table.tsx'
import { query, setQuery } from '../router.ts'
import { sayCaps, sayRate, sayUnits } from './billing/documents.ts'
import { Party } from './billing/Party.tsx'

/** As `billing plans --json` has it. */
type Plan = {
  plan: string
  charged: boolean
  fee_micros: number
  fees_to_come: { fee_micros: number; from: string }[]
  rates_of_its_own: string[]
  machines_most: number | null
  cpus_most: number | null
  memory_bytes_most: number | null
  disk_bytes_most: number | null
}

/** As `billing rates --json` has it; days in UTC, from the first to before the last. */
type Rate = {
  kind: string
  unit: string
  rate_micros: number
  included: number
  from: string | null
  to: string | null
}

const KINDS: readonly string[] = ['fee', 'cpu', 'memory', 'disk', 'transfer']
const UNITS: Record<string, string> = {
  ...{ fee: 'month', cpu: 'vCPU-hour', memory: 'GiB-hour', disk: 'GiB-month', transfer: 'GB' },
}

/** What plans cost, and since when and until when they do. */
export function Page() {
  const { value, error, reload } = useExec<{ plans: Plan[] }>(['billing', 'plans'], ['rates', 'day'])
  const asked = query.value.get('plan') ?? 'usage'
  const plan = value?.plans.find((one) => one.plan === asked)
  return (
    <Frame title="Rates" wide>
      {!value && !error && <Skeleton lines={8} label="Loading the plans" />}
      {error && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value && (
        <>
          <Plans plans={value.plans} chosen={asked} />
          {plan ? (
            <Rates key={plan.plan} plan={plan} onChanged={reload} />
          ) : (
            <p>
              There is no plan <code>{asked}</code>.
            </p>
          )}
          <NewPlan onChanged={reload} />
          <Party title="The seller on invoices" label="Set it" command={['billing', 'seller']} topics={['rates']} />
        </>
      )}
    </Frame>
  )
}

function Plans({ plans, chosen }: { plans: readonly Plan[]; chosen: string }) {
  return (
    <Table
      rows={plans}
      keyOf={({ plan }) => plan}
      caption="Plans"
      columns={[
        {
          title: 'Plan',
          head: true,
          value: ({ plan }) => (
            <a
              href={`/rates?plan=${encodeURIComponent(plan)}`}
              aria-current={plan === chosen ? 'true' : undefined}
              onClick={(event) => {
                if (event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.button !== 0) return
                event.preventDefault()
                setQuery({ plan })
              }}
            >
              {plan}
            </a>
          ),
        },
        { title: 'Charged', value: ({ charged }) => (charged ? 'yes' : 'nothing is') },
        {
          title: 'Fee a month',
          right: true,
          value: (plan) => <Fee plan={plan} />,
        },
        {
          title: 'Rates of its own',
          wideOnly: true,
          value: ({ plan, rates_of_its_own: own }) =>
            plan === 'usage' ? 'all; others have these where they have none' : own.join(', ') || 'none',
        },
        { title: 'Up to', value: (plan) => sayCaps(capsOf(plan)) || 'no caps' },
      ]}
    />
  )
}

/** What it is now, and what it will be from which day on. */
function Fee({ plan: { fee_micros: now, fees_to_come: next } }: { plan: Plan }) {
  if (now === 0 && next.length === 0) return <>none</>
  return (
    <>
      {now > 0 && <span class="figure">{sayRate(now)}</span>}
      {next.map(({ fee_micros: fee, from }, index) => (
        <span key={from}>
          {(now > 0 || index > 0) && ', '}
          <span class="figure">{sayRate(fee)}</span> <span class="dim">from {from}</span>
        </span>
      ))}
    </>
  )
}

function capsOf(plan: Plan) {
  const { machines_most: machines, cpus_most: cpus, memory_bytes_most: memory, disk_bytes_most: disk } = plan
  return { machines, cpus, memory_bytes: memory, disk_bytes: disk }
}

function Rates({ plan, onChanged }: { plan: Plan; onChanged: () => void }) {
  const { value, error, reload } = useExec<{ rates: Rate[] }>(
    ['billing', 'rates', '--plan', plan.plan],
    ['rates', 'day'],
  )
  return (
    <section>
      <h2>
        Rates of plan <span class="mono">{plan.plan}</span>
      </h2>
      {!plan.charged && (
        <p class="dim">Nothing is charged on it; this is what its accounts are shown that it would be.</p>
      )}
      {!value && !error && <Skeleton lines={5} label="Loading the rates" />}
      {error && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value && (
        <Table
          rows={value.rates.toSorted(inOrder)}
          keyOf={({ kind, from }) => `${kind} ${from}`}
          caption={`Rates of plan ${plan.plan}`}
          columns={[
            { title: 'What', head: true, value: ({ kind }) => (kind === 'cpu' ? 'vCPU' : kind) },
            {
              title: 'Rate',
              right: true,
              value: ({ rate_micros: micros, unit }) => (
                <span>
                  <span class="figure">{sayRate(micros)}</span> <span class="dim">per {unit}</span>
                </span>
              ),
            },
            {
              title: 'Included a month',
              right: true,
              value: ({ included, unit, kind }) =>
                kind === 'fee' || included === 0 ? '–' : sayUnits(included.toLocaleString('en'), unit),
            },
            { title: 'From', value: ({ from }) => from ?? 'always' },
            { title: 'Until', value: ({ to }) => to ?? 'further notice' },
          ]}
        />
      )}
      {plan.plan === 'house' ? (
        <p class="dim">It has no rates of its own. Those of plan usage show here too.</p>
      ) : (
        <NewRate
          plan={plan.plan}
          onChanged={() => {
            reload()
            onChanged()
          }}
        />
      )}
    </section>
  )
}

/** As invoices have them, and in order of time. */
function inOrder(a: Rate, b: Rate): number {
  const order = KINDS.indexOf(a.kind) - KINDS.indexOf(b.kind)
  return order || ((a.from ?? '') < (b.from ?? '') ? -1 : 1)
}

const WHAT = KINDS.map((one) => [one, one === 'cpu' ? 'vCPU' : one] as const)

function NewRate({ plan, onChanged }: { plan: string; onChanged: () => void }) {
  const kind = useSignal('cpu')
  const amount = useSignal('')
  const included = useSignal('')
  const from = useSignal('')
  const free = included.value
  const isFree = free === '' || /^\d{1,9}$/.test(free)
  const unit = UNITS[kind.value] ?? ''
  const words = [
    ...['billing', 'set-rate', plan, kind.value, amount.value || 'AMOUNT'],
    ...(free === '' || kind.value === 'fee' ? [] : ['--included', free]),
    ...(from.value === '' ? [] : ['--from', from.value]),
  ]
  return (
    <>
      <h3>Set a rate</h3>
      <p class="dim">
        For whole days in UTC, from tomorrow on at the soonest. What was in force stays what it was, so that bills can
        be computed again at any time.
      </p>
      <CommandForm
        label="Set the rate"
        words={words}
        isReady={microsIn(amount.value) !== undefined && isFree}
        onDone={onChanged}
      >
        <SelectField label="What" value={kind} choices={WHAT} />
        <AmountField label={`USD per ${unit}`} example="0.04 or 20" value={amount} />
        {kind.value !== 'fee' && (
          <TextField
            label={`${unit === 'GB' ? unit : `${unit}s`} included`}
            hint="A month"
            isExact
            inputMode="numeric"
            error={isFree ? undefined : 'A whole number'}
            value={included}
          />
        )}
        <TextField label="From" hint="Tomorrow unless given" type="date" value={from} />
      </CommandForm>
    </>
  )
}

const CAPS = [
  { flag: 'machines', label: 'Machines', hint: '20' },
  { flag: 'cpu', label: 'vCPUs', hint: '40' },
  { flag: 'memory', label: 'Memory', hint: '64G' },
  { flag: 'disk', label: 'Disk', hint: '1T' },
] as const

function NewPlan({ onChanged }: { onChanged: () => void }) {
  const name = useSignal('')
  const caps = useMemo(() => CAPS.map((cap) => ({ ...cap, value: signal('') })), [])
  const typed = name.value
  const isName = /^[a-z][a-z0-9-]{0,29}$/.test(typed)
  const words = [
    ...['billing', 'set-plan', typed || 'PLAN'],
    ...caps.flatMap(({ flag, value }) => (value.value === '' ? [] : [`--${flag}`, value.value])),
  ]
  return (
    <section>
      <h2>Make a plan, or change what is in one</h2>
      <p class="dim">
        Caps are for all machines of an account together; none takes one away. A new plan has the rates of plan usage
        and no fee until they are set.
      </p>
      <CommandForm
        label="Set the plan"
        words={words}
        isReady={isName}
        onDone={() => {
          setQuery({ plan: typed })
          onChanged()
        }}
      >
        <TextField
          label="Name"
          isExact
          error={typed === '' || isName ? undefined : 'Up to 30 of a-z, 0-9 and -'}
          value={name}
        />
        {caps.map(({ flag, label, hint, value }) => (
          <TextField key={flag} label={`${label} at most`} isExact placeholder={hint} value={value} />
        ))}
      </CommandForm>
    </section>
  )
}
