import type { ComponentChildren } from 'preact'

export type Column<T> = {
  /** the heading; also stands before the value on a phone */
  title: string
  value: (row: T) => ComponentChildren
  /** figures stand at the right */
  right?: boolean
  /** the row's name: a heading to a screen reader, and first on a phone */
  head?: boolean
  /** is left out on a phone */
  wideOnly?: boolean
}

/** A plain table; on a phone each row is a card. For some thousands of rows take `limit`, and say what was left out. */
export function Table<T>({
  rows,
  columns,
  keyOf,
  caption,
  limit = 500,
  foot,
}: {
  rows: readonly T[]
  columns: readonly Column<T>[]
  keyOf: (row: T) => string | number
  /** what the table is of, for a screen reader */
  caption: string
  limit?: number
  /** the last row: sums */
  foot?: readonly ComponentChildren[]
}) {
  return (
    <div class="table">
      <table>
        <caption class="hidden">{caption}</caption>
        <thead>
          <tr>
            {columns.map(({ title, right, wideOnly }) => (
              <th key={title} scope="col" class={classes(right, wideOnly)}>
                {title}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.slice(0, limit).map((row) => (
            <tr key={keyOf(row)}>
              {columns.map(({ title, value, right, head, wideOnly }) =>
                head ? (
                  <th key={title} scope="row" class={classes(right, wideOnly)}>
                    {value(row)}
                  </th>
                ) : (
                  <td key={title} data-title={title} class={classes(right, wideOnly)}>
                    {value(row)}
                  </td>
                ),
              )}
            </tr>
          ))}
        </tbody>
        {foot && (
          <tfoot>
            <tr>
              {foot.map((part, index) => (
                <td
                  key={index}
                  data-title={index === 0 ? undefined : columns[index]?.title}
                  class={classes(columns[index]?.right, columns[index]?.wideOnly)}
                >
                  {part}
                </td>
              ))}
            </tr>
          </tfoot>
        )}
      </table>
      {rows.length > limit && (
        <p class="dim">
          {limit} of {rows.length} are shown.
        </p>
      )}
    </div>
  )
}

function classes(right: boolean | undefined, wideOnly: boolean | undefined): string | undefined {
  return [right && 'right', wideOnly && 'wide-only'].filter(Boolean).join(' ') || undefined
}
