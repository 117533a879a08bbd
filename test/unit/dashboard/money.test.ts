/** Usage, billing and the audit trail as a person has them. */
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { tellAccounts } from '../../../gateway/accounts/notices.ts'
import type { Caller } from '../../../gateway/app.ts'
import { addDays, dayOf, monthOf, startOfDay, startOfMonth } from '../../../gateway/billing/calendar.ts'
import { closeDueMonths } from '../../../gateway/billing/closing.ts'
import { soonest } from '../../../gateway/billing/plans.ts'
import { cut, type Ledger, ledgerOver, span } from '../../../gateway/billing/testing/ledger.ts'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

const PATIENT = { timeout: 20_000, interval: 50 }
const MACHINES = 500
const never = new AbortController().signal
/** Words of commands that stand on two lines. */
const BROKEN_WORDS = `(() => {
  const broken = []
  for (const code of document.querySelectorAll('main .copy code')) {
    const texts = document.createTreeWalker(code, NodeFilter.SHOW_TEXT)
    while (texts.nextNode()) {
      for (const { 0: word, index } of texts.currentNode.data.matchAll(/\\S+/g)) {
        const range = document.createRange()
        range.setStart(texts.currentNode, index)
        range.setEnd(texts.currentNode, index + word.length)
        if (new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size > 1) broken.push(word)
      }
    }
  }
  return broken
})()`

let desk: Dashboard
let ledger: Ledger
let ada: Caller
let many: Caller
beforeAll(async () => {
  desk = await startDashboard()
  const { world } = desk
  ledger = await ledgerOver(world.gateway.database)
  ada = await world.account()
  many = await world.account()
  const { owner } = ledger
  await owner`update accounts set email = 'ada@example.com', created_at = '2026-01-01' where id = ${ada.accountId}`
  await ledger.before(
    (sql) => sql`insert into account_plans (account_id, plan, effective) values (${ada.accountId}, 'usage', '(,)')`,
  )
  for (const name of ['api', 'build', 'quiet-heron'])
    await world.run(`new ${name} --no-wait --memory 2G --disk 20G`, { caller: ada })
  const machines = await owner<
    { id: number; name: string }[]
  >`select id, name from machines where account_id = ${ada.accountId} order by id`
  // The month before, which is closed, and this one up to now.
  const now = new Date()
  const month = startOfMonth(monthOf(now))
  const last = startOfMonth(monthOf(new Date(month.getTime() - 1)))
  for (const [index, { id }] of machines.entries()) {
    const whole = (from: Date, to: Date) =>
      span(id, from.toISOString(), to.toISOString(), { cpus: 1 + index, memoryBytes: 2 ** 31, diskBytes: 20 * 2 ** 30 })
    await ledger.spans(cut(whole(last, new Date(last.getTime() + 9 * 86_400_000)), () => new Date('2999-01-01')))
    if (now > month) await ledger.spans(cut(whole(month, now), () => new Date('2999-01-01')))
  }
  await world.run('account credit ada@example.com 5 the outage of Tuesday')
  await closeDueMonths(world.app.sql, new Date(month.getTime() + 3 * 3_600_000), never, world.app.log)
  await owner`insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, observed_state)
    select ${many.accountId}, 1, 'worker-' || n, 'base', 1, 1, 1, 'stopped' from generate_series(1, ${MACHINES}) n`
  const ids = await owner<{ id: number }[]>`select id from machines where account_id = ${many.accountId}`
  const hour = new Date(Math.max(month.getTime(), now.getTime() - 3_600_000))
  await ledger.spans(
    ids.flatMap(({ id }) => cut(span(id, hour.toISOString(), now.toISOString()), () => new Date('2999-01-01'))),
  )
  await owner`insert into events (account_id, actor, kind, detail) select ${many.accountId}, 'gateway', 'machine.woken', '{"because": "an SSH session"}'
    from generate_series(1, 1000)`
}, 120_000)
afterAll(() => desk?.[Symbol.asyncDispose]())

