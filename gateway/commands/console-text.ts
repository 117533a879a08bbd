import { StringDecoder } from 'node:string_decoder'
import { harmless } from './text.ts'

/** An unfinished sequence is waited for up to this length; a longer one was none. */
const SEQUENCE_LIMIT = 4096
const UNFINISHED = /\x1b(?:\[[\x30-\x3f]*[\x20-\x2f]*|[\]PX^_][^\x07\x1b\x9c]*\x1b?|[\x20-\x2f]*)$/

/**
 * A console that comes in pieces, made harmless: UTF-8 characters and control sequences that are cut in two by a
 * piece's end are put together first, so that none slips through in halves.
 */
export class ConsoleText {
  readonly #utf8 = new StringDecoder('utf8')
  #held = ''

  add(bytes: Buffer): string {
    const text = this.#held + this.#utf8.write(bytes)
    const from = Math.max(0, text.length - SEQUENCE_LIMIT)
    const unfinished = UNFINISHED.exec(text.slice(from))
    const cut = unfinished ? from + unfinished.index : text.endsWith('\r') ? text.length - 1 : text.length
    this.#held = text.slice(cut)
    return harmless(text.slice(0, cut))
  }

  end(): string {
    const rest = this.#held + this.#utf8.end()
    this.#held = ''
    return harmless(rest)
  }
}
