import type { Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Caller } from '../../../gateway/app.ts'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

let desk: Dashboard
let ada: Caller
beforeAll(async () => {
  desk = await startDashboard()
  const { world } = desk
  ada = await world.account()
  const { sql } = world.gateway
  await sql`update accounts set email = 'ada@example.com' where id = ${ada.accountId}`
  await world.run('new demo --memory 1G --disk 10G --no-wait', { caller: ada })
  await world.run('account limit ada@example.com 5 --spend 40')
  await world.run("account credit ada@example.com 10 'the outage of Tuesday'")
  await world.run('billing set-plan team --machines 20 --memory 64G')
  await world.run('billing set-rate team fee 20')
  await world.run('billing set-rate usage cpu 0.05 --included 100 --from 2099-01-01')
  await sql`update hosts set memory_used_bytes = memory_bytes / 3, memory_reclaimed_bytes = memory_bytes / 20,
    hypervisor = 'qemu', accelerator = 'tcg', accelerator_reason = 'this server has no KVM'`
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
})

/** The command that was run, as the bar at the foot shows it when it is done. */
async function ran(page: Page, command: string): Promise<void> {
  await page.locator('.run', { hasText: command }).locator('.dot', { hasText: 'done' }).waitFor()
}
const form = (page: Page, button: string) =>
  page.locator('form.command', { has: page.getByRole('button', { name: button, exact: true }) })

describe('hosts', () => {
  it('shows what is promised, used and reclaimed, and drains with a way back', async () => {
    const page = await desk.open('/hosts')
    const host = page.locator('.host')
    await host.getByText('Memory promised').waitFor()
    const text = await host.textContent()
    for (const words of [
      'up',
      'Memory used',
      'Memory reclaimed',
      'Disk used',
      'qemu with tcg: this server has no KVM',
    ]) {
      expect(text).toContain(words)
    }
    await host.getByRole('button', { name: 'No new machines' }).click()
    await ran(page, 'host drain')
    await host.getByText('draining').waitFor()
    await page.getByRole('button', { name: 'Undo' }).click()
    await host.getByRole('button', { name: 'No new machines' }).waitFor()
    const overcommit = form(page, 'Set the ratio')
    await overcommit.getByLabel('GiB promised for each').fill('40')
    await overcommit.getByText('A number from 0.1 to 20').waitFor()
    await overcommit.getByLabel('GiB promised for each').fill('1.5')
    await overcommit.getByText('host overcommit 1.5').waitFor()
    await page.keyboard.press('Enter')
    await ran(page, 'host overcommit 1.5')
    await host.getByText('1.5 GiB of memory are promised').waitFor()
    expect(await desk.faults(page)).toEqual([])
    await desk.pictures(page, 'hosts')
  })
})

