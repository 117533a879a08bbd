import { afterAll, beforeAll, expect, it } from 'vitest'
import { machineRow } from '../../../gateway/commands/testing/rows.ts'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

let desk: Dashboard
beforeAll(async () => {
  desk = await startDashboard({ sshd: true })
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
})

async function shows(page: Parameters<Dashboard['faults']>[0], name: string): Promise<void> {
  expect(await desk.faults(page)).toEqual([])
  await desk.pictures(page, `new-${name}`)
}

it('suggests a name, shows the command, tells how far the machine is, and ends with the SSH line', async () => {
  const { sql } = desk.world.gateway
  const page = await desk.open('/new')
  const name = page.getByLabel('Name', { exact: true })
  await expect.poll(() => name.inputValue()).toMatch(/^[a-z]+-[a-z]+$/)
  const first = await name.inputValue()
  await page.getByRole('button', { name: 'Another name' }).click()
  await expect.poll(() => name.inputValue()).not.toBe(first)
  await expect.poll(() => name.inputValue()).toMatch(/^[a-z]+-[a-z]+$/)
  await name.fill('made-here')
  await page.getByLabel('Image').fill('debian:13')
  await page.getByLabel('Memory').fill('1')
  await page.getByText('Tags, variables, setup script').click()
  await page.getByLabel('Tags').fill('web')
  await page.getByLabel('Variables').fill('GREETING=good day')
  await page.locator('.run-line', { hasText: /new made-here --image=debian:13 --memory=1G --tag=web/ }).waitFor()
  await shows(page, 'form')
  desk.world.vmhost.paused = true
  await page.getByRole('button', { name: 'Make it' }).click()
  await page.getByRole('heading', { level: 1, name: 'Making made-here' }).waitFor()
  await page.locator('.making li', { hasText: 'Waiting for its server' }).waitFor()
  const row = await machineRow(desk.world, 'made-here')
  const pulled = (bytes: number) => sql`
    insert into image_pulls (machine_id, step, done_bytes, total_bytes, layers_done, layers)
    values (${row?.id ?? 0}, 'fetching', ${bytes}, 12582912, 1, 4)
    on conflict (machine_id) do update set done_bytes = excluded.done_bytes`
  await pulled(3 * 2 ** 20)
  await sql`update machines set observed_stage = 'image' where name = 'made-here'`
  await page.locator('.making li', { hasText: 'Fetching its image, 3 MiB of 12 MiB, 1 of 4 layers' }).waitFor()
  await pulled(6 * 2 ** 20)
  await page.locator('.making li', { hasText: '6 MiB of 12 MiB' }).waitFor()
  expect(await page.locator('.making li', { hasText: 'Fetching' }).count()).toBe(1)
  expect(await page.getByRole('progressbar').getAttribute('value')).toBe(String(6 * 2 ** 20))
  await shows(page, 'making')
  desk.world.vmhost.paused = false
  desk.world.vmhost.look()
  await page.getByText(/made-here is ready after \d/).waitFor()
  await page.getByText(/^ssh -p \d+ made-here@localhost$/).waitFor()
  await shows(page, 'made')
  expect(await machineRow(desk.world, 'made-here')).toMatchObject({
    memory_bytes: 2 ** 30,
    tags: ['web'],
    env: { GREETING: 'good day' },
  })
  await page.getByRole('link', { name: 'Its page' }).click()
  await page.getByRole('tab', { name: 'Overview' }).waitFor()
  expect(desk.complaints).toEqual([])
  await page.context().close()
})

it('leaves the name alone when somebody is at it before one is suggested', async () => {
  const page = await desk.open('/keys')
  const asked = Promise.withResolvers<void>()
  const goOn = Promise.withResolvers<void>()
  await page.route('**/exec*', async (route) => {
    if (!route.request().postData()?.includes('--dry-run')) return await route.continue()
    asked.resolve()
    await goOn.promise
    await route.continue()
  })
  await page.getByRole('link', { name: 'Machines' }).first().click()
  await page.getByRole('link', { name: 'New machine' }).click()
  const name = page.getByLabel('Name', { exact: true })
  await name.focus()
  await asked.promise
  goOn.resolve()
  await page.locator('#images option').first().waitFor({ state: 'attached' })
  await page.keyboard.type('mine')
  expect(await name.inputValue()).toBe('mine')
  await page.context().close()
})

it('a setup script arrives as it was typed, backslashes and all', async () => {
  const page = await desk.open('/new')
  await page.getByLabel('Name', { exact: true }).fill('scripted')
  await page.getByText('Tags, variables, setup script').click()
  const script = "#!/bin/sh\nprintf 'a\\\\b\\n' # it's\n"
  await page.getByLabel('Setup script').fill(script)
  desk.world.vmhost.paused = true
  await page.getByRole('button', { name: 'Make it' }).click()
  await page.locator('.making li').first().waitFor()
  const [row] = await desk.world.gateway.sql`select setup_script from machines where name = 'scripted'`
  expect(row?.setup_script).toBe(script)
  await page.context().close()
  await desk.world.run('rm --now scripted --no-wait')
  desk.world.vmhost.paused = false
  desk.world.vmhost.look()
})

it('says why there is no machine, keeps what was typed, and goes on', async () => {
  desk.world.vmhost.imageFailures.set('unmade', 'the registry knows no image called nope:1')
  const page = await desk.open('/new')
  const name = page.getByLabel('Name', { exact: true })
  await name.fill('made-here')
  await page.getByRole('button', { name: 'Make it' }).click()
  await page
    .getByRole('alert')
    .getByText(/The name made-here is taken/)
    .waitFor()
  await name.fill('unmade')
  await page.getByLabel('Image').fill('nope:1')
  await page.getByRole('button', { name: 'Make it' }).click()
  await page
    .getByRole('alert')
    .getByText(/the registry knows no image called nope:1/)
    .waitFor()
  expect(await page.getByLabel('Image', { exact: true }).inputValue()).toBe('nope:1')
  await shows(page, 'failed')
  await page.context().close()
})
