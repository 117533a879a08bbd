import { once } from 'node:events'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { get, OK, type RawOrigin, rawOrigin, type World, world } from '../testing/world.ts'

/**
 * Every case is raw bytes over a socket. A refused one must reach no machine, and nothing that came behind it may be
 * read as a request: the connection closes.
 */
let origin: RawOrigin
let proxy: World

beforeAll(async () => {
  origin = await rawOrigin((wire) => wire.socket.write(OK))
  proxy = await world({ originPort: origin.port })
})
afterAll(async () => {
  await proxy[Symbol.asyncDispose]()
  await origin[Symbol.asyncDispose]()
})

const HIDDEN = 'GET /hidden HTTP/1.1\r\nHost: demo.example.test\r\n\r\n'
const post = (...lines: string[]) => `${['POST / HTTP/1.1', 'Host: demo.example.test', ...lines].join('\r\n')}\r\n\r\n`

const refused: [name: string, bytes: string, status?: number][] = [
  ['Content-Length and Transfer-Encoding', `${post('Content-Length: 4', 'Transfer-Encoding: chunked')}0\r\n\r\n`],
  ['Transfer-Encoding and Content-Length', `${post('Transfer-Encoding: chunked', 'Content-Length: 4')}0\r\n\r\n`],
  ['two different Content-Lengths', `${post('Content-Length: 4', 'Content-Length: 5')}abcde`],
  ['two equal Content-Lengths', `${post('Content-Length: 4', 'Content-Length: 4')}abcd`],
  ['a list of Content-Lengths', `${post('Content-Length: 4, 4')}abcd`],
  ['a signed Content-Length', `${post('Content-Length: +4')}abcd`],
  ['a negative Content-Length', `${post('Content-Length: -1')}abcd`],
  ['a hexadecimal Content-Length', `${post('Content-Length: 0x4')}abcd`],
  ['a Content-Length with a fraction', `${post('Content-Length: 4.0')}abcd`],
  ['an empty Content-Length', `${post('Content-Length:')}abcd`],
  ['a Content-Length beyond 2^53', `${post('Content-Length: 99999999999999999999')}abcd`],
  ['a Content-Length with a space inside', `${post('Content-Length: 4 4')}abcd`],
  ['Transfer-Encoding: identity', `${post('Transfer-Encoding: identity')}abcd`, 501],
  ['Transfer-Encoding: gzip, chunked', `${post('Transfer-Encoding: gzip, chunked')}0\r\n\r\n`, 501],
  ['Transfer-Encoding: chunked, identity', `${post('Transfer-Encoding: chunked, identity')}0\r\n\r\n`, 501],
  ['Transfer-Encoding: xchunked', `${post('Transfer-Encoding: xchunked')}0\r\n\r\n`, 501],
  ['Transfer-Encoding: "chunked"', `${post('Transfer-Encoding: "chunked"')}0\r\n\r\n`, 501],
  ['two Transfer-Encodings', `${post('Transfer-Encoding: chunked', 'Transfer-Encoding: chunked')}0\r\n\r\n`],
  ['Transfer-Encoding with a vertical tab', `${post('Transfer-Encoding: \x0bchunked')}0\r\n\r\n`],
  ['space before the colon', `${post('Transfer-Encoding : chunked')}0\r\n\r\n`],
  ['tab before the colon', `${post('Content-Length\t: 4')}abcd`],
  ['obsolete folding', `${post('X-A: b', ' Transfer-Encoding: chunked')}0\r\n\r\n`],
  ['folding with a tab', `${post('X-A: b', '\tc')}`],
  ['a first header line that begins with a space', `POST / HTTP/1.1\r\n Host: demo.example.test\r\n\r\n`],
  ['a bare CR in a value', get('/', 'X-A: b\rTransfer-Encoding: chunked')],
  ['a bare CR as line end', 'GET / HTTP/1.1\rHost: demo.example.test\r\n\r\n'],
  ['a bare LF as line end', 'GET / HTTP/1.1\nHost: demo.example.test\n\n'],
  ['a bare LF in the head', 'GET / HTTP/1.1\r\nHost: demo.example.test\nX-A: b\r\n\r\n'],
  ['NUL in a value', get('/', 'X-A: b\0c')],
  ['NUL in a name', get('/', 'X-\0A: b')],
  ['NUL in the target', get('/a\0b')],
  ['a control character in a value', get('/', 'X-A: b\x01c')],
  ['DEL in a value', get('/', 'X-A: b\x7fc')],
  ['a header line without a colon', get('/', 'X-A')],
  ['a header line without a name', get('/', ': b')],
  ['two Hosts', get('/', 'Host: other.example.test')],
  ['two equal Hosts', get('/', 'Host: demo.example.test')],
  ['no Host', 'GET / HTTP/1.1\r\nX-A: b\r\n\r\n'],
  ['an empty Host', 'GET / HTTP/1.1\r\nHost:\r\n\r\n'],
  ['a Host with user information', 'GET / HTTP/1.1\r\nHost: a@demo.example.test\r\n\r\n'],
  ['a Host with a path', 'GET / HTTP/1.1\r\nHost: demo.example.test/a\r\n\r\n'],
  ['a Host list', 'GET / HTTP/1.1\r\nHost: demo.example.test, other.example.test\r\n\r\n'],
  ['a Host with a bad port', 'GET / HTTP/1.1\r\nHost: demo.example.test:99999\r\n\r\n'],
  ['absolute form for another host', get('https://other.example.test/')],
  ['absolute form for the control host', get('https://example.test/')],
  ['absolute form with user information', get('https://demo.example.test@other.example.test/')],
  ['absolute form for another port', get('https://demo.example.test:3000/')],
  ['a target that is no path', get('demo')],
  ['a target that begins with two words', get('/a /b')],
  ['a fragment in the target', get('/a#b')],
  ['the asterisk for GET', get('*')],
  ['CONNECT', 'CONNECT demo.example.test:443 HTTP/1.1\r\nHost: demo.example.test:443\r\n\r\n', 405],
  ['TRACE', 'TRACE / HTTP/1.1\r\nHost: demo.example.test\r\n\r\n', 405],
  ['a method with control characters', 'G\x01T / HTTP/1.1\r\nHost: demo.example.test\r\n\r\n'],
  ['two spaces behind the method', 'GET  / HTTP/1.1\r\nHost: demo.example.test\r\n\r\n'],
  ['a tab behind the method', 'GET\t/ HTTP/1.1\r\nHost: demo.example.test\r\n\r\n'],
  ['HTTP/0.9', 'GET /\r\n\r\n'],
  ['HTTP/2 without its preface', 'GET / HTTP/2.0\r\nHost: demo.example.test\r\n\r\n', 505],
  ['HTTP/1.2', 'GET / HTTP/1.2\r\nHost: demo.example.test\r\n\r\n', 505],
  ['lower-case http', 'GET / http/1.1\r\nHost: demo.example.test\r\n\r\n'],
  [
    'Transfer-Encoding in HTTP/1.0',
    'POST / HTTP/1.0\r\nHost: demo.example.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
  ],
  ['an unknown expectation', post('Content-Length: 1', 'Expect: 200-ok'), 417],
  ['more headers than anybody needs', get('/', ...Array.from({ length: 200 }, (_, n) => `X-${n}: 1`)), 431],
  ['a head beyond 64 KiB', get('/', `X-A: ${'a'.repeat(70_000)}`), 431],
  ['two Upgrades', get('/', 'Connection: Upgrade', 'Upgrade: websocket', 'Upgrade: other')],
]

