import { once } from 'node:events'
import { constants } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { createServer } from 'node:net'
import { setImmediate } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest'
import { ask, session } from '../testing/client2.ts'
import { get, OK, rawOrigin, world } from '../testing/world.ts'
import { Stream2 } from './stream2.ts'
import type { ResponseReader } from './upstream.ts'
import { type CutError, Upstream } from './upstream.ts'

/** What would end the gateway: nothing that a machine or a client does may throw where nobody catches. */
const uncaught: unknown[] = []
const note = (error: unknown) => uncaught.push(error)

beforeEach(() => {
  uncaught.length = 0
  process.on('uncaughtException', note).on('unhandledRejection', note)
})
afterEach(() => {
  process.off('uncaughtException', note).off('unhandledRejection', note)
  expect(uncaught).toEqual([])
})

const answer = (...lines: string[]) => `${['HTTP/1.1 200 OK', 'Content-Length: 2', ...lines].join('\r\n')}\r\n\r\nok`

describe('a machine’s answer over HTTP/2', () => {
  it.each([
    ['two of what HTTP/2 clients expect once', answer('User-Agent: a', 'User-Agent: b')],
    ['two Content-Languages', answer('Content-Language: en', 'Content-Language: de')],
    ['two Content-Types', answer('Content-Type: text/plain', 'Content-Type: text/html')],
    ['fields with names that objects have', answer('__proto__: 1', 'constructor: 2', 'constructor: 3')],
    ['a doubled field in an early hint', `HTTP/1.1 103 Early Hints\r\nReferer: a\r\nReferer: b\r\n\r\n${OK}`],
    [
      'a doubled field in its trailers',
      'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nReferer: a\r\nReferer: b\r\n__proto__: c\r\n\r\n',
    ],
  ])('with %s passes', async (_name, bytes) => {
    await using origin = await rawOrigin((wire) => wire.send(bytes))
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const got = await ask(client)
    expect([got.status, got.body, got.code]).toEqual([200, 'ok', 0])
  })

  it('has its repeated fields, whatever they are called', async () => {
    await using origin = await rawOrigin((wire) =>
      wire.send(answer('constructor: 2', 'constructor: 3', '__proto__: 4')),
    )
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const { headers } = await ask(client)
    expect([headers.constructor, Object.getOwnPropertyDescriptor(headers, '__proto__')?.value]).toEqual(['2, 3', '4'])
  })

  it('with a status of no class is refused, and the connection lives on', async () => {
    await using origin = await rawOrigin((wire, bytes) =>
      wire.send(bytes.includes('/999') ? 'HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n' : OK),
    )
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const refused = await ask(client, { ':path': '/999' })
    expect([refused.status, JSON.parse(refused.body).code]).toEqual([502, 'machine.malformed'])
    expect((await ask(client)).body).toBe('ok')
    const wire = await proxy.dial()
    expect(await wire.send(get('/999')).toEnd()).toMatch(/^HTTP\/1\.1 502 /)
  })
})

describe('a stream that is over before the machine answers', () => {
  const trailersToCome = { waitForTrailers: true }
  const upload = { ':path': '/', ':method': 'POST', ':authority': 'demo.example.test' }

  it('was revoked in the turn of the answer: nothing is said, and the connection lives on', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({
      originPort: origin.port,
      access: ({ target }) => ({ allow: true, by: 'cookie', grant: target }),
    })
    using client = session(proxy)
    const revoked = ask(client, { ':path': '/revoked' })
    const machine = await origin.accept()
    await machine.until('\r\n\r\n')
    // Closed, and not yet destroyed, when the answer is told.
    const told = vi.spyOn(Stream2.prototype, 'head').mockImplementationOnce(function (this: Stream2, ...head) {
      told.mockRestore()
      proxy.https.revoke((grant) => grant === '/revoked')
      this.head(...head)
    })
    machine.send(OK)
    expect((await revoked).code).toBe(constants.NGHTTP2_CANCEL)
    const next = ask(client)
    const second = await origin.accept()
    await second.until('\r\n\r\n')
    second.send(OK)
    expect((await next).body).toBe('ok')
  })

  it('was reset without an error during an upload that the machine does not read: the machine is let go', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const stream = client.request(upload, trailersToCome)
    stream.on('error', () => {})
    const taken = vi.spyOn(Upstream.prototype, 'write')
    const machine = await origin.accept()
    machine.socket.pause()
    stream.write(Buffer.alloc(32 << 20))
    while (!taken.mock.results.some(({ value }) => value === false)) await setImmediate()
    taken.mockRestore()
    stream.close(constants.NGHTTP2_NO_ERROR)
    await ask(client, { ':authority': 'nobody.example.test' })
    machine.send(OK)
    machine.socket.resume()
    expect(await machine.toEnd()).not.toMatch(/\r\n0\r\n\r\n$/)
  })
})

it.each(['interim', 'head', 'bytes', 'flush', 'ended'] as const)(
  'a reader that throws in %s ends its own exchange alone',
  async (where) => {
    const server = createServer((socket) =>
      socket.on('error', () => {}).write(`HTTP/1.1 103 Early Hints\r\n\r\n${where === 'flush' ? OK.slice(0, -1) : OK}`),
    )
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    const fault = new TypeError('a mistake of ours')
    const throwing = (name: string) => () => {
      if (name === where) throw fault
    }
    const cut = new Promise<CutError>((resolve) => {
      const reader: ResponseReader = {
        method: 'GET',
        coded: false,
        sparing: false,
        interim: throwing('interim'),
        head: throwing('head'),
        bytes: throwing('bytes'),
        flush: () => {
          throwing('flush')()
          return true
        },
        ended: throwing('ended'),
        cut: resolve,
        drained: () => {},
      }
      const { port } = server.address() as AddressInfo
      new Upstream({ host: '127.0.0.1', port, connectTimeoutMs: 5000, onClosed: () => {} }).begin(reader, get())
    })
    expect(await cut).toMatchObject({ code: 'malformed', cause: fault })
    server.close()
  },
)
