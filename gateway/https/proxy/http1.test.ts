import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import { constants } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { describe, expect, it } from 'vitest'
import { LISTENER_LIMITS } from '../server.ts'
import { ask, session } from '../testing/client2.ts'
import { get, OK, rawOrigin, type WorldOptions, world } from '../testing/world.ts'
import { PROXY_LIMITS } from './context.ts'
import { POOL_LIMITS } from './pool.ts'
import { type Visit, WakeError } from './seams.ts'

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

/** What the machine is sent for a request, through a proxy with these options. */
async function seenByMachine(request: string, options: Omit<WorldOptions, 'originPort'> = {}): Promise<string> {
  await using origin = await rawOrigin((wire) => wire.socket.write(OK))
  await using proxy = await world({ originPort: origin.port, ...options })
  const wire = await proxy.dial()
  await wire.send(request).until(/\r\n\r\nok$/)
  return origin.connections[0]?.text ?? ''
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

describe('headers to the machine', () => {
  it('say who and from where, and a client’s own copies are dropped, also with _ or . for -', async () => {
    const text = await seenByMachine(
      get(
        '/',
        'X-Forwarded-For: 6.6.6.6',
        'X_Forwarded_For: 6.6.6.6',
        'X-Forwarded-Host: evil',
        'X-Forwarded-Port: 1',
        'Forwarded: for=6.6.6.6',
        'X-Real-IP: 6.6.6.6',
        'x-berth-user: evil',
        'X_Berth_User: evil',
        'X-Berth_Email: evil',
        'X-BERTH-ANYTHING: evil',
        'X-ExeDev-UserID: evil',
        'X_ExeDev_Email: evil',
        'X.Berth.User: evil',
        'X.ExeDev-Email: evil',
        "X-Berth~Token'Ctx: evil",
        'X.Forwarded.For: 6.6.6.6',
        'Content.Length: 5',
        'X-ExeDev-Token-Ctx: evil',
        'Content_Length: 5',
        'Transfer_Encoding: chunked',
      ),
      {
        access: {
          allow: true,
          by: 'credential',
          identity: { user: '12', email: 'a@example.com', tokenCtx: '{"n":1}' },
        },
      },
    )
    expect(text).not.toMatch(/evil|6\.6\.6\.6|Content.Length|Transfer_Encoding|Port: 1/i)
    for (const line of [
      'X-Forwarded-For: 127.0.0.1',
      'X-Forwarded-Proto: https',
      'X-Forwarded-Host: demo.example.test',
      'X-Berth-User: 12',
      'X-Berth-Email: a@example.com',
      'X-Berth-Token-Ctx: {"n":1}',
      'X-ExeDev-UserID: 12',
      'X-ExeDev-Email: a@example.com',
      'X-ExeDev-Token-Ctx: {"n":1}',
    ]) {
      expect(text).toContain(`\r\n${line}\r\n`)
    }
  })

  it('carry no identity for a visitor without one', async () => {
    expect(await seenByMachine(get('/', 'X-Berth-User: 1'))).not.toMatch(/berth|exedev/i)
  })

  it('lose the hop-by-hop ones and those that Connection names, but never what frames the message', async () => {
    const text = await seenByMachine(
      'POST / HTTP/1.1\r\nHost: demo.example.test\r\nConnection: keep-alive, X-Gone, Content-Length, Host, X-Berth-User\r\n' +
        'X-Gone: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\n' +
        'HTTP2-Settings: AAMAAABk\r\nUpgrade: h2c\r\nTE: trailers, deflate\r\nContent-Length: 2\r\nX-Kept: 1\r\n\r\nhi',
      { access: { allow: true, by: 'public', identity: { user: '3' } } },
    )
    expect(text).not.toMatch(/X-Gone|Keep-Alive|Proxy-|HTTP2|h2c|deflate/i)
    expect(text).toMatch(/\r\nX-Kept: 1\r\n/)
    expect(text).toMatch(/\r\nContent-Length: 2\r\n/)
    expect(text).toMatch(/\r\nX-Berth-User: 3\r\n/)
    expect(text).toMatch(/\r\nTE: trailers\r\nConnection: TE\r\n/)
    expect(text.endsWith('\r\n\r\nhi')).toBe(true)
  })

  it('lose the credential that let the request in and Berth’s own cookie; any other passes', async () => {
    const lines = ['Authorization: Bearer t', 'Cookie: a=1; __Host-berth=s; b=2']
    const stripped = await seenByMachine(get('/', ...lines), {
      access: { allow: true, by: 'credential', stripAuthorization: true },
    })
    expect(stripped).not.toMatch(/Authorization|__Host-berth/)
    expect(stripped).toMatch(/\r\nCookie: a=1; b=2\r\n/)
    expect(await seenByMachine(get('/', ...lines))).toMatch(/\r\nAuthorization: Bearer t\r\n/)
    expect(await seenByMachine(get('/', 'Cookie: __Host-berth_x=s'))).not.toMatch(/Cookie/)
  })

  it('an identity that would end its line lets nothing through', async () => {
    await using origin = await rawOrigin((wire) => wire.socket.write(OK))
    await using proxy = await world({
      originPort: origin.port,
      access: { allow: true, by: 'cookie', identity: { user: '1', email: 'a\r\nX-Evil: 1' } },
    })
    const wire = await proxy.dial()
    expect(await wire.send(get()).toEnd()).toMatch(/^HTTP\/1\.1 500 /)
    expect(origin.connections).toHaveLength(0)
  })
})

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

  it('range requests and encodings pass untouched', async () => {
    const seen = await seenByMachine(get('/', 'Range: bytes=2-5', 'Accept-Encoding: br, zstd', 'If-Range: "x"'))
    expect(seen).toMatch(/\r\nRange: bytes=2-5\r\nAccept-Encoding: br, zstd\r\nIf-Range: "x"\r\n/)
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

describe('who decides', () => {
  it('a name that leads nowhere is 404, a page for people and JSON for programs', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({ originPort: origin.port })
    const wire = await proxy.dial({ serverName: 'nobody.example.test' })
    const request = (accept: string) => `GET / HTTP/1.1\r\nHost: nobody.example.test\r\nAccept: ${accept}\r\n\r\n`
    await wire.send(request('text/html,*/*')).until('</html>\n')
    expect(wire.text).toMatch(/^HTTP\/1\.1 404 [\s\S]*text\/html/)
    await wire.send(request('application/json')).until('"machine.not_found"')
  })

  it('a database that does not answer is 503 in the end, with Retry-After', async () => {
    await using origin = await rawOrigin()
    const limits = { lookUpMs: 100 }
    await using deaf = await world({ originPort: origin.port, limits, access: () => new Promise<never>(() => {}) })
    await using lost = await world({ originPort: origin.port, limits, seams: { resolve: () => new Promise(() => {}) } })
    for (const proxy of [deaf, lost]) {
      const wire = await proxy.dial()
      expect(await wire.send(get()).until('"busy"')).toMatch(/^HTTP\/1\.1 503 [\s\S]*\r\nRetry-After: 5\r\n/)
    }
    expect(origin.connections).toHaveLength(0)
  })

  it('an answer of the seam is given as it is, and the machine hears nothing', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({
      originPort: origin.port,
      access: async () => ({
        allow: false,
        answer: { status: 302, fields: [['Location', 'https://example.test/login']] },
      }),
    })
    const wire = await proxy.dial()
    await wire
      .send(get())
      .until(/^HTTP\/1\.1 302 Found\r\n[\s\S]*Location: https:\/\/example\.test\/login\r\n[\s\S]*\r\n\r\n/)
    expect(origin.connections).toHaveLength(0)
  })

  it('nothing listening is 502 and says which ports are', async () => {
    const closed = await rawOrigin()
    const { port } = closed
    await closed[Symbol.asyncDispose]()
    await using proxy = await world({ originPort: port, seams: { listeningPorts: async () => [3000, 5173] } })
    const wire = await proxy.dial()
    await wire.send(get()).until('"listening_ports":[3000,5173]')
    expect(wire.text).toMatch(/^HTTP\/1\.1 502 /)
  })

  it('nothing listening is 502 also while the database does not answer', async () => {
    const closed = await rawOrigin()
    const { port } = closed
    await closed[Symbol.asyncDispose]()
    const silent = { lookUpMs: 100 }
    await using proxy = await world({
      originPort: port,
      limits: silent,
      seams: { listeningPorts: () => new Promise(() => {}) },
    })
    const wire = await proxy.dial()
    await wire.send(get()).until('"port.refused"')
  })

  it('a sleeping machine is woken after the request was let in, and the request waits with its body', async () => {
    await using origin = await rawOrigin((wire) => wire.socket.write(OK))
    const order: string[] = []
    await using proxy = await world({
      originPort: origin.port,
      route: { awake: false, address: '127.0.0.2' },
      access: () => {
        order.push('authorize')
        return { allow: true, by: 'public' }
      },
      seams: {
        wake: async ({ route }) => {
          order.push('wake')
          return { ...route, address: '127.0.0.1', awake: true }
        },
      },
    })
    const wire = await proxy.dial()
    wire.send('POST / HTTP/1.1\r\nHost: demo.example.test\r\nContent-Length: 5\r\n\r\nhello')
    await wire.until(/ok$/)
    // Once more at the end: what let it in may have been taken back while it waited.
    expect(order).toEqual(['authorize', 'wake', 'authorize'])
    expect(origin.connections[0]?.text).toMatch(/\r\n\r\nhello$/)
    expect(await proxy.https.metrics.registry.metrics()).toMatch(/berth_https_wake_seconds_count 1/)
  })

  it('waking that failed is 503 with Retry-After', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({
      originPort: origin.port,
      route: { awake: false },
      seams: { wake: () => Promise.reject(new WakeError('The server has no memory free.', { retryAfterS: 30 })) },
    })
    const wire = await proxy.dial()
    await wire.send(get()).until('The server has no memory free')
    expect(wire.text).toMatch(/^HTTP\/1\.1 503 [\s\S]*\r\nRetry-After: 30\r\n/)
  })

  it('a grant that is taken back ends what it let in', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({
      originPort: origin.port,
      access: { allow: true, by: 'cookie', grant: 'share:5' },
    })
    const wire = await proxy.dial()
    wire.send(get())
    const machine = await origin.accept()
    await machine.until('\r\n\r\n')
    proxy.https.revoke((grant) => grant === 'share:4')
    proxy.https.revoke((grant, machineId) => grant === 'share:5' && machineId === 7)
    await Promise.all([machine.toEnd(), wire.toClose()])
  })
})