describe('usage', () => {
  it('says what each machine, day and kind cost, and what the month comes to if what it says comes true', async () => {
    const page = await desk.open('/usage', { accountId: ada.accountId })
    await page.getByText(/About \$[\d,.]+ by the end of/).click()
    await page.getByText('the 3 machines that run now run on until then').waitFor()
    expect(await page.locator('svg.bars rect.was').count()).toBeGreaterThan(0)
    const document = (await desk.world.json('billing usage', { caller: ada })).document as { total_micros: number }
    const total = `$${(Math.round(document.total_micros / 1e4) / 100).toLocaleString('en', { minimumFractionDigits: 2 })}`
    await expect.poll(() => page.locator('tfoot td').last().textContent()).toBe(total)
    expect(await page.locator('.sums').textContent()).toMatch(/\d{4}-\d{2}-\d{2} 00:00 to .* UTC/)
    expect(await desk.faults(page)).toEqual([])
    await desk.pictures(page, 'usage')
    // What stands at the plot can be read however narrow the window is.
    for (const width of [360, 700, 1000, 1280]) {
      await page.setViewportSize({ width, height: 800 })
      const letters = page.locator('svg.bars text').first()
      await expect
        .poll(async () => Math.round((await letters.boundingBox())?.height ?? 0), PATIENT)
        .toBeGreaterThanOrEqual(13)
      expect(await desk.faults(page)).toEqual([])
    }
    // By the keyboard alone.
    await page.getByRole('radio', { name: 'By machine' }).focus()
    await page.keyboard.press('ArrowRight')
    await page.getByRole('columnheader', { name: 'Quantity' }).waitFor()
    expect(page.url()).toMatch(/by=kind/)
    expect(await page.locator('tbody tr').first().textContent()).toMatch(/vCPU.* vCPU-hours.*\$0\.04 per vCPU-hour/)
    expect(await desk.faults(page)).toEqual([])
    await page.getByRole('radio', { name: '7 days' }).check()
    await page.getByRole('radio', { name: 'By day' }).check()
    await page
      .getByRole('rowheader', { name: /^\d{4}-\d{2}-\d{2}$/ })
      .first()
      .waitFor()
    expect(page.url()).toMatch(/range=7d/)
    expect(await desk.faults(page)).toEqual([])
    expect(desk.complaints).toEqual([])
  })

  it('shows 500 machines, nothing at all, a phone, and why it could not be had', async () => {
    const page = await desk.open('/usage', { accountId: many.accountId, phone: true, scheme: 'dark' })
    // The dearest, and the others when somebody wants them; the sum is of all from the start.
    await expect.poll(() => page.locator('tbody tr').count(), PATIENT).toBe(50)
    expect(await desk.faults(page)).toEqual([])
    await page.locator('tfoot', { hasText: 'Sum of all' }).waitFor()
    await page.getByRole('button', { name: `Show the other ${MACHINES - 50}` }).click()
    await expect.poll(() => page.locator('tbody tr').count(), PATIENT).toBe(MACHINES)
    expect(await desk.faults(page)).toEqual([])
    const nobody = await desk.world.account()
    const empty = await desk.open('/usage', { accountId: nobody.accountId })
    await empty.getByText('Nothing was used in this time').waitFor()
    expect(await desk.faults(empty)).toEqual([])
    await empty.route('**/exec', (route) =>
      route.fulfill({ status: 503, json: { error: 'the database does not answer', code: 'busy' } }),
    )
    await empty.getByRole('radio', { name: '7 days' }).check()
    await empty.getByText('The database does not answer.').waitFor()
    await empty.unroute('**/exec')
    await empty.getByRole('button', { name: 'Try again' }).click()
    await empty.getByText('Nothing was used in this time').waitFor()
    desk.complaints.length = 0
  })
})

