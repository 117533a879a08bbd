import { useSignal } from '@preact/signals'
import { CommandButton } from '../../parts/CommandButton.tsx'
import { AmountField, Check, microsIn } from '../../parts/inputs.tsx'
import { sayMoney } from '../../parts/words.ts'
import { type Limit, type Plan, sayRate } from './documents.ts'

/** What a month may cost: what is set, and the form that sets it. */
export function Limits({
  plan: { limits, over_limit: isOver, spent_micros: spent, fee_ahead_micros: ahead, charged },
  reload,
}: {
  plan: Plan
  reload: () => void
}) {
  const own = limits.find(({ set_by: by }) => by === 'account')
  const amount = useSignal(own ? String(own.amount_micros / 1e6) : '')
  const hard = useSignal(own?.hard === true)
  const error = useSignal<{ amount: string; message: string } | undefined>(undefined)
  const micros = microsIn(amount.value) ?? 0
  const done = () => {
    error.value = undefined
    reload()
  }
  const failed = (problem: Error) => {
    error.value = { amount: amount.value, message: problem.message }
  }
  return (
    <section>
      <h2>Limit</h2>
      {limits.length === 0 && <p class="dim">None is set. You are told at 80 and at 100 % of one, by mail too.</p>}
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
      <p class="dim">
        {charged || spent > ahead
          ? 'What runs is counted every few minutes: machines may run on for up to seven minutes, which is charged.'
          : 'Your plan charges nothing, so no limit is reached while you are on it.'}
      </p>
      <form class="limit" onSubmit={(event) => event.preventDefault()}>
        <AmountField
          label="USD a month"
          value={amount}
          isRight={(text) => (microsIn(text) ?? 0) > 0}
          error={error.value?.amount === amount.value ? error.value.message : undefined}
        />
        <Check value={hard}>Pause machines there</Check>
        <span class="buttons">
          <CommandButton
            kind="main"
            disabled={micros === 0}
            {...(hard.value && micros > 0 && micros <= spent ? askBeforePause(amount.value, micros, spent) : {})}
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

/** What is asked before a hard limit is set that is reached already. */
export function askBeforePause(amount: string, micros: number, spentMicros: number, whose = 'your') {
  return {
    confirm: amount,
    title: 'Pause every machine',
    warning: `${sayMoney(spentMicros)} were spent this month already, and the limit would be ${sayRate(micros)}: ${whose} machines are paused at once, with all that runs in them. Nothing wakes or starts until the limit is higher or the month is over.`,
    brings: 'Undo sets the limit as it was; what was paused waits for Resume.',
  }
}

function sayLimit({ set_by: by, amount_micros: micros, hard }: Limit): string {
  const whose = by === 'operator' ? ', set by the operator' : ''
  return `${sayRate(micros)} a month${whose}: ${hard ? 'machines are paused there, with all that runs in them, and nothing is deleted.' : 'mail at 80 and 100 %, nothing else.'}`
}

/** What sets it again as it was. */
function wordsOf(limit: Limit | undefined): readonly string[] {
  if (!limit) return ['billing', 'limit', 'none']
  return ['billing', 'limit', String(limit.amount_micros / 1e6), ...(limit.hard ? ['--hard'] : [])]
}
