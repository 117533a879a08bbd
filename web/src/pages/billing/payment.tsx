import './payment.css'
import { useExec } from '../../api/use-exec.ts'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Dot, type Mood } from '../../parts/Dot.tsx'
import { Failed } from '../../parts/Failed.tsx'
import { Money } from '../../parts/figures.tsx'
import { Skeleton } from '../../parts/Skeleton.tsx'
import { Table } from '../../parts/Table.tsx'
import { Ago } from '../../parts/time.tsx'
import { sayMonth } from './documents.ts'

/** As `billing method --json` has it. */
type Method = {
  method: { kind: string; brand: string | null; last4: string | null; expires: string | null } | null
  /** something may be given on a page of Stripe's meanwhile */
  pending: boolean
  /** no money moves */
  test: boolean
  as_of: string | null
  stale_because?: string
}

/** As `billing payments --json` has it. */
type Payment = {
  invoice: number
  month: string
  total_micros: number
  status: 'waiting' | 'draft' | 'open' | 'paid' | 'void' | 'uncollectible'
  paid_micros: number
  /** of the total, put off to the next invoice; negative: of earlier ones, charged with this */
  carried_micros: number
  refunded_micros: number
  disputed: boolean
  lost_micros: number
  failure: string | null
  url: string | null
  /** paid otherwise than by Stripe */
  noted: { on: string; note: string | null } | null
}

/** What is paid with, what is open and what was paid. */
export function Payments() {
  // Not at each record: it may ask Stripe, and an operator hears of every account's.
  const method = useExec<Method>(['billing', 'method'])
  const payments = useExec<{ payments: Payment[] }>(['billing', 'payments'], ['audit'])
  const reload = () => {
    method.reload()
    payments.reload()
  }
  const error = method.error ?? payments.error
  const open = payments.value?.payments.filter(({ status }) => status === 'open') ?? []
  return (
    <section class="payment" aria-labelledby="payment">
      <h2 id="payment">Payment</h2>
      {!method.value && !error && <Skeleton lines={3} label="Loading what is paid with" />}
      {error && <Failed error={error} wayOn={{ label: 'Try again', act: reload }} />}
      {method.value && <PaidWith asked={method.value} />}
      {method.value && (
        <div class="buttons">
          <CommandButton
            words={['billing', 'method', '--add']}
            kind={method.value.method ? 'plain' : 'main'}
            onDone={follow}
          >
            {method.value.method ? 'Pay with something else' : 'Give something to pay with'}
          </CommandButton>
          {(method.value.method || (payments.value?.payments.length ?? 0) > 0) && (
            <CommandButton words={['billing', 'method', '--manage']} onDone={follow}>
              Cards and receipts
            </CommandButton>
          )}
          {open.length > 0 && method.value.method && (
            <CommandButton words={['billing', 'pay']} onDone={reload} onFailed={reload}>
              {open.length === 1 ? 'Pay the open invoice now' : `Pay ${open.length} open invoices now`}
            </CommandButton>
          )}
        </div>
      )}
      {payments.value && payments.value.payments.length > 0 && <Paid payments={payments.value.payments} />}
    </section>
  )
}

/** To a page of Stripe's, which leads back here. */
function follow(document: unknown): void {
  const { url } = document as { url: string }
  if (url.startsWith('https://')) location.assign(url)
}

function PaidWith({ asked }: { asked: Method }) {
  const { method, pending, test, as_of: asOf, stale_because: because } = asked
  return (
    <>
      <p>{method ? <>Paid with {sayMethod(method)}.</> : 'Nothing was given to pay with yet.'}</p>
      {pending && !method && <p class="dim">A page to give something is open. What is given there shows here.</p>}
      {test && <p class="dim">Stripe is in test mode: no money moves.</p>}
      {because !== undefined && (
        <p class="dim">
          {because}. This was so {asOf === null ? 'a while ago' : <Ago at={asOf} />}.
        </p>
      )}
      <p class="dim">It is given on a page of Stripe’s and never passes through this Berth.</p>
    </>
  )
}

function sayMethod({ kind, brand, last4, expires }: NonNullable<Method['method']>): string {
  const name = (brand ?? kind).replaceAll('_', ' ')
  return `${name}${last4 === null ? '' : ` ending in ${last4}`}${expires === null ? '' : `, good until ${expires}`}`
}

function Paid({ payments }: { payments: readonly Payment[] }) {
  return (
    <Table
      rows={payments}
      keyOf={({ invoice }) => invoice}
      caption="Payments"
      columns={[
        { title: 'Invoice', head: true, value: ({ invoice }) => <a href={`/invoices/${invoice}`}>{invoice}</a> },
        { title: 'Month', value: ({ month }) => sayMonth(month) },
        { title: 'Total', right: true, value: ({ total_micros: total }) => <Money micros={total} /> },
        { title: 'State', value: (payment) => <State payment={payment} /> },
        {
          title: 'At Stripe',
          value: ({ url, status, invoice }) =>
            url?.startsWith('https://') ? (
              <a href={url} rel="noreferrer">
                {status === 'open' ? 'Pay there' : 'Receipt'} <span class="hidden">of invoice {invoice}</span>
              </a>
            ) : (
              '–'
            ),
        },
      ]}
    />
  )
}

const STATES: Record<Payment['status'], { word: string; mood: Mood }> = {
  waiting: { word: 'on its way to Stripe', mood: 'wait' },
  draft: { word: 'on its way to Stripe', mood: 'wait' },
  open: { word: 'open', mood: 'wait' },
  paid: { word: 'paid', mood: 'well' },
  void: { word: 'taken back', mood: 'rest' },
  uncollectible: { word: 'given up', mood: 'rest' },
}

const PUT_OFF: { word: string; mood: Mood } = { word: 'to be paid with the next one', mood: 'rest' }

function State({ payment }: { payment: Payment }) {
  const { status, failure, paid_micros: paid, carried_micros: carried, disputed } = payment
  const { word, mood } = status === 'paid' && paid === 0 && carried > 0 ? PUT_OFF : STATES[status]
  const isRefused = status === 'open' && failure !== null
  return (
    <span>
      <Dot status={isRefused ? 'not paid' : word} mood={isRefused ? 'bad' : mood} />
      {payment.noted && ` on ${payment.noted.on}${payment.noted.note === null ? '' : ` (${payment.noted.note})`}`}
      {isRefused && <span class="error"> {failure}</span>}
      <Amount micros={status === 'open' ? paid : 0} word="of it paid" />
      <Amount micros={-carried} word="of earlier ones with it" />
      <Amount micros={payment.refunded_micros} word="given back" />
      {disputed && ', disputed'}
      <Amount micros={payment.lost_micros} word="lost to a dispute" />
    </span>
  )
}

/** Nothing where there is none. */
function Amount({ micros, word }: { micros: number; word: string }) {
  if (micros <= 0) return null
  return (
    <>
      , <Money micros={micros} /> {word}
    </>
  )
}
