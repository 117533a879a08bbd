import './operator/operator.css'
import { useExec } from '../api/use-exec.ts'
import { Dot } from '../parts/Dot.tsx'
import { Empty } from '../parts/Empty.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Frame } from '../parts/Frame.tsx'
import { isPhone } from '../parts/media.ts'
import { Skeleton } from '../parts/Skeleton.tsx'
import { Table } from '../parts/Table.tsx'
import { Ago } from '../parts/time.tsx'
import { query, setQuery } from '../router.ts'
import { moodOfAccount, stateOfAccount } from './operator/account-words.ts'

/** As `account ls --json` has it. */
type Account = {
  id: number
  email: string | null
  owner: boolean
  suspended: boolean
  over_limit: boolean
  machines: number
  machines_most: number | null
  plan: string
  created_at: string
}

/** Who has an account here. */
export function Page() {
  const { value, error, reload } = useExec<{ accounts: Account[] }>(['account', 'ls'], ['accounts', 'day'])
  const filter = query.value.get('filter') ?? ''
  const all = value?.accounts ?? []
  const shown = all.filter((account) => fits(account, filter))
  return (
    <Frame
      title="Accounts"
      wide
      actions={
        all.length > 0 && (
          <input
            id="filter"
            type="search"
            aria-label="Filter"
            placeholder={isPhone.value ? 'Filter' : 'Filter: address, number, plan, state'}
            autocomplete="off"
            autocapitalize="none"
            spellcheck={false}
            value={filter}
            onInput={(event) => setQuery({ filter: event.currentTarget.value })}
          />
        )
      }
    >
      {!value && !error && <Skeleton lines={8} label="Loading the accounts" />}
      {error && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value && all.length < 2 && (
        <Empty words={['invite', 'new']}>Nobody else has an account here. An invitation makes one.</Empty>
      )}
      {shown.length > 0 && (
        <Table
          rows={shown}
          keyOf={({ id }) => id}
          caption="Accounts"
          columns={[
            {
              title: 'Account',
              head: true,
              value: ({ id, email }) => <a href={`/accounts/${id}`}>{email ?? `account ${id}`}</a>,
            },
            { title: 'Number', right: true, wideOnly: true, value: ({ id }) => id },
            {
              title: 'State',
              value: (account) => <Dot status={stateOfAccount(account)} mood={moodOfAccount(account)} />,
            },
            { title: 'Plan', value: ({ plan }) => plan },
            {
              title: 'Machines',
              right: true,
              value: ({ machines, machines_most: most }) => (most === null ? machines : `${machines} of ${most}`),
            },
            { title: 'Since', wideOnly: true, value: ({ created_at: at }) => <Ago at={at} /> },
          ]}
        />
      )}
      {value && shown.length === 0 && (
        <p>
          No account fits.{' '}
          <button type="button" class="small" onClick={() => setQuery({ filter: undefined })}>
            Show all
          </button>
        </p>
      )}
      {value && shown.length > 0 && (
        <p class="dim" role="status">
          {shown.length === all.length
            ? `${all.length} ${all.length === 1 ? 'account' : 'accounts'}`
            : `${shown.length} of ${all.length} accounts`}
          .
        </p>
      )}
    </Frame>
  )
}

function fits(account: Account, filter: string): boolean {
  const text = `${account.email ?? ''} ${account.id} ${account.plan} ${stateOfAccount(account)}`.toLowerCase()
  return filter
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word))
}
