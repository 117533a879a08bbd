import './operator/operator.css'
import { useSignal } from '@preact/signals'
import { useExec } from '../api/use-exec.ts'
import { CommandButton } from '../parts/CommandButton.tsx'
import { CommandForm } from '../parts/CommandForm.tsx'
import { Dot } from '../parts/Dot.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Frame } from '../parts/Frame.tsx'
import { Bytes, Money } from '../parts/figures.tsx'
import { AmountField, microsIn, SelectField, TextField } from '../parts/inputs.tsx'
import { Skeleton } from '../parts/Skeleton.tsx'
import { Table } from '../parts/Table.tsx'
import { Ago } from '../parts/time.tsx'
import { sayMoney } from '../parts/words.ts'
import type { PageProps } from '../routes.ts'
import { type Change, sayMonth, sayRate } from './billing/documents.ts'
import { askBeforePause } from './billing/Limits.tsx'
import { moodOfAccount, stateOfAccount } from './operator/account-words.ts'

/** As `account show --json` has it. */
type Account = {
  id: number
  email: string | null
  owner: boolean
  suspended: boolean
  suspended_at: string | null
  over_limit: boolean
  created_at: string
  keys: number
  plan: string
  changes: Change[]
  machines_most: number | null
  machine_count: number
  memory_bytes: number
  disk_bytes: number
  machines: {
    vm_name: string
    status: string
    image: string
    allocated_cpus: number
    memory_capacity_bytes: number
    disk_capacity_bytes: number
    created_at: string
  }[]
  month: string
  spent_micros: number
  total_micros: number
  credit_micros: number
  /** of what was spent and of the total: the plan's fee for days to come */
  fee_ahead_micros: number
  limits: { set_by: string; amount_micros: number; hard: boolean }[]
  credits: { id: number; amount_micros: number; left_micros: number; reason: string; granted_at: string }[]
  invoices: { number: number; month: string; total_micros: number }[]
  invoice_count: number
}

/** One account, and what the operator may do about it. */
export function Page({ params }: PageProps) {
  const id = params.id ?? ''
  const { value, error, reload } = useExec<Account>(['account', 'show', id], ['accounts', 'day'])
  const name = value?.email ?? `account ${id}`
  return (
    <Frame
      title={name}
      wide
      above={
        <p>
          <a href="/accounts">Accounts</a>
        </p>
      }
      actions={value && !value.owner && <Suspend account={value} onChanged={reload} />}
    >
      {!value && !error && <Skeleton lines={8} label="Loading the account" />}
      {error && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value && (
        <>
          <Facts account={value} />
          <Machines account={value} />
          {!value.owner && <Plan account={value} onChanged={reload} />}
          {!value.owner && <Limits account={value} onChanged={reload} />}
          {!value.owner && <Credit account={value} onChanged={reload} />}
          <Invoices account={value} />
        </>
      )}
    </Frame>
  )
}

function Suspend({ account, onChanged }: { account: Account; onChanged: () => void }) {
  const suspend = ['account', 'suspend', String(account.id)]
  const unsuspend = ['account', 'unsuspend', String(account.id)]
  return (
    <CommandButton
      kind={account.suspended ? 'plain' : 'danger'}
      words={account.suspended ? unsuspend : suspend}
      undo={account.suspended ? suspend : unsuspend}
      onDone={onChanged}
      onFailed={onChanged}
    >
      {account.suspended ? 'Let it in again' : 'Suspend'}
    </CommandButton>
  )
}