describe('what a person reads of it', () => {
  it('a limit that was reached on a day that is over is not said to be to come', async () => {
    const page = await desk.open('/billing', { accountId: ada.accountId })
    const today = dayOf(new Date())
    let day = addDays(today, -1)
    await page.route('**/exec', async (route) => {
      if (!route.request().postData()?.startsWith('billing usage')) return await route.continue()
      const response = await route.fetch()
      const usage = (await response.json()) as { forecast: { limits: unknown[] }; to: string }
      usage.to = `${today}T12:00:00.000Z`
      usage.forecast.limits = [{ set_by: 'account', amount_micros: 5_000_000, hard: true, reached_on: day }]
      await route.fulfill({ response, json: usage })
    })
    await page.goto(`${desk.origin}/usage`)
    await page.getByText('your limit of $5.00 is reached already, where machines are paused').waitFor()
    day = today
    await page.goto(`${desk.origin}/usage`)
    await page.getByText(`your limit of $5.00 is reached on ${today}, where machines are paused`).waitFor()
    await page.unrouteAll({ behavior: 'wait' })
    desk.complaints.length = 0
  })

  it('no word of a command is broken behind a hyphen, however narrow the screen', async () => {
    const page = await desk.open('/usage?range=30d', { accountId: ada.accountId, phone: true })
    await page.locator('main .copy code', { hasText: '--range 30d --by machine' }).waitFor()
    for (let width = 300; width <= 420; width += 10) {
      await page.setViewportSize({ width, height: 844 })
      expect([width, await page.evaluate<string[]>(BROKEN_WORDS)]).toEqual([width, []])
    }
    expect(desk.complaints).toEqual([])
  })
})

