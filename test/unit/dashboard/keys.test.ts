import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

let desk: Dashboard
beforeAll(async () => {
  desk = await startDashboard()
  await desk.world.run('new demo --memory 512M --no-wait')
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
})

const press = (page: Page, name: string | RegExp) =>
  page.getByRole('button', typeof name === 'string' ? { name, exact: true } : { name }).click()
const part = (page: Page, name: string) => page.getByRole('region', { name })

it('shows a key’s fingerprint before it is let in, and lets it out and in again', async () => {
  const path = desk.world.gateway.makeKey('laptop', 'ed25519', undefined, 'you@laptop')
  const listed = execFileSync('ssh-keygen', ['-lf', `${path}.pub`], { encoding: 'utf8' }).split(' ')[1] ?? ''
  const page = await desk.open('/keys')
  const keys = part(page, 'SSH keys')
  await keys.getByLabel('Another key').fill(readFileSync(path, 'utf8'))
  await keys.getByText(/That is the private key/).waitFor()
  expect(await keys.getByRole('button', { name: 'Let it in' }).isDisabled()).toBe(true)
  await keys.getByLabel('Another key').fill(readFileSync(`${path}.pub`, 'utf8'))
  await keys.getByRole('status').getByText(listed).waitFor()
  await press(page, 'Let it in')
  const row = keys.locator('li', { hasText: 'you@laptop' })
  await row.getByText(listed).waitFor()
  expect(await desk.faults(page)).toEqual([])
  await desk.pictures(page, 'keys')
  await press(page, 'Rename the key you@laptop')
  // Esc leaves it, and the keyboard is where it was.
  await page.keyboard.press('Escape')
  const focused = "document.activeElement.tagName + ' ' + document.activeElement.getAttribute('aria-label')"
  await expect.poll(() => page.evaluate(focused)).toBe('BUTTON Rename the key you@laptop')
  await page.keyboard.press('Enter')
  // News of the list takes it from nobody who has gone on.
  await keys.getByLabel('Another key').focus()
  const { gateway } = desk.world
  await desk.world.run(`ssh-key add --name=another ${gateway.publicKey(gateway.makeKey('another'))}`)
  await keys.locator('li', { hasText: 'another' }).waitFor()
  expect(await page.evaluate('document.activeElement.tagName')).toBe('TEXTAREA')
  await keys.getByLabel('Another name for the key you@laptop').fill('the old laptop')
  await press(page, 'Rename the key you@laptop')
  await keys.locator('li', { hasText: 'the old laptop' }).waitFor()
  await press(page, 'Remove the key the old laptop')
  await expect.poll(() => keys.getByText(listed).count()).toBe(0)
  await press(page, 'Undo')
  await keys.locator('li', { hasText: 'the old laptop' }).getByText(listed).waitFor()
  expect(desk.complaints).toEqual([])
  await page.context().close()
})

it('makes a token for some commands of one machine, shows it once, and takes it back', async () => {
  const page = await desk.open('/keys')
  const tokens = part(page, 'Tokens')
  await tokens.getByText('No token is good.').waitFor()
  await tokens.getByLabel('What it is for').fill('ci')
  await tokens.getByLabel('Machines').selectOption('demo')
  await tokens.getByLabel('Commands', { exact: true }).selectOption('some')
  await tokens.getByLabel('Which commands').fill('ls, ssh')
  await tokens.getByLabel('Good for').selectOption('7d')
  await press(page, 'Make a token')
  const token = (await tokens.locator('.once code').textContent()) ?? ''
  expect(token).toMatch(/^exe1\./)
  const row = tokens.locator('li', { hasText: 'ci' })
  await row.getByText('for demo, runs ls, ssh').waitFor()
  await row.getByText(/never used, ends in 6 d/).waitFor()
  expect(await desk.faults(page)).toEqual([])
  await desk.pictures(page, 'tokens')
  const ask = (line: string) =>
    page.context().request.post(`${desk.origin}/exec`, { data: line, headers: { authorization: `Bearer ${token}` } })
  expect((await ask('ls demo')).status()).toBe(200)
  expect((await ask('stop demo')).status()).toBe(403)
  await page.reload()
  await row.getByText(/used just now/).waitFor()
  expect(await tokens.locator('.once').count()).toBe(0)
  await press(page, 'Take back ci')
  await page
    .getByRole('dialog')
    .getByText(/good for nothing any more/)
    .waitFor()
  await page
    .getByRole('dialog')
    .getByLabel(/^Type ci/)
    .fill('ci')
  await page.keyboard.press('Enter')
  await tokens.getByText('No token is good.').waitFor()
  expect((await ask('ls demo')).status()).toBe(401)
  await page.context().close()
})

it('lists the browsers that are signed in, and signs out another one, this one and all', async () => {
  const page = await desk.open('/keys', { phone: true })
  const other = await desk.open('/keys')
  const browsers = part(page, 'Browsers')
  await page.reload()
  await browsers.getByText('(this one)').waitFor()
  await page.getByRole('button', { name: 'Sign another browser in' }).tap()
  // A finger's first tap shows the command.
  await page.getByRole('button', { name: 'Run', exact: true }).click()
  await browsers.getByRole('img', { name: /QR code/ }).waitFor()
  expect(await desk.faults(page)).toEqual([])
  const count = await browsers.locator('li').count()
  expect(count).toBeGreaterThan(1)
  await other.locator('details.who summary').click()
  await other.locator('details.who').getByRole('button', { name: 'Sign out everywhere' }).click()
  const dialog = other.getByRole('dialog', { name: 'Sign out everywhere' })
  await dialog.getByText(/^Every browser of yours is signed out, this one too/).waitFor()
  expect(await desk.faults(other)).toEqual([])
  // What is to be typed can be typed at once.
  await other.keyboard.type('some')
  expect(await dialog.getByLabel(/^Type everywhere/).inputValue()).toBe('some')
  await dialog.getByRole('button', { name: 'Leave it' }).click()
  await dialog.waitFor({ state: 'detached' })
  // Asked anew, so still signed in.
  await page.reload()
  await browsers
    .locator('li')
    .nth(count - 1)
    .waitFor()
  await part(other, 'Browsers').getByRole('button', { name: 'Sign out everywhere' }).click()
  await dialog.getByLabel(/^Type everywhere/).fill('everywhere')
  await other.keyboard.press('Enter')
  await other.waitForURL(/\/signin/)
  await page.waitForURL(/\/signin/)
  await page.context().close()
  await other.context().close()
})
