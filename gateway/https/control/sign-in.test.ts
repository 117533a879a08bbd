import { describe, expect, it } from 'vitest'
import { addShare } from '../../accounts/shares.ts'
import { createSignInLink } from '../../accounts/web-sessions.ts'
import { type Browser, type Site, startSite } from '../testing/site.ts'

async function codeFor(site: Site, email: string): Promise<string | undefined> {
  const [mail] = await site.sql<{ body: string }[]>`
    select body from mails where recipient = ${email} order by id desc limit 1`
  return /\d{6}/.exec(mail?.body ?? '')?.[0]
}

async function askFor(site: Site, browser: Browser, email: string, from = `${site.control}/signin`) {
  return await browser.submit(await browser.get(from), { email })
}

describe('signing in by mail', () => {
  it('a code leads where the person was going', async () => {
    await using site = await startSite()
    const accountId = await site.account('ada@example.com')
    await site.addMachine('hers', accountId)
    const browser = site.browser()
    const page = await browser.get(`${site.machine('hers')}/deep?x=1`)
    const asked = await browser.submit(page, { email: 'Ada@example.com' })
    const code = await codeFor(site, 'ada@example.com')
    const shown = await browser.submit(asked, { code: code ?? '' })
    expect(shown).toMatchObject({ status: 200, text: 'machine says GET /deep?x=1' })
    expect(site.asked.at(-1)?.headers).toMatchObject({
      'x-berth-email': 'ada@example.com',
      'x-berth-user': String(accountId),
    })
  })

  it('a long way to go on with is not forgotten on the way through the forms', async () => {
    await using site = await startSite()
    await site.addMachine('hers', await site.account('ada@example.com'))
    const browser = site.browser()
    const path = `/deep?q=${'%20'.repeat(1300)}`
    const page = await browser.get(`${site.machine('hers')}${path}`)
    const asked = await browser.submit(page, { email: 'ada@example.com' })
    const shown = await browser.submit(asked, { code: (await codeFor(site, 'ada@example.com')) ?? '' })
    expect(shown.text).toBe(`machine says GET ${path}`)
  })

  it('a link from the lobby leads where the person was going, too', async () => {
    await using site = await startSite()
    const browser = site.browser()
    await browser.get(`${site.machine()}/deep?x=1`)
    const link = async () =>
      await browser.get(`${site.control}/login/${await createSignInLink(site.sql, site.ownerId)}`)
    expect((await browser.submit(await link())).text).toBe('machine says GET /deep?x=1')
    expect((await browser.submit(await link())).url).toBe(`${site.control}/`)
  })

  it('who may not see a machine signs in as somebody who may, and is there', async () => {
    await using site = await startSite()
    await site.addMachine('hers', await site.account('ada@example.com'))
    const browser = await site.signedIn(await site.account('eve@example.com'))
    const refused = await browser.get(`${site.machine('hers')}/deep`)
    expect(refused.status).toBe(403)
    const asked = await browser.submit(await browser.submit(refused), { email: 'ada@example.com' })
    const shown = await browser.submit(asked, { code: (await codeFor(site, 'ada@example.com')) ?? '' })
    expect(shown.text).toBe('machine says GET /deep')
  })

  it('a code is good in the browser that asked for it, once, and for five tries', async () => {
    await using site = await startSite()
    await site.account('ada@example.com')
    const [mine, theirs] = [site.browser(), site.browser()]
    const page = await askFor(site, mine, 'ada@example.com')
    const code = (await codeFor(site, 'ada@example.com')) ?? ''
    expect((await theirs.submit(page, { code })).status).toBe(403)
    await askFor(site, theirs, 'eve@example.com')
    expect((await theirs.submit(page, { code })).status).toBe(403)
    const wrong = code === '000000' ? '000001' : '000000'
    expect((await mine.submit(page, { code: wrong })).status).toBe(403)
    expect((await mine.submit(page, { code })).status).toBe(200)
    expect((await mine.submit(page, { code })).status).toBe(403)
    const second = await askFor(site, mine, 'ada@example.com')
    const other = (await codeFor(site, 'ada@example.com')) ?? ''
    for (let n = 0; n < 5; n++) {
      expect((await mine.submit(second, { code: other === '000000' ? '000001' : '000000' })).status).toBe(403)
    }
    expect((await mine.submit(second, { code: other })).status).toBe(403)
  })

  it('says so when the database does not answer', async () => {
    await using site = await startSite()
    const browser = await site.signedIn(await site.account('ada@example.com'))
    const page = await site.sql.begin(async (tx) => {
      await tx`lock table web_sessions`
      return await browser.get(`${site.control}/`)
    })
    expect(page).toMatchObject({ status: 503, headers: { 'retry-after': '5' } })
    expect(page.text).toContain('The database does not answer')
  })

  it('tells nobody which addresses are known', async () => {
    await using site = await startSite()
    await site.account('ada@example.com')
    const known = await askFor(site, site.browser(), 'ada@example.com')
    const unknown = await askFor(site, site.browser(), 'eve@example.com')
    expect(unknown.status).toBe(known.status)
    expect(unknown.text.replaceAll('eve@', 'ada@')).toBe(known.text)
    expect(await codeFor(site, 'eve@example.com')).toBeUndefined()
    // Nor by how long it takes: the same is written for both, but for the mail.
    const rows = await site.sql`select email, client from email_codes order by email`
    expect([...rows]).toEqual([
      { email: 'ada@example.com', client: '127.0.0.1' },
      { email: 'eve@example.com', client: '127.0.0.1' },
    ])
    expect(await site.sql`select from mails`).toHaveLength(1)
  })

  it('an address that an account merely typed opens neither the account nor what is shared with it', async () => {
    await using site = await startSite()
    const squatter = await site.account()
    await site.sql`update accounts set email = 'boss@example.com' where id = ${squatter}`
    await addShare(site.sql, { machineId: site.machineId, accountId: site.ownerId, email: 'boss@example.com' }, () => ({
      subject: '',
      body: '',
    }))
    const squatting = await site.signedIn(squatter)
    expect((await squatting.get(site.machine())).status).toBe(403)
    const boss = site.browser()
    const page = await askFor(site, boss, 'boss@example.com')
    const home = await boss.submit(page, { code: (await codeFor(site, 'boss@example.com')) ?? '' })
    expect(home.text).toContain('Offered to you')
    const [share] = await site.sql`select id from shares`
    const taking = { method: 'POST', from: `${site.control}/` }
    expect((await squatting.send(`${site.control}/share/${share?.id}`, taking)).status).toBe(404)
    expect((await boss.submit(home, {}, '/share/')).text).toContain('Shared with you')
    const [session] = await site.sql`select account_id, email from web_sessions order by id desc limit 1`
    expect(session).toEqual({ account_id: null, email: 'boss@example.com' })
    expect((await boss.get(site.machine())).status).toBe(200)
    expect((await squatting.get(site.machine())).status).toBe(403)
  })

  it('an account can accept an invitation to another address of its person', async () => {
    await using site = await startSite()
    let token = ''
    await addShare(
      site.sql,
      { machineId: site.machineId, accountId: site.ownerId, email: 'work@example.com' },
      (made) => {
        token = made
        return { subject: '', body: '' }
      },
    )
    const browser = await site.signedIn(await site.account('private@example.com'))
    expect((await browser.get(site.machine())).status).toBe(403)
    const page = await browser.get(`${site.control}/invitation/${token}`)
    expect(page.text).toContain('private@example.com')
    expect((await browser.submit(page)).text).toBe('machine says GET /')
  })

  it('attempts from one address are bounded', async () => {
    await using site = await startSite()
    const browser = site.browser()
    const page = await browser.get(`${site.control}/signin`)
    const statuses: number[] = []
    for (let n = 0; n < 31; n++) statuses.push((await browser.submit(page, { email: 'x@example.com' })).status)
    expect(statuses.slice(0, 30)).toEqual(Array(30).fill(200))
    expect(statuses[30]).toBe(429)
  })

  it('what a person types is shown as text', async () => {
    await using site = await startSite()
    const hostile = `${site.control}/signin?${new URLSearchParams({ next: '/"><script>alert(1)</script>' })}`
    const page = await site.browser().get(hostile)
    expect(page.text).not.toContain('<script')
    await site.sql`update accounts set email = ${'<b>"x@example.com'}, email_proved_at = now() where id = ${site.ownerId}`
    const home = await (await site.signedIn()).get(`${site.control}/list`)
    expect(home.text).not.toContain('<b>"x')
    expect(home.text).toContain('&#60;b&#62;')
  })
})

describe('the list of machines', () => {
  it('shows one’s own and shared ones with their state and address, in JSON too', async () => {
    await using site = await startSite()
    await site.addMachine('off', site.ownerId, { state: 'stopped' })
    const browser = await site.signedIn()
    const page = await browser.get(`${site.control}/list`)
    expect(page.text).toMatch(/href="https:\/\/demo\.localhost:\d+\/">demo<\/a>\s*<span class="state well">running/)
    expect(page.text).toMatch(/>off<\/a>\s*<span class="state ">stopped/)
    const list = await browser.get(`${site.control}/`, { headers: { accept: 'application/json' } })
    expect(JSON.parse(list.text).machines).toMatchObject([
      { name: 'demo', state: 'running', own: true },
      { name: 'off' },
    ])
    const nobody = await site.signedIn(await site.account())
    expect((await nobody.get(`${site.control}/list`)).text).toContain('new demo')
  })
})
