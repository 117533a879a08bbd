/**
 * The README's pictures: an installation as people have it, with a domain of its own and the ports that one types nothing
 * for. `UPDATE_README=1` takes them anew; without, it is seen that they could be.
 */
import { statSync } from 'node:fs'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { screenshot } from '../../browser.ts'
import { type Dashboard, startDashboard } from '../../dashboard.ts'
import { addFleet, type FleetMachine } from '../../fleet.ts'

const DOMAIN = 'berth.example'
const PICTURES = join(import.meta.dirname, '../../../web/pictures')
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

let desk: Dashboard
let ids: Map<string, number>
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
}, 60_000)
afterAll(() => desk?.[Symbol.asyncDispose]())

/** Nothing in it is of a test's own making, and the picture that lies there is no heavier than it should be. */
async function picture(page: Page, name: string, size: { width: number; height: number }): Promise<void> {
  const text = (await page.textContent('body')) ?? ''
  expect(text).toContain(DOMAIN)
  expect(text).not.toMatch(/localhost|127\.|:0\b/)
  await page.setViewportSize(size)
  for (const colorScheme of ['light', 'dark'] as const) {
    await page.emulateMedia({ colorScheme })
    const path = join(PICTURES, `${name}-desktop-${colorScheme}.png`)
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
  await page.setViewportSize({ width: 900, height: 860 })
  for (const title of ['CPU', 'Memory', 'Disk', 'Network']) {
    await page.getByRole('region', { name: title, exact: true }).locator('canvas').waitFor()
  }
  await picture(page, 'machine', { width: 900, height: 1240 })
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
