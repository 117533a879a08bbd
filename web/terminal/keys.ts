/** The bytes of keys that a phone's keyboard lacks. */

export type Arrow = 'up' | 'down' | 'right' | 'left'

const FINAL: Record<Arrow, string> = { up: 'A', down: 'B', right: 'C', left: 'D' }

/**
 * An arrow key as xterm sends it.
 * @param application whether the program asked for application cursor keys (DECCKM)
 * @see https://invisible-island.net/xterm/ctlseqs/ctlseqs.html, "PC-Style Function Keys"
 */
export function arrowKey(arrow: Arrow, { application, control }: { application: boolean; control: boolean }): string {
  if (control) return `\x1b[1;5${FINAL[arrow]}`
  return `${application ? '\x1bO' : '\x1b['}${FINAL[arrow]}`
}

/** What Ctrl makes of a character; one that it changes nothing about stays. */
export function withControl(character: string): string {
  if (character === ' ') return '\0'
  if (character === '?') return '\x7f'
  const code = character.toUpperCase().charCodeAt(0)
  return character.length === 1 && code >= 0x40 && code <= 0x5f ? String.fromCharCode(code & 0x1f) : character
}
