import './billing/billing.css'
import { useExec } from '../api/use-exec.ts'
import { CommandLine } from '../parts/CommandLine.tsx'
import { Failed } from '../parts/Failed.tsx'
import { Frame } from '../parts/Frame.tsx'
import { Money } from '../parts/figures.tsx'
import { Skeleton } from '../parts/Skeleton.tsx'
import { Table } from '../parts/Table.tsx'
import { sayMoney } from '../parts/words.ts'

import {
  type Credits,
  type Invoices,
  type Plan,
  type Rates,
  sayCaps,
  sayChange,
  sayInstant,
  sayMonth,
  sayRate,
  sayUnits,
} from './billing/documents.ts'
import { Limits } from './billing/Limits.tsx'
import { Notices } from './billing/Notices.tsx'
import { Party } from './billing/Party.tsx'
import { Payments } from './billing/payment.tsx'

/** The plan, what may be spent, credit and invoices. */
export function Page() {
  const plan = useExec<Plan>(['billing', 'plan'], ['audit', 'notices', 'day'])
  const { value, error, reload } = plan
  return (
    <Frame title="Billing">
      {value === undefined && error === undefined && <Skeleton lines={6} />}
      {error !== undefined && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value !== undefined && (
        <>
          <Notices />
          <PlanFacts plan={value} />
          <Limits plan={value} reload={reload} />
        </>
      )}
      {value?.takes_payments && <Payments />}
      <InvoiceList />
      <Party title="On your invoices" label="Set it" command={['billing', 'details']} topics={['audit']} />
      <CreditList />
      <RateList />
    </Frame>
  )
}

function PlanFacts({ plan }: { plan: Plan }) {
  const { caps, changes, fee_ahead_micros: ahead } = plan
  const charges = changes.find(({ charged }) => charged)?.from
  const most = sayCaps(caps)
  return (
    <dl class="facts">
      <dt>Plan</dt>
      <dd>
        <b>{plan.plan}</b>
        {!plan.charged &&
          (charges === undefined
            ? ': nothing is charged, and what is shown is what it would cost'
            : `: nothing is charged before ${charges} (UTC)`)}
      </dd>
      {plan.fee_micros > 0 && (
        <>
          <dt>Fee</dt>
          <dd>{sayRate(plan.fee_micros)} per month</dd>
        </>
      )}
      {most !== '' && (
        <>
          <dt>Up to</dt>
          <dd>{most}</dd>
        </>
      )}
      <dt>{sayMonth(plan.month)} so far</dt>
      <dd>
        <Money micros={plan.charged || plan.spent_micros > 0 ? plan.spent_micros : plan.total_micros} />{' '}
        <span class="dim">in UTC{ahead > 0 && `, ${sayMoney(ahead)} of it the fee of days to come`}</span>{' '}
        <a href="/usage">What costs what</a>
      </dd>
      {plan.credit_micros > 0 && (
        <>
          <dt>Credit</dt>
          <dd>
            <Money micros={plan.credit_micros} /> left
          </dd>
        </>
      )}
      {changes.map((change, index) => (
        <>
          <dt key={`${change.from} when`}>From {change.from}</dt>
          <dd key={change.from}>{sayChange(change, changes[index - 1]?.charged ?? plan.charged)}</dd>
        </>
      ))}
    </dl>
  )
}

function InvoiceList() {
  const { value, error, reload } = useExec<Invoices>(['billing', 'invoices'], ['audit'])
  return (
    <section>
      <h2>Invoices</h2>
      {value === undefined && error === undefined && <Skeleton lines={2} />}
      {error !== undefined && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value?.invoices.length === 0 && <p class="dim">None yet. A month is closed on the first of the next, in UTC.</p>}
      {value !== undefined && value.invoices.length > 0 && (
        <Table
          caption="Invoices, newest first"
          rows={value.invoices}
          keyOf={({ number }) => number}
          columns={[
            {
              title: 'Month (UTC)',
              head: true,
              value: ({ number, month }) => <a href={`/invoices/${number}`}>{sayMonth(month)}</a>,
            },
            { title: 'Number', right: true, value: ({ number }) => number },
            {
              title: 'Closed',
              value: ({ closed_at: at }) => <span class="figure">{sayInstant(at).slice(0, 10)}</span>,
            },
            { title: 'Total', right: true, value: ({ total_micros: micros }) => <Money micros={micros} /> },
            ...(value.invoices.some(({ payment }) => payment)
              ? [{ title: 'State', value: ({ payment }: Invoices['invoices'][number]) => payment?.words ?? '' }]
              : []),
            {
              title: 'Download',
              value: ({ number, month }) => (
                <span class="buttons">
                  <a href={`/invoices/${number}.csv`} download aria-label={`CSV of ${sayMonth(month)}`}>
                    CSV
                  </a>
                  <a href={`/invoices/${number}.json`} download aria-label={`JSON of ${sayMonth(month)}`}>
                    JSON
                  </a>
                </span>
              ),
            },
          ]}
        />
      )}
    </section>
  )
}

function CreditList() {
  const { value } = useExec<Credits>(['billing', 'credits'], ['audit'])
  if (value === undefined || value.credits.length === 0) return null
  return (
    <section>
      <h2>Credit</h2>
      <Table
        caption="Credit, oldest first, as invoices take it"
        rows={value.credits}
        keyOf={({ id }) => id}
        columns={[
          { title: 'For', head: true, value: ({ reason }) => reason },
          {
            title: 'Given (UTC)',
            value: ({ granted_at: at }) => <span class="figure">{sayInstant(at).slice(0, 10)}</span>,
          },
          { title: 'Amount', right: true, value: (one) => <Money micros={one.amount_micros} /> },
          { title: 'Left', right: true, value: (one) => <Money micros={one.left_micros} /> },
        ]}
        foot={['Sum', '', '', <Money key="sum" micros={value.balance_micros} />]}
      />
    </section>
  )
}

function RateList() {
  const { value, error, reload } = useExec<Rates>(['billing', 'rates'], ['audit', 'notices', 'day'])
  return (
    <section>
      <h2>What things cost</h2>
      {value === undefined && error === undefined && <Skeleton lines={4} />}
      {error !== undefined && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {value !== undefined && (
        <Table
          caption={`Rates of plan ${value.plan}`}
          rows={value.rates}
          keyOf={({ kind, from }) => `${kind} ${from}`}
          columns={[
            { title: 'What', head: true, value: ({ kind }) => kind },
            { title: 'Rate', value: ({ rate_micros: micros, unit }) => `${sayRate(micros)} per ${unit}` },
            {
              title: 'Included a month',
              value: ({ included, unit }) => (included === 0 ? '' : sayUnits(included.toLocaleString('en'), unit)),
            },
            { title: 'From (UTC)', value: ({ from }) => from && <span class="figure">{from}</span> },
          ]}
        />
      )}
      <p class="dim same">A GiB-month is a GiB for a whole calendar month in UTC; a GB is 10⁹ bytes.</p>
      <CommandLine words={['billing', 'rates']} />
    </section>
  )
}