describe('what happens elsewhere', () => {
  /** What the page asks for from now on. */
  const asked = (page: Page) => {
    const lines: string[] = []
    page.on('request', (request) => request.method() === 'POST' && lines.push(request.postData() ?? ''))
    return lines
  }

  it('the servers follow what they say of themselves, their machines and their silence, and ask only then', async () => {
    const { sql, database } = desk.world.gateway
    const vmhost = database.as('berth_vmhost')
    const page = await desk.open('/hosts')
    const host = page.locator('.host')
    const used = host.locator('.said').nth(1)
    await used.waitFor()
    const lines = asked(page)
    await vmhost`update hosts set memory_used_bytes = 7 * 1073741824::bigint`
    await expect.poll(() => used.textContent()).toContain('7 GiB')
    const machines = async () => Number(/(\d+) machines/.exec((await host.textContent()) ?? '')?.[1] ?? 1)
    const before = await machines()
    await desk.world.run('new follower --memory 1G --no-wait')
    await expect.poll(machines).toBe(before + 1)
    // Each change that the page shows was asked for once or twice; what it does not show was not.
    expect(new Set(lines)).toEqual(new Set(['host ls']))
    expect(lines.length).toBeLessThan(8)
    await sql`update hosts set lease_expires_at = now() + interval '1 second'`
    try {
      await page.reload()
      await host.getByText('silent').waitFor()
    } finally {
      await vmhost`update hosts set lease_expires_at = now() + interval '1 hour'`
    }
    await host.locator('.dot', { hasText: 'up' }).waitFor()
    await page.context().close()
  })

  it('the accounts follow who signs up and what becomes of them', async () => {
    const { sql } = desk.world.gateway
    const list = await desk.open('/accounts')
    await list.getByRole('link', { name: 'ada@example.com' }).waitFor()
    const lines = asked(list)
    const { accountId } = await desk.world.account()
    await sql`update accounts set email = 'grace@example.com' where id = ${accountId}`
    const row = list.getByRole('row', { name: /grace@example.com/ })
    await row.waitFor()
    await desk.world.run('account suspend grace@example.com')
    await row.getByText('suspended').waitFor()
    expect(new Set(lines)).toEqual(new Set(['account ls']))
    const one = await desk.open(`/accounts/${accountId}`)
    await one.getByText('It has none of 10 that it may have.').waitFor()
    await desk.world.run('account limit grace@example.com 3')
    await one.getByText('It has none of 3 that it may have.').waitFor()
    await desk.world.run('account unsuspend grace@example.com')
    await one.getByRole('button', { name: 'Suspend' }).waitFor()
    await sql`delete from accounts where id = ${accountId}`
    await row.waitFor({ state: 'detached' })
    await Promise.all([list.context().close(), one.context().close()])
  })

  it('the rates follow plans, rates and the seller, ask only then, and keep what is typed', async () => {
    const page = await desk.open('/rates')
    await page.getByRole('row', { name: /disk \$0\.08 per GiB-month/ }).waitFor()
    const [address, seller] = [
      page.getByLabel('Address', { exact: true }),
      page.getByLabel('Name', { exact: true }).last(),
    ]
    await address.fill('1 Quay Street')
    const lines = asked(page)
    await desk.world.run('billing set-rate usage disk 0.09 --from 2099-02-01')
    await page.getByRole('row', { name: /disk \$0\.09 per GiB-month – 2099-02-01/ }).waitFor()
    await desk.world.run('billing set-plan follower --machines 2')
    await page.getByRole('row', { name: /follower yes none none 2 machines/ }).waitFor()
    await desk.world.run("billing seller --name 'Berths of Anytown'")
    await expect.poll(() => seller.inputValue(), { timeout: 60_000 }).toBe('Berths of Anytown')
    expect(await address.inputValue()).toBe('1 Quay Street')
    await desk.world.run('comment demo of no rate', { caller: ada })
    await desk.world.run('billing seller --name none')
    await expect.poll(() => seller.inputValue(), { timeout: 60_000 }).toBe('')
    expect(new Set(lines)).toEqual(new Set(['billing plans', 'billing rates --plan usage', 'billing seller']))
    await page.context().close()
  })

  it('a stream that was cut is taken up, and what may have happened meanwhile is looked at', async () => {
    const page = await desk.open('/hosts')
    const used = page.locator('.host .said').nth(1)
    await used.waitFor()
    await page.context().setOffline(true)
    // Chromium lets what is open go on; a reconnect is what fails.
    await page.evaluate("dispatchEvent(new Event('online'))")
    const stale = page.getByRole('status').getByText(/^Not live: Berth was last heard/)
    await stale.waitFor()
    await desk.world.gateway.database.as('berth_vmhost')`update hosts set memory_used_bytes = 9 * 1073741824::bigint`
    await page.context().setOffline(false)
    await expect.poll(() => used.textContent(), { timeout: 20_000 }).toContain('9 GiB')
    await stale.waitFor({ state: 'detached' })
    await page.context().close()
    desk.complaints.splice(0)
  })
})

