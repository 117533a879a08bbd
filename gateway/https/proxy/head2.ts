/** Heads of HTTP/2 as those of HTTP/1.1, and back. */
import type { OutgoingHttpHeaders } from 'node:http2'
import { field, fieldValue } from './fields.ts'
import {
  type Field,
  type Framing,
  HeadError,
  MAX_FIELDS,
  type RequestHead,
  type ResponseHead,
  requestFraming,
} from './head.ts'

/**
 * The pseudo-header fields and the others, as an HTTP/1.1 head holds them (RFC 9113, 8.3). nghttp2 has checked names,
 * the order and connection-specific fields already; values are checked again before they stand in lines.
 * @param rawHeaders names and values in turn, as they came
 * @throws HeadError
 */
export function readHeaders(rawHeaders: readonly string[]): { method: string; path: string; fields: Field[] } {
  let method = ''
  let path = ''
  let authority: string | undefined
  let host: string | undefined
  const cookies: string[] = []
  const fields: Field[] = []
  for (let at = 0; at + 1 < rawHeaders.length; at += 2) {
    const name = rawHeaders[at] ?? ''
    const value = rawHeaders[at + 1] ?? ''
    if (name === ':method') method = value
    else if (name === ':path') path = value
    else if (name === ':authority') authority = value
    else if (name === ':protocol') throw new HeadError('extended CONNECT is not offered here', 405)
    else if (name === 'host') {
      if (host !== undefined) throw new HeadError('two Host headers')
      host = value
    } else if (name === 'cookie') cookies.push(value)
    else if (!name.startsWith(':')) fields.push(field(name, value))
  }
  if (authority !== undefined && host !== undefined && authority.toLowerCase() !== host.toLowerCase()) {
    throw new HeadError('Host and :authority differ')
  }
  const named = authority ?? host
  if (named === undefined) throw new HeadError('no :authority')
  if (!/^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}$/.test(method)) throw new HeadError('malformed method')
  if (!/^[\x21\x22\x24-\x7e\x80-\xff]+$/.test(path)) throw new HeadError('malformed path')
  // Browsers send one field for each cookie; HTTP/1.1 has one for all (RFC 9113, 8.2.3).
  if (cookies.length > 0) fields.push(field('Cookie', cookies.join('; ')))
  return { method, path, fields: [field('Host', named), ...fields] }
}

/**
 * How long the body of a request is.
 * @param isComplete the stream ended with its head
 * @throws HeadError
 */
export function framingOf(head: RequestHead, isComplete: boolean): Framing {
  const declared = requestFraming(head)
  if (isComplete) return { kind: 'none' }
  if (declared.kind !== 'none') return declared
  // A length of 0 passes as it stands, and nghttp2 lets no byte come behind it: chunks beside it would contradict it.
  return fieldValue(head.fields, 'content-length') === undefined ? { kind: 'chunked' } : declared
}

/** A head of a machine as Node sends it in HTTP/2. @param fields those that pass */
export function headersOf(head: ResponseHead, fields: readonly Field[]): OutgoingHttpHeaders {
  // No prototype: a machine may name a field `constructor` or `__proto__`.
  const headers: OutgoingHttpHeaders = Object.create(null)
  headers[':status'] = head.status
  for (const { name, value } of fields) addField(headers, name, value)
  return headers
}

/** Adds a field to those of the same name. */
export function addField(headers: OutgoingHttpHeaders, name: string, value: string): void {
  const before = headers[name]
  if (before === undefined) headers[name] = value
  else if (Array.isArray(before)) before.push(value)
  else headers[name] = [String(before), value]
}

/**
 * The bounds of an HTTP/1.1 head. Fields are counted with all cookies as one. Cookies are cleared only where they are what
 * is too large: a link with an endless query must not sign anybody out.
 * @throws HeadError
 */
export function refuseTooLarge(fields: readonly Field[], rawHeaders: readonly string[], mostBytes: number): void {
  let bytes = 0
  for (const text of rawHeaders) bytes += text.length
  const cookieBytes = fields.find(({ name }) => name === 'cookie')?.value.length ?? 0
  if (bytes > mostBytes && cookieBytes > mostBytes / 2) throw new CookiesTooLargeError()
  if (bytes > mostBytes) throw new HeadError('request head too large', 431)
  if (fields.length > MAX_FIELDS) throw new HeadError(`more than ${MAX_FIELDS} headers`, 431)
}

export class CookiesTooLargeError extends HeadError {
  constructor() {
    super('too large cookies', 431)
  }
}
