import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type PageOptions, screenshot, startBrowser, type TestBrowser } from '../../../test/browser.ts'
import { endAllSessions } from '../../accounts/web-sessions.ts'
import { startTerminalWorld, type TerminalWorld } from './testing/world.ts'

const PATIENT = { timeout: 60_000, interval: 50 }
/** Where pictures are kept for whoever wants to see them. */
const PICTURES = process.env.BERTH_TEST_PICTURES

let world: TerminalWorld
let browser: TestBrowser
beforeAll(async () => {
  world = await startTerminalWorld()
  browser = await startBrowser()
}, 120_000)
afterAll(async () => {
  await browser?.[Symbol.asyncDispose]()
  await world?.[Symbol.asyncDispose]()
})

/** A page at a session, signed in, with what the browser complained about. */
async function visit(session: string, options: PageOptions = {}): Promise<{ page: Page; complaints: string[] }> {
  const page = await browser.open({ ...options, cookie: { url: world.control, field: await world.signIn() } })
  const complaints: string[] = []
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) complaints.push(message.text())
  })
  page.on('pageerror', (error) => complaints.push(String(error)))
  await page.goto(`${world.control}/terminal/demo/${session}`)
  return { page, complaints }
}

const shown = async (page: Page) => (await page.locator('.xterm-rows > div').allTextContents()).join('\n')
const shows = (page: Page, pattern: RegExp) => expect.poll(() => shown(page), PATIENT).toMatch(pattern)
const says = (page: Page, pattern: RegExp) =>
  expect.poll(() => page.locator('#state').textContent(), PATIENT).toMatch(pattern)

