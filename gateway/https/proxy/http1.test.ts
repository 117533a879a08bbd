import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, expect, it } from 'vitest'
import { LISTENER_LIMITS } from '../server.ts'
import { get, OK, rawOrigin, world } from '../testing/world.ts'
import { PROXY_LIMITS } from './context.ts'
import { POOL_LIMITS } from './pool.ts'

async function nodeOrigin(listener: RequestListener) {
  const server = createServer(listener)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    server,
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

/** What a client gets when the machine answers with these bytes and, unless told otherwise, keeps the connection. */
async function seenByClient(answer: string, request = get(), end = false): Promise<{ text: string; ended: boolean }> {
  await using origin = await rawOrigin((wire) => {
    wire.socket.write(answer, 'latin1')
    if (end) wire.socket.end()
  })
  await using proxy = await world({ originPort: origin.port })
  const wire = await proxy.dial()
  const text = await wire.send(request.replace('\r\n\r\n', '\r\nConnection: close\r\n\r\n')).toClose()
  return { text, ended: wire.ended }
}

describe('bodies and trailers', () => {
  it('pass as they are coded, chunk by chunk, with extensions and trailers; forged identity in trailers does not', async () => {
    await using origin = await rawOrigin((wire, bytes) => {
      if (bytes.includes('\r\n\r\n') && wire.text.includes('0\r\nX-Sum')) wire.socket.write(OK)
    })
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    wire.send('POST / HTTP/1.1\r\nHost: demo.example.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n')
    for (const piece of [
      '5;a=b\r',
      '\nhel',
      'lo\r\n',
      '3\r\nabc\r\n0\r\nX-S',
      'um: 9\r\nX_Berth_User: 1\r\nX.ExeDev.Email: 1\r\nContent-Length: 3\r\n',
      '\r\n',
    ]) {
      wire.send(piece)
    }
    await wire.until(/ok$/)
    const seen = origin.connections[0]?.text ?? ''
    expect(seen.slice(seen.indexOf('\r\n\r\n') + 4)).toBe('5;a=b\r\nhello\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n')
    expect(seen).toMatch(/\r\nTrailer: X-Sum\r\n/)
  })

  it('a chunked response passes byte for byte with its trailers', async () => {
    const body = '4;x\r\nabcd\r\n0\r\nX-Sum: 4\r\nX-Exe-Exit: 0\r\n\r\n'
    const { text } = await seenByClient(
      `HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n${body}`,
    )
    expect(text.startsWith('HTTP/1.1 200 Fine\r\n')).toBe(true)
    expect(text.endsWith(`\r\n\r\n${body}`)).toBe(true)
  })

  it('100-continue and early hints reach the client before the answer, from the machine itself', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    wire.send('POST / HTTP/1.1\r\nHost: demo.example.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n')
    const machine = await origin.accept()
    await machine.until('Expect: 100-continue')
    machine.send('HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n')
    await wire.until('HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n')
    wire.send('hi')
    await machine.until(/\r\n\r\nhi$/)
    machine.send(OK)
    await wire.until(/HTTP\/1\.1 200 OK[\s\S]*ok$/)
  })

  it('an interim answer that claims a body has none for the client', async () => {
    const hints = 'HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\nLink: </a>\r\n\r\n'
    const processing = 'HTTP/1.1 102 Processing\r\nContent-Length: 3\r\n\r\n'
    const { text } = await seenByClient(`${processing}${hints}${OK}`)
    expect(text).toMatch(
      /^HTTP\/1\.1 102 Processing\r\n\r\nHTTP\/1\.1 103 Early Hints\r\nLink: <\/a>\r\n\r\nHTTP\/1\.1 200 /,
    )
  })

  it('HEAD and 304 have no body whatever their headers say, and the connection goes on', async () => {
    await using origin = await rawOrigin((wire, bytes) => {
      wire.socket.write(
        bytes.startsWith('HEAD')
          ? 'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n'
          : bytes.includes('/304')
            ? 'HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: "a"\r\n\r\n'
            : OK,
      )
    })
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    wire.send(get().replace('GET', 'HEAD'))
    await wire.until('Content-Length: 99\r\n\r\n')
    wire.send(get('/304'))
    await wire.until('ETag: "a"\r\n\r\n')
    wire.send(get())
    await wire.until(/ok$/)
    expect(origin.connections).toHaveLength(1)
  })

  it('64 MiB of an upload and of a download arrive as they were sent, also to a reader that pauses', async () => {
    const block = randomBytes(1 << 20)
    const blocks = 64
    await using origin = await nodeOrigin((request, response) => {
      const hash = createHash('sha256')
      request.on('data', (bytes) => hash.update(bytes))
      request.on('end', async () => {
        response.writeHead(200, { 'x-hash': hash.digest('hex') })
        for (let n = 0; n < blocks; n++) if (!response.write(block)) await once(response, 'drain')
        response.end()
      })
    })
    await using proxy = await world({ originPort: origin.port })
    const expected = createHash('sha256')
    for (let n = 0; n < blocks; n++) expected.update(block)
    const digest = expected.digest('hex')
    const { socket } = await proxy.dial()
    socket.removeAllListeners('data')
    socket.write(
      `POST / HTTP/1.1\r\nHost: demo.example.test\r\nConnection: close\r\nContent-Length: ${blocks << 20}\r\n\r\n`,
    )
    for (let n = 0; n < blocks; n++) if (!socket.write(block)) await once(socket, 'drain')
    let raw = Buffer.alloc(0)
    let head = ''
    const chunks: Buffer[] = []
    for await (const bytes of socket) {
      chunks.push(bytes)
      // A reader with pauses: everything between is in the proxy's hands.
      if (chunks.length % 50 === 0) await new Promise((resolve) => setImmediate(resolve))
    }
    raw = Buffer.concat(chunks)
    const headEnd = raw.indexOf('\r\n\r\n')
    head = raw.toString('latin1', 0, headEnd)
    expect(head).toContain(digest)
    expect(
      createHash('sha256')
        .update(dechunk(raw.subarray(headEnd + 4)))
        .digest('hex'),
    ).toBe(digest)
  })
})

