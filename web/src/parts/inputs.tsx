/** Controls that show a signal and set it. */
import type { Signal } from '@preact/signals'
import type { ComponentChildren, InputHTMLAttributes } from 'preact'
import { Field } from './Field.tsx'

type Labelled = { label: string; hint?: ComponentChildren; error?: string | undefined; value: Signal<string> }
type Attributes = {
  type?: 'text' | 'email' | 'date'
  inputMode?: 'text' | 'numeric' | 'decimal'
  class?: string
  placeholder?: string | undefined
  maxLength?: number
  autocomplete?: 'off'
  autocapitalize?: 'none'
  spellcheck?: boolean
}

/** A name, a number, an address: it means something to Berth as it stands, and blanks around it mean nothing. */
const EXACT = { autocapitalize: 'none', autocomplete: 'off', spellcheck: false } as const

/** One line. @param isExact no sentence: nothing is corrected, and blanks around it are left out */
export function TextField({
  label,
  hint,
  error,
  value,
  isExact = false,
  ...attributes
}: Labelled & Attributes & { isExact?: boolean }) {
  return (
    <Field label={label} hint={hint} error={error}>
      <input
        {...(isExact ? EXACT : {})}
        {...(attributes as InputHTMLAttributes<HTMLInputElement>)}
        value={value.value}
        onInput={({ currentTarget }) => {
          value.value = isExact ? currentTarget.value.trim() : currentTarget.value
        }}
      />
    </Field>
  )
}

/** One of a few. */
export function SelectField({
  label,
  hint,
  error,
  value,
  choices,
}: Labelled & { choices: readonly (readonly [value: string, text: string])[] }) {
  return (
    <Field label={label} hint={hint} error={error}>
      <select
        value={value.value}
        onChange={({ currentTarget }) => {
          value.value = currentTarget.value
        }}
      >
        {choices.map(([one, text]) => (
          <option key={one} value={one}>
            {text}
          </option>
        ))}
      </select>
    </Field>
  )
}

/** Yes or no. */
export function Check({ value, children }: { value: Signal<boolean>; children: ComponentChildren }) {
  return (
    <label class="check">
      <input
        type="checkbox"
        checked={value.value}
        onChange={({ currentTarget }) => {
          value.value = currentTarget.checked
        }}
      />
      {children}
    </label>
  )
}

/** As the lobby takes an amount (gateway/billing/money.ts). */
const AMOUNT = /^\$?\d{1,9}(\.\d{1,6})?$/

/** @returns millionths of a dollar; undefined where the text is no amount */
export function microsIn(text: string): number | undefined {
  return AMOUNT.test(text) ? Math.round(Number(text.replace('$', '')) * 1e6) : undefined
}

/** An amount in USD. @param example said where it is none */
export function AmountField({
  error,
  example = '50 or 12.50',
  isRight = (text) => microsIn(text) !== undefined,
  inputMode = 'decimal',
  value,
  ...labelled
}: Labelled & { example?: string; isRight?: (text: string) => boolean; inputMode?: 'decimal' | 'text' }) {
  const problem = value.value === '' || isRight(value.value) ? undefined : `Such as ${example}`
  return <TextField {...labelled} value={value} isExact inputMode={inputMode} error={error ?? problem} />
}
