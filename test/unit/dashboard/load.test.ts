import type { Page } from 'playwright-core'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

const GIB = 2 ** 30
let desk: Dashboard
/** The last whole 10 s when the test began. */
let end: number

beforeAll(async () => {
  desk = await startDashboard()
  await desk.world.run('new demo --no-wait --memory 4G --cpu 2')
  await desk.world.run('new quiet --no-wait')
  end = Math.floor(Date.now() / 10_000) * 10_000 - 10_000
  // It worked, slept for a quarter of an hour and woke; for a minute nobody looked.
  const samples = Array.from({ length: 355 }, (_, index) => index)
    .filter((index) => !(index >= 60 && index < 150) && !(index >= 240 && index < 246))
    .map((index) => sample(index))
  await add(samples, [
    { agoSeconds: 10_000, state: 'running' },
    { agoSeconds: 1_500, state: 'asleep' },
    { agoSeconds: 610, state: 'running' },
  ])
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
})

/** @param index of ten seconds before the last */
function sample(index: number, cpu = 0.8 + 0.6 * Math.sin(index / 9)) {
  return {
    at: new Date(end - index * 10_000).toISOString(),
    ms: 10_000,
    cpus: 2,
    cpu_ms: Math.round(cpu * 10_000),
    memory_limit_bytes: 4 * GIB,
    memory_held_bytes: Math.round(2.2 * GIB),
    memory_used_bytes: Math.round((1.2 + 0.4 * Math.cos(index / 40)) * GIB),
    disk_ms: 10_000,
    disk_read_bytes: index % 30 === 0 ? 60_000_000 : 900_000,
    disk_written_bytes: (Math.abs(index) % 17) * 1_000_000,
    network_ms: 10_000,
    network_out_bytes: Math.round(3_000_000 * (1 + Math.sin(index / 20))),
    network_in_bytes: 400_000,
    filesystem_used_bytes: 3 * GIB,
    filesystem_bytes: 20 * GIB,
  }
}

async function add(samples: object[], marks: { agoSeconds: number; state: string }[] = []): Promise<void> {
  const sql = desk.world.gateway.database.as('berth_vmhost')
  const [machine] = await sql<{ id: number; host: number; epoch: number }[]>`
    select m.id, h.id as host, lease_epoch as epoch from machines m join hosts h on h.id = host_id where m.name = 'demo'`
  const { id = 0, host = 0, epoch = 0 } = machine ?? {}
  const rows = samples.map((one) => ({ machine_id: id, ...one }))
  const told = marks.map(({ agoSeconds, state }) => ({
    machine_id: id,
    at: new Date(end - agoSeconds * 1000).toISOString(),
    state,
  }))
  await sql`select add_load(${host}, ${epoch}, ${sql.json(rows as never)}, ${sql.json(told as never)})`
}

const plotOf = (page: Page, title: string) => page.getByRole('region', { name: title, exact: true })

it('a machine has plots that share their crosshair, with exact figures and gaps that stay gaps', async () => {
  const page = await desk.open('/machines/demo')
  for (const title of ['CPU', 'Memory', 'Disk', 'Network']) await plotOf(page, title).locator('canvas').waitFor()
  expect(await desk.faults(page)).toEqual([])
  expect(await page.getByText('Shaded: it slept.').count()).toBe(1)
  const over = plotOf(page, 'CPU').locator('.u-over')
  await over.scrollIntoViewIfNeeded()
  const box = await over.boundingBox()
  if (!box) throw new Error('there is no plot')
  await page.mouse.move(box.x + box.width * 0.5, box.y + box.height / 2)
  const when = page.locator('.load .when')
  await expect.poll(() => when.first().textContent()).not.toBe('now')
  const said = await when.allTextContents()
  expect(said).toHaveLength(4)
  // All four speak of the moment that is pointed at in the first.
  expect(new Set(said).size).toBe(1)
  const tops = await page
    .locator('.load .plots > section')
    .evaluateAll((all) => all.map((one) => one.getBoundingClientRect().top))
  expect(tops[0]).toBe(tops[1])
  await page.evaluate(`document.querySelector('.load').scrollIntoView()`)
  await desk.pictures(page, 'machine-load')
  // A quarter of the hour it slept: nothing is known of then, and that is what is said.
  const now = await over.boundingBox()
  if (!now) throw new Error('there is no plot')
  await page.mouse.move(now.x + now.width * (1 - 1_100 / 3_600), now.y + 20)
  await expect.poll(() => plotOf(page, 'CPU').locator('.values').textContent()).toContain('not known')
  expect(desk.complaints).toEqual([])
})

it('the crosshair moves by keys, and a table has what the plot shows', async () => {
  const page = await desk.open('/machines/demo')
  const plot = plotOf(page, 'Memory').locator('.plot')
  await plot.focus()
  await plot.press('ArrowLeft')
  await plot.press('ArrowLeft')
  await expect.poll(() => plotOf(page, 'CPU').locator('.when').first().textContent()).not.toBe('now')
  await plot.press('Escape')
  await expect.poll(() => plotOf(page, 'CPU').locator('.when').first().textContent()).toBe('now')
  await page.getByText('CPU as a table').click()
  const rows = page.getByRole('region', { name: 'Figures of CPU' }).locator('tbody tr')
  await rows.first().waitFor()
  expect(await rows.count()).toBeGreaterThanOrEqual(355 - 90 - 6 - 3)
  await expect.poll(() => rows.first().textContent()).toMatch(/0\.8 vCPU/)
  expect(await desk.faults(page)).toEqual([])
  expect(desk.complaints).toEqual([])
})

it('what is new comes by itself, and other periods are a click away', async () => {
  const page = await desk.open('/machines/demo')
  await plotOf(page, 'CPU').locator('canvas').waitFor()
  // Of the step that has just ended, whenever that is, and of those to come.
  const index = Math.round((end - Math.floor(Date.now() / 10_000) * 10_000) / 10_000)
  await add(Array.from({ length: 8 }, (_, step) => sample(index + 1 - step, 1.9)))
  await expect
    .poll(() => plotOf(page, 'CPU').locator('.values').textContent(), { timeout: 40_000 })
    .toContain('1.9 vCPU')
  for (const [period, each] of [
    ['Day', '2 min'],
    ['Week', '15 min'],
    ['Month', '1 h'],
    ['Year', '12 h'],
  ] as const) {
    await page.getByText(period, { exact: true }).click()
    await page.getByText(`Each point is ${each}`).waitFor()
    await plotOf(page, 'CPU').getByText('busiest 10 s').waitFor()
  }
  await page.getByText('Hour', { exact: true }).click()
  await page.getByText('Each point is 10 s').waitFor()
  expect(desk.complaints).toEqual([])
})

it('a machine without figures says when they come', async () => {
  const page = await desk.open('/machines/quiet', { phone: true, scheme: 'dark' })
  await page.getByText('No figures of this time').waitFor()
  expect(await desk.faults(page)).toEqual([])
})

it('the list has the last hour of each at a glance', async () => {
  const page = await desk.open('/')
  const spark = page.getByRole('row', { name: /demo/ }).getByRole('img', { name: /^cpu in the last hour: .* of 2$/ })
  await spark.waitFor()
  // It slept for a quarter of an hour and more: the line is cut.
  expect((await spark.locator('path').getAttribute('d'))?.match(/M/g)?.length).toBeGreaterThanOrEqual(2)
  expect(await page.getByRole('row', { name: /quiet/ }).getByRole('img').count()).toBe(0)
  expect(await desk.faults(page)).toEqual([])
  await desk.pictures(page, 'list-load')
  expect(desk.complaints).toEqual([])
})
