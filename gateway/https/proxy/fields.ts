import { type Field, type Framing, HeadError, type RequestHead, type ResponseHead } from './head.ts'

/** Who is visiting, as the machine is told. Values are checked before they are written into a head. */
export type Identity = { user: string; email?: string | undefined; tokenCtx?: string | undefined }

/** The cookies of Berth's own on a machine's host begin with this; a machine neither sees nor sets them. */
const SESSION_COOKIE_PREFIX = '__Host-berth'

/** What the fields of a request say about the connection and the exchange. */
export type RequestFacts = {
  /** the Host header as it was sent */
  host: string
  /** the client wants the connection kept */
  keepAlive: boolean
  /** options of Connection, lower case; undefined: none but close and keep-alive */
  connection: Set<string> | undefined
  /** the protocol asked for, undefined when none is or it is one we do not tunnel */
  upgrade: string | undefined
  expectsContinue: boolean
  acceptsTrailers: boolean
}

/**
 * Reads what decides the exchange, and refuses what no two parties would read alike.
 * @throws HeadError
 */
export function inspectRequest(head: RequestHead): RequestFacts {
  let host: string | undefined
  let connection: Set<string> | undefined
  let upgrade: string | undefined
  let close = false
  let keep = false
  let expectsContinue = false
  let acceptsTrailers = false
  for (const { name, value } of head.fields) {
    switch (name) {
      case 'host':
        if (host !== undefined) throw new HeadError('two Host headers')
        host = value
        break
      case 'connection':
        for (const option of value.toLowerCase().split(',')) {
          const token = option.trim()
          if (token === 'close') close = true
          else if (token === 'keep-alive') keep = true
          else if (token) {
            connection ??= new Set()
            connection.add(token)
          }
        }
        break
      case 'upgrade':
        if (upgrade !== undefined) throw new HeadError('two Upgrade headers')
        upgrade = value
        break
      case 'expect':
        if (value.toLowerCase() !== '100-continue') throw new HeadError('this expectation cannot be met', 417)
        expectsContinue = true
        break
      case 'te':
        if (/(^|,)[ \t]*trailers[ \t]*(;|,|$)/i.test(value)) acceptsTrailers = true
        break
    }
  }
  if (host === undefined) throw new HeadError('no Host header')
  const asked = upgrade !== undefined && head.minor === 1 && connection?.has('upgrade') === true
  return {
    host,
    keepAlive: head.minor === 1 ? !close : keep && !close,
    connection,
    // h2c would carry requests past every check; a list of protocols would let the machine pick it.
    upgrade: asked && upgrade !== undefined && /^(?!h2c?$|tls\/)[^,\s]+$/i.test(upgrade) ? upgrade : undefined,
    expectsContinue: expectsContinue && head.minor === 1,
    acceptsTrailers,
  }
}

/** RFC 9110, 7.6.1, and what older proxies used. Framing and Upgrade are written anew where they apply. */
const HOP_BY_HOP = [
  'connection',
  'keep-alive',
  'proxy-connection',
  'proxy-authorization',
  'proxy-authenticate',
  'proxy-authentication-info',
  'te',
  'transfer-encoding',
  'upgrade',
  'http2-settings',
]
/** What tells a machine who is asking and from where: ours alone to say. */
const OURS = [
  'forwarded',
  'x-real-ip',
  'x-client-ip',
  'true-client-ip',
  'x-exedev-userid',
  'x-exedev-email',
  'x-exedev-token-ctx',
]
const OUR_PREFIXES = ['x-forwarded-', 'x-berth-']
/** Dropped from a client's trailers: what a server might merge into the head (RFC 9110, 6.5.1). */
const NEVER_A_TRAILER = new Set([
  ...HOP_BY_HOP,
  ...OURS,
  'host',
  'content-length',
  'content-encoding',
  'content-type',
  'content-range',
  'trailer',
  'authorization',
  'cookie',
  'set-cookie',
  'expect',
  'cache-control',
  'max-forwards',
  'range',
])
const DROPPED = new Set([...HOP_BY_HOP, ...OURS, 'host'])
/** With `_` or `.` for `-` these become the real ones in CGI-like servers and PHP, so such spellings are dropped. */
const NEVER_SPELLED_OTHERWISE = new Set([
  ...DROPPED,
  'content-length',
  'content-type',
  'authorization',
  'cookie',
  'expect',
])
/** A client must not have these removed by naming them in Connection: they frame or direct the message. */
const KEPT_WHATEVER_CONNECTION_SAYS = new Set(['host', 'content-length', 'transfer-encoding'])

