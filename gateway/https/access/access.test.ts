import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { describe, expect, it } from 'vitest'
import { startTestGateway } from '../../../test/gateway.ts'
import { addKey } from '../../accounts/keys.ts'
import { parseKeyLine } from '../../accounts/public-key.ts'
import { addLink, addShare, removeLink, removeShare } from '../../accounts/shares.ts'
import { createToken, removeToken } from '../../accounts/tokens.ts'
import { type Answered, type Browser, type Site, startSite } from '../testing/site.ts'

const PATIENT = { timeout: 10_000, interval: 10 }
const SECOND_MS = 1000

/** A response that never ends, so that the visit lives until it is cut. */
function endless(site: Pick<Site, 'port' | 'ca'>, headers: Record<string, string>) {
  const socket = connectTls({ host: '127.0.0.1', port: site.port, servername: 'demo.localhost', ca: site.ca })
  const lines = Object.entries(headers).map(([name, value]) => `${name}: ${value}\r\n`)
  socket.write(`GET /endless HTTP/1.1\r\nHost: demo.localhost:${site.port}\r\n${lines.join('')}\r\n`)
  let text = ''
  socket.on('data', (bytes) => {
    text += bytes.toString()
  })
  socket.on('error', () => {})
  return {
    started: () => expect.poll(() => text, PATIENT).toContain('beginning'),
    closed: () => once(socket, 'close'),
    isOpen: () => !socket.destroyed,
    end: () => socket.destroy(),
  }
}

const ENDLESS = {
  origin: (
    request: { url?: string | undefined },
    response: { write(text: string): unknown; end(text: string): unknown },
  ) => (request.url === '/endless' ? response.write('beginning') : response.end('fine')),
}

const cookieOf = (browser: Browser, name = 'demo') =>
  `__Host-berth=${browser.cookies.get(`${name}.localhost`)?.get('__Host-berth')}`

