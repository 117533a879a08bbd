/**
 * The strict reader of HTTP/1.x message heads. It takes the whole head as latin1 text, one character a byte, and
 * accepts only what RFC 9112 lets a sender produce: CRLF line ends, no folding, no space before the colon, no control
 * character. Two parsers that read one message differently are how a request is smuggled past a gateway, so nothing
 * here is repaired: what is doubtful is refused.
 */

/** A field as it stood on the wire; `name` is lower case, `line` is the whole line with its CRLF. */
export type Field = { name: string; value: string; line: string }

export type RequestHead = { method: string; target: string; minor: 0 | 1; fields: Field[] }
export type ResponseHead = { status: number; reason: string; minor: 0 | 1; fields: Field[] }

/** How many bytes follow a head. `close`: as many as come before the connection ends (responses only). */
export type Framing = { kind: 'none' } | { kind: 'length'; bytes: number } | { kind: 'chunked' } | { kind: 'close' }

/** A message that is not HTTP as we accept it. `status` is what a client is told; from a machine it becomes 502. */
export class HeadError extends Error {
  override readonly name = 'HeadError'
  readonly status: number

  constructor(message: string, status = 400) {
    super(message)
    this.status = status
  }
}

const NO_BODY: Framing = { kind: 'none' }
const CHUNKED: Framing = { kind: 'chunked' }
const UNTIL_CLOSE: Framing = { kind: 'close' }

export const MAX_FIELDS = 128