/** A network path to the gateway, whose connections can fall silent without an end, as those through a lost NAT do. */
async function startPath(to: number): Promise<{ port: number; silence(): void } & AsyncDisposable> {
  const sockets = new Set<Socket>()
  const server = createServer((near) => {
    const far = connect(to, '127.0.0.1')
    for (const socket of [near, far]) sockets.add(socket.on('error', () => {}))
    near.pipe(far).pipe(near)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    silence() {
      for (const socket of sockets) socket.unpipe().pause()
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

async function picture(page: Page, name: string): Promise<void> {
  if (PICTURES) await screenshot(page, join(PICTURES, `${name}.png`))
}

const COLOURS = [
  'clear',
  'printf "\\033[1mbold\\033[0m plain \\033[2mdim\\033[0m\\n"',
  ...[1, 2, 3, 4, 5, 6].map((at) => `printf "\\033[3${at}mcolour${at}\\033[0m \\033[9${at}mbright${at}\\033[0m "`),
  'echo; ls -la --color=always /usr',
].join('\n')

it('is typed in and shows, keeps its session over a reload, and has its title from the program', async () => {
  const { page, complaints } = await visit('main')
  await says(page, /^Connected\.$/)
  await page.keyboard.type('echo "seen $((40+2))"\n')
  await shows(page, /seen 42/)
  await page.keyboard.type('printf "\\033]2;building\\007"\n')
  await expect.poll(() => page.title(), PATIENT).toBe('demo: building')
  await page.reload()
  await shows(page, /seen 42/)
  await expect.poll(() => page.title(), PATIENT).toBe('demo: building')
  await page.keyboard.type('stty size\n')
  await shows(page, /\n\d{2} 1[0-9]{2}\n/)
  await page.setViewportSize({ width: 700, height: 400 })
  await expect
    .poll(async () => {
      await page.keyboard.type('stty size\n')
      return await shown(page)
    }, PATIENT)
    .toMatch(/\n\d{2} [78]\d\n/)
  expect(complaints).toEqual([])
  await page.context().close()
})

it('copies and pastes, also what is long', async () => {
  const { page } = await visit('clipboard', { clipboard: true })
  await says(page, /^Connected\.$/)
  await page.keyboard.type('stty -echo; PS1=; clear; echo copy-this-word; wc -c\n')
  await shows(page, /^copy-this-word/)
  const { x = 0, y = 0 } = (await page.locator('.xterm-screen').boundingBox()) ?? {}
  await page.mouse.dblclick(x + 5, y + 5)
  await page.keyboard.press('Control+Shift+KeyC')
  expect(await page.evaluate('navigator.clipboard.readText()')).toContain('copy')
  const text = `${'a line of what was pasted\n'.repeat(10_000)}`
  await page.evaluate(`navigator.clipboard.writeText(${JSON.stringify(text)})`)
  await page.keyboard.press('Control+Shift+KeyV')
  await page.keyboard.press('Control+KeyD')
  await shows(page, new RegExp(`^${text.length}$`, 'm'))
  await page.context().close()
})

it('comes back by itself after its gateway ended, and says so meanwhile', async () => {
  const { gateway, control } = await world.another()
  const page = await browser.open({ cookie: { url: control, field: await world.signIn() } })
  await page.goto(`${control}/terminal/demo/back`)
  await says(page, /^Connected\.$/)
  await page.keyboard.type('echo "kept $((6*7))"\n')
  await shows(page, /kept 42/)
  const port = Number(new URL(control).port)
  await gateway.close(0)
  await says(page, /what runs goes on/)
  expect(await page.title()).toMatch(/^demo\/back: /)
  await picture(page, 'cut')
  await using _third = (await world.another({ port })).gateway
  await says(page, /^Connected\.$/)
  await shows(page, /kept 42/)
  await page.context().close()
})

it('finds out that its connection is dead, as after a night in a closed laptop, and makes another', async () => {
  await using path = await startPath(Number(new URL(world.control).port))
  const url = `https://localhost:${path.port}`
  const page = await browser.open({ cookie: { url, field: await world.signIn() } })
  await page.clock.install()
  await page.goto(`${url}/terminal/demo/night`)
  await says(page, /^Connected\.$/)
  await page.keyboard.type('echo "kept $((6*7))"\n')
  await shows(page, /kept 42/)
  path.silence()
  await page.evaluate("dispatchEvent(new Event('online'))")
  await page.clock.fastForward(10_000)
  await says(page, /^The connection was lost\. /)
  await page.clock.fastForward(1_000)
  await says(page, /^Connected\.$/)
  await page.keyboard.type('echo "again $((1+1))"\n')
  await shows(page, /kept 42[\s\S]*again 2/)
  await page.context().close()
})

it('says that it is signed out, and leads to signing in', async () => {
  const { page } = await visit('out')
  await says(page, /^Connected\.$/)
  await endAllSessions(world.gateway.sql, world.ownerId)
  await says(page, /^You are signed out\. What runs goes on\.$/)
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.waitForURL(/\/signin\?next=%2Fterminal%2Fdemo%2Fout$/)
  await page.context().close()
})

it('has its sessions in a menu, and ended ones begin anew with Enter', async () => {
  const { page } = await visit('one')
  await says(page, /^Connected\.$/)
  await page.keyboard.press('Shift+F6')
  await page.keyboard.press('Tab')
  await page.keyboard.press('Enter')
  await expect.poll(() => page.locator('#session-list').textContent(), PATIENT).toContain('one')
  await picture(page, 'menu')
  await page.getByLabel('Another session').fill('two')
  await page.keyboard.press('Enter')
  await page.waitForURL(/\/terminal\/demo\/two$/)
  await says(page, /^Connected\.$/)
  await page.keyboard.type('exit 4\n')
  await says(page, /ended with status 4/)
  await page.keyboard.press('Enter')
  await says(page, /^Connected\.$/)
  await page.context().close()
})

it('on a phone has the keys that its keyboard lacks', async () => {
  const { page, complaints } = await visit('phone', { phone: true })
  await says(page, /^Connected\.$/)
  await page.locator('#screen').tap()
  await page.keyboard.type('cat -v')
  await page.keyboard.press('Enter')
  for (const name of ['Esc', 'Tab', 'Up', 'Left']) await page.getByRole('button', { name, exact: true }).tap()
  await page.keyboard.press('Enter')
  await shows(page, /\^\[ +\^\[\[A\^\[\[D/)
  await page.getByRole('button', { name: 'Ctrl' }).tap()
  await page.keyboard.type('c')
  await shows(page, /\^C\n# /)
  await page.keyboard.type('echo "free $((1+1))"\n')
  await shows(page, /free 2/)
  await page.getByRole('button', { name: 'Copy' }).tap()
  await expect.poll(() => page.locator('#text').inputValue(), PATIENT).toContain('free 2')
  await picture(page, 'phone-copy')
  expect(complaints).toEqual([])
  await page.context().close()
})

it('says that a machine is stopped, starts it, and goes on', async () => {
  const { sql } = world.gateway
  await sql`update machines set desired_state = 'stopped', observed_state = 'stopped', observed_ready_at = null`
  await sql`update hosts set lease_expires_at = now() + interval '1 hour', cpus = 8, memory_bytes = 68719476736`
  const { page } = await visit('off')
  await says(page, /^demo is stopped\.$/)
  await expect.poll(() => page.locator('#command').textContent()).toMatch(/start demo$/)
  await picture(page, 'off-light')
  await page.getByRole('button', { name: 'Start demo' }).click()
  await says(page, /^demo is starting: /)
  await sql`update machines set observed_state = 'running', observed_boot = desired_boot, observed_ready_at = now()`
  await says(page, /^Connected\.$/)
  await page.context().close()
})

it('is light and dark, wide and narrow', async () => {
  const script = join(world.directory, 'colours')
  writeFileSync(script, COLOURS)
  for (const scheme of ['light', 'dark'] as const) {
    for (const phone of PICTURES ? [false, true] : [scheme === 'dark']) {
      const { page, complaints } = await visit(`look-${scheme}-${phone}`, { scheme, phone })
      await says(page, /^Connected\.$/)
      await page.locator('.xterm-helper-textarea').focus()
      await page.keyboard.type(`sh ${script}\n`)
      await shows(page, /total/)
      const ground = await page.evaluate(
        "getComputedStyle(document.querySelector('.xterm-scrollable-element')).backgroundColor",
      )
      expect(ground).toBe(scheme === 'light' ? 'rgb(253, 253, 252)' : 'rgb(22, 23, 22)')
      await picture(page, `${phone ? 'phone' : 'desktop'}-${scheme}`)
      expect(complaints).toEqual([])
      await page.context().close()
    }
  }
}, 60_000)
