import { usageError } from './error.ts'

/** A word of a line and where it stands, for completion. */
export type Word = {
  text: string
  /** first byte of the word in the line, quotes included (UTF-16 index) */
  start: number
  end: number
  /** the quote that is still open at the end of the line */
  open?: "'" | '"' | '\\'
  quoted: boolean
}

/** The longest line that is read. */
export const LINE_LIMIT_BYTES = 256 * 1024

const OPERATORS = new Set(['|', '&', ';', '<', '>', '(', ')', '\n'])
const ESCAPED_IN_QUOTES = new Set(['"', '\\', '$', '`', '\n'])

/**
 * Splits a line as a POSIX shell would (XCU 2.2 Quoting), without expansions and comments: `$`, `*`, `~` and `#` are
 * ordinary characters, because the person's own shell has had its turn.
 * @throws CommandError (usage) for an open quote and for operators, which the lobby does not have
 */
export function splitWords(line: string): string[] {
  const words = scanWords(line.replace(/\r?\n$/, ''))
  const open = words.at(-1)?.open
  if (open === '\\') throw usageError('the line ends in a backslash, and nothing follows it')
  if (open) throw usageError(`a ${open === "'" ? 'single' : 'double'} quote is not closed`, wayOn(open))
  return words.map((word) => word.text)
}

function wayOn(open: "'" | '"'): string {
  const other = open === '"' ? "'" : '"'
  return `close it with another ${open}, or write ${other}${open}${other} where ${open} itself is meant`
}

/** The same, but an unfinished last word is returned with what is open, and operators end a word silently when `lenient`. */
export function scanWords(line: string, lenient = false): Word[] {
  const words: Word[] = []
  let index = 0
  while (index < line.length) {
    const character = line[index] ?? ''
    if (character === ' ' || character === '\t' || character === '\r') {
      index++
      continue
    }
    if (OPERATORS.has(character)) {
      if (!lenient) throw operatorError(line, index, words)
      index++
      continue
    }
    const word = scanWord(line, index)
    words.push(word)
    index = word.end
  }
  return words
}

function scanWord(line: string, start: number): Word {
  let text = ''
  let quoted = false
  let index = start
  while (index < line.length) {
    const character = line[index] ?? ''
    if (character === ' ' || character === '\t' || character === '\r' || OPERATORS.has(character)) break
    if (character === '\\') {
      quoted = true
      const next = line[index + 1]
      if (next === undefined) return { text, start, end: line.length, open: '\\', quoted }
      // A backslash before a newline joins the lines.
      if (next !== '\n') text += next
      index += 2
    } else if (character === "'") {
      quoted = true
      const close = line.indexOf("'", index + 1)
      if (close < 0) return { text: text + line.slice(index + 1), start, end: line.length, open: "'", quoted }
      text += line.slice(index + 1, close)
      index = close + 1
    } else if (character === '"') {
      quoted = true
      index++
      while (line[index] !== '"') {
        if (index >= line.length) return { text, start, end: line.length, open: '"', quoted }
        const inner = line[index] ?? ''
        const next = line[index + 1]
        if (inner === '\\' && next !== undefined && ESCAPED_IN_QUOTES.has(next)) {
          if (next !== '\n') text += next
          index += 2
        } else {
          text += inner
          index++
        }
      }
      index++
    } else {
      text += character
      index++
    }
  }
  return { text, start, end: index, quoted }
}

function operatorError(line: string, index: number, words: Word[]) {
  const operator = line[index] === '\n' ? 'a line break' : `'${line[index]}'`
  const machine = words[0]?.text === 'ssh' ? words[1]?.text : undefined
  return machine
    ? usageError(
        `${operator} is for the machine's shell and must be quoted here`,
        `ssh ${machine} '${line.slice((words[1]?.end ?? 0) + 1).trim()}'`,
      )
    : usageError(`the lobby runs one command a line and has no ${operator}`, 'quote it if it is part of a text')
}

/** Quotes a word so that `splitWords` and any POSIX shell read it back. */
export function quoteWord(word: string): string {
  if (/^[A-Za-z0-9_@%+=:,./~^-]+$/.test(word)) return word
  return `'${word.replaceAll("'", "'\\''")}'`
}

/**
 * Cuts a text at its line breaks, except those inside quotes or behind a backslash.
 * @returns whole lines, and what stands behind the last break
 */
export function splitLines(text: string): { lines: string[]; rest: string } {
  const cutter = new LineCutter()
  const lines = cutter.push(text)
  return { lines, rest: cutter.rest }
}

/** The same for a text that arrives in pieces. Each character is looked at once, however small the pieces are. */
export class LineCutter {
  #rest = ''
  #quote = ''
  #escaped = false

  /** what stands behind the last line break */
  get rest(): string {
    return this.#rest
  }

  /** @returns the lines that this piece completes */
  push(piece: string): string[] {
    const lines: string[] = []
    let start = 0
    for (let index = 0; index < piece.length; index++) {
      const character = piece[index] ?? ''
      if (this.#escaped) this.#escaped = false
      else if (character === '\\' && this.#quote !== "'") this.#escaped = true
      else if (this.#quote) this.#quote = character === this.#quote ? '' : this.#quote
      else if (character === "'" || character === '"') this.#quote = character
      else if (character === '\n') {
        lines.push((this.#rest + piece.slice(start, index)).replace(/\r$/, ''))
        this.#rest = ''
        start = index + 1
      }
    }
    this.#rest += piece.slice(start)
    return lines
  }
}