describe('what is taken away ends live connections within a second', () => {
  /** Lets somebody in, takes it away, and sees both the live connection and the next request refused. */
  async function cut(site: Site, headers: Record<string, string>, takeAway: () => Promise<unknown>) {
    const visit = endless(site, headers)
    await visit.started()
    await takeAway()
    const began = performance.now()
    await visit.closed()
    expect(performance.now() - began).toBeLessThan(SECOND_MS)
    const next = await site.browser().get(`${site.machine()}/`, { mode: 'cors', headers })
    expect(next.status).toBe(401)
  }

  it('signing out, here and everywhere', async () => {
    await using site = await startSite(ENDLESS)
    const [one, two] = [await site.signedIn(), await site.signedIn()]
    await one.get(site.machine())
    await two.get(site.machine())
    const other = endless(site, { cookie: cookieOf(two) })
    await other.started()
    await cut(site, { cookie: cookieOf(one) }, async () => {
      await one.submit(await one.get(`${site.control}/`), {}, '/signout')
    })
    expect(other.isOpen()).toBe(true)
    const third = await site.signedIn()
    await third.submit(await third.get(`${site.control}/`), {}, '/signout/everywhere')
    await other.closed()
    expect((await two.get(`${site.control}/`)).text).toContain('<h1>Sign in</h1>')
  })

  it('on every gateway of the installation', async () => {
    await using site = await startSite(ENDLESS)
    const { database, secretKey } = site.gateway
    await using second = await startTestGateway({ https: true, database, secretKey })
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const port = second.https?.server.addresses[0]?.port ?? 0
    const visit = endless({ ...site, port }, { cookie: cookieOf(browser) })
    await visit.started()
    await browser.submit(await browser.get(`${site.control}/`), {}, '/signout')
    const began = performance.now()
    await visit.closed()
    expect(performance.now() - began).toBeLessThan(SECOND_MS)
  })

  it('a share with an address', async () => {
    await using site = await startSite(ENDLESS)
    const friend = await site.signedIn(await site.account('ada@example.com'))
    await addShare(site.sql, { machineId: site.machineId, accountId: site.ownerId, email: 'ada@example.com' }, mail)
    const offer = await friend.get(site.machine())
    expect(offer.text).toContain('Accept demo')
    expect(site.asked).toEqual([])
    expect((await friend.submit(offer)).text).toBe('fine')
    await cut(site, { cookie: cookieOf(friend) }, () => removeShare(site.sql, site.machineId, 'ada@example.com'))
  })

  it('the account of a guest, which was suspended', async () => {
    await using site = await startSite(ENDLESS)
    const guestId = await site.account('ada@example.com')
    const guest = await site.signedIn(guestId)
    await addShare(site.sql, { machineId: site.machineId, accountId: site.ownerId, email: 'ada@example.com' }, mail)
    await guest.submit(await guest.get(site.machine()))
    await cut(
      site,
      { cookie: cookieOf(guest) },
      () => site.sql`update accounts set suspended_at = now() where id = ${guestId}`,
    )
  })

  it('a link', async () => {
    await using site = await startSite(ENDLESS)
    const { token, link } = await addLink(site.sql, { machineId: site.machineId })
    const browser = site.browser()
    await browser.submit(await browser.get(`${site.machine()}/__berth/link/${token}`))
    await cut(site, { cookie: cookieOf(browser) }, () => removeLink(site.sql, site.machineId, link.id))
  })

  it('a token', async () => {
    await using site = await startSite(ENDLESS)
    const { token, id } = await createToken(site.sql, { accountId: site.ownerId, label: '', expiresInMs: 60_000 })
    await cut(site, { authorization: `Bearer ${token}` }, () => removeToken(site.sql, site.ownerId, id))
  })

  it('an SSH key that a token was minted with', async () => {
    await using site = await startSite(ENDLESS)
    const { token, keyPath } = await mint(site, {})
    await cut(site, { authorization: `Bearer ${token}` }, async () => {
      const line = site.gateway.publicKey(keyPath).split(' ')[1] ?? ''
      await site.sql`delete from keys where public_key = ${Buffer.from(line, 'base64')}`
    })
  })

  it('being public', async () => {
    await using site = await startSite(ENDLESS)
    await site.sql`update machines set web_public = true where id = ${site.machineId}`
    await cut(site, {}, () => site.sql`update machines set web_public = false where id = ${site.machineId}`)
  })

  it('whatever else changed about the machine in between', async () => {
    await using site = await startSite(ENDLESS)
    await site.sql`update machines set web_public = true where id = ${site.machineId}`
    const visit = endless(site, {})
    await visit.started()
    for (const comment of ['one', 'two', 'three']) {
      await site.sql`update machines set comment = ${comment} where id = ${site.machineId}`
      // Each has been looked into by then; nobody asks for the machine meanwhile.
      await new Promise((resolve) => setTimeout(resolve, 200))
    }
    expect(visit.isOpen()).toBe(true)
    await site.sql`update machines set web_public = false where id = ${site.machineId}`
    const began = performance.now()
    await visit.closed()
    expect(performance.now() - began).toBeLessThan(SECOND_MS)
  })

  it('being the port that is public', async () => {
    await using site = await startSite(ENDLESS)
    await site.sql`update machines set web_public = true where id = ${site.machineId}`
    const visit = endless(site, {})
    await visit.started()
    await site.sql`update machines set web_port = 1 where id = ${site.machineId}`
    await visit.closed()
  })

  it('the tag that a token was for', async () => {
    await using site = await startSite(ENDLESS)
    await site.sql`update machines set tags = '{web}' where id = ${site.machineId}`
    const { token } = await createToken(site.sql, {
      accountId: site.ownerId,
      label: '',
      tag: 'web',
      expiresInMs: 60_000,
    })
    await cut(
      site,
      { authorization: `Bearer ${token}` },
      () => site.sql`update machines set tags = '{}' where id = ${site.machineId}`,
    )
  })

  it('what is taken away while a request waits for its machine to start', async () => {
    await using site = await startSite(ENDLESS)
    const late = await site.addMachine('late', site.ownerId, { state: 'creating' })
    const { token, link } = await addLink(site.sql, { machineId: late })
    const browser = site.browser()
    const page = `${site.machine('late')}/__berth/link/${token}`
    await browser.send(page, { method: 'POST', from: page, follow: false })
    const { machines } = site.gateway.app
    const { whenReady } = machines
    const waiting = new Promise<void>((resolve) => {
      machines.whenReady = (...waited) => {
        resolve()
        return whenReady(...waited)
      }
    })
    const held = browser.get(site.machine('late'), { mode: 'cors' })
    await waiting
    await removeLink(site.sql, late, link.id)
    await site.sql`update machines set observed_state = 'running', observed_stage = 'ready', observed_boot = 1,
      observed_ready_at = now() where id = ${late}`
    expect((await held).status).toBe(401)
    expect(site.asked.filter(({ host }) => host.startsWith('late'))).toEqual([])
  })

  it('the machine itself, which stopped, and an account that was suspended', async () => {
    await using site = await startSite(ENDLESS)
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const visit = endless(site, { cookie: cookieOf(browser) })
    await visit.started()
    await site.sql`update machines set observed_state = 'stopped', desired_state = 'stopped', observed_ready_at = null
      where id = ${site.machineId}`
    await visit.closed()
    await site.sql`update machines set observed_state = 'running', desired_state = 'running', observed_ready_at = now()
      where id = ${site.machineId}`
    await expect.poll(async () => (await browser.get(site.machine())).status, PATIENT).toBe(200)
    const again = endless(site, { cookie: cookieOf(browser) })
    await again.started()
    await site.sql`update accounts set suspended_at = now() where id = ${site.ownerId}`
    await again.closed()
    const refused = await browser.get(site.machine())
    expect([refused.status, refused.text.includes('suspended')]).toEqual([403, true])
  })
})

