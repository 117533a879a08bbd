import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

let desk: Dashboard
beforeAll(async () => {
  desk = await startDashboard()
  const { world } = desk
  for (const name of ['api', 'quiet-heron', 'web-1', 'web-2', 'worn-out', 'zebra']) {
    await world.run(`new ${name} --memory 256M --no-wait`)
  }
  await world.run('tag web-1 frontend prod')
  const { sql } = world.gateway
  await sql`update machines set desired_state = 'asleep', observed_state = 'asleep', observed_asleep_at = now() - interval '3 hours',
    observed_asleep_because = 'idle for 30 min', observed_ready_at = null where name = 'quiet-heron'`
  await sql`update machines set observed_state = 'failed', observed_reason = 'Its kernel panicked', observed_ready_at = null where name = 'worn-out'`
  await sql`update machines set observed_awake_because = 'an SSH session' where name = 'api'`
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
})

it('the list shows the machines', async () => {
  const page = await desk.open('/')
  await page.getByText('quiet-heron').waitFor()
  await page.getByRole('row', { name: /web-1/ }).focus()
  await page.keyboard.press('Enter')
  await page.keyboard.press('x')
  await page.keyboard.press('ArrowDown')
  await page.keyboard.press('x')
  await page
    .getByRole('button', { name: 'Sleep 2' })
    .or(page.getByRole('button', { name: 'Sleep', exact: true }))
    .first()
    .hover()
  expect(await desk.faults(page)).toEqual([])
  await desk.pictures(page, 'list')
  expect(desk.complaints).toEqual([])
})