it.each(['http/1.1', 'h2'])('what let a request in ends it with its own time, over %s', async (protocol) => {
  await using origin = await rawOrigin()
  await using proxy = await world({
    originPort: origin.port,
    access: () => ({ allow: true, by: 'credential', grant: 'token:1', endsAtMs: Date.now() + 300 }),
  })
  if (protocol === 'h2') {
    using client = session(proxy)
    const answer = ask(client)
    await (await origin.accept()).toEnd()
    expect((await answer).code).toBe(constants.NGHTTP2_CANCEL)
    return
  }
  const wire = await proxy.dial()
  wire.send(get())
  await Promise.all([origin.accept().then((machine) => machine.toEnd()), wire.toClose()])
})

describe('with a cookie', () => {
  const cases: [name: string, lines: string[], status: 200 | 403, method?: string][] = [
    ['a page of the machine itself', ['Sec-Fetch-Site: same-origin', 'Sec-Fetch-Mode: cors'], 200],
    ['a typed address', ['Sec-Fetch-Site: none', 'Sec-Fetch-Mode: navigate'], 200],
    [
      'a link on another site',
      ['Sec-Fetch-Site: cross-site', 'Sec-Fetch-Mode: navigate', 'Sec-Fetch-Dest: document'],
      200,
    ],
    [
      'a frame in another machine’s page',
      ['Sec-Fetch-Site: same-site', 'Sec-Fetch-Mode: navigate', 'Sec-Fetch-Dest: iframe'],
      403,
    ],
    [
      'a fetch of another machine’s page',
      ['Sec-Fetch-Site: same-site', 'Sec-Fetch-Mode: no-cors', 'Sec-Fetch-Dest: empty'],
      403,
    ],
    [
      'a form of another machine’s page',
      ['Sec-Fetch-Site: same-site', 'Sec-Fetch-Mode: navigate', 'Sec-Fetch-Dest: document'],
      403,
      'POST',
    ],
    ['a form of an old browser on another page', ['Origin: https://evil.example.test'], 403, 'POST'],
    ['a client without such headers', [], 200],
  ]
  it.each(cases)('%s', async (_name, lines, status, method = 'GET') => {
    await using origin = await rawOrigin((wire) => wire.socket.write(OK))
    await using proxy = await world({ originPort: origin.port, access: { allow: true, by: 'cookie' } })
    const wire = await proxy.dial()
    await wire.send(get('/', ...lines).replace('GET', method)).until(`HTTP/1.1 ${status} `)
  })

  it('a token brings none of these rules', async () => {
    await using origin = await rawOrigin((wire) => wire.socket.write(OK))
    await using proxy = await world({ originPort: origin.port, access: { allow: true, by: 'credential' } })
    const wire = await proxy.dial()
    await wire.send(get('/', 'Sec-Fetch-Site: cross-site')).until('HTTP/1.1 200 ')
  })
})

