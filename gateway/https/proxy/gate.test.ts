import { constants } from 'node:http2'
import { describe, expect, it } from 'vitest'
import { ask, session } from '../testing/client2.ts'
import { get, OK, rawOrigin, world } from '../testing/world.ts'
import { type Visit, WakeError } from './seams.ts'

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
