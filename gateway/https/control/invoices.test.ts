/**
 * Invoices in a browser and on paper. `BERTH_TEST_PICTURES` names a folder for pictures, and for what Chromium prints.
 */
import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { stripTypeScriptTypes } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import type { Page } from 'playwright-core'
import type { ReservedSql } from 'postgres'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { screenshot, startBrowser, type TestBrowser } from '../../../test/browser.ts'
import { createSignInLink } from '../../accounts/web-sessions.ts'
import { sum } from '../../billing/arithmetic.ts'
import { closeDueMonths } from '../../billing/closing.ts'
import { type Ledger, ledgerOver, span } from '../../billing/testing/ledger.ts'
import { type Site, startSite } from '../testing/site.ts'

const PICTURES = process.env.BERTH_TEST_PICTURES
const WEB = join(import.meta.dirname, '../../../web')
const FAULTS = `${stripTypeScriptTypes(readFileSync(join(WEB, 'pages/faults.ts'), 'utf8')).replace('export ', '')}\nfaults()`
const GIB = 2 ** 30
const MACHINES = 40
const log = pino({ level: 'silent' })
const never = new AbortController().signal

let site: Site
let ledger: Ledger
let browser: TestBrowser
let holder: ReservedSql | undefined
let ada = 0
let directory = ''
beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'berth-invoices-'))
  site = await startSite({ env: { BERTH_SSH: '127.0.0.1:2222' } })
  ledger = await ledgerOver(site.gateway.database)
  browser = await startBrowser()
  // The gateway's own rounds would close all months up to now.
  holder = await ledger.owner.reserve()
  await holder`select pg_advisory_lock(hashtextextended('berth.billing', 0))`
  ada = await ledger.account({ plan: 'usage', email: 'ada@example.com', since: '2026-02-01' })
  await ledger.before(async (sql) => {
    await sql`update rates set effective = tstzrange(null, '2026-02-15') where plan = 'usage' and kind = 'cpu'`
    await sql`insert into rates (plan, kind, micros, included, effective) values
      ('usage', 'cpu', 45000, 10, tstzrange('2026-02-15', null)), ('usage', 'fee', 20000000, 0, '(,)')`
  })
  const made: number[] = []
  for (let n = 1; n <= MACHINES; n++) made.push(await ledger.machine(ada, `worker-${String(n).padStart(2, '0')}`))
  for (const [index, machineId] of made.entries()) {
    for (const day of ['02', '09', '16', '23', '27']) {
      const size = {
        cpus: 1 + (index % 4),
        memoryBytes: (1 + (index % 3)) * GIB,
        diskBytes: 20 * GIB,
        checkpointBytes: index * 1e7,
      }
      await ledger.spans([span(machineId, `2026-02-${day}T08:00:00Z`, `2026-02-${day}T17:07:11.${index + 10}Z`, size)])
    }
  }
  await ledger.gateway`insert into credits (account_id, micros, reason) values (${ada}, 5000000, 'the outage of <b>Tuesday</b>')`
  await closeDueMonths(ledger.gateway, new Date('2026-03-01T02:30:00Z'), never, log)
  // Next month's corrects it.
  await ledger.spans([span(made[0] ?? 0, '2026-02-28T00:00:00Z', '2026-02-28T06:00:00Z', { cpus: 2 })])
  await closeDueMonths(ledger.gateway, new Date('2026-04-01T02:30:00Z'), never, log)
}, 180_000)
afterAll(async () => {
  await browser?.[Symbol.asyncDispose]()
  holder?.release()
  await site?.[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

async function pageOf(accountId: number): Promise<Page> {
  const page = await browser.open()
  await page.goto(`${site.control}/login/${await createSignInLink(site.sql, accountId)}`)
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.getByRole('heading', { name: 'Machines' }).first().waitFor()
  return page
}

/** @returns the text of each printed page, as it is laid out */
async function printed(page: Page, format: 'A4' | 'Letter', name: string): Promise<string[]> {
  const folder = PICTURES ?? directory
  mkdirSync(folder, { recursive: true })
  const path = join(folder, `${name}-${format}.pdf`)
  writeFileSync(path, await page.pdf({ format, preferCSSPageSize: false, printBackground: false }))
  if (PICTURES) execFileSync('pdftoppm', ['-r', '60', '-png', path, join(folder, `${name}-${format}`)])
  return execFileSync('pdftotext', ['-layout', path, '-'], { encoding: 'utf8' }).split('\f').slice(0, -1)
}

describe('an invoice', () => {
  it.each(['A4', 'Letter'] as const)(
    'prints on %s: whole, with the head of its tables on each page, and nothing of the screen',
    async (format) => {
      const page = await pageOf(ada)
      await page.goto(`${site.control}/invoices/1`)
      // As in a browser that is dark.
      await page.emulateMedia({ colorScheme: 'dark', media: null })
      const pages = await printed(page, format, 'invoice')
      expect(pages.length).toBeGreaterThan(3)
      for (const [index, text] of pages.entries()) {
        expect(text, `page ${index + 1}`).toContain(`page ${index + 1} of ${pages.length}`)
        // A page that has rows of a machine has the names of their columns above them.
        const isOfMachines = /\n *memory +\d+\.\d{6}/.test(text)
        const head = text.search(/Machine +Quantity +Unit +Amount, USD|What +Quantity/)
        if (isOfMachines) expect(head, `page ${index + 1}`).toBeGreaterThanOrEqual(0)
        if (isOfMachines && index > 1) expect(head).toBeLessThan(text.search(/\d\.\d{6}/))
        // Numbers are whole: nothing was cut at the edge.
        expect(text.replaceAll(/\$\d+\.\d+ per|at \$\d+\.\d+|Total +\$\d+\.\d\d/g, '')).not.toMatch(/\d\.\d{1,5}(?!\d)/)
      }
      const all = pages.join('\n')
      expect(all).toMatch(/Invoice 1\n/)
      expect(all).toMatch(/Period +1 February 2026, 00:00 to 1 March 2026, 00:00 \(UTC\)/)
      expect(all).toContain('credit: the outage of <b>Tuesday</b>')
      expect(all).toMatch(/rounding to cents/)
      expect(all).not.toMatch(/CSV|All invoices/)
      for (let n = 1; n <= MACHINES; n++) expect(all).toContain(`worker-${String(n).padStart(2, '0')}`)
      expect(all.match(/worker-01/g)).toHaveLength(1)
    },
  )

  it('says to the millionth what its CSV and JSON say, and machines and days sum to it', async () => {
    const page = await pageOf(ada)
    await page.goto(`${site.control}/invoices`)
    await page.getByRole('link', { name: '1', exact: true }).click()
    await page.getByRole('heading', { name: 'Invoice 1' }).waitFor()
    const fetched = async (link: string) => {
      const waiting = page.waitForEvent('download')
      await page.getByRole('link', { name: link, exact: true }).click()
      const download = await waiting
      return { name: download.suggestedFilename(), text: readFileSync(await download.path(), 'utf8') }
    }
    const [csv, json] = [await fetched('CSV'), await fetched('JSON')]
    expect([csv.name, json.name]).toEqual(['invoice-1-2026-02.csv', 'invoice-1-2026-02.json'])
    const document = JSON.parse(json.text)
    expect(document).toMatchObject({
      ...{ number: 1, month: '2026-02', currency: 'USD', email: 'ada@example.com' },
      period: { from: '2026-02-01T00:00:00.000Z', to: '2026-03-01T00:00:00.000Z' },
    })
    const lines: { what: string; amount_micros: number }[] = document.lines
    const micros = (text: string) => BigInt(text.replace(/[$.]/g, ''))
    const cells = async (selector: string) => await page.locator(selector).allTextContents()
    const ofLines = sum(lines.map(({ amount_micros }) => BigInt(amount_micros)))
    expect(ofLines).toBe(BigInt(document.total_micros))
    const ofCsv = sum(
      csv.text
        .trim()
        .split('\n')
        .slice(1)
        .map((row) => micros(row.split(',').at(-1) ?? '')),
    )
    expect(ofCsv).toBe(ofLines)
    // What is on the page is what they say.
    const shown = await cells('table.lines tbody tr:not(.sum):not(.group):not(.total) td:last-child')
    expect(shown.map(micros)).toEqual(lines.map(({ amount_micros }) => BigInt(amount_micros)))
    expect(await page.locator('tr.total td').textContent()).toBe(`$${(Number(ofLines) / 1e6).toFixed(2)}`)
    const used = sum(
      lines.filter((line) => !/credit|rounding/.test(line.what)).map((line) => BigInt(line.amount_micros)),
    )
    const fee = BigInt(lines.find(({ what }) => what === 'fee of the plan')?.amount_micros ?? 0)
    const groups = await cells('tr.group td')
    expect(groups).toHaveLength(MACHINES)
    expect(sum(groups.map(micros)) + fee).toBe(used)
    expect((await cells('table.days tr.sum td')).map(micros).at(-1)).toBe(used)
    expect(await page.locator('table.days tbody tr').count()).toBe(28 + 1)
  })

  it('that corrects an earlier one says so, by what was missing', async () => {
    const page = await pageOf(ada)
    await page.goto(`${site.control}/invoices/2`)
    const text = (await page.locator('table.lines').textContent()) ?? ''
    expect(text).toMatch(/Corrections of earlier months.*vCPU, February 2026.*12\.000000.*\$0\.540000/)
    await printed(page, 'A4', 'correction')
    expect(await page.locator('table.lines b').count()).toBe(0)
  })

  it('is its account’s and the operator’s, and nobody else’s', async () => {
    const other = await site.signedIn(await site.account('other@example.com'))
    const owner = await site.signedIn(site.ownerId)
    const mine = await site.signedIn(ada)
    const stranger = site.browser()
    const status = async (who: typeof other, path: string, accept = 'application/json') =>
      (await who.get(`${site.control}${path}`, { headers: { accept }, follow: false })).status
    for (const path of ['/invoices/1', '/invoices/1.csv', '/invoices/1.json']) {
      expect(await status(mine, path), path).toBe(200)
      expect(await status(owner, path), path).toBe(200)
      expect(await status(other, path), path).toBe(404)
      expect(await status(stranger, path), path).toBe(401)
      expect(await status(stranger, path, 'text/html'), path).toBe(303)
    }
    for (const path of [
      '/invoices/3',
      '/invoices/0',
      '/invoices/1.pdf',
      '/invoices/1.csv.json',
      '/invoices/9999999999',
    ]) {
      expect(await status(mine, path), path).toBe(404)
    }
    expect((await other.get(`${site.control}/invoices`, { headers: { accept: 'application/json' } })).text).toContain(
      '"invoices":[]',
    )
  })

  it('can be read on every screen, and needs no script', async () => {
    const page = await pageOf(ada)
    for (const name of ['/invoices', '/invoices/1', '/invoices/2']) {
      await page.goto(`${site.control}${name}`)
      for (const colorScheme of ['light', 'dark'] as const) {
        for (const [screen, viewport] of Object.entries({
          desktop: { width: 1100, height: 900 },
          phone: { width: 390, height: 844 },
        })) {
          await page.emulateMedia({ colorScheme })
          await page.setViewportSize(viewport)
          if (PICTURES)
            await screenshot(page, join(PICTURES, `${name.replaceAll('/', '-').slice(1)}-${screen}-${colorScheme}.png`))
          expect(await page.evaluate(FAULTS), `${name} ${screen} ${colorScheme}`).toEqual([])
        }
      }
    }
  })
})
