/**
 * The dashboard in Debian's Chromium, over 500 machines of one account that look lived in, from a gateway over loopback
 * TLS. `node test/bench/dashboard.ts [rounds]`. Prints JSON on its last line.
 *
 *   first load    script that the list of machines loads, as gzip
 *   interactive   from the navigation, with an empty cache and the processor slowed down fourfold, until the list is
 *                 drawn and the browser's main thread has nothing more to do; and until each row that is seen has its
 *                 plot and what it costs; the same of the pages that have the most to draw
 *   scrolling     frames that are missing on the way down and up the list, beside an empty page that is as long
 *   seen          from before the UPDATE of a machine's row until its row in the list has changed
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Page } from 'playwright-core'
import { type Dashboard, startDashboard } from '../dashboard.ts'
import { addFleet, type FleetMachine } from '../fleet.ts'
import { setup } from '../postgres.setup.ts'
import { report, show, spread, surroundings } from './ssh-lab.ts'

const MACHINES = 500
const SLOWDOWN = 4
const CHANGES = 20
const FRAMES = 240
const FRAME_MS = 1000 / 60
/** What is on a page when it is drawn. */
const LIST = { path: '/', drawn: '.machine:not(.head)' }
const WHOLE_LIST = { path: '/', drawn: '.virtual .spark, .virtual .cost .figure' }
const OTHERS = [
  { name: 'a machine’s page', path: '/machines/machine-001', drawn: '.load canvas' },
  { name: 'usage', path: '/usage', drawn: 'tbody tr' },
  { name: 'billing', path: '/billing', drawn: 'tbody tr' },
]
const DIST = join(import.meta.dirname, '../../web/dist')

const rounds = Number(process.argv[2] ?? 5)
const tearDown = await setup()
try {
  await main()
} finally {
  await tearDown()
}

async function main(): Promise<void> {
  await using desk = await startDashboard()
  await addMachines(desk)
  const firstLoad: number[] = []
  const interactive: number[] = []
  const whole: number[] = []
  const others = OTHERS.map((shown) => ({ ...shown, ms: [] as number[] }))
  const missing: number[] = []
  const missingOfEmpty: number[] = []
  const seen: number[] = []
  // The first round warms up and is not counted.
  for (let round = 0; round <= rounds; round++) {
    const opened = await timeToInteractive(desk, LIST)
    const drawn = await timeToInteractive(desk, WHOLE_LIST)
    if (round > 0) {
      interactive.push(opened.ms)
      whole.push(drawn.ms)
      firstLoad.push(opened.scriptBytes / 1024)
    }
    for (const other of others) {
      const { ms } = await timeToInteractive(desk, other)
      if (round > 0) other.ms.push(ms)
    }
  }
  const page = await desk.open('/')
  await page.locator('.machine:not(.head)').first().waitFor()
  for (let round = 0; round <= rounds; round++) {
    const ofList = await missingFrames(page)
    if (round > 0) missing.push(ofList)
  }
  const empty = await desk.open('/')
  await empty.evaluate(`document.body.innerHTML = '<div class="long"></div>'`)
  await empty.evaluate(`document.querySelector('.long').style.height = '20000px'`)
  for (let round = 0; round <= rounds; round++) {
    const ofEmpty = await missingFrames(empty)
    if (round > 0) missingOfEmpty.push(ofEmpty)
  }
  await empty.context().close()
  await page.evaluate('scrollTo(0, 0)')
  for (let change = 0; change <= CHANGES; change++) {
    const ms = await timeToSee(desk, page, `reason ${change}`)
    if (change > 0) seen.push(ms)
  }
  const figures = {
    'first load, script, KiB': spread(firstLoad),
    'interactive at a fourfold slowdown, ms': spread(interactive),
    'the same with plots and costs, ms': spread(whole),
    ...Object.fromEntries(others.map(({ name, ms }) => [`${name} at a fourfold slowdown, ms`, spread(ms)])),
    'frames missing while scrolling, of 240': spread(missing),
    'the same of an empty page': spread(missingOfEmpty),
    'frames missing beyond an empty page’s': spread([
      Math.max(0, spread(missing).median - spread(missingOfEmpty).median),
    ]),
    'change of state seen, ms': spread(seen),
    'slowest change of state seen, ms': spread([Math.max(...seen)]),
  }
  const rows = Object.fromEntries(Object.entries(figures).map(([name, values]) => [name, show(values, 1)]))
  report('dashboard', await surroundings(), rows, figures)
}

