import { setQuery } from '../../router.ts'

/** One of a few, kept in the address under `name`; the first is what is there without it. */
export function Choice<T extends string>({
  name,
  label,
  choices,
  chosen,
}: {
  name: string
  label: string
  choices: readonly (readonly [value: T, label: string])[]
  chosen: T
}) {
  return (
    <fieldset class="choice">
      <legend class="hidden">{label}</legend>
      {choices.map(([value, text], index) => (
        <label key={value}>
          <input
            type="radio"
            name={name}
            value={value}
            checked={value === chosen}
            onChange={() => setQuery({ [name]: index === 0 ? undefined : value })}
          />
          <span>{text}</span>
        </label>
      ))}
    </fieldset>
  )
}
