import type { Page, Route } from 'playwright-core'
import { afterAll, beforeAll, beforeEach, expect, it } from 'vitest'
import { machineRow } from '../../../gateway/commands/testing/rows.ts'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

const PATIENT = { timeout: 15_000, interval: 50 }

let desk: Dashboard
beforeAll(async () => {
  desk = await startDashboard({ sshd: true })
  await desk.world.run('new demo --memory 1G --disk 10G --tag web')
})
beforeEach(() => {
  desk.complaints.length = 0
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
})

const status = async (name = 'demo') => (await machineRow(desk.world, name))?.desired_state
const press = (page: Page, name: string) => page.getByRole('button', { name, exact: true }).click()
const tab = (page: Page, name: string) => page.getByRole('tab', { name }).click()
/** Of the bar of commands. */
const done = (page: Page, command: RegExp) => page.locator('.run', { hasText: command }).getByText(/^done/).waitFor()

async function shows(page: Page, name: string): Promise<void> {
  expect(await desk.faults(page)).toEqual([])
  await desk.pictures(page, `machine-${name}`)
}

it('says what a machine does and why as it changes, and how it is reached', async () => {
  const page = await desk.open('/machines/demo')
  const asked: string[] = []
  page.on('request', (request) => request.url().includes('/terminal/') && asked.push(request.url()))
  await page.reload()
  await page.locator('.machine-status', { hasText: 'running' }).waitFor()
  await page.getByText(/^ssh -p \d+ demo@localhost$/).waitFor()
  await page.getByText(/^ssh -J localhost:\d+ root@demo$/).waitFor()
  await page.getByLabel('Port', { exact: true }).fill('5173')
  await page.getByText(/^https:\/\/demo--5173\.localhost:\d+$/).waitFor()
  expect(await page.getByRole('link', { name: 'Open a terminal' }).getAttribute('href')).toBe('/terminal/demo')
  const { sql } = desk.world.gateway
  // Whoever only looks keeps no machine awake.
  expect(asked).toEqual([])
  await sql`update machines set observed_awake_because = 'an SSH session is open' where name = 'demo'`
  await page.getByText('Awake: an SSH session is open.').waitFor()
  await shows(page, 'overview')
  await sql`update machines set observed_awake_because = null where name = 'demo'`
  expect(desk.complaints).toEqual([])
  await page.context().close()
})

/** Parts of addresses that have room on a line and are on two, and tabs that are out of sight. */
const BROKEN = `(() => {
  const broken = []
  for (const code of document.querySelectorAll('main .copy code')) {
    const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT)
    while (texts.nextNode()) {
      for (const { 0: part, index } of texts.currentNode.data.matchAll(/[\\w-]+/g)) {
        const range = document.createRange()
        range.setStart(texts.currentNode, index)
        range.setEnd(texts.currentNode, index + part.length)
        const boxes = [...range.getClientRects()]
        const { left, right, top, bottom } = code.getBoundingClientRect()
        if (new Set(boxes.map((box) => Math.round(box.top))).size > 1) broken.push(part)
        if (boxes.some((box) => box.left < left || box.right > right || box.top < top || box.bottom > bottom)) broken.push(part)
      }
    }
  }
  for (const tab of document.querySelectorAll('[role=tab]')) {
    if (tab.getBoundingClientRect().right > document.documentElement.clientWidth) broken.push(tab.textContent)
  }
  return broken
})()`

it('on a narrow phone an address is broken between its parts, and every tab is in sight', async () => {
  await desk.world.run('new builder-of-it --memory 1G --disk 10G --no-wait')
  const page = await desk.open('/machines/builder-of-it', { phone: true })
  await page.getByText(/^https:\/\/builder-of-it--3000\.localhost:\d+$/).waitFor()
  for (const width of [320, 360, 390]) {
    await page.setViewportSize({ width, height: 740 })
    expect([width, await page.evaluate<string[]>(BROKEN)]).toEqual([width, []])
    expect(await desk.faults(page)).toEqual([])
  }
  await desk.world.run('rm builder-of-it')
  await page.context().close()
})

