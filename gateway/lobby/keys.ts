import { StringDecoder } from 'node:string_decoder'

/**
 * Bytes of a terminal become keys. The decoder keeps what is unfinished (half a UTF-8 character, half a control
 * sequence, an open paste) until the next bytes come. There is no time-out: a lone Escape waits for its successor and
 * becomes Alt, as in readline.
 * @see ECMA-48, 5.4 (control sequences); xterm's ctlseqs, "Bracketed Paste Mode"
 */
export type Key =
  | { kind: 'text'; text: string }
  | { kind: 'paste'; text: string }
  /** `ctrl-a`, `alt-b`, `left`, `ctrl-left`, `home`, `enter`, `tab`, `backspace`, `delete`, … */
  | { kind: 'key'; name: string }

const FINALS: Record<string, string> = {
  A: 'up',
  B: 'down',
  C: 'right',
  D: 'left',
  F: 'end',
  H: 'home',
  Z: 'shift-tab',
}
const TILDES: Record<string, string> = {
  1: 'home',
  3: 'delete',
  4: 'end',
  5: 'page-up',
  6: 'page-down',
  7: 'home',
  8: 'end',
}
const PASTE_END = '\x1b[201~'
/** A sequence longer than this is no key of any terminal. */
const SEQUENCE_LIMIT = 64

export class KeyDecoder {
  readonly #utf8 = new StringDecoder('utf8')
  readonly #pasteLimit: number
  #pending = ''
  #paste: string | undefined

  constructor(pasteLimit = 64 * 1024) {
    this.#pasteLimit = pasteLimit
  }

  feed(bytes: Buffer): Key[] {
    let text = this.#pending + this.#utf8.write(bytes)
    this.#pending = ''
    const keys: Key[] = []
    while (text) {
      const taken = this.#paste === undefined ? this.#takeKey(text, keys) : this.#takePaste(text, keys)
      if (taken === 0) {
        this.#pending = text
        break
      }
      text = text.slice(taken)
    }
    return keys
  }

  #takeKey(text: string, keys: Key[]): number {
    const plain = /^[^\x00-\x1f\x7f\x80-\x9f]+/.exec(text)?.[0]
    if (plain) {
      keys.push({ kind: 'text', text: plain })
      return plain.length
    }
    if (text[0] === '\x1b') return this.#takeEscape(text, keys)
    keys.push({ kind: 'key', name: controlName(text.charCodeAt(0)) })
    // A client that sends CR LF pressed Enter once.
    return text.startsWith('\r\n') ? 2 : 1
  }

  #takeEscape(text: string, keys: Key[]): number {
    const next = text[1]
    if (next === undefined) return 0
    if (next === '[' || next === 'O') return this.#takeSequence(text, keys)
    if (next === '\x1b') return 1
    const name = next < ' ' || next === '\x7f' ? controlName(next.charCodeAt(0)) : next.toLowerCase()
    keys.push({ kind: 'key', name: `alt-${name}` })
    return 2
  }

  #takeSequence(text: string, keys: Key[]): number {
    // SS3 has exactly one final character; CSI has parameters and intermediates before it.
    const match =
      text[1] === 'O' ? /^\x1bO([\x40-\x7e])/.exec(text) : /^\x1b\[([\x30-\x3f]*)[\x20-\x2f]*([\x40-\x7e])/.exec(text)
    if (!match) return sequenceCouldGoOn(text) ? 0 : Math.min(text.length, 2)
    const [whole, first = '', second = ''] = match
    const [parameters, final] = text[1] === 'O' ? ['', first] : [first, second]
    if (parameters === '200' && final === '~') this.#paste = ''
    else {
      const name = sequenceName(parameters, final)
      if (name) keys.push({ kind: 'key', name })
    }
    return whole.length
  }

  #takePaste(text: string, keys: Key[]): number {
    const end = text.indexOf(PASTE_END)
    // The end mark may be cut in two by the network: hold back what could be its beginning.
    const sure = end < 0 ? text.length - partialEnd(text) : end
    const room = this.#pasteLimit - (this.#paste?.length ?? 0)
    this.#paste = (this.#paste ?? '') + text.slice(0, Math.min(sure, Math.max(0, room)))
    if (end < 0) return sure
    keys.push({ kind: 'paste', text: cleanPaste(this.#paste) })
    this.#paste = undefined
    return end + PASTE_END.length
  }
}

function partialEnd(text: string): number {
  for (let length = Math.min(PASTE_END.length - 1, text.length); length > 0; length--) {
    if (PASTE_END.startsWith(text.slice(-length))) return length
  }
  return 0
}

/** Line ends become line feeds, tabs blanks, and nothing in it can act as a key or drive the terminal. */
function cleanPaste(text: string): string {
  return text
    .replaceAll(/\r\n?/g, '\n')
    .replaceAll('\t', '  ')
    .replaceAll(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g, '')
    .replace(/\n+$/, '')
}

function sequenceCouldGoOn(text: string): boolean {
  return text.length < SEQUENCE_LIMIT && /^\x1b(O|\[[\x30-\x3f]*[\x20-\x2f]*)$/.test(text)
}

function sequenceName(parameters: string, final: string): string | undefined {
  const [first = '', modifier = ''] = parameters.split(';')
  const name = final === '~' ? TILDES[first] : FINALS[final]
  if (!name) return undefined
  // xterm: the modifier is 1 plus 1 for shift, 2 for alt, 4 for control.
  const bits = Math.max(0, Number(modifier || 1) - 1)
  if (bits & 4) return `ctrl-${name}`
  return bits & 2 ? `alt-${name}` : name
}

function controlName(code: number): string {
  if (code === 0x0d || code === 0x0a) return 'enter'
  if (code === 0x09) return 'tab'
  if (code === 0x7f || code === 0x08) return 'backspace'
  if (code === 0) return 'ctrl-space'
  if (code <= 26) return `ctrl-${String.fromCharCode(code + 96)}`
  return `ctrl-${String.fromCharCode(code + 64).toLowerCase()}`
}