function dechunk(raw: Buffer): Buffer {
  const parts: Buffer[] = []
  for (let at = 0; ; ) {
    const end = raw.indexOf('\r\n', at)
    const size = Number.parseInt(raw.toString('latin1', at, end), 16)
    if (size === 0) return Buffer.concat(parts)
    parts.push(raw.subarray(end + 2, end + 2 + size))
    at = end + 4 + size
  }
}

describe('an end that is none', () => {
  const cuts: [name: string, answer: string][] = [
    ['with a length', 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf'],
    ['in chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n'],
    ['inside a chunk', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nhello'],
    ['before the trailers end', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-A: b\r\n'],
  ]
  it.each(cuts)('of a body %s is passed on as a cut, never as a clean end', async (_name, answer) => {
    const { text } = await seenByClient(answer, get(), true)
    expect(text).toMatch(/^HTTP\/1\.1 200/)
    expect(text).not.toMatch(/0\r\n(.*\r\n)*\r\n$/)
  })

  it('a body that lasts until the end of the connection ends cleanly with it', async () => {
    const { text, ended } = await seenByClient('HTTP/1.0 200 OK\r\n\r\nall of it', get(), true)
    expect(text).toMatch(/^HTTP\/1\.1 200 OK\r\nConnection: close\r\n\r\nall of it$/)
    expect(ended).toBe(true)
  })

  it('the same body of a machine that resets the connection is an error to curl: TLS was not closed', async () => {
    await using origin = await rawOrigin((wire) => {
      wire.socket.write('HTTP/1.0 200 OK\r\n\r\npart of it')
    })
    await using proxy = await world({ originPort: origin.port })
    const url = `https://demo.example.test:${proxy.port}/`
    const resolve = `demo.example.test:${proxy.port}:127.0.0.1`
    const curl = spawn('curl', ['-sSkN', '--http1.1', '--resolve', resolve, url], { stdio: ['ignore', 'pipe', 'pipe'] })
    await once(curl.stdout, 'data')
    const { socket } = origin.connections[0] ?? {}
    if (socket && 'resetAndDestroy' in socket) socket.resetAndDestroy()
    expect((await once(curl, 'exit'))[0]).toBe(56)
  })

  const nonsense: [name: string, answer: string][] = [
    ['two lengths', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok'],
    ['a length and chunks', 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'],
    ['no HTTP', 'SSH-2.0-OpenSSH_9.2\r\n\r\n'],
    ['folded headers', 'HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\n\r\n'],
    ['a bare CR in a header', 'HTTP/1.1 200 OK\r\nX-A: b\rX-B: c\r\n\r\n'],
    [
      'a switch of protocols that nobody asked for',
      'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n',
    ],
    ['a head without end', `HTTP/1.1 200 OK\r\nX-A: ${'a'.repeat(70_000)}`],
    ['nothing at all', ''],
  ]
  it.each(nonsense)('%s from the machine is a 502', async (_name, answer) => {
    expect((await seenByClient(answer, get(), true)).text).toMatch(/^HTTP\/1\.1 502 /)
  })

  it('bytes behind a complete response are nobody’s answer', async () => {
    await using origin = await rawOrigin((wire, bytes) => {
      wire.socket.write(bytes.includes('/poison') ? `${OK}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil` : OK)
    })
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    wire.send(get('/poison') + get('/next'))
    await wire.until(/ok[\s\S]*ok$/)
    expect(wire.text).not.toContain('evil')
  })
})

describe('the client', () => {
  it('that goes away cancels what the machine does for it', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    wire.send(get())
    const machine = await origin.accept()
    await machine.until('\r\n\r\n')
    wire.socket.destroy()
    await machine.toEnd()
    expect(proxy.finished.map(({ status }) => status)).toEqual([499])
  })

  it('that does not read holds the machine back', async () => {
    let written = 0
    await using origin = await nodeOrigin(async (_request, response) => {
      response.on('error', () => {})
      for (let n = 0; n < 256 && !response.destroyed; n++) {
        written += 1 << 20
        if (!response.write(Buffer.alloc(1 << 20))) await once(response, 'drain').catch(() => {})
      }
    })
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    wire.socket.pause()
    wire.send(get())
    // The machine's writes must stop by themselves: equal twice in a row, far below the whole.
    for (let before = -1; before !== written; ) {
      before = written
      await new Promise((resolve) => setTimeout(resolve, 300))
    }
    expect(written).toBeLessThan(32 << 20)
  })

  it('that speaks HTTP/1.0 gets no chunks and the connection closes', async () => {
    await using origin = await nodeOrigin((_request, response) => {
      response.write('a')
      response.end('b')
    })
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    const text = await wire.send('GET / HTTP/1.0\r\nHost: demo.example.test\r\n\r\n').toEnd()
    expect(text).toMatch(/\r\nConnection: close\r\n\r\nab$/)
  })

  it('that takes too long over its head is told so', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({ originPort: origin.port, limits: { headMs: 200 } })
    const wire = await proxy.dial()
    expect(await wire.send('GET / HTTP/1.1\r\nHost: de').toEnd()).toMatch(/^HTTP\/1\.1 408 /)
  })
})

it('an exchange that goes both ways lives as long as either moves', async () => {
  await using origin = await rawOrigin()
  await using proxy = await world({ originPort: origin.port, limits: { stallMs: 400 } })
  const wire = await proxy.dial()
  wire.send('POST / HTTP/1.1\r\nHost: demo.example.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n')
  const machine = await origin.accept()
  await machine.until('hi')
  machine.send('HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
  for (let n = 0; n < 12; n++) {
    machine.send(`1\r\n${n % 10}\r\n`)
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  expect(wire.closed).toBe(false)
  await Promise.all([wire.toClose(), machine.toEnd()])
})

describe('connections to a machine', () => {
  it('are kept and used again; one that died meanwhile is replaced without the client noticing', async () => {
    await using origin = await rawOrigin((wire) => wire.socket.write(OK))
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    await wire.send(get('/1')).until(/ok$/)
    await wire.send(get('/2')).until(/ok[\s\S]*ok$/)
    expect(origin.connections).toHaveLength(1)
    // Dies with the request in it: sent again on a new one.
    origin.connections[0]?.socket.removeAllListeners('data')
    origin.connections[0]?.socket.once('data', () => origin.connections[0]?.socket.destroy())
    await wire.send(get('/3')).until(/(ok[\s\S]*){3}$/)
    expect(origin.connections).toHaveLength(2)
  })

  it('close long before a client’s do: each has an idle time of its own', async () => {
    await using origin = await rawOrigin((wire) => wire.socket.write(OK))
    await using proxy = await world({ originPort: origin.port, limits: { upstreamIdleMs: 100 } })
    const wire = await proxy.dial()
    await wire.send(get('/1')).until(/ok$/)
    await origin.connections[0]?.toEnd()
    await wire.send(get('/2')).until(/ok[\s\S]*ok$/)
    expect(origin.connections).toHaveLength(2)
    const names = [PROXY_LIMITS, POOL_LIMITS, LISTENER_LIMITS].flatMap((limits) => Object.keys(limits))
    expect(names).toEqual([...new Set(names)])
  })

  it('a POST is never sent twice', async () => {
    await using origin = await rawOrigin((wire, bytes) => {
      if (bytes.startsWith('GET')) wire.socket.write(OK)
      else wire.socket.destroy()
    })
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial()
    await wire.send(get()).until(/ok$/)
    wire.send('POST / HTTP/1.1\r\nHost: demo.example.test\r\nContent-Length: 2\r\n\r\nhi')
    await wire.until('HTTP/1.1 502 ')
    expect(origin.connections).toHaveLength(1)
  })
})