describe('a request is refused, and nothing behind it is read, for', () => {
  it.each(refused)('%s', async (_name, bytes, status = 400) => {
    const before = origin.connections.length
    const beforeText = origin.connections.map(({ text }) => text).join('')
    const wire = await proxy.dial()
    const answer = await wire.send(bytes + HIDDEN).toEnd()
    expect(answer).toMatch(new RegExp(`^HTTP/1\\.1 ${status} `))
    expect(answer).toMatch(/\r\nConnection: close\r\n/)
    expect(answer.match(/HTTP\/1\.1 \d/g)).toHaveLength(1)
    expect(origin.connections.length).toBe(before)
    expect(origin.connections.map(({ text }) => text).join('')).toBe(beforeText)
  })
})

const badChunks: [name: string, body: string][] = [
  ['no digits', '\r\n\r\n'],
  ['a sign', '+5\r\nhello\r\n0\r\n\r\n'],
  ['a minus', '-5\r\nhello\r\n0\r\n\r\n'],
  ['0x', '0x5\r\nhello\r\n0\r\n\r\n'],
  ['a space before', ' 5\r\nhello\r\n0\r\n\r\n'],
  ['a space behind', '5 \r\nhello\r\n0\r\n\r\n'],
  ['an underscore', '5_0\r\nhello\r\n0\r\n\r\n'],
  ['more than 48 bits', '1000000000000005\r\nhello\r\n0\r\n\r\n'],
  ['a bare LF behind the size', '5\nhello\r\n0\r\n\r\n'],
  ['a bare CR behind the size', '5\rhello\r\n0\r\n\r\n'],
  ['a bare LF in the extension', '5;a\nb\r\nhello\r\n0\r\n\r\n'],
  ['a control character in the extension', '5;a\x00b\r\nhello\r\n0\r\n\r\n'],
  ['an endless extension', `5;${'a'.repeat(5000)}\r\nhello\r\n0\r\n\r\n`],
  ['more bytes than the size', '5\r\nhello!\r\n0\r\n\r\n'],
  ['a bare LF behind the bytes', '5\r\nhello\n0\r\n\r\n'],
  ['a malformed trailer', '5\r\nhello\r\n0\r\nX A: b\r\n\r\n'],
  ['a folded trailer', '5\r\nhello\r\n0\r\nX-A: b\r\n c\r\n\r\n'],
  ['a bare LF in the trailers', '5\r\nhello\r\n0\r\nX-A: b\n\r\n'],
  ['trailers without end', `5\r\nhello\r\n0\r\n${'X-A: b\r\n'.repeat(4000)}`],
]