it('shows each answer that it had, however much happens meanwhile, and then asks once more', async () => {
  const page = await desk.open('/machines/demo')
  await page.getByText(/^It never sleeps for being idle/).waitFor()
  const held: Route[] = []
  await page.route('**/exec', async (route) => {
    if (route.request().postData() === 'why demo') held.push(route)
    else await route.continue()
  })
  const { sql } = desk.world.gateway
  for (const reason of ['one', 'two', 'three']) {
    await sql`update machines set observed_awake_because = ${reason} where name = 'demo'`
    await page.getByText(`Awake: ${reason}.`).waitFor()
    await expect.poll(() => held.length, PATIENT).toBe(1)
  }
  const { document } = await desk.world.json('why demo')
  await held[0]?.fulfill({ json: { ...document, sleep_after_seconds: 3600 } })
  await page.getByText(/^It sleeps when it was idle for 1 h/).waitFor()
  await expect.poll(() => held.length, PATIENT).toBe(2)
  await held[1]?.continue()
  await page.getByText(/^It never sleeps for being idle/).waitFor()
  expect(held).toHaveLength(2)
  await sql`update machines set observed_awake_because = null where name = 'demo'`
  await page.context().close()
})

it('puts it to sleep and wakes it with the command shown, and Undo takes it back', async () => {
  const page = await desk.open('/machines/demo')
  await page.getByRole('button', { name: 'Sleep', exact: true }).hover()
  await page.locator('.preview', { hasText: 'sleep demo' }).waitFor()
  await press(page, 'Sleep')
  await page.locator('.machine-status', { hasText: 'asleep' }).waitFor()
  await page.getByText(/Its memory takes 100 MiB on the disk/).waitFor()
  await done(page, /sleep demo/)
  await shows(page, 'asleep')
  await press(page, 'Undo')
  await page.locator('.machine-status', { hasText: 'running' }).waitFor()
  expect(await status()).toBe('running')
  await press(page, 'Hold for 1 h')
  await page.getByText(/Held awake; that ends in \d+ (min|h)/).waitFor()
  await press(page, 'End the hold')
  await page.getByRole('button', { name: 'Hold for 1 h' }).waitFor()
  await page.context().close()
})

it('asks for the name before programs end, and does nothing without it', async () => {
  const page = await desk.open('/machines/demo')
  const before = (await machineRow(desk.world, 'demo'))?.desired_boot
  await press(page, 'Restart')
  const dialog = page.getByRole('dialog')
  await dialog.getByText('What runs in demo ends. Sleep keeps it.').waitFor()
  await shows(page, 'restart')
  await dialog.getByLabel(/^Type demo/).fill('dem')
  await press(page, 'Go on')
  await press(page, 'Leave it')
  expect((await machineRow(desk.world, 'demo'))?.desired_boot).toBe(before)
  await press(page, 'Restart')
  await page
    .getByRole('dialog')
    .getByLabel(/^Type demo/)
    .fill('demo')
  await page.keyboard.press('Enter')
  await done(page, /restart demo/)
  expect((await machineRow(desk.world, 'demo'))?.desired_boot).toBe((before ?? 0) + 1)
  await page.context().close()
})

it('says why a machine failed, and what tries again', async () => {
  desk.world.vmhost.failures.set('broken', 'the kernel panicked')
  await desk.world.run('new broken --memory 512M')
  const page = await desk.open('/machines/broken')
  await page.getByText(/^The kernel panicked\. Restart tries again\.$/).waitFor()
  await shows(page, 'failed')
  desk.world.vmhost.failures.delete('broken')
  await press(page, 'Restart')
  await page.locator('.machine-status', { hasText: 'running' }).waitFor()
  await desk.world.run('rm --now broken')
  await page.context().close()
})

it('follows the console as it grows, also after the connection was cut', async () => {
  const { sql } = desk.world.gateway
  const row = await machineRow(desk.world, 'demo')
  const say = (seq: number, text: string) =>
    sql`insert into console_chunks (machine_id, seq, boot, bytes) values (${row?.id ?? 0}, ${seq}, ${seq > 3 ? 2 : 1}, ${Buffer.from(text)})`
  await say(1, '[    0.000000] Linux version 6.12\n[    0.412345] Run /exe/bin/exe-init as init process\n')
  const page = await desk.open('/machines/demo#console')
  const log = page.getByRole('log', { name: 'Console of demo' })
  await log.getByText('Linux version').waitFor()
  await say(2, 'and \x1b[31mready\x1b[0m\n')
  await log.getByText('and ready').waitFor()
  await page.getByText('It goes on as it grows.').waitFor()
  await shows(page, 'console')
  // An answer that breaks off, and then the real one, which has all of it again.
  const body = `${JSON.stringify({ text: '[    0.000000] Linux version 6.12\n' })}\n`
  const broken = { status: 200, contentType: 'application/x-ndjson', body }
  await page.route('**/exec?follow', (route) => route.fulfill(broken), { times: 1 })
  await tab(page, 'Shares')
  await tab(page, 'Console')
  await page.getByText('The connection was lost; it is tried again.').waitFor()
  await say(3, 'while nobody listened\n')
  await log.getByText('while nobody listened').waitFor()
  expect((await log.textContent())?.match(/Linux version/g)).toHaveLength(1)
  await say(4, 'once more\n')
  await page.getByLabel('Only since its last start').check()
  await expect.poll(() => log.textContent()).toBe('once more\n')
  await page.context().close()
})

