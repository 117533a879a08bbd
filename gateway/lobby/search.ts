/** Ctrl-R: the newest line that contains what is typed, older ones by Ctrl-R again. */
export class HistorySearch {
  static readonly #limit = 200
  readonly #lines: readonly string[]
  #wanted = ''
  #index: number
  found: string | undefined

  constructor(lines: readonly string[]) {
    this.#lines = lines
    this.#index = lines.length
  }

  get prompt(): string {
    return `(search) '${this.#wanted}': `
  }

  /** @returns false when no line has it, or nobody would type as much; the last line found stays */
  extend(text: string): boolean {
    if (this.#wanted.length + text.length > HistorySearch.#limit) return false
    this.#wanted += text
    return this.#find(this.#index)
  }
  shorten(): void {
    this.#wanted = Array.from(this.#wanted).slice(0, -1).join('')
    this.#find(this.#lines.length - 1)
  }
  older(): boolean {
    return this.#find(this.#index - 1)
  }

  #find(from: number): boolean {
    if (!this.#wanted) return true
    for (let index = Math.min(from, this.#lines.length - 1); index >= 0; index--) {
      if (this.#lines[index]?.includes(this.#wanted)) {
        this.#index = index
        this.found = this.#lines[index]
        return true
      }
    }
    return false
  }
}