describe('the way through the control host', () => {
  it('ends at machines’ hosts only, at ports that are Berth’s', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    const state = 'a'.repeat(43)
    for (const to of [
      'evil.example',
      'localhost',
      `localhost:${site.port}`,
      'demo.localhost.evil.example',
      'demo.localhost:25',
      'x@evil.example',
      'demo.localhost/../',
      '',
    ]) {
      const answer = await browser.get(`${site.control}/open?${new URLSearchParams({ to, path: '/', state })}`, {
        follow: false,
      })
      expect([to, answer.status, answer.headers.location]).toEqual([to, 400, undefined])
    }
  })

  it.each([
    '//evil.example',
    '/\\evil.example',
    'https://evil.example',
    'javascript:alert(1)',
    '/ok\r\nSet-Cookie: a=b',
    '/%0d%0a',
  ])('never redirects elsewhere: %j', async (path) => {
    await using site = await startSite()
    const browser = await site.signedIn()
    const after = await browser.get(`${site.machine()}/__berth/login?${new URLSearchParams({ redirect: path })}`)
    expect(new URL(after.url).host).toBe(`demo.localhost:${site.port}`)
    const stranger = site.browser()
    const page = await stranger.get(`${site.control}/signin?${new URLSearchParams({ next: path })}`)
    expect(page.text).not.toContain('evil.example')
  })

  it('a code is good once, for its host, in the browser that set out', async () => {
    await using site = await startSite()
    await site.addMachine('other')
    const browser = await site.signedIn()
    const first = await browser.get(`${site.machine()}/`, { follow: false })
    const hop = await browser.get(first.headers.location ?? '', { follow: false })
    const callback = hop.headers.location ?? ''
    expect(callback).toMatch(/^https:\/\/demo\.localhost:\d+\/__berth\/callback\?code=[\w-]{43}$/)
    const thief = site.browser()
    expect((await thief.get(callback)).status).toBe(400)
    await thief.get(`${site.machine()}/`, { follow: false })
    expect((await thief.get(callback)).status).toBe(400)
    expect((await browser.get(callback.replace('demo.', 'other.'))).status).toBe(400)
    expect((await browser.get(callback)).text).toBe('machine says GET /')
    browser.cookies.get('demo.localhost')?.delete('__Host-berth')
    expect((await browser.get(callback)).status).toBe(400)
  })

  it('POST /__berth/logout forgets the machine’s cookie and leads to where all sign-ins can be ended', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const cookie = cookieOf(browser)
    const path = `${site.machine()}/__berth/logout`
    expect((await browser.get(path)).status).toBe(405)
    const page = await browser.send(path, { method: 'POST', from: `${site.machine()}/` })
    expect(page.text).toContain('<h1>Signed out of that machine</h1>')
    const status = async () => (await site.browser().get(site.machine(), { mode: 'cors', headers: { cookie } })).status
    await expect.poll(status, PATIENT).toBe(401)
    expect((await browser.submit(page, {}, '/signout')).text).toContain('<h1>Sign in</h1>')
  })

  it('a cookie opens its machine and no other', async () => {
    await using site = await startSite()
    await site.addMachine('other')
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const stolen = await site
      .browser()
      .get(site.machine('other'), { mode: 'cors', headers: { cookie: cookieOf(browser) } })
    expect(stolen.status).toBe(401)
    const atControl = await site.browser().get(`${site.control}/`, { headers: { cookie: cookieOf(browser) } })
    expect(atControl.text).toContain('<h1>Sign in</h1>')
  })

  it('cookies are Secure, HttpOnly, Lax, of the host alone, and never reach the machine or come from it', async () => {
    await using site = await startSite({
      origin: (_request, response) =>
        response.setHeader('set-cookie', ['__Host-berth=x; Path=/; Secure', 'a=b']).end('fine'),
    })
    const browser = await site.signedIn()
    const first = await browser.get(`${site.machine()}/`, { follow: false })
    const hop = await browser.get(first.headers.location ?? '', { follow: false })
    const back = await browser.get(hop.headers.location ?? '', { follow: false })
    for (const line of [...(first.headers['set-cookie'] ?? []), ...(back.headers['set-cookie'] ?? [])]) {
      expect(line).toMatch(/^__Host-berth[a-z-]*=[\w-]*; Path=\/; Secure; HttpOnly; SameSite=Lax; Max-Age=\d+$/)
    }
    const page = await browser.get(`${site.machine()}/`, { headers: { cookie: `${cookieOf(browser)}; mine=1` } })
    expect(page.headers['set-cookie']).toEqual(['a=b'])
    expect(site.asked.at(-1)?.headers.cookie).toBe('mine=1')
  })
})

