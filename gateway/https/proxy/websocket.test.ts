import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { WebSocket, WebSocketServer } from 'ws'
import { get, rawOrigin, type Wire, type World, world } from '../testing/world.ts'

/** RFC 6455 through the proxy; the machine runs `ws`, and frames are also made by hand where a rule is about bytes. */
const KEY = 'dGhlIHNhbXBsZSBub25jZQ=='
const ACCEPT = 's3pPLMBiTxaQ9kYGzzhZRbK+xOo='

let server: WebSocketServer
let proxy: World
let closes: { code: number; reason: string }[] = []

beforeAll(async () => {
  server = new WebSocketServer({
    port: 0,
    host: '127.0.0.1',
    perMessageDeflate: { threshold: 0 },
    maxPayload: 64 << 20,
    handleProtocols: (protocols) => (protocols.has('b') ? 'b' : false),
  })
  await once(server, 'listening')
  server.on('connection', (socket, request) => {
    socket.on('message', (message, binary) => socket.send(message, { binary }))
    socket.on('close', (code, reason) => closes.push({ code, reason: reason.toString() }))
    socket.on('error', () => {})
    if (request.url === '/hello') socket.send('hello')
    if (request.url === '/bye') socket.close(4001, 'bye')
    if (request.url === '/cut') socket.terminate()
    if (request.url === '/ping') socket.ping('beat')
  })
  proxy = await world({ originPort: (server.address() as AddressInfo).port })
})
afterAll(async () => {
  for (const client of server.clients) client.terminate()
  server.close()
  await proxy[Symbol.asyncDispose]()
})

function open(path = '/', options: { protocols?: string[]; deflate?: boolean; origin?: string } = {}) {
  return new WebSocket(`wss://demo.example.test:${proxy.port}${path}`, options.protocols ?? [], {
    ca: proxy.certificate,
    perMessageDeflate: options.deflate === true,
    lookup: (_host, lookup, callback) =>
      lookup.all ? callback(null, [{ address: '127.0.0.1', family: 4 }]) : callback(null, '127.0.0.1', 4),
    ...(options.origin ? { origin: options.origin } : {}),
  })
}

async function shake(path = '/', along: Buffer = Buffer.alloc(0)): Promise<Wire> {
  const wire = await proxy.dial()
  const head = get(
    path,
    'Connection: keep-alive, Upgrade',
    'Upgrade: websocket',
    'Sec-WebSocket-Version: 13',
    `Sec-WebSocket-Key: ${KEY}`,
  )
  wire.socket.write(Buffer.concat([Buffer.from(head), along]))
  await wire.until('\r\n\r\n')
  return wire
}

/** A masked frame (5.2). */
function frame(opcode: number, payload: Buffer | string, { fin = true, rsv = 0, masked = true } = {}): Buffer {
  const bytes = Buffer.from(payload)
  const length =
    bytes.length < 126
      ? Buffer.of(bytes.length)
      : bytes.length < 65_536
        ? Buffer.of(126, bytes.length >> 8, bytes.length & 255)
        : Buffer.concat([Buffer.of(127), Buffer.alloc(4), Buffer.of(0, 0, 0, 0).fill(0), Buffer.alloc(0)])
  if (bytes.length >= 65_536) length.writeBigUInt64BE(BigInt(bytes.length), 1)
  length[0] = (length[0] ?? 0) | (masked ? 0x80 : 0)
  const mask = Buffer.of(1, 2, 3, 4)
  const body = masked ? Buffer.from(bytes.map((byte, at) => byte ^ (mask[at % 4] ?? 0))) : bytes
  return Buffer.concat([Buffer.of((fin ? 0x80 : 0) | rsv | opcode), length, ...(masked ? [mask] : []), body])
}

const close = (code: number) => Buffer.of(0x88, 2, code >> 8, code & 255).toString('latin1')

