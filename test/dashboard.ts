/**
 * The dashboard as a person has it, for tests of its pages: a gateway over a real Postgres with the lobby's own commands
 * and a stand-in for vmhost, and Debian's Chromium that is signed in.
 *
 *     await using desk = await startDashboard()
 *     const page = await desk.open('/machines/demo', { phone: true, scheme: 'dark' })
 *     expect(await desk.faults(page)).toEqual([])
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { createSession } from '../gateway/accounts/web-sessions.ts'
import { startWorld, type World, type WorldOptions } from '../gateway/commands/testing/world.ts'
import { type PageOptions, screenshot, startBrowser, type TestBrowser } from './browser.ts'

export type Dashboard = {
  world: World
  browser: TestBrowser
  /** `https://localhost:<port>`, or where it is to be seen */
  origin: string
  /** a signed-in page at a path, drawn to its heading; whatever its browser complains about is in `complaints` */
  open(path: string, options?: PageOptions & { accountId?: number }): Promise<Page>
  /** what pages' browsers complained about: errors of scripts, of the policy, of loading */
  complaints: string[]
  /** a `Cookie` field of a browser that is signed in */
  cookie(accountId?: number): Promise<string>
  /** what axe finds wrong, and what is wider than the screen, in words */
  faults(page: Page): Promise<string[]>
  /** keeps pictures of a page, light and dark, where `BERTH_TEST_PICTURES` names a folder */
  pictures(page: Page, name: string): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8')
const PICTURES = process.env.BERTH_TEST_PICTURES
const SCREENS = { desktop: { width: 1280, height: 800 }, phone: { width: 390, height: 844 } }
/** WCAG 2.2 AA and what axe calls good practice. */
const AXE_RUN = `axe.run(document, { resultTypes: ['violations'] }).then(({ violations }) =>
  violations.flatMap(({ id, nodes }) => nodes.map(({ html, failureSummary }) => id + ': ' + html.slice(0, 200) + '\\n' + failureSummary)))`
const OVERFLOW = `(() => {
  const { scrollWidth, clientWidth } = document.documentElement
  return scrollWidth > clientWidth ? [scrollWidth + ' px wide on ' + clientWidth] : []
})()`

export type DashboardOptions = WorldOptions & {
  /** a domain that it is seen at, on the ports that one types nothing for; `localhost` and any port unless given */
  at?: string
}

export async function startDashboard({ at, ...options }: DashboardOptions = {}): Promise<Dashboard> {
  const seen = at === undefined ? {} : { BERTH_DOMAIN: at, BERTH_SSH: '127.0.0.1:22', BERTH_HTTPS: '127.0.0.1:443' }
  const world = await startWorld({
    ...{ https: true, httpsElsewhere: at !== undefined, ...options },
    env: { ...seen, ...options.env },
  })
  const { gateway, owner } = world
  const port = gateway.https?.server.addresses[0]?.port
  const rules = [at, `*.${at}`].map((name) => `MAP ${name}:443 127.0.0.1:${port}`)
  const browser = await startBrowser(at === undefined ? [] : rules)
  const origin = at === undefined ? `https://localhost:${port}` : `https://${at}`
  const complaints: string[] = []
  const desk: Dashboard = {
    ...{ world, browser, origin, complaints },
    cookie: async (accountId = owner.accountId) =>
      `__Host-berth=${await createSession(gateway.sql, { accountId, email: null }, '127.0.0.1')}`,
    async open(path, { accountId, ...pageOptions } = {}) {
      const cookie = { url: origin, field: await desk.cookie(accountId) }
      const page = await browser.open({ ...pageOptions, cookie })
      page.on('console', (message) => {
        if (['error', 'warning'].includes(message.type())) complaints.push(message.text())
      })
      page.on('pageerror', (error) => complaints.push(String(error)))
      await page.goto(`${origin}${path}`)
      await page.locator('h1').waitFor()
      return page
    },
    async faults(page) {
      // Not as a script of the page, which its policy forbids.
      await page.evaluate(AXE)
      return [...(await page.evaluate<string[]>(AXE_RUN)), ...(await page.evaluate<string[]>(OVERFLOW))]
    },
    async pictures(page, name) {
      if (!PICTURES) return
      for (const colorScheme of ['light', 'dark'] as const) {
        await page.emulateMedia({ colorScheme })
        for (const [screen, viewport] of Object.entries(SCREENS)) {
          await page.setViewportSize(viewport)
          const picture = `${name}-${screen}-${colorScheme}.png`
          await screenshot(page, join(PICTURES, picture))
        }
      }
      await page.setViewportSize(SCREENS.desktop)
    },
    async [Symbol.asyncDispose]() {
      await browser[Symbol.asyncDispose]()
      await world[Symbol.asyncDispose]()
    },
  }
  return desk
}