describe('accounts', () => {
  it('are listed, filtered, and lead to one', async () => {
    const page = await desk.open('/accounts')
    await page.getByRole('link', { name: 'ada@example.com' }).waitFor()
    await page.getByRole('row', { name: /ada@example.com \d+ active house 1 of 5/ }).waitFor()
    expect(await desk.faults(page)).toEqual([])
    await desk.pictures(page, 'accounts')
    await page.getByLabel('Filter').fill('nobody')
    await page.getByText('No account fits.').waitFor()
    await page.getByLabel('Filter').fill('ada house')
    await expect.poll(() => page.url()).toContain('filter=ada+house')
    await page.getByRole('link', { name: 'ada@example.com' }).click()
    await page.getByRole('heading', { name: 'ada@example.com' }).waitFor()
  })

  it('500 of them, and more, are a page that can be filtered', async () => {
    const { sql } = desk.world.gateway
    await sql`insert into accounts (email) select 'p' || n || '@example.com' from generate_series(1, 600) n`
    try {
      const page = await desk.open('/accounts')
      await page.getByText('500 of 602 are shown.').waitFor()
      await page.getByLabel('Filter').fill('p577@')
      await page.getByText('1 of 602 accounts.').waitFor()
      expect(await page.locator('tbody tr').count()).toBe(1)
    } finally {
      await sql`delete from accounts where email like 'p%@example.com'`
    }
  })

  it('one account: what it has, and its plan, limits, credit and suspension by commands', async () => {
    const page = await desk.open(`/accounts/${ada.accountId}`)
    await page.getByRole('row', { name: /demo/ }).waitFor()
    const text = await page.locator('main').textContent()
    for (const words of [
      '5 machines; those that are there stay',
      '$40.00 a month, set by you',
      'the outage of Tuesday',
    ]) {
      expect(text).toContain(words)
    }
    const plan = form(page, 'Change the plan')
    await plan.getByLabel('Plan', { exact: true }).selectOption('team')
    await plan.getByRole('button', { name: 'Change the plan' }).click()
    await ran(page, `account plan ${ada.accountId} team`)
    await page.getByText(/house; team from \d{4}-\d\d-\d\d on/).waitFor()
    const limits = form(page, 'Set limits')
    await limits.getByLabel('Machines').fill('7')
    await limits.getByLabel('USD a month').fill('80')
    await limits.getByLabel('At the limit').selectOption('hard')
    await limits.getByText(`account limit ${ada.accountId} 7 --spend 80 --hard`).waitFor()
    await limits.getByRole('button', { name: 'Set limits' }).click()
    await page.getByText('$80.00 a month, set by you; machines are paused there.').waitFor()
    const credit = form(page, 'Give credit')
    expect(await credit.getByRole('button', { name: 'Give credit' }).isDisabled()).toBe(true)
    await credit.getByLabel('USD').fill('2.50')
    await credit.getByRole('textbox', { name: 'What for' }).fill("patience; it's well earned")
    await page.keyboard.press('Enter')
    // There is no way back from it.
    const dialog = page.getByRole('dialog', { name: 'Give credit' })
    await dialog.getByText('ada@example.com has $2.50 more to use up then. It is not taken back.').waitFor()
    await dialog.getByLabel('Type 2.50').fill('2.50')
    await page.keyboard.press('Enter')
    await page.getByRole('row', { name: /patience; it's well earned/ }).waitFor()
    await page.getByRole('button', { name: 'Suspend' }).click()
    await page.getByText('suspended', { exact: true }).waitFor()
    expect(await desk.faults(page)).toEqual([])
    await desk.pictures(page, 'account')
    await page.getByRole('button', { name: 'Let it in again' }).click()
    await page.getByText('active', { exact: true }).waitFor()
  })

  it('one that is not there says so', async () => {
    const page = await desk.open('/accounts/4711')
    await page.getByText('No account 4711').waitFor()
    // It follows the accounts, and would ask, and be refused, again.
    await page.context().close()
    desk.complaints.splice(0)
  })
})

describe('rates', () => {
  it('shows plans and rates with the days they are for, and sets a new one', async () => {
    const page = await desk.open('/rates')
    await page.getByRole('row', { name: /vCPU \$0\.04 per vCPU-hour/ }).waitFor()
    await page.getByRole('row', { name: 'vCPU $0.04 per vCPU-hour – always 2099-01-01' }).waitFor()
    await page.getByRole('row', { name: 'vCPU $0.05 per vCPU-hour 100 vCPU-hours 2099-01-01 further notice' }).waitFor()
    await page.getByRole('link', { name: 'team' }).click()
    const set = form(page, 'Set the rate')
    await page.getByRole('heading', { name: 'Rates of plan team' }).waitFor()
    await set.getByLabel('What').selectOption('transfer')
    await set.getByLabel('GB included', { exact: true }).waitFor()
    await set.getByLabel('What').selectOption('memory')
    await set.getByLabel('USD per GiB-hour', { exact: true }).fill('0.0045')
    await set.getByLabel('GiB-hours included').fill('50')
    await set.getByLabel('From').fill('2099-03-01')
    await set.getByText('billing set-rate team memory 0.0045 --included 50 --from 2099-03-01').waitFor()
    await set.getByRole('button', { name: 'Set the rate' }).click()
    await page.getByRole('row', { name: /memory \$0\.0045 per GiB-hour 50 GiB-hours 2099-03-01/ }).waitFor()
    expect(await desk.faults(page)).toEqual([])
    await desk.pictures(page, 'rates')
    const made = form(page, 'Set the plan')
    await made.getByLabel('Name').fill('Lab')
    await made.getByText('Up to 30 of a-z, 0-9 and -').waitFor()
    await made.getByLabel('Name').fill('lab')
    await made.getByLabel('Machines at most').fill('3')
    await page.keyboard.press('Enter')
    await page.getByRole('heading', { name: 'Rates of plan lab' }).waitFor()
    await page.getByRole('row', { name: /lab yes none none 3 machines/ }).waitFor()
  })

  it('a rate that the server refuses says why beside its form', async () => {
    const page = await desk.open('/rates')
    const set = form(page, 'Set the rate')
    await set.getByLabel('USD per vCPU-hour', { exact: true }).fill('0.01')
    await set.getByLabel('From').fill('2020-01-01')
    await set.getByRole('button', { name: 'Set the rate' }).click()
    await set
      .getByRole('alert')
      .getByText(/what a day costs is settled when it begins/)
      .waitFor()
    desk.complaints.splice(0)
  })
})

describe('somebody else', () => {
  it('is offered none of these, and refused by the server whatever they open', async () => {
    for (const path of ['/hosts', '/accounts', `/accounts/${desk.world.owner.accountId}`, '/rates']) {
      const page = await desk.open(path, { accountId: ada.accountId })
      await page.locator('.failed').first().waitFor()
      expect(await page.locator('main').textContent()).not.toMatch(/server1|ada@example|team|Memory/)
      expect(await page.getByRole('link', { name: 'Hosts' }).count()).toBe(0)
      await page.context().close()
    }
    desk.complaints.splice(0)
  })
})

it('on a phone and in the dark they fit and nothing is wrong', async () => {
  for (const path of ['/hosts', '/accounts', `/accounts/${ada.accountId}`, '/rates?plan=team']) {
    const page = await desk.open(path, { phone: true, scheme: 'dark' })
    await page.locator('.skeleton').first().waitFor({ state: 'detached' })
    await page.locator('form.command, tbody tr').first().waitFor()
    expect(await desk.faults(page), path).toEqual([])
    await page.context().close()
  }
})

it('on a phone and a tablet every page is in sight, and so is what machines cost', async () => {
  await desk.world.run('new tablet --memory 1G --no-wait')
  const page = await desk.open('/')
  await page.getByRole('row', { name: /tablet/ }).waitFor()
  const beyond = `[...document.querySelectorAll('.bar nav a, .machines [role=columnheader]')]
    .filter((one) => one.getClientRects().length > 0)
    .filter((one) => {
      const { left, right } = one.getBoundingClientRect()
      const within = (one.closest('nav') ?? one.closest('main')).getBoundingClientRect()
      return left < within.left || right > within.right
    }).map((one) => one.textContent)`
  for (const width of [360, 390, 641, 700, 768, 834, 960, 961, 1024]) {
    await page.setViewportSize({ width, height: 1024 })
    expect([width, await page.evaluate<string[]>(beyond)]).toEqual([width, []])
    expect(await page.getByRole('columnheader', { name: 'This month' }).isVisible()).toBe(true)
    expect(await desk.faults(page)).toEqual([])
  }
  await page.context().close()
})

it('no browser complained', () => {
  expect(desk.complaints).toEqual([])
})
