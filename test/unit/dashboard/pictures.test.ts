/**
 * The README's pictures: an installation as people have it, with a domain of its own and the ports that one types nothing
 * for. `UPDATE_README=1` takes them anew; without, it is seen that they could be.
 */
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, expect, it } from 'vitest'
import type { Caller } from '../../../gateway/app.ts'
import { addMonths, monthOf, startOfMonth } from '../../../gateway/billing/calendar.ts'
import { closeDueMonths } from '../../../gateway/billing/closing.ts'
import { ledgerOver } from '../../../gateway/billing/testing/ledger.ts'
import { screenshot } from '../../browser.ts'
import { type Dashboard, startDashboard } from '../../dashboard.ts'
import { addFleet, type FleetMachine } from '../../fleet.ts'

const DOMAIN = 'berth.example'
const PICTURES = join(import.meta.dirname, '../../../web/pictures')
const README = readFileSync(join(import.meta.dirname, '../../../README.md'), 'utf8')
const SIZE_MOST_BYTES = 150 * 1024

/** Rises and falls, never quite the same. */
const waves = (level: number, swing: number, minutes: number) => (ago: number) =>
  Math.max(0.02, level + swing * Math.sin((ago * 2 * Math.PI) / minutes) + 0.06 * level * Math.sin(ago * 5.3))
const until = (minutesAgo: number, load: (ago: number) => number) => (ago: number) =>
  ago < minutesAgo ? undefined : load(ago)

/** As vmhost says it (reconcile/idleness.ts). */
const SSH = 'an SSH session carried something within the last 10 minutes'
const WEB = 'a web request came within the last 10 minutes'
const CPU = 'its processors were busy in the last minute'

const FLEET: FleetMachine[] = [
  { name: 'api', because: SSH, tags: ['prod'], load: waves(0.8, 0.5, 40), ageDays: 61 },
  { name: 'builder', because: CPU, cpus: 8, memoryGib: 16, diskGib: 80, load: waves(4.6, 2.6, 22) },
  { name: 'db', because: WEB, tags: ['prod'], memoryGib: 8, load: waves(0.5, 0.2, 35) },
  { name: 'docs', state: 'asleep', because: 'idle', sinceMinutes: 200, cpus: 1, memoryGib: 1 },
  { name: 'experiment', state: 'asleep', because: 'idle', sinceMinutes: 25, load: until(25, waves(1.1, 0.6, 9)) },
  { name: 'gpu-notes', state: 'stopped', image: 'debian:13' },
  { name: 'old-wiki', state: 'paused', because: 'told to', sinceMinutes: 26_000, cpus: 1, memoryGib: 2 },
  { name: 'quiet-heron', sinceMinutes: 12, load: waves(0.05, 0.03, 20), image: 'node:24' },
  { name: 'try-rust', state: 'failed', because: 'Its kernel panicked: out of memory', memoryGib: 1 },
  { name: 'web', because: WEB, load: waves(0.6, 0.3, 28), tags: ['frontend', 'prod'] },
]

const always = () => 1
/** From Monday to Friday, longer on some days than on others. */
const worked = (hours: number) => (day: Date) =>
  day.getUTCDay() % 6 === 0 ? 0 : (hours + ((day.getUTCDate() * 5) % 4) - 2) / 24

/** Of somebody who pays for what is used. */
const SHOP: FleetMachine[] = [
  { name: 'shop', cpus: 4, memoryGib: 8, diskGib: 60, awake: always, sendsGb: 5.1 },
  { name: 'shop-db', memoryGib: 8, diskGib: 100, awake: always, sendsGb: 0.4 },
  { name: 'shop-ci', cpus: 8, memoryGib: 16, diskGib: 80, awake: worked(6), sendsGb: 2.3 },
  { name: 'staging', state: 'asleep', because: 'idle', sinceMinutes: 500, awake: worked(5), sendsGb: 0.6 },
  { name: 'grace-dev', cpus: 4, memoryGib: 8, diskGib: 40, awake: worked(9), sendsGb: 0.9 },
  { name: 'jean-dev', cpus: 4, memoryGib: 8, diskGib: 40, awake: worked(7), sendsGb: 0.7 },
].map((machine) => ({ ...machine, ageDays: 200 }) as FleetMachine)
const MONTHS_CLOSED = 3

let desk: Dashboard
let ids: Map<string, number>
let grace: Caller
beforeAll(async () => {
  desk = await startDashboard({ at: DOMAIN })
  const { world } = desk
  const { sql } = world.gateway
  await sql`update accounts set email = 'ada@example.com', email_proved_at = now() where id = ${world.owner.accountId}`
  ids = await addFleet(world, world.owner.accountId, FLEET, { everySeconds: 10 })
  // Nothing listens there.
  await sql`update addresses set address = '127.64.7.9' where machine_id = ${ids.get('web') ?? 0}`
  await sql`insert into machine_reports (machine_id, at, report)
    values (${ids.get('web') ?? 0}, now(), ${sql.json({ listeningPorts: [22, 80, 5173] })})`
  grace = await world.account()
  await addShop()
}, 120_000)
afterAll(() => desk?.[Symbol.asyncDispose]())