const TOKEN = table("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
/** RFC 9110, 5.5: visible ASCII, space, tab and obs-text. */
const VALUE = Uint8Array.from({ length: 256 }, (_, c) => (c === 9 || (c >= 0x20 && c !== 0x7f) ? 1 : 0))
/** What a request target may hold: no space, no control, no fragment. */
const TARGET = Uint8Array.from({ length: 256 }, (_, c) => (c > 0x20 && c !== 0x7f && c !== 0x23 ? 1 : 0))

/**
 * Where a request's head ends in what has come of it.
 * @param buffer begins with the head
 * @param seenBytes of it, looked through before
 * @returns the length of the head with its empty line; undefined while that is still to come
 * @throws HeadError, status 431 beyond `mostBytes`
 */
export function requestHeadBytes(buffer: Buffer, seenBytes: number, mostBytes: number): number | undefined {
  const end = buffer.indexOf('\r\n\r\n', Math.max(0, seenBytes - 3), 'latin1')
  if ((end < 0 ? buffer.length : end) > mostBytes) throw new HeadError('request head too large', 431)
  if (end >= 0) return end + 4
  // A line that ends with LF alone would never complete a head: say so instead of waiting.
  const lf = buffer.indexOf(10, seenBytes)
  if (lf === 0 || (lf > 0 && buffer[lf - 1] !== 13)) throw new HeadError('bare LF')
  return undefined
}

/**
 * @param text a head up to and including its empty line
 * @throws HeadError
 */
export function parseRequestHead(text: string): RequestHead {
  const methodEnd = span(text, 0, TOKEN)
  if (methodEnd === 0 || methodEnd > 32 || text.charCodeAt(methodEnd) !== 32)
    throw new HeadError('malformed request line')
  const targetEnd = span(text, methodEnd + 1, TARGET)
  if (targetEnd === methodEnd + 1) throw new HeadError('malformed request target')
  const minor = version(text, targetEnd + 1)
  if (text.charCodeAt(targetEnd) !== 32 || minor === undefined) {
    throw /^ HTTP\/\d\.\d\r\n/.test(text.slice(targetEnd, targetEnd + 11))
      ? new HeadError('only HTTP/1.0 and HTTP/1.1 are spoken here', 505)
      : new HeadError('malformed request line')
  }
  const at = targetEnd + 9
  if (text.charCodeAt(at) !== 13 || text.charCodeAt(at + 1) !== 10) throw new HeadError('malformed request line')
  return {
    method: text.slice(0, methodEnd),
    target: text.slice(methodEnd + 1, targetEnd),
    minor,
    fields: parseFields(text, at + 2),
  }
}

/**
 * @param text a head up to and including its empty line
 * @throws HeadError
 */
export function parseResponseHead(text: string): ResponseHead {
  const minor = version(text, 0)
  // There are five classes (RFC 9110, 15); HTTP/2 clients are not told of others.
  const status = Number(text.slice(9, 12))
  if (minor === undefined || text.charCodeAt(8) !== 32 || !(status >= 100 && status <= 599)) {
    throw new HeadError('malformed status line')
  }
  // A status line without a reason, and even without the space before it, is seen in the wild and harmless.
  let at = 12
  let reason = ''
  if (text.charCodeAt(at) === 32) {
    const end = span(text, at + 1, VALUE)
    reason = text.slice(at + 1, end)
    at = end
  }
  if (text.charCodeAt(at) !== 13 || text.charCodeAt(at + 1) !== 10) throw new HeadError('malformed status line')
  return { status, reason, minor, fields: parseFields(text, at + 2) }
}

/**
 * Field lines up to the empty line, which must be the end of the text (RFC 9112, 5). Also reads trailers.
 * @throws HeadError, status 431 beyond MAX_FIELDS
 */
export function parseFields(text: string, from: number): Field[] {
  const fields: Field[] = []
  let at = from
  while (text.charCodeAt(at) !== 13) {
    const start = at
    at = span(text, start, TOKEN)
    // Also refuses obsolete folding (the line begins with space) and space before the colon.
    if (at === start || text.charCodeAt(at) !== 58) throw new HeadError('malformed header line')
    const name = text.slice(start, at).toLowerCase()
    at++
    while (text.charCodeAt(at) === 32 || text.charCodeAt(at) === 9) at++
    const valueStart = at
    at = span(text, at, VALUE)
    if (text.charCodeAt(at) !== 13 || text.charCodeAt(at + 1) !== 10) throw new HeadError('malformed header value')
    let valueEnd = at
    while (valueEnd > valueStart && isBlank(text.charCodeAt(valueEnd - 1))) valueEnd--
    at += 2
    if (fields.length === MAX_FIELDS) throw new HeadError(`more than ${MAX_FIELDS} headers`, 431)
    fields.push({ name, value: text.slice(valueStart, valueEnd), line: text.slice(start, at) })
  }
  if (text.charCodeAt(at + 1) !== 10 || at + 2 !== text.length) throw new HeadError('malformed header line')
  return fields
}

/**
 * How long a request's body is (RFC 9112, 6.3). Everything that two readers might measure differently is refused.
 * @throws HeadError
 */
export function requestFraming(head: RequestHead): Framing {
  const { length, chunked } = declared(head.fields)
  if (chunked) {
    if (length !== undefined) throw new HeadError('both Content-Length and Transfer-Encoding')
    if (head.minor === 0) throw new HeadError('Transfer-Encoding in HTTP/1.0')
    return CHUNKED
  }
  return length === undefined || length === 0 ? NO_BODY : { kind: 'length', bytes: length }
}

/**
 * How long the body of a final response is (RFC 9112, 6.3).
 * @throws HeadError
 */
export function responseFraming(head: ResponseHead, method: string): Framing {
  const { length, chunked } = declared(head.fields)
  if (chunked && length !== undefined) throw new HeadError('both Content-Length and Transfer-Encoding')
  if (method === 'HEAD' || head.status === 204 || head.status === 304) return NO_BODY
  if (chunked) {
    if (head.minor === 0) throw new HeadError('Transfer-Encoding in HTTP/1.0')
    return CHUNKED
  }
  if (length === undefined) return UNTIL_CLOSE
  return length === 0 ? NO_BODY : { kind: 'length', bytes: length }
}

function declared(fields: readonly Field[]): { length: number | undefined; chunked: boolean } {
  let length: number | undefined
  let chunked = false
  for (const { name, value } of fields) {
    if (name === 'content-length') {
      // Digits alone: no sign, no list, no hexadecimal; 15 digits stay exact in a double.
      if (length !== undefined || !/^\d{1,15}$/.test(value)) throw new HeadError('malformed Content-Length')
      length = Number(value)
    } else if (name === 'transfer-encoding') {
      if (chunked) throw new HeadError('two Transfer-Encodings')
      if (value.toLowerCase() !== 'chunked') throw new HeadError('only the transfer coding chunked is known', 501)
      chunked = true
    }
  }
  return { length, chunked }
}

function version(text: string, at: number): 0 | 1 | undefined {
  if (!text.startsWith('HTTP/1.', at)) return undefined
  const digit = text.charCodeAt(at + 7)
  return digit === 49 ? 1 : digit === 48 ? 0 : undefined
}

function span(text: string, from: number, allowed: Uint8Array): number {
  let at = from
  while (allowed[text.charCodeAt(at)] === 1) at++
  return at
}

function isBlank(code: number): boolean {
  return code === 32 || code === 9
}

function table(characters: string): Uint8Array {
  const allowed = new Uint8Array(256)
  for (const character of characters) allowed[character.charCodeAt(0)] = 1
  return allowed
}
