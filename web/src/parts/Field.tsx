import type { ComponentChildren, InputHTMLAttributes } from 'preact'
import { cloneElement, isValidElement } from 'preact'
import { useId } from 'preact/hooks'

/**
 * A labelled control with its hint and what is wrong with it, all told to a screen reader.
 *
 *     <Field label="Name" hint="a-z, 0-9 and single hyphens" error={error}><input value={name} onInput={..} /></Field>
 */
export function Field({
  label,
  hint,
  error,
  children,
}: {
  label: string
  hint?: ComponentChildren
  error?: string | undefined
  children: ComponentChildren
}) {
  const id = useId()
  const control = isValidElement(children)
    ? cloneElement(children, {
        id,
        'aria-invalid': error === undefined ? undefined : true,
        'aria-describedby': [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(' ') || undefined,
      } as InputHTMLAttributes<HTMLInputElement>)
    : children
  return (
    <div class="field">
      <label for={id}>{label}</label>
      {control}
      {hint && (
        <p id={`${id}-hint`} class="dim">
          {hint}
        </p>
      )}
      {error !== undefined && (
        <p id={`${id}-error`} class="error">
          {error}
        </p>
      )}
    </div>
  )
}