async function addMachines({ world }: Dashboard): Promise<void> {
  const fleet = Array.from({ length: MACHINES }, (_, index): FleetMachine => {
    const name = `machine-${String(index + 1).padStart(3, '0')}`
    const load = (ago: number) => 0.6 + 0.5 * Math.sin(ago / (3 + (index % 7)))
    if (index % 5 === 3) return { name, state: 'asleep', because: 'idle', sinceMinutes: 10 * index, tags: ['spare'] }
    if (index % 5 === 4) return { name, sinceMinutes: index, load: (ago) => 0.05 * load(ago) }
    return { name, because: 'an SSH session', load, ...(index % 2 === 0 ? { tags: ['team-a', 'prod'] } : {}) }
  })
  const [first, ...rest] = fleet
  if (!first) return
  await addFleet(world, world.owner.accountId, [first], { everySeconds: 10 })
  await addFleet(world, world.owner.accountId, rest)
}

/** @param drawn of each of these selectors there is one when it is drawn */
async function timeToInteractive(
  desk: Dashboard,
  { path, drawn }: { path: string; drawn: string },
): Promise<{ ms: number; scriptBytes: number }> {
  // A context of its own has an empty cache.
  const page = await desk.browser.open({ cookie: { url: desk.origin, field: await desk.cookie() } })
  const devtools = await page.context().newCDPSession(page)
  await devtools.send('Emulation.setCPUThrottlingRate', { rate: SLOWDOWN })
  await page.addInitScript(`window.interactiveMs = new Promise((resolve) => {
    new MutationObserver((_all, observer) => {
      if (!${JSON.stringify(drawn.split(', '))}.every((one) => document.querySelector(one))) return
      observer.disconnect()
      requestAnimationFrame(() => requestIdleCallback(() => resolve(performance.now())))
    }).observe(document, { childList: true, subtree: true })
  })`)
  await page.goto(`${desk.origin}${path}`)
  const ms = await page.evaluate<number>('window.interactiveMs')
  const scripts = await page.evaluate<string[]>(
    "performance.getEntriesByType('resource').map(({ name }) => new URL(name).pathname).filter((path) => path.endsWith('.js'))",
  )
  await page.context().close()
  const scriptBytes = scripts
    .map((path) => readFileSync(join(DIST, `${path}.gz`)).length)
    .reduce((sum, bytes) => sum + bytes, 0)
  return { ms, scriptBytes }
}

/** Scrolls by so much a frame, down and up again, and counts the frames that the browser left out. */
async function missingFrames(page: Page): Promise<number> {
  return await page.evaluate<number>(`new Promise((resolve) => {
    let frames = 0
    let missing = 0
    let lastMs
    const step = (nowMs) => {
      if (lastMs !== undefined) missing += Math.max(0, Math.round((nowMs - lastMs) / ${FRAME_MS}) - 1)
      lastMs = nowMs
      if (++frames > ${FRAMES}) return resolve(missing)
      scrollBy(0, frames <= ${FRAMES / 2} ? 80 : -80)
      requestAnimationFrame(step)
    }
    requestAnimationFrame(step)
  })`)
}

async function timeToSee({ world }: Dashboard, page: Page, reason: string): Promise<number> {
  const seenAt = page.evaluate<number>(`new Promise((resolve) => {
    const row = document.querySelector('.machine:not(.head)')
    new MutationObserver((_all, observer) => {
      if (!row.textContent.includes('${reason}')) return
      observer.disconnect()
      resolve(performance.timeOrigin + performance.now())
    }).observe(row, { childList: true, characterData: true, subtree: true })
  })`)
  // What is asked after it is answered after it has begun to watch.
  await page.evaluate('1')
  const changedAt = performance.timeOrigin + performance.now()
  await world.gateway.sql`update machines set observed_awake_because = ${reason} where name = 'machine-001'`
  return (await seenAt) - changedAt
}
