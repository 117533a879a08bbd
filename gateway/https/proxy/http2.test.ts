import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { createServer, type RequestListener } from 'node:http'
import { constants, type OutgoingHttpHeaders } from 'node:http2'
import type { AddressInfo } from 'node:net'
import { promisify } from 'node:util'
import { describe, expect, it } from 'vitest'
import { ask, read, session } from '../testing/client2.ts'
import { OK, rawOrigin, world } from '../testing/world.ts'

async function nodeOrigin(listener: RequestListener) {
  const server = createServer(listener)
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

describe('HTTP/2 in front of HTTP/1.1', () => {
  it('a request and its response pass, with headers, repeated headers and cookies joined', async () => {
    await using origin = await nodeOrigin((request, response) => {
      response.setHeader('Set-Cookie', ['a=1', '__Host-berth=evil', 'b=2'])
      response.setHeader('Connection', 'X-Hop')
      response.setHeader('X-Hop', '1')
      response.end(
        `${request.httpVersion} ${request.method} ${request.url} ${request.headers.cookie} ${request.headers['x-berth-user']} ${request.headers.host}`,
      )
    })
    await using proxy = await world({
      originPort: origin.port,
      access: { allow: true, by: 'cookie', identity: { user: '9' } },
    })
    using client = session(proxy)
    const answer = await ask(client, {
      ':path': '/a%2Fb?c',
      cookie: ['x=1', '__Host-berth=s', 'y=2'],
      'x-berth-user': '1',
    })
    expect(answer.status).toBe(200)
    expect(answer.body).toBe('1.1 GET /a%2Fb?c x=1; y=2 9 demo.example.test')
    expect(answer.headers['set-cookie']).toEqual(['a=1', 'b=2'])
    expect(answer.headers['x-hop']).toBeUndefined()
  })

  it('a body without length goes in chunks, with trailers both ways and forged ones dropped', async () => {
    await using origin = await nodeOrigin(async (request, response) => {
      let body = ''
      for await (const bytes of request) body += bytes
      response.writeHead(200, { Trailer: 'X-Sum' })
      response.write(`${request.headers['transfer-encoding']} ${body} ${JSON.stringify(request.trailers)}`)
      response.addTrailers({ 'X-Sum': '42', 'X-Berth-User': 'evil' })
      response.end()
    })
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const stream = client.request(
      { ':path': '/', ':method': 'POST', ':authority': 'demo.example.test', trailer: 'x-t' },
      { waitForTrailers: true },
    )
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-t': '1', 'x-berth-user': 'evil', x_berth_email: 'evil' }))
    stream.write('hel')
    stream.end('lo')
    const answer = await read(stream)
    expect(answer.body).toBe('chunked hello {"x-t":"1"}')
    expect(answer.trailers['x-sum']).toBe('42')
    expect(answer.trailers['x-berth-user']).toBeUndefined()
  })

  it('a body that is said to be empty, and ends later, has one length for the machine', async () => {
    await using origin = await rawOrigin((wire) => wire.send(OK))
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    expect((await ask(client, { ':method': 'POST', 'content-length': '0' }, '')).body).toBe('ok')
    expect(origin.connections[0]?.text).toMatch(/\r\ncontent-length: 0\r\n/)
    expect(origin.connections[0]?.text).not.toMatch(/chunked|\r\n0\r\n/i)
    expect((await ask(client)).body).toBe('ok')
    expect(origin.connections).toHaveLength(1)
  })

  it('trailers that come before the request is let in are passed on all the same', async () => {
    await using origin = await rawOrigin((wire, bytes) => bytes.endsWith('\r\n\r\n') && wire.send(OK))
    const asked = Promise.withResolvers<void>()
    const decided = Promise.withResolvers<void>()
    await using proxy = await world({
      originPort: origin.port,
      access: async ({ target }) => {
        if (target === '/slow') {
          asked.resolve()
          await decided.promise
        }
        return { allow: true, by: 'public' }
      },
    })
    using client = session(proxy)
    const stream = client.request(
      { ':path': '/slow', ':method': 'POST', ':authority': 'demo.example.test' },
      { waitForTrailers: true },
    )
    stream.on('wantTrailers', () => stream.sendTrailers({ 'x-sum': '2' }))
    stream.end('hi')
    await asked.promise
    // Answered behind it on the same connection: all of the first has come.
    await ask(client, { ':authority': 'nobody.example.test' })
    decided.resolve()
    await read(stream)
    expect(origin.connections[0]?.text).toMatch(/2\r\nhi\r\n0\r\nx-sum: 2\r\n\r\n$/)
  })

  it('HEAD, 204 and 304 have no body; 103 comes before the answer', async () => {
    await using origin = await rawOrigin((wire, bytes) => {
      if (bytes.startsWith('HEAD')) wire.send('HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n')
      else if (bytes.includes('/204')) wire.send('HTTP/1.1 204 No Content\r\n\r\n')
      else wire.send(`HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n${OK}`)
    })
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const head = await ask(client, { ':method': 'HEAD' })
    expect([head.status, head.headers['content-length'], head.body]).toEqual([200, '99', ''])
    expect((await ask(client, { ':path': '/204' })).status).toBe(204)
    const hinted = await ask(client)
    expect([hinted.interims, hinted.status, hinted.body]).toEqual([[103], 200, 'ok'])
  })

  it('a body where there can be none, of 205, is dropped, and the connections live on', async () => {
    await using origin = await rawOrigin((wire, bytes) =>
      wire.send(bytes.includes('/reset') ? OK.replace('200 OK', '205 Reset Content') : OK),
    )
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const reset = await ask(client, { ':path': '/reset' })
    expect([reset.status, reset.headers['content-length'], reset.body]).toEqual([205, undefined, ''])
    expect((await ask(client)).body).toBe('ok')
    expect(origin.connections).toHaveLength(1)
  })

  it.each([
    ['with a length', 'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf'],
    ['in chunks', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n'],
  ])('a body %s that was cut is a reset stream, and the connection lives on', async (_name, answer) => {
    await using origin = await rawOrigin((wire, bytes) => {
      if (bytes.includes('/whole')) wire.send(OK)
      else wire.send(answer).socket.end()
    })
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const cut = await ask(client)
    expect([cut.status, cut.code]).toEqual([200, constants.NGHTTP2_INTERNAL_ERROR])
    expect((await ask(client, { ':path': '/whole' })).body).toBe('ok')
  })

  it('a stream that the client resets cancels what the machine does for it, and leaves no whole request behind', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    // Trailers that never come: otherwise Node's client ends its side cleanly before it resets.
    const stream = client.request(
      { ':path': '/', ':method': 'POST', ':authority': 'demo.example.test' },
      { waitForTrailers: true },
    )
    stream.on('error', () => {})
    stream.write('part')
    const machine = await origin.accept()
    await machine.until('4\r\npart\r\n')
    stream.close(constants.NGHTTP2_CANCEL)
    expect(await machine.toEnd()).not.toMatch(/\r\n0\r\n\r\n/)
  })

  it('a client that does not read one stream holds that machine back and no other stream', async () => {
    let written = 0
    await using origin = await nodeOrigin(async (request, response) => {
      if (request.url === '/small') {
        response.end('ok')
        return
      }
      response.on('error', () => {})
      for (let n = 0; n < 128 && !response.destroyed; n++) {
        written += 1 << 20
        if (!response.write(Buffer.alloc(1 << 20))) await once(response, 'drain').catch(() => {})
      }
    })
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const stuck = client.request({ ':path': '/', ':authority': 'demo.example.test' })
    stuck.on('error', () => {})
    await once(stuck, 'response')
    stuck.pause()
    for (let before = -1; before !== written; ) {
      before = written
      await new Promise((resolve) => setTimeout(resolve, 300))
    }
    expect(written).toBeLessThan(24 << 20)
    expect((await ask(client, { ':path': '/small' })).body).toBe('ok')
  })

  it('a hundred streams that are not read hold little together, and one that is read still gets through', async () => {
    await using origin = await nodeOrigin((_request, response) => {
      response.on('error', () => {}).end(Buffer.alloc(4 << 20))
    })
    await using proxy = await world({
      originPort: origin.port,
      access: { allow: true, by: 'cookie', grant: 'all' },
    })
    using client = session(proxy, { initialWindowSize: 16_384 })
    const stuck = Array.from({ length: 100 }, (_, n) => {
      const stream = client.request({ ':path': `/stuck/${n}`, ':authority': 'demo.example.test' })
      stream.on('error', () => {})
      return stream
    })
    await Promise.all(stuck.map((stream) => once(stream, 'response')))
    expect((await ask(client, { ':path': '/read' })).body).toHaveLength(4 << 20)
    proxy.https.revoke(() => true)
    while (proxy.finished.length < 101) await new Promise((resolve) => setImmediate(resolve))
    const sentBytes = proxy.finished
      .filter(({ path }) => path.startsWith('/stuck/'))
      .reduce((sum, exchange) => sum + exchange.sentBytes, 0)
    // What the client's windows took, what may be held for all, and a first read of each.
    expect(sentBytes).toBeLessThan(100 * 16_384 + (2 << 20) + 100 * 16_384 + 262_144)
  })

  it('Host and :authority that differ are refused, as are targets that are no path', async () => {
    await using origin = await rawOrigin((wire) => wire.send(OK))
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    expect((await ask(client, { host: 'other.example.test' })).status).toBe(400)
    // nghttp2 itself resets what can be no path.
    expect([0, 400]).toContain((await ask(client, { ':path': '/a b' })).status)
    expect([0, 400]).toContain((await ask(client, { ':path': 'https://other.example.test/' })).status)
    expect(origin.connections).toHaveLength(0)
  })

  it('another name on the same connection gets its own decision, and the control host its own application', async () => {
    await using origin = await rawOrigin((wire) => wire.send(OK))
    await using proxy = await world({
      originPort: origin.port,
      controlHost: async (request, response) => {
        let body = ''
        for await (const bytes of request) body += bytes
        response.end(`control ${request.method} ${request.url} ${body}`)
      },
    })
    using client = session(proxy)
    expect((await ask(client, { ':authority': 'nobody.example.test' })).status).toBe(404)
    expect((await ask(client, { ':authority': 'example.test', ':method': 'POST', ':path': '/exec' }, 'ls')).body).toBe(
      'control POST /exec ls',
    )
    expect((await ask(client)).body).toBe('ok')
  })

  it('a revoked grant resets its streams and no others', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({
      originPort: origin.port,
      access: ({ target }) => ({ allow: true, by: 'cookie', grant: target }),
    })
    using client = session(proxy)
    const [one, two] = [ask(client, { ':path': '/one' }), ask(client, { ':path': '/two' })]
    const machines = [await origin.accept(), await origin.accept()]
    await Promise.all(machines.map((machine) => machine.until('\r\n\r\n')))
    proxy.https.revoke((grant) => grant === '/one')
    expect((await one).code).toBe(constants.NGHTTP2_CANCEL)
    machines.find(({ text }) => text.includes('/two'))?.send(OK)
    expect((await two).body).toBe('ok')
  })

  it('rapid reset ends the connection instead of the gateway', async () => {
    await using origin = await rawOrigin()
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    await once(client, 'connect')
    const closed = new Promise<void>((resolve) => client.once('close', () => resolve()))
    const flood = async () => {
      for (let n = 0; n < 5000 && !client.destroyed && !client.closed; n++) {
        const stream = client.request({ ':path': '/', ':authority': 'demo.example.test' })
        stream.on('error', () => {})
        // A turn between the two, or the request would be taken back before it was sent.
        await new Promise((resolve) => setImmediate(resolve))
        stream.close(constants.NGHTTP2_CANCEL)
      }
    }
    await Promise.race([flood(), closed])
    await closed
    using next = session(proxy)
    expect((await ask(next, { ':authority': 'nobody.example.test' })).status).toBe(404)
  })

  it('a header bomb is refused and the gateway goes on', async () => {
    await using origin = await rawOrigin((wire) => wire.send(OK))
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const bomb: OutgoingHttpHeaders = {}
    for (let n = 0; n < 120; n++) bomb[`x-${n}`] = 'a'.repeat(4000)
    const answer = await ask(client, bomb).catch(() => undefined)
    expect(answer?.status ?? 0).not.toBe(200)
    expect(origin.connections).toHaveLength(0)
    using next = session(proxy)
    expect((await ask(next)).status).toBe(200)
  })

  it('as many cookies as a browser keeps are one header to the machine', async () => {
    await using origin = await rawOrigin((wire) => wire.send(OK))
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const cookie = Array.from({ length: 400 }, (_, n) => `c${n}=1`)
    expect((await ask(client, { cookie })).status).toBe(200)
    expect(origin.connections[0]?.text).toContain(`\r\nCookie: ${cookie.join('; ')}\r\n`)
  })

  it('more than fits is answered in words, and cookies are cleared only where they are what is too large', async () => {
    await using origin = await rawOrigin((wire) => wire.send(OK))
    await using proxy = await world({ originPort: origin.port })
    using client = session(proxy)
    const large = 'a'.repeat(4000)
    const cookie = Array.from({ length: 20 }, (_, n) => `c${n}=${large}`)
    for (const authority of ['demo.example.test', 'example.test']) {
      const cleared = await ask(client, { cookie, accept: 'text/html', ':authority': authority })
      expect([cleared.status, cleared.headers['clear-site-data']]).toEqual([431, '"cookies"'])
      expect(cleared.body).toMatch(/<h1>Too many cookies/)
    }
    const link = await ask(client, { ':path': `/?${large.repeat(17)}`, cookie: 'a=1' })
    expect([link.status, link.headers['clear-site-data']]).toEqual([431, undefined])
    const many = Object.fromEntries(Array.from({ length: 130 }, (_, n) => [`x-${n}`, '1']))
    const counted = await ask(client, { ...many, cookie: ['a=1', 'b=2'] })
    expect([counted.status, counted.headers['clear-site-data']]).toEqual([431, undefined])
    expect(origin.connections).toHaveLength(0)
  })

  it('curl speaks it, uploads with it, and HTTP/1.1 when told to', async () => {
    await using origin = await nodeOrigin(async (request, response) => {
      let size = 0
      for await (const bytes of request) size += bytes.length
      response.end(`${request.method} ${size}`)
    })
    await using proxy = await world({ originPort: origin.port })
    const curl = async (...args: string[]) =>
      (
        await promisify(execFile)('curl', [
          '-sSk',
          '--resolve',
          `demo.example.test:${proxy.port}:127.0.0.1`,
          '-w',
          ' %{http_version}',
          ...args,
          `https://demo.example.test:${proxy.port}/`,
        ])
      ).stdout
    expect(await curl('--http2')).toBe('GET 0 2')
    expect(await curl('--http2', '--data-binary', '@/usr/bin/env')).toMatch(/^POST \d{4,} 2$/)
    expect(await curl('--http1.1', '-H', 'Transfer-Encoding: chunked', '--data-binary', '@/usr/bin/env')).toMatch(
      /^POST \d{4,} 1\.1$/,
    )
  })
})
