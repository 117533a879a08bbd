import { once } from 'node:events'
import { type ClientHttp2Session, connect } from 'node:http2'
import { connect as connectTls } from 'node:tls'
import { describe, expect, it } from 'vitest'
import { createSignInLink } from '../../accounts/web-sessions.ts'
import { cookieOf, type Site, startSite } from '../testing/site.ts'

function dial(site: Site, host: string): ClientHttp2Session {
  return connect(`https://${host}:${site.port}`, {
    ca: site.ca,
    lookup: (_host, _options, callback) => callback(null, [{ address: '127.0.0.1', family: 4 }]),
  } as Parameters<typeof connect>[1])
}

async function ask(session: ClientHttp2Session, headers: Record<string, string>, body = '') {
  const stream = session.request(headers)
  if (headers[':method'] === 'POST') stream.end(body)
  const [answered] = (await once(stream, 'response')) as [Record<string, string | number>]
  let text = ''
  for await (const chunk of stream.setEncoding('utf8')) text += chunk
  return { status: Number(answered[':status']), headers: answered, text }
}

describe('over HTTP/2', () => {
  it('the control host signs in and a machine is shown, with the same rules', async () => {
    await using site = await startSite()
    const session = dial(site, 'localhost')
    const token = await createSignInLink(site.sql, site.ownerId)
    const post = { ':method': 'POST', ':path': `/login/${token}`, 'content-type': 'application/x-www-form-urlencoded' }
    expect((await ask(session, post, 'next=/')).status).toBe(403)
    expect((await ask(session, { ...post, origin: site.machine() }, 'next=/')).status).toBe(403)
    const done = await ask(session, { ...post, origin: site.control }, 'next=/')
    expect([done.status, done.headers.location]).toEqual([303, '/'])
    expect(String(done.headers['set-cookie'])).toMatch(/^__Host-berth=/)
    session.close()

    const browser = await site.signedIn()
    await browser.get(site.machine())
    const machine = dial(site, 'demo.localhost')
    expect((await ask(machine, { ':path': '/h2' })).status).toBe(401)
    const shown = await ask(machine, { ':path': '/h2', cookie: cookieOf(browser) })
    expect(shown).toMatchObject({ status: 200, text: 'machine says GET /h2' })
    const foreign = {
      ':path': '/h2',
      cookie: cookieOf(browser),
      'sec-fetch-site': 'same-site',
      'sec-fetch-mode': 'cors',
    }
    expect((await ask(machine, foreign)).status).toBe(403)
    machine.close()
  })

  it('one connection that asks for another machine’s page gets what anybody gets', async () => {
    await using site = await startSite()
    await site.addMachine('other')
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const session = dial(site, 'demo.localhost')
    const answer = await ask(session, {
      ':path': '/',
      ':authority': `other.localhost:${site.port}`,
      cookie: cookieOf(browser),
    })
    expect(answer.status).toBe(401)
    session.close()
  })
})

describe('a WebSocket', () => {
  const upgrade = (site: Site, lines: string[]) => {
    const socket = connectTls({ host: '127.0.0.1', port: site.port, servername: 'demo.localhost', ca: site.ca })
    const head = ['GET /ws HTTP/1.1', `Host: demo.localhost:${site.port}`, 'Connection: Upgrade', 'Upgrade: websocket']
    socket.write(
      `${[...head, 'Sec-WebSocket-Version: 13', 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==', ...lines].join('\r\n')}\r\n\r\n`,
    )
    let text = ''
    socket.on('error', () => {})
    socket.on('data', (bytes) => {
      text += bytes.toString('latin1')
    })
    return {
      status: async () => {
        await expect.poll(() => text, { timeout: 60_000, interval: 10 }).toContain('\r\n')
        return Number(text.slice(9, 12))
      },
      closed: () => once(socket, 'close'),
      end: () => socket.destroy(),
    }
  }

  it('is let in with the cookie from the machine’s own page alone, and ends with the sign-in', async () => {
    await using site = await startSite({
      upgrade: (_request, socket) =>
        socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n'),
    })
    await site.addMachine('evil')
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const cookie = `Cookie: ${cookieOf(browser)}`
    for (const [lines, status] of [
      [[], 401],
      [[cookie], 403],
      [[cookie, `Origin: ${site.machine('evil')}`], 403],
      [[cookie, 'Origin: null'], 403],
      [[`Origin: ${site.machine()}`], 401],
    ] as const) {
      const refused = upgrade(site, [...lines])
      expect([lines, await refused.status()]).toEqual([lines, status])
      refused.end()
    }
    const live = upgrade(site, [cookie, `Origin: ${site.machine()}`])
    expect(await live.status()).toBe(101)
    await site.sql`delete from web_sessions`
    const began = performance.now()
    await live.closed()
    expect(performance.now() - began).toBeLessThan(1000)
  })
})