it('shares a page: with everybody, by mail, and by a link that is shown once with its QR code', async () => {
  const page = await desk.open('/machines/demo#shares')
  await press(page, 'Open it to everybody')
  await page.getByText('Everybody may see it.').waitFor()
  await press(page, 'Make it private')
  await page.getByText(/It is private/).waitFor()
  await page.getByLabel('E-mail address').fill('ada@example.com')
  await press(page, 'Invite')
  await page
    .locator('li', { hasText: 'ada@example.com' })
    .getByText(/invited/)
    .waitFor()
  await page.getByLabel('Browsers it lets in (optional)').fill('3')
  await press(page, 'Make a link')
  await page.getByText(/\/__berth\/link\/[\w-]{43}$/).waitFor()
  await page.getByRole('img', { name: 'The link as a QR code' }).waitFor()
  await page.getByText(/let in 0, 3 left, ends in 6 d/).waitFor()
  await shows(page, 'shares')
  await page.reload()
  await page.getByText(/let in 0, 3 left/).waitFor()
  expect(await page.getByText('/__berth/link/').count()).toBe(0)
  await press(page, 'Take back link 1')
  await page
    .getByRole('dialog')
    .getByLabel(/^Type demo/)
    .fill('demo')
  await page.keyboard.press('Enter')
  await page.getByText('No link is good.').waitFor()
  await press(page, 'Take back what ada@example.com sees')
  await page.getByText('Shared with nobody by mail.').waitFor()
  await press(page, 'Undo')
  await page.locator('li', { hasText: 'ada@example.com' }).waitFor()
  await page.context().close()
})

it('says which records a domain wants, and shows how one stands', async () => {
  const page = await desk.open('/machines/demo#domains')
  await page.getByLabel('Domain', { exact: true }).fill('www.shop.example')
  await press(page, 'Add')
  await page.getByRole('cell', { name: 'CNAME' }).waitFor()
  await page
    .getByRole('cell', { name: /\.localhost/ })
    .first()
    .waitFor()
  await shows(page, 'domains')
  const row = await machineRow(desk.world, 'demo')
  const { sql } = desk.world.gateway
  await sql`insert into custom_domains (domain, machine_id, wildcard) values ('www.shop.example', ${row?.id ?? 0}, false)`
  await page.reload()
  await page.getByRole('link', { name: 'www.shop.example' }).waitFor()
  await press(page, 'Remove www.shop.example')
  await page.getByText(/can be shown under a domain of yours/).waitFor()
  await page.context().close()
})

it('takes checkpoints, goes back to one, and makes another machine of it', async () => {
  const page = await desk.open('/machines/demo#checkpoints')
  await page.getByLabel('What it is for (optional)').fill('before the upgrade')
  await press(page, 'Take a checkpoint')
  const first = page.locator('li.checkpoint', { hasText: 'before the upgrade' })
  await first.getByText(/100 MiB of memory, 100 MiB held by it alone, stood still for 0\.3 s/).waitFor()
  await shows(page, 'checkpoints')
  await first.getByRole('button', { name: /^Go back/ }).click()
  await page.locator('li.checkpoint', { hasText: 'before it went back' }).waitFor()
  await done(page, /restore demo/)
  await page.getByRole('button', { name: 'Undo' }).click()
  await expect.poll(() => page.locator('li.checkpoint').count(), PATIENT).toBe(3)
  await first.getByPlaceholder('new name').fill('demo-before')
  await first.getByRole('button', { name: /^Make another of it/ }).click()
  await expect.poll(() => status('demo-before'), PATIENT).toBe('running')
  await first.getByRole('button', { name: /^Remove/ }).click()
  await page
    .getByRole('dialog')
    .getByText(/is gone for good/)
    .waitFor()
  await page
    .getByRole('dialog')
    .getByLabel(/^Type demo/)
    .fill('demo')
  await page.keyboard.press('Enter')
  await expect.poll(() => page.locator('li.checkpoint').count(), PATIENT).toBe(2)
  await desk.world.run('rm --now demo-before')
  await page.context().close()
})

