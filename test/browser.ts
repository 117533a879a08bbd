/**
 * Debian's Chromium, driven by Playwright: what a person's browser does with the pages.
 *
 *     await using browser = await startBrowser()
 *     const page = await browser.open({ phone: true, scheme: 'dark' })
 */
import { existsSync, mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { type BrowserContext, chromium, type Page } from 'playwright-core'

/** Debian's package puts it here. */
const CHROMIUM = '/usr/bin/chromium'

/** Chromium looks for updates, time and reports by itself; nothing of that belongs into a test. */
const FLAGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--font-render-hinting=none',
]

const STEP_LIMIT_MS = 15_000

export type TestBrowser = {
  /** A page in a profile of its own: cookies are not shared with other pages. */
  open(options?: PageOptions): Promise<Page>
} & AsyncDisposable

export type PageOptions = {
  /** 390 by 844 with a touch screen and no mouse, instead of 1280 by 800 */
  phone?: boolean
  scheme?: 'light' | 'dark'
  /** a `Cookie` field, for the host of `url` */
  cookie?: { url: string; field: string }
  /** may read and write the clipboard */
  clipboard?: boolean
}

/**
 * Starts a browser that takes every certificate: who issued them is another test's business. `localhost` and all names
 * below it lead to the loopback interface, as they do in every browser.
 * @param rules for other names, as `MAP *.example.test 127.0.0.1`
 * @param program the browser, or a script that runs it somewhere
 */
export async function startBrowser(rules: readonly string[] = [], program = CHROMIUM): Promise<TestBrowser> {
  if (!existsSync(CHROMIUM)) throw new Error('Debian’s chromium is missing: npm test installs it')
  const browser = await chromium.launch({
    executablePath: program,
    args: [...FLAGS, ...(rules.length > 0 ? [`--host-resolver-rules=${rules.join(',')}`] : [])],
  })
  return {
    async open({ phone = false, scheme = 'light', cookie, clipboard = false } = {}) {
      const context = await browser.newContext({
        ignoreHTTPSErrors: true,
        colorScheme: scheme,
        ...(phone
          ? { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2, hasTouch: true, isMobile: true }
          : { viewport: { width: 1280, height: 800 } }),
        ...(clipboard ? { permissions: ['clipboard-read', 'clipboard-write'] } : {}),
      })
      context.setDefaultTimeout(STEP_LIMIT_MS)
      if (cookie) await addCookies(context, cookie)
      return await context.newPage()
    },
    [Symbol.asyncDispose]: () => browser.close(),
  }
}

/** Saves what a page shows; the folders are made. @param path a .png */
export async function screenshot(page: Page, path: string): Promise<void> {
  mkdirSync(dirname(path), { recursive: true })
  await page.screenshot({ path })
}

async function addCookies(context: BrowserContext, { url, field }: { url: string; field: string }): Promise<void> {
  await context.addCookies(
    field.split('; ').map((pair) => {
      const equals = pair.indexOf('=')
      return { name: pair.slice(0, equals), value: pair.slice(equals + 1), url, secure: true, httpOnly: true }
    }),
  )
}
