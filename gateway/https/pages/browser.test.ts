/** The pages as a person's browser shows them. `BERTH_TEST_PICTURES` names a folder for pictures of all of them. */
import { readFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { screenshot, startBrowser, type TestBrowser } from '../../../test/browser.ts'
import { addLink, addShare } from '../../accounts/shares.ts'
import { createSignInLink } from '../../accounts/web-sessions.ts'
import { putToSleep, refuseWhenWanted, type Sleeper } from '../../activity/testing/sleeper.ts'
import { type Site, startSite } from '../testing/site.ts'

const WEB = join(import.meta.dirname, '../../../web')
const PICTURES = process.env.BERTH_TEST_PICTURES
const FAULTS = `${stripTypeScriptTypes(readFileSync(join(WEB, 'pages/faults.ts'), 'utf8')).replace('export ', '')}\nfaults()`
const SCREENS = { desktop: { width: 800, height: 520 }, phone: { width: 390, height: 844 } }

let site: Site
let browser: TestBrowser
let refuser: Sleeper
beforeAll(async () => {
  site = await startSite({ env: { BERTH_SSH: '127.0.0.1:2222' } })
  browser = await startBrowser()
  const owner = site.ownerId
  await site.sql`update accounts set email = 'ada@example.com', email_proved_at = now() where id = ${owner}`
  await site.addMachine('quiet-heron', owner, { state: 'stopped' })
  await site.addMachine('new-here', owner, { state: 'creating' })
  await site.addMachine('broken', owner, { state: 'failed' })
  await putToSleep(site.sql, await site.addMachine('sleepy', owner))
  const crowded = await site.addMachine('crowded', owner)
  await putToSleep(site.sql, crowded)
  refuser = await refuseWhenWanted(site.sql, crowded, 'Its server has no memory left for it')
  await site.sql`insert into machine_reports (machine_id, at, report)
    values (${site.machineId}, now(), ${site.sql.json({ listeningPorts: [22, 80, 5173] })})`
})
afterAll(async () => {
  await browser?.[Symbol.asyncDispose]()
  await refuser?.[Symbol.asyncDispose]()
  await site?.[Symbol.asyncDispose]()
})

/** Signs the page's browser in by a link, as `ssh HOST browser` prints one. */
async function signIn(page: Page, accountId = site.ownerId): Promise<void> {
  await page.goto(`${site.control}/login/${await createSignInLink(site.sql, accountId)}`)
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByRole('heading', { name: 'Machines' }).waitFor()
}

const kept = new Map<string, Page>()

/** A page of somebody who is signed in, the same each time, or of a stranger. */
async function pageOf(who: 'owner' | 'other' | undefined): Promise<Page> {
  const there = who && kept.get(who)
  if (there) return there
  const page = await browser.open()
  if (who) {
    await signIn(page, who === 'owner' ? site.ownerId : await site.account('grace@example.com'))
    kept.set(who, page)
  }
  return page
}

async function askForCode(page: Page, email: string): Promise<void> {
  await page.getByLabel('E-mail address').fill(email)
  await page.getByRole('button', { name: 'Send me a code' }).click()
  await page.getByRole('heading', { name: 'Enter the code' }).waitFor()
}

async function enterCode(page: Page, { sql }: Pick<Site, 'sql'>): Promise<void> {
  const [mail] = await sql<{ body: string }[]>`select body from mails order by id desc limit 1`
  await page.getByLabel('Code').fill(/\d{6}/.exec(mail?.body ?? '')?.[0] ?? '')
  await page.getByRole('button', { name: 'Sign in' }).click()
}

describe('in a browser', () => {
  it('a stranger at a private machine signs in by mail and is back at the machine', async () => {
    const page = await browser.open()
    await page.goto(`${site.machine()}/some/page?a=1`)
    expect(new URL(page.url()).hostname).toBe('localhost')
    await askForCode(page, 'ada@example.com')
    await enterCode(page, site)
    await page.waitForURL(`${site.machine()}/some/page?a=1`)
    expect(await page.textContent('body')).toContain('machine says GET /some/page?a=1')
  })

  it('a link signs in, the list leads to the machine, and signing out everywhere, which is asked once, ends both', async () => {
    const page = await browser.open()
    await signIn(page)
    await page.goto(`${site.control}/list`)
    await page.getByRole('link', { name: 'demo', exact: true }).click()
    expect(await page.textContent('body')).toContain('machine says GET /')
    await page.goto(`${site.control}/list`)
    await page.getByRole('link', { name: 'Sign out everywhere' }).click()
    await page.getByRole('heading', { name: 'Sign out everywhere?' }).waitFor()
    await page.getByRole('link', { name: 'Leave it' }).click()
    await page.getByRole('heading', { name: 'Machines' }).waitFor()
    await page.goto(site.machine())
    expect(await page.textContent('body')).toContain('machine says GET /')
    await page.goto(`${site.control}/signed-out`)
    await page.getByRole('link', { name: 'Sign out everywhere' }).click()
    await page.getByRole('button', { name: 'Sign out everywhere' }).click()
    await page.getByRole('heading', { name: 'Sign in' }).waitFor()
    await page.goto(site.machine())
    await page.getByRole('heading', { name: 'Sign in' }).waitFor()
  })

  it('a shared link opens the machine, which does not learn the link', async () => {
    const { token } = await addLink(site.sql, { machineId: site.machineId })
    const page = await browser.open()
    await page.goto(`${site.machine()}/__berth/link/${token}`)
    await page.getByRole('button', { name: 'Open demo' }).click()
    await page.waitForURL(`${site.machine()}/`)
    expect(JSON.stringify(site.asked.at(-1))).not.toContain(token)
    expect(await page.evaluate('document.referrer')).not.toContain(token)
  })

  it('a machine that sends its visitors on to another site does so behind a sign-in and a shared link, too', async () => {
    let elsewhere = ''
    await using sending = await startSite({
      origin: (request, response) =>
        request.url === '/landed' ? response.end('landed') : response.writeHead(302, { location: elsewhere }).end(),
    })
    const [row] = await sending.sql`select web_port as port from machines where id = ${sending.machineId}`
    elsewhere = `http://127.0.0.1:${row?.port}/landed`
    const ada = await sending.account('ada@example.com')
    await sending.sql`update machines set account_id = ${ada} where id = ${sending.machineId}`
    const page = await browser.open()
    await page.goto(sending.machine())
    await askForCode(page, 'ada@example.com')
    await enterCode(page, sending)
    await page.waitForURL(elsewhere)
    const { token } = await addLink(sending.sql, { machineId: sending.machineId })
    const other = await browser.open()
    await other.goto(`${sending.machine()}/__berth/link/${token}`)
    await other.getByRole('button', { name: 'Open demo' }).click()
    await other.waitForURL(elsewhere)
  })

  const pages: { name: string; as?: 'owner' | 'other'; open(page: Page): Promise<unknown>; heading: RegExp }[] = [
    { name: 'sign-in', open: (page) => page.goto(site.control), heading: /Sign in/ },
    {
      name: 'link',
      open: async (page) => page.goto(`${site.control}/login/${await createSignInLink(site.sql, site.ownerId)}`),
      heading: /Sign this browser in\?/,
    },
    { name: 'machines', as: 'owner', open: (page) => page.goto(`${site.control}/list`), heading: /Machines/ },
    { name: 'no-machine-yet', as: 'other', open: (page) => page.goto(`${site.control}/list`), heading: /Machines/ },
    { name: 'stopped', as: 'owner', open: (page) => page.goto(site.machine('quiet-heron')), heading: /stopped/ },
    { name: 'starting', as: 'owner', open: (page) => page.goto(site.machine('new-here')), heading: /starting/ },
    { name: 'failed', as: 'owner', open: (page) => page.goto(site.machine('broken')), heading: /broken has failed/ },
    {
      name: 'nothing-listens',
      as: 'owner',
      open: (page) => page.goto(site.machine('demo--3999')),
      heading: /Nothing listens on port 3999/,
    },
    {
      name: 'not-allowed',
      as: 'other',
      open: (page) => page.goto(site.machine('broken')),
      heading: /Not shared with you/,
    },
    {
      name: 'code',
      open: async (page) => {
        await page.goto(site.control)
        await askForCode(page, 'somebody.with.a.long.name@department.example.com')
      },
      heading: /Enter the code/,
    },
    {
      name: 'invitation',
      open: async (page) => page.goto(`${site.control}/invitation/${await share('new@example.com')}`),
      heading: /demo is shared with you/,
    },
    {
      name: 'offer',
      as: 'other',
      open: async (page) => {
        await share('grace@example.com')
        await page.goto(site.machine())
      },
      heading: /demo is shared with you/,
    },
    {
      name: 'shared-link',
      open: async (page) => {
        const { token } = await addLink(site.sql, { machineId: site.machineId })
        await page.goto(`${site.machine()}/__berth/link/${token}`)
      },
      heading: /demo is shared with you/,
    },
    { name: 'signed-out', as: 'owner', open: (page) => page.goto(`${site.control}/signed-out`), heading: /Signed out/ },
    {
      name: 'everywhere',
      as: 'owner',
      open: (page) => page.goto(`${site.control}/signout/everywhere`),
      heading: /Sign out everywhere\?/,
    },
    {
      name: 'link-over',
      open: (page) => page.goto(`${site.machine()}/__berth/link/${'a'.repeat(43)}`),
      heading: /no longer good/,
    },
    { name: 'no-page', open: (page) => page.goto(`${site.control}/nothing`), heading: /No such page/ },
    { name: 'waking', as: 'owner', open: (page) => page.goto(site.machine('sleepy')), heading: /sleepy is waking/ },
    { name: 'no-room', as: 'owner', open: (page) => page.goto(site.machine('crowded')), heading: /cannot wake now/ },
  ]

  /** @returns the invitation's token */
  async function share(email: string): Promise<string> {
    let made = ''
    await addShare(site.sql, { machineId: site.machineId, accountId: site.ownerId, email }, (token) => {
      made = token
      return { subject: '', body: '' }
    })
    return made
  }

  it.each(pages)('$name fits every screen, can be read by everybody and needs no script', async (shown) => {
    const page = await pageOf(shown.as)
    await shown.open(page)
    expect((await page.textContent('h1')) ?? '').toMatch(shown.heading)
    expect(Buffer.byteLength(await page.content())).toBeLessThan(10 * 1024)
    for (const colorScheme of ['light', 'dark'] as const) {
      for (const [screen, viewport] of Object.entries(SCREENS)) {
        await page.emulateMedia({ colorScheme })
        await page.setViewportSize(viewport)
        const picture = `${shown.name}-${screen}-${colorScheme}.png`
        if (PICTURES) await screenshot(page, join(PICTURES, picture))
        expect(await page.evaluate(FAULTS), picture).toEqual([])
      }
    }
  })
})
