import { useSignal } from '@preact/signals'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { Field } from '../../parts/Field.tsx'
import { sayMoney } from '../../parts/words.ts'
import type { Limit, Plan } from './documents.ts'

/** As the lobby takes an amount (gateway/billing/money.ts). */
const AMOUNT = /^\$?\d{1,9}(\.\d{1,6})?$/

/** What a month may cost: what is set, and the form that sets it. */
export function Limits({
  plan: { limits, over_limit: isOver, spent_micros: spent },
  reload,
}: {
  plan: Plan
  reload: () => void
}) {
  const own = limits.find(({ set_by: by }) => by === 'account')
  const amount = useSignal(own ? String(own.amount_micros / 1e6) : '')
  const hard = useSignal(own?.hard === true)
  const error = useSignal<string | undefined>(undefined)
  const isAmount = AMOUNT.test(amount.value) && Number(amount.value.replace('$', '')) > 0
  const done = () => {
    error.value = undefined
    reload()
  }
  const failed = (problem: Error) => {
    error.value = problem.message
  }
  return (
    <section>
      <h2>Limit</h2>
      {limits.length === 0 && <p class="dim">None is set. A mail goes out at 80 and at 100 % of one.</p>}
      {limits.map((limit) => (
        <p key={limit.set_by}>
          {sayLimit(limit)}
          {isOver && limit.hard && spent >= limit.amount_micros && (
            <span class="error">
              {' '}
              It is reached: nothing wakes or starts until the month is over or the limit is higher.
            </span>
          )}
        </p>
      ))}
      <form class="limit" onSubmit={(event) => event.preventDefault()}>
        <Field
          label="USD a month"
          error={error.value ?? (amount.value === '' || isAmount ? undefined : 'An amount such as 50 or 12.50')}
        >
          <input
            inputMode="decimal"
            autocomplete="off"
            value={amount.value}
            onInput={({ currentTarget }) => {
              error.value = undefined
              amount.value = currentTarget.value.trim()
            }}
          />
        </Field>
        <label class="check">
          <input
            type="checkbox"
            checked={hard.value}
            onChange={({ currentTarget }) => {
              hard.value = currentTarget.checked
            }}
          />
          Pause machines there
        </label>
        <span class="buttons">
          <CommandButton
            kind="main"
            disabled={!isAmount}
            words={() => ['billing', 'limit', amount.value.replace('$', ''), ...(hard.value ? ['--hard'] : [])]}
            undo={wordsOf(own)}
            onDone={done}
            onFailed={failed}
          >
            Set the limit
          </CommandButton>
          {own && (
            <CommandButton words={['billing', 'limit', 'none']} undo={wordsOf(own)} onDone={done} onFailed={failed}>
              Take it away
            </CommandButton>
          )}
        </span>
      </form>
    </section>
  )
}

function sayLimit({ set_by: by, amount_micros: micros, hard }: Limit): string {
  const whose = by === 'operator' ? ', set by the operator' : ''
  return `${sayMoney(micros)} a month${whose}: ${hard ? 'machines are paused there, with all that runs in them, and nothing is deleted.' : 'mail at 80 and 100 %, nothing else.'}`
}

/** What sets it again as it was. */
function wordsOf(limit: Limit | undefined): readonly string[] {
  if (!limit) return ['billing', 'limit', 'none']
  return ['billing', 'limit', String(limit.amount_micros / 1e6), ...(limit.hard ? ['--hard'] : [])]
}