export type Forwarding = {
  facts: RequestFacts
  framing: Framing
  /** origin-form or `*` */
  target: string
  remoteAddress: string
  identity: Identity | undefined
  /** the credential that let the request in was in Authorization: it goes no further */
  stripAuthorization: boolean
}

/** The head a machine gets, complete. Fields pass as they stood on the wire, in their order. */
export function machineHead(head: RequestHead, forwarding: Forwarding): string {
  const { facts, framing } = forwarding
  let text = `${head.method} ${forwarding.target} HTTP/1.${head.minor}\r\nHost: ${facts.host}\r\n`
  for (const field of head.fields) {
    const { name } = field
    if (isDropped(name)) continue
    if (facts.connection?.has(name) && !KEPT_WHATEVER_CONNECTION_SAYS.has(name)) continue
    if (name === 'cookie') text += cookieLine(field)
    else if (name === 'authorization' && forwarding.stripAuthorization) continue
    else text += field.line
  }
  if (framing.kind === 'chunked') text += 'Transfer-Encoding: chunked\r\n'
  if (facts.acceptsTrailers) text += 'TE: trailers\r\n'
  if (facts.upgrade !== undefined) text += `Connection: Upgrade\r\nUpgrade: ${facts.upgrade}\r\n`
  else if (head.minor === 0) text += 'Connection: close\r\n'
  else if (facts.acceptsTrailers) text += 'Connection: TE\r\n'
  text += `X-Forwarded-For: ${forwarding.remoteAddress}\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: ${facts.host}\r\n`
  return `${text}${identityLines(forwarding.identity)}\r\n`
}

/** The head a client gets, complete; `close` tells it that the connection ends with this message. */
export function clientHead(head: ResponseHead, framing: Framing, close: boolean): string {
  let text = `HTTP/1.1 ${head.status} ${head.reason}\r\n${responseLines(head)}`
  if (framing.kind === 'chunked' || (framing.kind === 'none' && isChunked(head) && !isBodiless(head.status))) {
    text += 'Transfer-Encoding: chunked\r\n'
  }
  if (head.status === 101) text += `Connection: Upgrade\r\nUpgrade: ${fieldValue(head.fields, 'upgrade') ?? ''}\r\n`
  else if (close && head.status >= 200) text += 'Connection: close\r\n'
  return `${text}\r\n`
}

/** The fields of a response that go on to the client. */
export function passedResponseFields(head: ResponseHead): Field[] {
  const named = connectionOptions(head.fields)
  return head.fields.filter(({ name, value }) => {
    if (named?.has(name) && !KEPT_WHATEVER_CONNECTION_SAYS.has(name)) return false
    if (name === 'set-cookie') return !isSessionCookie(value)
    if (name === 'content-length') return !isBodiless(head.status)
    return !RESPONSE_DROPPED.has(name)
  })
}

/** Trailers that may pass, from either side. */
export function passedTrailers(fields: readonly Field[]): Field[] {
  return fields.filter(({ name }) => {
    const plain = dashed(name)
    return !NEVER_A_TRAILER.has(plain) && !OUR_PREFIXES.some((prefix) => plain.startsWith(prefix))
  })
}