/** What it has cost for some months, the last of which are closed and were told. */
async function addShop(): Promise<void> {
  const { world } = desk
  const { sql, app, database } = world.gateway
  const { accountId } = grace
  const now = monthOf(new Date())
  const closed = Array.from({ length: MONTHS_CLOSED }, (_, index) => addMonths(now, index - MONTHS_CLOSED))
  const begins = startOfMonth(addMonths(now, -MONTHS_CLOSED))
  await addFleet(world, accountId, SHOP, { months: MONTHS_CLOSED + 1 })
  await sql`update accounts set email = 'grace@example.com', email_proved_at = now() where id = ${accountId}`
  const settled = [
    world.run("billing seller --name 'Berths of Anytown' --address '1 Quay Street, Anytown' --tax-id XY987654321"),
    world.run("billing details --name 'Example Ltd' --address '3 Mill Lane, Anytown'", { caller: grace }),
    world.run('billing limit 500', { caller: grace }),
  ]
  expect((await Promise.all(settled)).map(({ stderr }) => stderr)).toEqual(settled.map(() => ''))
  const ledger = await ledgerOver(database)
  await ledger.owner`update accounts set created_at = ${begins} where id = ${accountId}`
  await ledger.before(async (owner) => {
    await owner`insert into plans (name, charged) values ('team', true)`
    await owner`insert into rates (plan, kind, micros, included, effective) values
      ('team', 'fee', 20000000, 0, '(,)'), ('team', 'cpu', 36000, 500, '(,)')`
    await owner`insert into account_plans (account_id, plan, effective) values (${accountId}, 'team', '(,)')`
  })
  for (const month of closed) {
    const at = new Date(startOfMonth(addMonths(month, 1)).getTime() + 2 * 3_600_000 + 60_000)
    await closeDueMonths(app.sql, at, new AbortController().signal, app.log)
    await ledger.owner`update notices set at = ${at} where account_id = ${accountId} and read_at is null`
    await world.run('billing notices --read', { caller: grace })
    // What is left of it when the last one is closed, that one takes.
    if (month === addMonths(now, -2)) await world.run("account credit grace@example.com 25 'the outage of the second'")
  }
}

/** Nothing in it is of a test's own making, and the picture that lies there is no heavier than it should be. */
async function picture(page: Page, name: string, size: { width: number; height: number }): Promise<void> {
  const text = (await page.textContent('body')) ?? ''
  expect(text).toContain(DOMAIN)
  expect(text).not.toMatch(/localhost|127\.\d+\.|:0\b/)
  await page.setViewportSize(size)
  for (const colorScheme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme })
    const path = join(PICTURES, `${name}-desktop-${colorScheme}.png`)
    const shown = `web/pictures/${name}-desktop-${colorScheme}.png`
    expect(README.includes(shown), shown).toBe(true)
    if (process.env.UPDATE_README) await screenshot(page, path)
    expect(statSync(path).size).toBeLessThan(SIZE_MOST_BYTES)
  }
}

it('the list of machines, one of them open', async () => {
  const page = await desk.open('/')
  await page
    .getByRole('row', { name: /^Choose builder / })
    .getByRole('img')
    .waitFor()
  await page
    .getByRole('row', { name: /^Choose builder / })
    .getByText('$')
    .waitFor()
  await page
    .getByRole('row', { name: /^Choose api / })
    .getByText('running')
    .click()
  await page.getByText(`ssh api@${DOMAIN}`).waitFor()
  await page.mouse.move(0, 0)
  await picture(page, 'machines', { width: 1280, height: 780 })
})

it('a machine with its plots', async () => {
  const page = await desk.open('/machines/builder')
  await page.setViewportSize({ width: 900, height: 904 })
  for (const title of ['CPU', 'Memory', 'Disk', 'Network']) {
    await page.getByRole('region', { name: title, exact: true }).locator('canvas').waitFor()
  }
  await picture(page, 'machine', { width: 900, height: 1284 })
})

it('what was used, and what it costs', async () => {
  const page = await desk.open('/usage', { accountId: grace.accountId })
  await page.locator('svg.bars rect.was').first().waitFor()
  await page.locator('tfoot', { hasText: 'Sum' }).waitFor()
  await page.getByText(/^About \$/).waitFor()
  await picture(page, 'usage', { width: 900, height: 892 })
})

it('billing: the plan, the limit and the invoices', async () => {
  const page = await desk.open('/billing', { accountId: grace.accountId })
  for (const text of ['What things cost', 'the outage of the second']) await page.getByText(text).waitFor()
  await expect.poll(() => page.locator('tbody a[href^="/invoices/"]').count()).toBe(MONTHS_CLOSED * 3)
  await picture(page, 'billing', { width: 800, height: 836 })
})

it('an invoice, whose lines sum to it', async () => {
  const page = await desk.open('/billing', { accountId: grace.accountId })
  await page.locator('tbody th a[href^="/invoices/"]').first().click()
  await page.getByRole('heading', { name: /^Invoice \d+$/ }).waitFor()
  await picture(page, 'invoice', { width: 800, height: 1135 })
})

it('what strangers see: signing in, and that nothing listens', async () => {
  const page = await desk.browser.open()
  await page.goto(desk.origin)
  await page.getByRole('heading', { name: 'Sign in' }).waitFor()
  await picture(page, 'sign-in', { width: 800, height: 520 })
  const owner = await desk.browser.open({ cookie: { url: desk.origin, field: await desk.cookie() } })
  await owner.goto(`https://web--3999.${DOMAIN}/`)
  await owner.getByRole('heading', { name: 'Nothing listens on port 3999' }).waitFor()
  await picture(owner, 'nothing-listens', { width: 800, height: 520 })
  expect(desk.complaints).toEqual([])
})
