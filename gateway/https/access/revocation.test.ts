import { once } from 'node:events'
import { connect as connectTls } from 'node:tls'
import { describe, expect, it } from 'vitest'
import { startTestGateway } from '../../../test/gateway.ts'
import { addLink, addShare, removeLink, removeShare } from '../../accounts/shares.ts'
import { createToken, removeToken } from '../../accounts/tokens.ts'
import { mint } from '../testing/mint.ts'
import { cookieOf, type Site, startSite } from '../testing/site.ts'

const PATIENT = { timeout: 60_000, interval: 10 }
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
      await one.submit(await one.get(`${site.control}/list`), {}, '/signout')
    })
    expect(other.isOpen()).toBe(true)
    const third = await site.signedIn()
    const asked = await third.get(`${site.control}/signout/everywhere`)
    expect(asked.text).toContain('2 browsers, this one too, are signed in as <b>')
    expect(other.isOpen()).toBe(true)
    await third.submit(asked, {}, '/signout/everywhere')
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
    await browser.submit(await browser.get(`${site.control}/list`), {}, '/signout')
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

  it.each(['made here', 'minted offline'])('the time of a token that was %s', async (how) => {
    await using site = await startSite(ENDLESS)
    const exp = Math.ceil(Date.now() / SECOND_MS) + 2
    const expiresInMs = exp * SECOND_MS - Date.now()
    const { token } =
      how === 'made here'
        ? await createToken(site.sql, { accountId: site.ownerId, label: '', expiresInMs })
        : await mint(site, { claims: { exp } })
    const visit = endless(site, { authorization: `Bearer ${token}` })
    await visit.started()
    await visit.closed()
    expect(Math.abs(Date.now() - exp * SECOND_MS)).toBeLessThan(2 * SECOND_MS)
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

function mail() {
  return { subject: 's', body: 'b' }
}
