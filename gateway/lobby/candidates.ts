import { textWidth, truncate } from '../commands/width.ts'

const LISTED = 120

/** What all of them begin with. */
export function commonPrefix(texts: readonly string[]): string {
  const [first = '', ...others] = texts
  let length = first.length
  for (const other of others) {
    let same = 0
    while (same < length && other[same] === first[same]) same++
    length = same
  }
  return first.slice(0, length)
}

/** Candidates as a shell lists them: in columns, read downwards. @returns rows */
export function inColumns(candidates: readonly string[], columns: number): string[] {
  const shown = candidates.slice(0, LISTED).map((candidate) => candidate.trimEnd())
  const width = Math.min(columns, Math.max(...shown.map(textWidth)) + 2)
  const perRow = Math.max(1, Math.floor(columns / width))
  const rowCount = Math.ceil(shown.length / perRow)
  const rows = Array.from({ length: rowCount }, (_, row) =>
    shown
      .filter((_, index) => index % rowCount === row)
      .map((text) => truncate(text, width - 1))
      .map((text) => text + ' '.repeat(Math.max(0, width - textWidth(text))))
      .join('')
      .trimEnd(),
  )
  if (candidates.length > LISTED) rows.push(`and ${candidates.length - LISTED} more`)
  return rows
}