function Facts({ account }: { account: Account }) {
  const { month, spent_micros: spent, total_micros: total, suspended_at: suspendedAt } = account
  const { fee_ahead_micros: ahead } = account
  return (
    <dl class="facts">
      <dt>State</dt>
      <dd>
        <Dot status={stateOfAccount(account)} mood={moodOfAccount(account)} />
        {suspendedAt !== null && (
          <span class="dim">
            {' '}
            <Ago at={suspendedAt} />
          </span>
        )}
      </dd>
      <dt>Number</dt>
      <dd>{account.id}</dd>
      <dt>Since</dt>
      <dd>
        <Ago at={account.created_at} />
      </dd>
      <dt>Plan</dt>
      <dd>
        {account.plan}
        {account.changes.map(({ from, plan, rates_alone: isOfRates }) =>
          isOfRates ? `; other rates from ${from} on` : `; ${plan} from ${from} on`,
        )}
      </dd>
      <dt>{sayMonth(month)} so far, in UTC</dt>
      <dd>
        {spent > 0 || total === 0 ? (
          <Money micros={spent} />
        ) : (
          <>
            nothing is charged; it would be <Money micros={total} />
          </>
        )}
        {ahead > 0 && <span class="dim">, {sayMoney(ahead)} of it the fee of days to come</span>}
      </dd>
      <dt>Credit</dt>
      <dd>
        <Money micros={account.credit_micros} />
      </dd>
      <dt>Keys</dt>
      <dd>{account.keys}</dd>
    </dl>
  )
}

function Machines({ account }: { account: Account }) {
  const { machines, machine_count: count, machines_most: most } = account
  return (
    <section>
      <h2>Machines</h2>
      {count === 0 ? (
        <p class="dim">It has none{most === null ? '' : ` of ${most} that it may have`}.</p>
      ) : (
        <>
          <Table
            rows={machines}
            keyOf={({ vm_name }) => vm_name}
            caption="Machines of the account"
            columns={[
              { title: 'Name', head: true, value: ({ vm_name }) => <span class="mono">{vm_name}</span> },
              { title: 'Status', value: ({ status }) => <Dot status={status} /> },
              { title: 'Image', wideOnly: true, value: ({ image }) => <span class="mono">{image}</span> },
              { title: 'CPUs', right: true, value: ({ allocated_cpus: cpus }) => cpus },
              { title: 'Memory', right: true, value: (one) => <Bytes bytes={one.memory_capacity_bytes} /> },
              { title: 'Disk', right: true, value: (one) => <Bytes bytes={one.disk_capacity_bytes} /> },
              { title: 'Made', wideOnly: true, value: ({ created_at: at }) => <Ago at={at} /> },
            ]}
          />
          <p class="dim">
            {count}
            {most === null ? '' : ` of ${most}`}, <Bytes bytes={account.memory_bytes} /> memory and{' '}
            <Bytes bytes={account.disk_bytes} /> disk in all.
          </p>
        </>
      )}
    </section>
  )
}

function Plan({ account, onChanged }: { account: Account; onChanged: () => void }) {
  const plans = useExec<{ plans: { plan: string }[] }>(['billing', 'plans'])
  const plan = useSignal('')
  const from = useSignal('')
  const words = ['account', 'plan', String(account.id), plan.value || 'PLAN']
  return (
    <section>
      <h2>Plan</h2>
      <CommandForm
        label="Change the plan"
        words={[...words, ...(from.value === '' ? [] : ['--from', from.value])]}
        isReady={plan.value !== ''}
        onDone={onChanged}
      >
        <SelectField
          label="Plan"
          value={plan}
          choices={[['', 'choose one'], ...(plans.value?.plans ?? []).map((one) => [one.plan, one.plan] as const)]}
        />
        <TextField label="From" hint="A day in UTC; tomorrow unless given" type="date" value={from} />
      </CommandForm>
    </section>
  )
}

const AT_LIMIT = [
  ['mail', 'mail, nothing else'],
  ['hard', 'pause its machines'],
] as const