describe('billing', () => {
  it('shows plan, credit, invoices and rates, and sets the limit with the command shown', async () => {
    const page = await desk.open('/billing', { accountId: ada.accountId })
    await page.getByText('the outage of Tuesday').waitFor()
    await page.getByRole('cell', { name: '$0.04 per vCPU-hour' }).waitFor()
    expect(await desk.faults(page)).toEqual([])
    await desk.pictures(page, 'billing')
    await page.getByLabel('USD a month').fill('much')
    await page.getByText('Such as 50 or 12.50').waitFor()
    expect(await page.getByRole('button', { name: 'Set the limit' }).isDisabled()).toBe(true)
    await page.getByLabel('USD a month').fill('0.000001')
    await page.getByLabel('Pause machines there').check()
    await page.getByRole('button', { name: 'Set the limit' }).click()
    const dialog = page.getByRole('dialog', { name: 'Pause every machine' })
    await dialog.getByText(/the limit would be \$0\.000001: your machines are paused at once/).waitFor()
    expect(await desk.faults(page)).toEqual([])
    await dialog.getByLabel('Type 0.000001').fill('0.01')
    await dialog.getByRole('button', { name: 'Go on' }).click()
    await dialog.getByRole('button', { name: 'Leave it' }).click()
    await page.getByText('None is set.').waitFor()
    await page.getByLabel('USD a month').fill('100000.5')
    await page.getByLabel('Pause machines there').focus()
    await page.keyboard.press('Tab')
    await page.locator('.preview', { hasText: 'billing limit 100000.5 --hard' }).waitFor()
    await page.keyboard.press('Enter')
    await page.getByText('$100,000.50 a month: machines are paused there').waitFor()
    expect((await desk.world.run('billing limit', { caller: ada })).stdout).toBe(
      '$100000.50 a month; machines are paused there\n',
    )
    expect(await desk.faults(page)).toEqual([])
    await page.getByRole('button', { name: 'Undo' }).click()
    await page.getByText('None is set.').waitFor()
    await page.locator('tbody a[href^="/invoices/"]').first().click()
    await page.getByRole('heading', { name: /^Invoice \d+$/ }).waitFor()
    expect(desk.complaints).toEqual([])
  })

  it('names what the account was told on every page until it is read, and sets what its invoices say of it', async () => {
    const page = await desk.open('/usage', { accountId: ada.accountId })
    await page.getByRole('link', { name: '1 notice' }).click()
    await page.getByRole('heading', { name: 'Notices' }).waitFor()
    await page.locator('details.notice[open]', { hasText: /^invoice \d+ for .*comes to \$/s }).waitFor()
    expect(await desk.faults(page)).toEqual([])
    await desk.pictures(page, 'notices')
    await page.getByRole('button', { name: 'It is read' }).click()
    await expect.poll(() => page.getByRole('link', { name: '1 notice' }).count(), PATIENT).toBe(0)
    await page.locator('details.notice:not([open])').waitFor()
    const [name, set] = [page.getByLabel('Name', { exact: true }), page.getByRole('button', { name: 'Set it' })]
    // What is there is in the form when there is nothing to be set any more.
    const isSet = async () => await expect.poll(() => set.isDisabled(), PATIENT).toBe(true)
    await name.fill('Example Ltd')
    await set.click()
    await isSet()
    const details = async () => (await desk.world.json('billing details', { caller: ada })).document
    expect(await details()).toEqual({ name: 'Example Ltd', address: null, tax_id: null })
    await name.fill('')
    await set.click()
    await isSet()
    expect(await details()).toEqual({ name: null, address: null, tax_id: null })
    expect(await desk.faults(page)).toEqual([])
    expect(desk.complaints).toEqual([])
  })

  it('a notice that comes, and one that is read elsewhere, reach pages that are open', async () => {
    await desk.world.run('billing notices --read', { caller: ada })
    const [page, billing] = [
      await desk.open('/keys', { accountId: ada.accountId }),
      await desk.open('/billing', { accountId: ada.accountId }),
    ]
    const count = page.getByRole('link', { name: '1 notice' })
    await billing.locator('details.notice').waitFor()
    expect(await count.count()).toBe(0)
    await desk.world.app.sql.begin(async (tx) => {
      const body = 'From the first of May on.\n'
      await tellAccounts(tx, [{ accountId: ada.accountId, subject: 'the rates of plan usage change', body }])
    })
    await count.waitFor({ timeout: 60_000 })
    await billing
      .locator('details.notice[open]', { hasText: 'the rates of plan usage change' })
      .waitFor({ timeout: 60_000 })
    await desk.world.run('billing notices --read', { caller: ada })
    await count.waitFor({ state: 'detached', timeout: 60_000 })
    await billing.getByRole('link', { name: '1 notice' }).waitFor({ state: 'detached', timeout: 60_000 })
    expect(desk.complaints).toEqual([])
  })

  it('a plan that begins at midnight is on an open page when it has begun', async () => {
    const { world } = desk
    const bob = await world.account()
    await world.run(`account plan ${bob.accountId} usage`)
    const tomorrow = await soonest(world.app.sql)
    const page = await desk.open('/billing', { accountId: bob.accountId })
    await page.getByText(`nothing is charged before ${tomorrow} (UTC)`).waitFor()
    // By the gateway's clock, which the plan of a moment goes by; the browser's own says nothing.
    vi.setSystemTime(new Date(startOfDay(tomorrow).getTime() + 1_000))
    try {
      await page
        .getByText(`nothing is charged before ${tomorrow} (UTC)`)
        .waitFor({ state: 'detached', timeout: 60_000 })
      expect(await page.locator('dl.facts dd').first().textContent()).toBe('usage')
    } finally {
      vi.useRealTimers()
    }
    expect(desk.complaints).toEqual([])
  })

  it('is there for a phone and in the dark, and says that there is no invoice', async () => {
    const page = await desk.open('/billing', { accountId: many.accountId, phone: true, scheme: 'dark' })
    await page.getByText('None yet. A month is closed').waitFor()
    await page.getByText(/nothing is charged/).waitFor()
    await page.getByRole('cell', { name: '$0.04 per vCPU-hour' }).waitFor()
    expect(await desk.faults(page)).toEqual([])
    // What a plan is for, and what it includes, as the lobby says it.
    await desk.world.run('billing set-plan house --machines 1000 --cpu 1 --memory 64G')
    await desk.world.run('billing set-rate usage cpu 0.04 --included 500 --from 2099-01-01')
    await page.reload()
    await page.getByText('1000 machines, one vCPU, 64 GiB memory', { exact: true }).waitFor()
    await page.getByRole('cell', { name: '500 vCPU-hours' }).waitFor()
    await desk.world.run('billing set-plan house --machines none --cpu none --memory none')
    expect(desk.complaints).toEqual([])
  })
})

