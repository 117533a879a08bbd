const graphemes = new Intl.Segmenter('en', { granularity: 'grapheme' })

/** What a reader sees as single characters, in order. */
export function splitGraphemes(text: string): string[] {
  return Array.from(graphemes.segment(text), (part) => part.segment)
}

/**
 * Columns that a text takes on a terminal, control characters counted as none.
 * @see Unicode Standard Annex 11, East Asian Width
 */
export function textWidth(text: string): number {
  // The common case, and by far the most of a large paste.
  if (/^[\u0020-\u007e]*$/.test(text)) return text.length
  let width = 0
  for (const grapheme of splitGraphemes(text)) width += graphemeWidth(grapheme)
  return width
}

export function graphemeWidth(grapheme: string): number {
  const code = grapheme.codePointAt(0) ?? 0
  if (code < 0x20 || (code >= 0x7f && code < 0xa0)) return 0
  if (code < 0x300) return 1
  if (/^[\p{Mn}\p{Me}\p{Cf}]/u.test(grapheme)) return 0
  // A pictograph shown as one, by its own nature or because a variation selector asks for it.
  if (/\p{Emoji_Presentation}/u.test(grapheme) || grapheme.includes('\ufe0f')) return 2
  return isWide(code) ? 2 : 1
}

function isWide(code: number): boolean {
  return (
    (code >= 0x1100 && code <= 0x115f) ||
    (code >= 0x2e80 && code <= 0x303e) ||
    (code >= 0x3041 && code <= 0xa4cf && code !== 0x303f) ||
    (code >= 0xa960 && code <= 0xa97c) ||
    (code >= 0xac00 && code <= 0xd7a3) ||
    (code >= 0xf900 && code <= 0xfaff) ||
    (code >= 0xfe30 && code <= 0xfe6f) ||
    (code >= 0xff00 && code <= 0xff60) ||
    (code >= 0xffe0 && code <= 0xffe6) ||
    (code >= 0x1b000 && code <= 0x1b2ff) ||
    (code >= 0x20000 && code <= 0x3fffd)
  )
}

/** Cuts a text to at most `columns`, with an ellipsis when something is lost. */
export function truncate(text: string, columns: number): string {
  if (textWidth(text) <= columns) return text
  let kept = ''
  let width = 0
  for (const grapheme of splitGraphemes(text)) {
    const next = graphemeWidth(grapheme)
    if (width + next > columns - 1) break
    kept += grapheme
    width += next
  }
  return columns > 0 ? `${kept}…` : ''
}