describe('a chunked body ends the exchange on both sides when it has', () => {
  it.each(badChunks)('%s', async (_name, body) => {
    await using silent = await rawOrigin()
    await using own = await world({ originPort: silent.port })
    const wire = await own.dial()
    wire.send(post('Transfer-Encoding: chunked'))
    const machine = await silent.accept()
    await machine.until('\r\n\r\n')
    wire.send(body + HIDDEN)
    expect(await wire.toEnd()).toMatch(/^HTTP\/1\.1 4(00|31) /)
    await machine.toEnd()
    // Never a whole request: the machine sees no last chunk behind which anything else could begin.
    expect(machine.text).not.toMatch(/\r\n0\r\n(.*\r\n)?\r\n/)
    expect(machine.text).not.toContain('/hidden')
  })
})

describe('what is allowed is not refused', () => {
  const accepted: [name: string, bytes: string, expected: RegExp][] = [
    ['absolute form for the same host', get('https://Demo.example.test./a?b=%2F'), /^GET \/a\?b=%2F HTTP\/1\.1\r\n/],
    ['absolute form without a path', get('https://demo.example.test?x'), /^GET \/\?x HTTP\/1\.1\r\n/],
    [
      'a path that would change when re-encoded',
      get('/%7e/..//a|b{c}?q=[1]&%zz'),
      /^GET \/%7e\/\.\.\/\/a\|b\{c\}\?q=\[1\]&%zz HTTP/,
    ],
    ['bytes beyond ASCII in path and value', get('/\xe4', 'X-A: \xfc'), /^GET \/\xe4 HTTP[\s\S]*\r\nX-A: \xfc\r\n/],
    ['an empty value', get('/', 'X-A:'), /\r\nX-A:\r\n/],
    ['OPTIONS *', 'OPTIONS * HTTP/1.1\r\nHost: demo.example.test\r\n\r\n', /^OPTIONS \* HTTP/],
    ['CRLF before the request line', `\r\n${get('/')}`, /^GET \/ HTTP/],
    ['a method of its own', 'PROPFIND / HTTP/1.1\r\nHost: demo.example.test\r\n\r\n', /^PROPFIND \/ HTTP/],
    [
      'upper case and a trailing dot in Host',
      'GET / HTTP/1.1\r\nHost: DEMO.Example.Test.:443\r\n\r\n',
      /\r\nHost: DEMO\.Example\.Test\.:443\r\n/,
    ],
    ['Content-Length: 0 with GET', get('/', 'Content-Length: 0'), /\r\nContent-Length: 0\r\n/],
  ]
  it.each(accepted)('%s', async (_name, bytes, expected) => {
    await using own = await rawOrigin((wire) => wire.socket.write(OK))
    await using server = await world({ originPort: own.port })
    const wire = await server.dial()
    await wire.send(bytes).until(/\r\n\r\nok$/)
    expect(own.connections[0]?.text).toMatch(expected)
  })

  it('CRLF before the request line that comes a byte at a time', async () => {
    await using own = await rawOrigin((wire) => wire.socket.write(OK))
    await using server = await world({ originPort: own.port })
    const wire = await server.dial()
    wire.socket.setNoDelay(true)
    for (const byte of `\r\n${get('/')}`) {
      wire.send(byte)
      // Read by the other side of this process before the next is written.
      for (let turns = 0; turns < 3; turns++) await new Promise(setImmediate)
    }
    await wire.until(/\r\n\r\nok$/)
    expect(own.connections[0]?.text).toMatch(/^GET \/ HTTP/)
  })

  it('requests sent ahead are answered in their order, each as a request of its own', async () => {
    const wire = await proxy.dial()
    const paths = Array.from({ length: 50 }, (_, n) => `/ahead/${n}`)
    wire.send(paths.map((path) => get(path)).join(''))
    while (wire.text.split('HTTP/1.1 200 OK').length <= 50) await once(wire.socket, 'data')
    const seen = origin.connections.flatMap(({ text }) => [...text.matchAll(/GET (\/ahead\/\d+)/g)].map((m) => m[1]))
    expect(seen).toEqual(paths)
  })
})