describe('audit', () => {
  it('shows each record as it comes, and finds by machine, kind and who', async () => {
    const page = await desk.open('/audit', { accountId: ada.accountId })
    await page.getByRole('rowheader', { name: 'machine.created' }).first().waitFor()
    await desk.world.run('comment api as it is', { caller: ada })
    await page.getByText('comment api as it is').first().waitFor()
    expect(await desk.faults(page)).toEqual([])
    await desk.pictures(page, 'audit')
    // Words of commands are whole, on a narrow window too, which the table does not outgrow.
    await desk.world.run('comment api as-it-is --json', { caller: ada })
    const command = page.locator('td[data-title=Command] code', { hasText: 'comment api as-it-is' }).first()
    await command.waitFor()
    for (const width of [700, 1000, 1280]) {
      await page.setViewportSize({ width, height: 800 })
      expect([width, await page.evaluate<string[]>(BROKEN_WORDS.replace('main .copy code', '.trail code'))]).toEqual([
        width,
        [],
      ])
      expect(await desk.faults(page)).toEqual([])
      const hidden =
        "(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)(document.querySelector('.trail .table'))"
      expect([width, await page.evaluate<number>(hidden)]).toEqual([width, 0])
    }
    await page.getByLabel('Machine', { exact: true }).fill('build')
    await page.keyboard.press('Enter')
    const names = () => page.locator('td[data-title=Machine]').allTextContents()
    await expect.poll(async () => new Set(await names()), PATIENT).toEqual(new Set(['build']))
    await page.getByLabel('What').selectOption('machine')
    await page.getByLabel('Who').selectOption('you')
    await expect.poll(() => page.locator('tbody th').allTextContents(), PATIENT).toEqual(['machine.created'])
    expect(page.url()).toMatch(/machine=build&kind=machine&actor=you/)
    await page.reload()
    await page.getByRole('rowheader', { name: 'machine.created' }).waitFor()
    await page.getByLabel('Who').selectOption('token')
    await page.getByText('Nothing like that was done.').waitFor()
    await page.getByLabel('Machine', { exact: true }).fill('tpyo')
    await page.keyboard.press('Enter')
    await page.getByText(/tpyo.* not found/).waitFor()
    desk.complaints.length = 0
  })

  it('pages through a thousand, on a phone too, and another account’s are not there', async () => {
    const page = await desk.open('/audit', { accountId: many.accountId, phone: true })
    await expect.poll(() => page.locator('tbody tr').count(), PATIENT).toBe(50)
    expect(await desk.faults(page)).toEqual([])
    // Nothing of a record is for wide screens alone.
    await page.locator('td[data-title=Detail]', { hasText: 'because an SSH session' }).first().waitFor()
    const said = 'a record whose end stands below the part that one sees at first '.repeat(4)
    await desk.world.gateway.sql`insert into events (account_id, actor, kind, detail)
      values (${many.accountId}, 'gateway', 'machine.woken', ${desk.world.gateway.sql.json({ because: `${said}, here` })})`
    const long = page.locator('details.detail').first()
    await long.getByText(/^because a record.*…$/).tap()
    await long.getByText(/, here$/).waitFor()
    await long.getByText('Less').waitFor()
    expect(await desk.faults(page)).toEqual([])
    await page.getByRole('button', { name: 'Older' }).click()
    await page.getByRole('button', { name: 'Newest' }).waitFor()
    await expect.poll(() => page.locator('tbody tr').count(), PATIENT).toBe(50)
    expect(await page.locator('tbody').textContent()).not.toContain('api')
    await page.goto(`${desk.origin}/audit?since=1h&account=1`)
    await page.getByText(/No account 1\. Without --account it is the record of yours\./).waitFor()
    const operator = await desk.open('/audit?account=ada@example.com&kind=machine.created')
    await expect.poll(() => operator.locator('tbody tr').count(), PATIENT).toBe(3)
    expect(await desk.faults(operator)).toEqual([])
    desk.complaints.length = 0
  })
})
