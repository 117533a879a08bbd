import { splitGraphemes } from '../commands/width.ts'

/**
 * A line being edited: what a reader sees as characters, and a cursor between them. Each method is one of the
 * emacs-style commands of readline; it returns false when there was nothing to do.
 */
export class LineBuffer {
  readonly #limit: number
  #graphemes: string[] = []
  #cursor = 0
  #killed = ''
  #killing = false

  /** @param limit characters at most */
  constructor(limit = 16 * 1024) {
    this.#limit = limit
  }

  get text(): string {
    return this.#graphemes.join('')
  }
  /** Never changed in place: a painter keeps what it drew. */
  get graphemes(): readonly string[] {
    return this.#graphemes
  }
  get cursor(): number {
    return this.#cursor
  }
  get beforeCursor(): string {
    return this.#graphemes.slice(0, this.#cursor).join('')
  }

  /** @returns false when not all of it had room */
  insert(text: string): boolean {
    if (!text) return true
    // Only the neighbourhood is segmented anew, because a combining mark may join the character before it.
    const from = Math.max(0, this.#cursor - 1)
    const joined = splitGraphemes(this.#graphemes.slice(from, this.#cursor).join('') + text)
    const room = this.#limit - (this.#graphemes.length - (this.#cursor - from))
    const kept = joined.slice(0, Math.max(0, room))
    this.#graphemes = [...this.#graphemes.slice(0, from), ...kept, ...this.#graphemes.slice(this.#cursor)]
    this.#cursor = from + kept.length
    this.#killing = false
    return kept.length === joined.length
  }

  set(text: string): void {
    this.#graphemes = splitGraphemes(text).slice(0, this.#limit)
    this.#cursor = this.#graphemes.length
    this.#killing = false
  }

  moveTo(position: number): boolean {
    const next = Math.max(0, Math.min(this.#graphemes.length, position))
    const moved = next !== this.#cursor
    this.#cursor = next
    this.#killing = false
    return moved
  }
  move(by: number): boolean {
    return this.moveTo(this.#cursor + by)
  }
  moveWord(direction: 1 | -1): boolean {
    return this.moveTo(this.#wordEdge(direction, isWordCharacter))
  }

  deleteBack(): boolean {
    return this.#remove(this.#cursor - 1, this.#cursor)
  }
  deleteForward(): boolean {
    return this.#remove(this.#cursor, this.#cursor + 1)
  }
  killToEnd(): boolean {
    return this.#kill(this.#cursor, this.#graphemes.length)
  }
  killToStart(): boolean {
    return this.#kill(0, this.#cursor)
  }
  killWordForward(): boolean {
    return this.#kill(this.#cursor, this.#wordEdge(1, isWordCharacter))
  }
  killWordBack(): boolean {
    return this.#kill(this.#wordEdge(-1, isWordCharacter), this.#cursor)
  }
  /** Ctrl-W: back to the blank before. */
  killBlankBack(): boolean {
    return this.#kill(
      this.#wordEdge(-1, (character) => !/^\s/.test(character)),
      this.#cursor,
    )
  }
  yank(): boolean {
    return this.#killed !== '' && this.insert(this.#killed)
  }
  /** Ctrl-T: swaps the two characters around the cursor. */
  transpose(): boolean {
    const right = this.#cursor === this.#graphemes.length ? this.#cursor - 1 : this.#cursor
    const before = this.#graphemes[right - 1]
    const after = this.#graphemes[right]
    if (before === undefined || after === undefined) return false
    this.#graphemes = this.#graphemes.toSpliced(right - 1, 2, after, before)
    this.#cursor = right + 1
    return true
  }
  /** Replaces a range of UTF-16 indexes that ends at the cursor: what completion does. */
  replaceBeforeCursor(start: number, replacement: string): void {
    const before = this.beforeCursor.slice(0, start) + replacement
    const after = this.#graphemes.slice(this.#cursor)
    const head = splitGraphemes(before)
    this.#graphemes = [...head, ...after].slice(0, this.#limit)
    this.#cursor = Math.min(head.length, this.#limit)
    this.#killing = false
  }

  #remove(from: number, to: number): boolean {
    if (from < 0 || to > this.#graphemes.length || from >= to) return false
    this.#graphemes = this.#graphemes.toSpliced(from, to - from)
    this.#cursor = from
    this.#killing = false
    return true
  }

  #kill(from: number, to: number): boolean {
    const text = this.#graphemes.slice(from, to).join('')
    if (!text) return false
    // Kills in a row are yanked together.
    const earlier = this.#killing ? this.#killed : ''
    const backwards = to === this.#cursor
    this.#killed = backwards ? text + earlier : earlier + text
    this.#remove(from, to)
    this.#killing = true
    return true
  }

  #wordEdge(direction: 1 | -1, inside: (grapheme: string) => boolean): number {
    const at = (position: number) => this.#graphemes[direction < 0 ? position - 1 : position]
    let position = this.#cursor
    const go = (wanted: boolean) => {
      for (
        let grapheme = at(position);
        grapheme !== undefined && inside(grapheme) === wanted;
        grapheme = at(position)
      ) {
        position += direction
      }
    }
    go(false)
    go(true)
    return position
  }
}

function isWordCharacter(grapheme: string): boolean {
  return /^[\p{L}\p{N}_]/u.test(grapheme)
}