describe('the opening handshake', () => {
  it('4.2.2: is answered 101 with the accept key of the machine, Connection and Upgrade', async () => {
    const { text } = await shake()
    expect(text).toMatch(/^HTTP\/1\.1 101 /)
    expect(text).toContain(`\r\nSec-WebSocket-Accept: ${ACCEPT}\r\n`)
    expect(text).toMatch(/\r\nConnection: Upgrade\r\n/)
    expect(text).toMatch(/\r\nUpgrade: websocket\r\n/)
  })

  it('1.9: the subprotocol that the machine picks is the client’s', async () => {
    const socket = open('/', { protocols: ['a', 'b'] })
    await once(socket, 'open')
    expect(socket.protocol).toBe('b')
    socket.terminate()
  })

  it('9: extensions are negotiated end to end, compressed messages pass', async () => {
    const socket = open('/', { deflate: true })
    await once(socket, 'open')
    expect(socket.extensions).toContain('permessage-deflate')
    socket.send('a'.repeat(100_000))
    expect(String((await once(socket, 'message'))[0])).toBe('a'.repeat(100_000))
    socket.terminate()
  })

  it('4.4: a version that the machine does not speak is its refusal, with the versions it does, and the connection closes', async () => {
    const wire = await proxy.dial()
    wire.send(
      get('/', 'Connection: Upgrade', 'Upgrade: websocket', 'Sec-WebSocket-Version: 99', `Sec-WebSocket-Key: ${KEY}`) +
        get('/hidden'),
    )
    const text = await wire.toEnd()
    expect(text).toMatch(/^HTTP\/1\.1 4\d\d /)
    expect(text).toMatch(/\r\nSec-WebSocket-Version: 13/)
    expect(text).toMatch(/\r\nConnection: close\r\n/)
    expect(text.match(/HTTP\/1\.1 /g)).toHaveLength(1)
  })

  it('10.2: with a cookie the Origin must be the machine’s own', async () => {
    const { port } = server.address() as AddressInfo
    await using strict = await world({ originPort: port, access: { allow: true, by: 'cookie' } })
    const ask = async (...lines: string[]) => {
      const wire = await strict.dial()
      wire.send(
        get(
          '/',
          'Connection: Upgrade',
          'Upgrade: websocket',
          'Sec-WebSocket-Version: 13',
          `Sec-WebSocket-Key: ${KEY}`,
          ...lines,
        ),
      )
      return (await wire.until(/^HTTP\/1\.1 \d+/)).slice(9, 12)
    }
    expect(await ask('Origin: https://demo.example.test')).toBe('101')
    expect(await ask('Origin: https://evil.example.test')).toBe('403')
    expect(await ask('Origin: https://demo.example.test:3000')).toBe('403')
    expect(await ask('Origin: null')).toBe('403')
    expect(await ask()).toBe('403')
  })

  it('4.1: frames sent right behind the handshake are not lost', async () => {
    const wire = await shake('/', frame(1, 'early'))
    await wire.until('\x81\x05early')
  })

  it('frames of the machine right behind its 101 are not lost', async () => {
    const wire = await shake('/hello')
    await wire.until('\x81\x05hello')
  })

  it('a refused one never leaves a tunnel: what follows is not passed to the machine', async () => {
    await using origin = await rawOrigin((wire) => wire.socket.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno'))
    await using own = await world({ originPort: origin.port })
    const wire = await own.dial()
    wire.send(get('/', 'Connection: Upgrade', 'Upgrade: websocket'))
    await wire.until(/no$/)
    wire.send(get('/hidden'))
    await wire.toEnd()
    expect(origin.connections.map(({ text }) => text).join('')).not.toContain('/hidden')
  })

  it('h2c is not passed on', async () => {
    await using origin = await rawOrigin((wire) => wire.socket.write('HTTP/1.1 204 No Content\r\n\r\n'))
    await using own = await world({ originPort: origin.port })
    const wire = await own.dial()
    await wire
      .send(get('/', 'Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABk'))
      .until('204')
    expect(origin.connections[0]?.text).not.toMatch(/upgrade|h2c|http2/i)
  })
})

describe('framing', () => {
  it.each([0, 1, 125, 126, 127, 65_535, 65_536, 8 << 20])(
    '5.2: a binary message of %i bytes comes back whole',
    async (size) => {
      const socket = open()
      await once(socket, 'open')
      const sent = randomBytes(size)
      socket.send(sent)
      const [received] = (await once(socket, 'message')) as [Buffer]
      expect(createHash('sha1').update(received).digest('hex')).toBe(createHash('sha1').update(sent).digest('hex'))
      socket.terminate()
    },
  )

  it('5.3: masking is the client’s and passes as it is', async () => {
    const wire = await shake()
    wire.socket.write(frame(1, 'masked'))
    await wire.until('\x81\x06masked')
  })

  it('5.1: an unmasked frame is the machine’s to refuse, with 1002', async () => {
    const wire = await shake()
    wire.socket.write(frame(1, 'plain', { masked: false }))
    await wire.until(close(1002))
  })

  it('5.2: reserved bits and opcodes are refused by the machine', async () => {
    for (const bytes of [frame(1, 'a', { rsv: 0x20 }), frame(3, 'a')]) {
      const wire = await shake()
      wire.socket.write(bytes)
      await wire.until(close(1002))
    }
  })

  it('5.4: fragments pass one by one, with control frames between them', async () => {
    const wire = await shake()
    wire.socket.write(frame(1, 'He', { fin: false }))
    wire.socket.write(frame(9, 'p'))
    await wire.until('\x8a\x01p')
    wire.socket.write(frame(0, 'llo'))
    await wire.until('\x81\x05Hello')
  })

  it('5.4: a frame that comes byte by byte is the same frame', async () => {
    const wire = await shake()
    for (const byte of frame(1, 'slow')) wire.socket.write(Buffer.of(byte))
    await wire.until('\x81\x04slow')
  })

  it('5.5: a control frame beyond 125 bytes or in fragments is refused by the machine', async () => {
    for (const bytes of [frame(9, 'a'.repeat(126)), frame(9, 'a', { fin: false })]) {
      const wire = await shake()
      wire.socket.write(bytes)
      await wire.until(close(1002))
    }
  })

  it('5.5.2: pings are answered end to end, both ways', async () => {
    const socket = open('/ping')
    expect(String((await once(socket, 'ping'))[0])).toBe('beat')
    socket.ping('from me')
    expect(String((await once(socket, 'pong'))[0])).toBe('from me')
    socket.terminate()
  })

  it('8.1: text that is no UTF-8 is refused by the machine with 1007', async () => {
    const wire = await shake()
    wire.socket.write(frame(1, Buffer.of(0xff, 0xfe)))
    await wire.until(close(1007))
  })

  it('6: messages in both directions at once keep their order', async () => {
    const socket = open()
    await once(socket, 'open')
    const received: string[] = []
    const all = new Promise<void>((resolve) =>
      socket.on('message', (message) => {
        received.push(String(message))
        if (received.length === 500) resolve()
      }),
    )
    const sent = Array.from({ length: 500 }, (_, n) => `message ${n} ${'x'.repeat(n)}`)
    for (const message of sent) socket.send(message)
    await all
    expect(received).toEqual(sent)
    socket.terminate()
  })
})

describe('the closing handshake', () => {
  it('7.1.2: the client’s code and reason reach the machine, and its answer the client', async () => {
    const connected = once(server, 'connection')
    const socket = open()
    const [machine] = (await connected) as [WebSocket]
    await once(socket, 'open')
    const closed = once(machine, 'close')
    socket.close(4000, 'done here')
    expect((await once(socket, 'close'))[0]).toBe(4000)
    const [code, reason] = await closed
    expect([code, String(reason)]).toEqual([4000, 'done here'])
  })

  it('7.1.5: the machine’s code and reason reach the client', async () => {
    const [code, reason] = await once(open('/bye'), 'close')
    expect([code, String(reason)]).toEqual([4001, 'bye'])
  })

  it('7.1.7: a machine that vanishes is 1006 to the client, never a clean close', async () => {
    const [code] = await once(open('/cut'), 'close')
    expect(code).toBe(1006)
  })

  it('7.1.7: a client that vanishes is 1006 to the machine', async () => {
    const wire = await shake()
    closes = []
    const closed = new Promise<void>((resolve) => {
      for (const client of server.clients) client.once('close', () => resolve())
    })
    wire.socket.destroy()
    await closed
    expect(closes.map(({ code }) => code)).toContain(1006)
  })
})
