import { afterAll, beforeAll, expect, it } from 'vitest'
import { startBrowser, type TestBrowser } from '../../test/browser.ts'
import { startResolver, type TestResolver } from '../dns/testing/resolver.ts'
import { type Site, startSite } from '../https/testing/site.ts'

let resolver: TestResolver
let site: Site
let browser: TestBrowser
beforeAll(async () => {
  resolver = await startResolver({ zones: [], port: () => 1 })
  site = await startSite({ resolvers: [resolver.address] })
  browser = await startBrowser(['MAP *.shop.example 127.0.0.1'])
  await site.sql`update accounts set email = 'ada@example.com', email_proved_at = now() where id = ${site.ownerId}`
  await site.sql`insert into custom_domains (domain, machine_id) values ('www.shop.example', ${site.machineId})`
  const [row] = await site.sql<{ proof: string }[]>`
    select domain_proof as proof from accounts where id = ${site.ownerId}`
  resolver.set('www.shop.example', { cname: `${row?.proof}.custom.localhost` })
})
afterAll(async () => {
  await browser?.[Symbol.asyncDispose]()
  await site?.[Symbol.asyncDispose]()
  await resolver?.[Symbol.asyncDispose]()
})

it('a stranger at somebody’s own domain signs in by mail, is back there, and stays signed in', async () => {
  const page = await browser.open()
  const there = `https://www.shop.example:${site.port}/some/page?a=1`
  await page.goto(there)
  expect(new URL(page.url()).hostname).toBe('localhost')
  await page.getByLabel('E-mail address').fill('ada@example.com')
  await page.getByRole('button', { name: 'Send me a code' }).click()
  await page.getByRole('heading', { name: 'Enter the code' }).waitFor()
  const [mail] = await site.sql<{ body: string }[]>`select body from mails order by id desc limit 1`
  await page.getByLabel('Code').fill(/\d{6}/.exec(mail?.body ?? '')?.[0] ?? '')
  await page.getByRole('button', { name: 'Sign in' }).click()
  await page.waitForURL(there)
  expect(await page.textContent('body')).toContain('machine says GET /some/page?a=1')
  await page.goto(`https://www.shop.example:${site.port}/again`)
  expect(await page.textContent('body')).toContain('machine says GET /again')
  expect(await page.evaluate(() => fetch('/own').then((answer) => answer.status))).toBe(200)
})