describe('other sites’ pages', () => {
  it('cannot use a visitor’s cookie at a machine, nor anything at the control host', async () => {
    await using site = await startSite()
    await site.addMachine('evil')
    const browser = await site.signedIn()
    await browser.get(site.machine())
    const from = `${site.machine('evil')}/`
    const fetched = await browser.get(`${site.machine()}/`, { mode: 'cors', from })
    expect(fetched.status).toBe(403)
    expect((await browser.send(`${site.machine()}/`, { method: 'POST', from })).status).toBe(403)
    expect((await browser.get(`${site.control}/`, { mode: 'no-cors', from })).status).toBe(403)
    for (const path of ['/signout', '/signout/everywhere', '/signin', '/signin/code']) {
      const answer = await browser.send(`${site.control}${path}`, { method: 'POST', from })
      expect([path, answer.status]).toEqual([path, 403])
      const noOrigin = await browser.send(`${site.control}${path}`, { method: 'POST' })
      expect([path, noOrigin.status]).toEqual([path, 403])
    }
    expect((await browser.get(`${site.control}/`)).text).toContain('<h1>Machines</h1>')
    // Whoever follows a link from there is let in.
    expect((await browser.get(`${site.machine()}/`, { from })).status).toBe(200)
    const logout = await browser.send(`${site.machine()}/__berth/logout`, { method: 'POST', from })
    expect(logout.status).toBe(403)
  })

  it('see of a public page what everybody sees, without the visitor’s name', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    await browser.get(site.machine())
    await site.sql`update machines set web_public = true where id = ${site.machineId}`
    const from = 'https://elsewhere.example/'
    await expect.poll(async () => (await browser.get(site.machine(), { mode: 'cors', from })).status, PATIENT).toBe(200)
    expect(site.asked.at(-1)?.headers['x-berth-user']).toBeUndefined()
    await browser.get(site.machine())
    expect(site.asked.at(-1)?.headers['x-berth-user']).toBe(String(site.ownerId))
  })

  it('cannot frame what Berth shows, and nothing is loaded by it', async () => {
    await using site = await startSite()
    for (const page of [
      await site.browser().get(`${site.control}/signin`),
      await (await site.signedIn()).get(`${site.machine()}/__berth/nothing`),
    ]) {
      expect(page.headers['content-security-policy']).toMatch(
        /default-src 'none'; style-src 'sha256-[^']+'; .*frame-ancestors 'none'/,
      )
      expect(page.headers['cache-control']).toBe('no-store')
      expect(page.text).not.toContain('<script')
      expect(Buffer.byteLength(page.text)).toBeLessThan(10_240)
    }
  })
})

