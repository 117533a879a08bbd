import { describe, expect, it } from 'vitest'
import { addLink, removeLink } from '../../accounts/shares.ts'
import { type Browser, cookieOf, startSite } from '../testing/site.ts'

const PATIENT = { timeout: 60_000, interval: 10 }

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
    expect(callback).toMatch(/^https:\/\/demo\.localhost:\d+\/__berth\/callback\?code=[\w-]{43}&path=%2F$/)
    const isRefused = async (by: Browser, url = callback) => {
      // It sets out anew, and once only.
      const { status, headers } = await by.get(url, { follow: false })
      expect(headers.location).toContain(`${site.control}/open?`)
      return [status, by.cookies.get(new URL(url).hostname)?.has('__Host-berth') ?? false]
    }
    const thief = site.browser()
    expect(await isRefused(thief)).toEqual([302, false])
    expect((await thief.get(`${callback}&again=1`)).status).toBe(400)
    await thief.get(`${site.machine()}/`, { follow: false })
    expect(await isRefused(thief)).toEqual([302, false])
    expect(await isRefused(browser, callback.replace('demo.', 'other.'))).toEqual([302, false])
    expect((await browser.get(callback)).text).toBe('machine says GET /')
    browser.cookies.get('demo.localhost')?.delete('__Host-berth')
    expect(await isRefused(browser)).toEqual([302, false])
  })

  it('is found by each of several tabs that set out together', async () => {
    await using site = await startSite()
    const browser = await site.signedIn()
    const setOut = (path: string) => browser.get(`${site.machine()}${path}`, { follow: false })
    const atOnce = await Promise.all([setOut('/a'), setOut('/b')])
    const inTurn = [await setOut('/c'), await setOut('/d')]
    const shown: string[] = []
    for (const { headers } of [...atOnce, ...inTurn]) shown.push((await browser.get(headers.location ?? '')).text)
    expect(shown).toEqual(['/a', '/b', '/c', '/d'].map((path) => `machine says GET ${path}`))
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
    expect((await browser.get(`${site.control}/list`)).text).toContain('<h1>Machines</h1>')
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

  it('that are used up lead on whom they have let in, and nobody else', async () => {
    await using site = await startSite()
    const { token, link } = await addLink(site.sql, { machineId: site.machineId, uses: 1 })
    const url = `${site.machine()}/__berth/link/${token}`
    const browser = site.browser()
    await browser.submit(await browser.get(url))
    expect((await browser.get(url)).text).toBe('machine says GET /')
    expect((await site.browser().get(url)).status).toBe(404)
    await site.addMachine('other')
    const elsewhere = await browser.get(`${site.machine('other')}/__berth/link/${token}`)
    expect(elsewhere.status).toBe(404)
    await removeLink(site.sql, site.machineId, link.id)
    expect((await browser.get(url)).status).toBe(404)
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
