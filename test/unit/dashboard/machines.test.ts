import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

let desk: Dashboard
beforeAll(async () => {
  desk = await startDashboard()
  for (const name of ['demo', 'quiet-heron', 'web-1']) await desk.world.run(`new ${name} --no-wait`)
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
})

it('the list shows the machines', async () => {
  const page = await desk.open('/')
  await page.getByText('quiet-heron').waitFor()
  expect(await desk.faults(page)).toEqual([])
  await desk.pictures(page, 'list')
  expect(desk.complaints).toEqual([])
})