function Limits({ account, onChanged }: { account: Account; onChanged: () => void }) {
  const machines = useSignal('')
  const spend = useSignal('')
  const atLimit = useSignal('mail')
  const most = machines.value
  const amount = spend.value
  const isMost = most === '' || /^\d{1,6}$/.test(most)
  const isRight = (text: string) => text === 'none' || microsIn(text) !== undefined
  const isHard = atLimit.value === 'hard' && amount !== 'none'
  const micros = microsIn(amount)
  const isReached = isHard && micros !== undefined && micros <= account.spent_micros
  const words = [
    ...['account', 'limit', String(account.id)],
    ...(most === '' ? [] : [most]),
    ...(amount === '' ? [] : ['--spend', amount, ...(isHard ? ['--hard'] : [])]),
  ]
  return (
    <section>
      <h2>Limits</h2>
      <ul class="limits">
        <li>
          {account.machines_most === null
            ? 'As many machines as it likes.'
            : `${account.machines_most === 1 ? 'One machine' : `${account.machines_most} machines`}; those that are there stay.`}
        </li>
        {account.limits.map(({ set_by: by, amount_micros: micros, hard }) => (
          <li key={by}>
            <span class="figure">{sayRate(micros)}</span> a month, {by === 'operator' ? 'set by you' : 'its own'};{' '}
            {hard ? 'machines are paused there' : 'mail at 80 and 100 %, nothing else'}.
          </li>
        ))}
        {account.limits.length === 0 && <li>No limit on what a month may cost.</li>}
      </ul>
      <CommandForm
        label="Set limits"
        words={words}
        isReady={isMost && (amount === '' || isRight(amount)) && (most !== '' || amount !== '')}
        question={isReached ? askBeforePause(amount, micros, account.spent_micros, 'its') : undefined}
        onDone={onChanged}
      >
        <TextField
          label="Machines"
          isExact
          inputMode="numeric"
          error={isMost ? undefined : 'A whole number'}
          value={machines}
        />
        <AmountField
          label="USD a month"
          hint="none takes it away"
          isRight={isRight}
          example="50, 12.50 or none"
          inputMode="text"
          value={spend}
        />
        <SelectField label="At the limit" value={atLimit} choices={AT_LIMIT} />
      </CommandForm>
    </section>
  )
}

function Credit({ account, onChanged }: { account: Account; onChanged: () => void }) {
  const amount = useSignal('')
  const reason = useSignal('')
  const because = reason.value.trim()
  const micros = microsIn(amount.value) ?? 0
  return (
    <section>
      <h2>Credit</h2>
      {account.credits.length > 0 && (
        <Table
          rows={account.credits}
          keyOf={({ id }) => id}
          caption="Credit that it was given"
          columns={[
            { title: 'For', head: true, value: (one) => one.reason },
            { title: 'Given', value: ({ granted_at: at }) => <Ago at={at} /> },
            { title: 'Amount', right: true, value: (one) => <Money micros={one.amount_micros} /> },
            { title: 'Left', right: true, value: (one) => <Money micros={one.left_micros} /> },
          ]}
        />
      )}
      <p class="dim">Its next invoices take it, the oldest first. What was given is not taken back.</p>
      <CommandForm
        label="Give credit"
        words={['account', 'credit', String(account.id), amount.value || 'AMOUNT', because || 'REASON']}
        isReady={micros > 0 && because !== '' && because.length <= 200}
        question={{
          confirm: amount.value,
          title: 'Give credit',
          warning: `${account.email ?? `Account ${account.id}`} has ${sayRate(micros)} more to use up then. It is not taken back.`,
        }}
        onDone={() => {
          amount.value = ''
          reason.value = ''
          onChanged()
        }}
      >
        <AmountField label="USD" value={amount} />
        <TextField label="What for" hint="The account sees it" autocomplete="off" maxLength={200} value={reason} />
      </CommandForm>
    </section>
  )
}

function Invoices({ account }: { account: Account }) {
  const { invoices, invoice_count: count } = account
  return (
    <section>
      <h2>Invoices</h2>
      {count === 0 ? (
        <p class="dim">None yet; a month is closed on the first of the next.</p>
      ) : (
        <Table
          rows={invoices}
          keyOf={({ number }) => number}
          caption="Invoices of the account"
          columns={[
            { title: 'Number', head: true, value: ({ number }) => <a href={`/invoices/${number}`}>{number}</a> },
            { title: 'Month', value: ({ month }) => sayMonth(month) },
            { title: 'Total', right: true, value: (one) => <Money micros={one.total_micros} /> },
          ]}
        />
      )}
      {count > invoices.length && (
        <p class="dim">
          The last {invoices.length} of {count}.
        </p>
      )}
    </section>
  )
}