describe('public', () => {
  it('opens the primary port and no other', async () => {
    await using site = await startSite()
    await site.sql`update machines set web_public = true where id = ${site.machineId}`
    const browser = site.browser()
    const answer = await browser.get(`${site.machine()}/`, {
      mode: 'cors',
      headers: { 'x-berth-user': '1', x_berth_user: '1' },
    })
    expect(answer.status).toBe(200)
    expect(Object.keys(site.asked.at(-1)?.headers ?? {}).filter((name) => /berth/.test(name))).toEqual([])
    const other = await browser.get(`https://demo--3000.localhost:${site.port}/`, { mode: 'cors' })
    expect(other.status).toBe(401)
  })
})

describe('links', () => {
  it('let in as many browsers as they say, and looking at one uses nothing up', async () => {
    await using site = await startSite()
    const { token } = await addLink(site.sql, { machineId: site.machineId, uses: 1 })
    const url = `${site.machine()}/__berth/link/${token}`
    for (let n = 0; n < 3; n++) expect((await site.browser().get(url)).status).toBe(200)
    const browser = site.browser()
    const shown = await browser.submit(await browser.get(url))
    expect(shown).toMatchObject({ status: 200, text: 'machine says GET /' })
    expect(site.asked.at(-1)?.headers['x-berth-user']).toBeUndefined()
    expect((await site.browser().get(url)).status).toBe(404)
    expect((await browser.get(`${site.machine()}/more`)).status).toBe(200)
  })

  it('open one machine, and end with their time', async () => {
    await using site = await startSite()
    await site.addMachine('other')
    const { token, link } = await addLink(site.sql, { machineId: site.machineId, expiresInMs: 3_600_000 })
    expect((await site.browser().get(`${site.machine('other')}/__berth/link/${token}`)).status).toBe(404)
    const browser = site.browser()
    await browser.submit(await browser.get(`${site.machine()}/__berth/link/${token}`))
    await site.sql`update share_links set expires_at = now() where id = ${link.id}`
    const after = async () => (await browser.get(site.machine(), { mode: 'cors' })).status
    await expect.poll(after, PATIENT).toBe(401)
  })
})