it('resizes, and says what is live and what waits for the next start', async () => {
  // As its server reports what it runs with.
  await desk.world.gateway.sql`update machines set observed_cpus = cpus, observed_memory_bytes = memory_bytes`
  const page = await desk.open('/machines/demo#settings')
  await page.getByLabel('CPUs').fill('4')
  await press(page, 'Resize')
  await page.getByText('demo has its CPUs from its next start on: restart demo').waitFor()
  expect((await machineRow(desk.world, 'demo'))?.cpus).toBe(4)
  await press(page, 'Undo')
  await expect.poll(async () => (await machineRow(desk.world, 'demo'))?.cpus, PATIENT).toBe(2)
  await page.getByLabel('Disk, GiB').fill('5')
  await page.getByText('The disk has 10 GiB, and a disk only grows.').waitFor()
  expect(await page.getByRole('button', { name: 'Resize', exact: true }).isDisabled()).toBe(true)
  await page.getByLabel('Disk, GiB').fill('')
  await shows(page, 'settings')
  await page.context().close()
})

it('renames, tags, notes, copies and puts into the trash, each with its way back', async () => {
  await desk.world.run('new work --memory 512M')
  const page = await desk.open('/machines/work#settings')
  await page.getByLabel('Another tag').fill('staging')
  await press(page, 'Add')
  await press(page, 'Take the tag staging away')
  await expect.poll(async () => (await machineRow(desk.world, 'work'))?.tags, PATIENT).toEqual([])
  await page.getByRole('textbox', { name: 'Comment' }).fill("Ada's")
  await press(page, 'Note it')
  await page.locator('.machine-state', { hasText: "Ada's" }).waitFor()
  await page.getByLabel('Another name').fill('desk')
  await press(page, 'Rename')
  await page.getByRole('heading', { level: 1, name: 'desk' }).waitFor()
  expect(new URL(page.url()).pathname).toBe('/machines/desk')
  await page.getByLabel('Name of the copy (optional)').fill('desk-2')
  await press(page, 'Copy it')
  await page.getByRole('heading', { level: 1, name: 'desk-2' }).waitFor()
  await tab(page, 'Settings')
  await press(page, 'Put it into the trash')
  await page
    .getByRole('dialog')
    .getByText(/^What runs in desk-2 ends/)
    .waitFor()
  await page.getByRole('dialog').getByLabel('Type desk-2').fill('desk-2')
  await page.keyboard.press('Enter')
  await page.getByText(/desk-2 is in the trash/).waitFor()
  await page.getByText(/^Undo brings the disk back/).waitFor()
  await shows(page, 'trash')
  await press(page, 'Bring it back')
  await page.getByRole('tab', { name: 'Overview' }).waitFor()
  expect(await status('desk-2')).toBe('running')
  await desk.world.run('rm --now desk desk-2')
  await page.getByText(/No machine is called desk-2/).waitFor()
  await page.context().close()
})

it('has its parts behind a keyboard, and on a phone', async () => {
  const page = await desk.open('/machines/demo', { phone: true })
  await page.getByRole('tab', { name: 'Overview' }).focus()
  await page.keyboard.press('ArrowRight')
  await page.getByRole('log').first().waitFor()
  expect(await page.evaluate('document.activeElement.textContent')).toBe('Console')
  expect(new URL(page.url()).hash).toBe('#console')
  await page.keyboard.press('End')
  for (const name of ['Settings', 'Checkpoints', 'Domains', 'Shares', 'Console', 'Overview']) {
    await page.getByRole('tabpanel', { name }).waitFor()
    expect(await desk.faults(page)).toEqual([])
    await page.keyboard.press('ArrowLeft')
  }
  expect(desk.complaints).toEqual([])
  await page.context().close()
})

it('is nobody else’s', async () => {
  const stranger = await desk.world.account()
  const page = await desk.open('/machines/demo', { accountId: stranger.accountId })
  await page.getByText(/No machine is called demo/).waitFor()
  await page.context().close()
})