export function fieldValue(fields: readonly Field[], name: string): string | undefined {
  return fields.find((field) => field.name === name)?.value
}

/** A field for a head we write ourselves. @throws HeadError when a value could not stand in a header line */
export function field(name: string, value: string): Field {
  if (!/^[\t\x20-\x7e\x80-\xff]*$/.test(value)) throw new HeadError('malformed header value')
  return { name: name.toLowerCase(), value, line: `${name}: ${value}\r\n` }
}

const RESPONSE_DROPPED = new Set(HOP_BY_HOP)

function responseLines(head: ResponseHead): string {
  // Nearly every response passes whole but for Connection and Keep-Alive: no array for those.
  const named = connectionOptions(head.fields)
  let text = ''
  for (const { name, value, line } of head.fields) {
    if (RESPONSE_DROPPED.has(name)) continue
    if (named?.has(name) && !KEPT_WHATEVER_CONNECTION_SAYS.has(name)) continue
    if (name === 'set-cookie' && isSessionCookie(value)) continue
    if (name === 'content-length' && isBodiless(head.status)) continue
    text += line
  }
  return text
}

/** Neither length nor coding may stand in such a head (RFC 9110, 8.6; RFC 9112, 6.1): some clients would wait for it. */
function isBodiless(status: number): boolean {
  return status < 200 || status === 204
}

function connectionOptions(fields: readonly Field[]): Set<string> | undefined {
  let options: Set<string> | undefined
  for (const { name, value } of fields) {
    if (name !== 'connection') continue
    for (const option of value.toLowerCase().split(',')) {
      const token = option.trim()
      if (token === '' || token === 'close' || token === 'keep-alive') continue
      options ??= new Set()
      options.add(token)
    }
  }
  return options
}

function isChunked(head: ResponseHead): boolean {
  return head.fields.some(({ name }) => name === 'transfer-encoding')
}

function isDropped(name: string): boolean {
  if (DROPPED.has(name)) return true
  if (SPELLED_OTHERWISE.test(name)) {
    const plain = dashed(name)
    return NEVER_SPELLED_OTHERWISE.has(plain) || OUR_PREFIXES.some((prefix) => plain.startsWith(prefix))
  }
  return name.startsWith('x-') && OUR_PREFIXES.some((prefix) => name.startsWith(prefix))
}

const SPELLED_OTHERWISE = /[^a-z0-9-]/

/** A field's name, lower case, as the most careless of servers may understand it. */
function dashed(name: string): string {
  return SPELLED_OTHERWISE.test(name) ? name.replaceAll(/[^a-z0-9]/g, '-') : name
}

function cookieLine({ value, line }: Field): string {
  if (!value.includes(SESSION_COOKIE_PREFIX)) return line
  const kept = value.split(';').filter((pair) => !pair.trimStart().startsWith(SESSION_COOKIE_PREFIX))
  const text = kept.join(';').trim()
  return text === '' ? '' : `Cookie: ${text}\r\n`
}

function isSessionCookie(value: string): boolean {
  return value.trimStart().startsWith(SESSION_COOKIE_PREFIX)
}

function identityLines(identity: Identity | undefined): string {
  if (!identity) return ''
  const { user, email, tokenCtx } = identity
  let text = line('X-Berth-User', user) + line('X-ExeDev-UserID', user)
  if (email !== undefined) text += line('X-Berth-Email', email) + line('X-ExeDev-Email', email)
  if (tokenCtx !== undefined) text += line('X-Berth-Token-Ctx', tokenCtx) + line('X-ExeDev-Token-Ctx', tokenCtx)
  return text
}

/** An e-mail address or a token's context comes from people: nothing of it may end the line. */
function line(name: string, value: string): string {
  if (!/^[\x20-\x7e]*$/.test(value)) throw new HeadError(`${name} cannot be written into a header`, 500)
  return `${name}: ${value}\r\n`
}