describe('which port', () => {
  const cases: [host: string, port: number | 'primary', origin: string][] = [
    ['demo.example.test', 'primary', 'https://demo.example.test'],
    ['demo.example.test:443', 'primary', 'https://demo.example.test'],
    ['demo.example.test:3000', 3000, 'https://demo.example.test:3000'],
    ['DEMO.example.test.:9999', 9999, 'https://demo.example.test:9999'],
    ['demo.example.test:2999', 'primary', 'https://demo.example.test:2999'],
    ['demo.example.test:10000', 'primary', 'https://demo.example.test:10000'],
    ['demo--5173.example.test', 5173, 'https://demo--5173.example.test'],
    ['demo--5173.example.test:4000', 5173, 'https://demo--5173.example.test:4000'],
  ]
  it.each(cases)('%s goes to %s', async (host, port, origin) => {
    const visits: Visit[] = []
    await using proxy = await world({
      originPort: 1,
      access: (visit) => {
        visits.push(visit)
        return { allow: false, answer: { status: 401 } }
      },
    })
    const wire = await proxy.dial()
    await wire.send(`GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`).until('HTTP/1.1 401 ')
    expect(visits.map((visit) => [visit.port, visit.origin])).toEqual([[port === 'primary' ? 1 : port, origin]])
  })

  it('the port the listener itself has is the primary one', async () => {
    const ports: number[] = []
    await using proxy = await world({
      originPort: 1,
      access: ({ port }) => {
        ports.push(port)
        return { allow: false, answer: { status: 401 } }
      },
    })
    const wire = await proxy.dial()
    await wire.send(`GET / HTTP/1.1\r\nHost: demo.example.test:${proxy.port}\r\n\r\n`).until('HTTP/1.1 401 ')
    expect(ports).toEqual([1])
  })
})

describe('the control host', () => {
  it('gets its requests whole, body and all, and never one for a machine on the same connection', async () => {
    await using proxy = await world({
      originPort: 1,
      controlHost: async (request, response) => {
        let body = ''
        for await (const bytes of request) body += bytes
        response.end(`${request.method} ${request.url} ${body}`)
      },
    })
    const wire = await proxy.dial({ serverName: 'example.test' })
    wire.send('POST /exec HTTP/1.1\r\nHost: example.test\r\nContent-Length: 2\r\n\r\nls')
    await wire.until('POST /exec ls')
    wire.send('GET /again HTTP/1.1\r\nHost: example.test\r\n\r\n')
    await wire.until('GET /again ')
    wire.send(get())
    expect(await wire.toEnd()).toMatch(/HTTP\/1\.1 421 /)
  })
})