describe('tokens', () => {
  it('open machines as Bearer, in X-Berth-Authorization and as Basic password, and go no further', async () => {
    await using site = await startSite()
    const { token } = await createToken(site.sql, { accountId: site.ownerId, label: '', expiresInMs: 60_000 })
    const ask = (headers: Record<string, string>) => site.browser().get(site.machine(), { mode: 'cors', headers })
    expect((await ask({ authorization: `Bearer ${token}` })).status).toBe(200)
    expect(site.asked.at(-1)?.headers.authorization).toBeUndefined()
    expect(site.asked.at(-1)?.headers['x-berth-user']).toBe(String(site.ownerId))
    expect((await ask({ authorization: `Basic ${Buffer.from(`git:${token}`).toString('base64')}` })).status).toBe(200)
    expect(site.asked.at(-1)?.headers.authorization).toBeUndefined()
    expect((await ask({ 'x-berth-authorization': `Bearer ${token}`, authorization: 'Bearer mine' })).status).toBe(200)
    expect(site.asked.at(-1)?.headers).toMatchObject({ authorization: 'Bearer mine' })
    expect(site.asked.at(-1)?.headers['x-berth-authorization']).toBeUndefined()
    expect((await ask({ authorization: 'Bearer mine' })).status).toBe(401)
    expect((await ask({ authorization: `Bearer exe1.${'0'.repeat(26)}` })).status).toBe(401)
  })

  it('for one machine, or a tag, open no other', async () => {
    await using site = await startSite()
    const otherId = await site.addMachine('other')
    await site.sql`update machines set tags = '{web}' where id = ${otherId}`
    const { token } = await createToken(site.sql, {
      accountId: site.ownerId,
      label: '',
      machineId: site.machineId,
      expiresInMs: 60_000,
    })
    const tagged = await createToken(site.sql, { accountId: site.ownerId, label: '', tag: 'web', expiresInMs: 60_000 })
    const status = async (name: string, bearer: string) =>
      (await site.browser().get(site.machine(name), { mode: 'cors', headers: { authorization: `Bearer ${bearer}` } }))
        .status
    expect([await status('demo', token), await status('other', token)]).toEqual([200, 401])
    expect([await status('demo', tagged.token), await status('other', tagged.token)]).toEqual([401, 200])
  })

  it.each(['ed25519', 'ecdsa', 'rsa'])(
    'minted offline with an %s key by ssh-keygen open the machine they are for',
    async (type) => {
      await using site = await startSite()
      await site.addMachine('other')
      const { token } = await mint(site, { type, claims: { ctx: { role: 'ci', name: 'é' } } })
      const ask = (name: string, headers: Record<string, string>): Promise<Answered> =>
        site.browser().get(site.machine(name), { mode: 'cors', headers })
      expect((await ask('demo', { authorization: `Bearer ${token}` })).status).toBe(200)
      expect(site.asked.at(-1)?.headers['x-berth-token-ctx']).toBe('{"role":"ci","name":"\\u00e9"}')
      expect((await ask('other', { authorization: `Bearer ${token}` })).status).toBe(401)
    },
  )

  it.each([
    ['expired', { exp: 1 }],
    ['good for too long', { exp: Math.round(Date.now() / 1000) + 401 * 86_400 }],
    ['not good yet', { nbf: Math.round(Date.now() / 1000) + 3600 }],
    ['without an end', { exp: undefined }],
    ['with a member that is not known', { admin: true }],
  ])('%s: refused', async (_what, claims) => {
    await using site = await startSite()
    const { token } = await mint(site, { claims })
    const answer = await site
      .browser()
      .get(site.machine(), { mode: 'cors', headers: { authorization: `Bearer ${token}` } })
    expect(answer.status).toBe(401)
  })

  it('with two members of one name, another’s signature or a byte changed: refused', async () => {
    await using site = await startSite()
    const exp = Math.round(Date.now() / 1000) + 3600
    const twice = await mint(site, { text: `{"exp":${exp},"exp":${exp}}` })
    const good = await mint(site, {})
    const [prefix, , signature] = good.token.split('.')
    const forged = `${prefix}.${Buffer.from(`{"exp":${exp + 1}}`).toString('base64url')}.${signature}`
    for (const token of [twice.token, forged, `${good.token}A`, 'exe0.x', 'exe0..']) {
      const answer = await site
        .browser()
        .get(site.machine(), { mode: 'cors', headers: { authorization: `Bearer ${token}` } })
      expect(answer.status).toBe(401)
    }
  })
})

function mail() {
  return { subject: 's', body: 'b' }
}

let minted = 0

/** A token as a person makes it, with the real ssh-keygen. */
async function mint(
  site: Site,
  { type = 'ed25519', claims = {}, text }: { type?: string; claims?: Record<string, unknown>; text?: string },
) {
  const { gateway } = site
  const keyPath = gateway.makeKey(`minter-${minted++}`, type, type === 'rsa' ? 3072 : undefined)
  await addKey(site.sql, site.ownerId, parseKeyLine(gateway.publicKey(keyPath)))
  const payload = text ?? JSON.stringify({ exp: Math.round(Date.now() / 1000) + 3600, ...claims })
  const file = join(gateway.directory, `payload-${minted++}`)
  writeFileSync(file, payload)
  execFileSync('ssh-keygen', ['-Y', 'sign', '-q', '-f', keyPath, '-n', 'v0@demo.localhost', file], { stdio: 'ignore' })
  const armored = readFileSync(`${file}.sig`, 'utf8')
  const blob = Buffer.from(armored.replace(/-----[^-]+-----/g, ''), 'base64').toString('base64url')
  return { token: `exe0.${Buffer.from(payload).toString('base64url')}.${blob}`, keyPath }
}
