import type { IncomingHttpHeaders } from 'node:http'
import { request as requestTls } from 'node:https'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { type Dashboard, startDashboard } from '../../dashboard.ts'

let desk: Dashboard
beforeAll(async () => {
  desk = await startDashboard()
})
afterAll(async () => {
  await desk?.[Symbol.asyncDispose]()
})

function get(
  path: string,
  headers: Record<string, string> = {},
): Promise<{ status: number; headers: IncomingHttpHeaders }> {
  return new Promise((resolve, reject) => {
    const request = requestTls(
      `${desk.origin}${path}`,
      { rejectUnauthorized: false, agent: false, headers },
      (response) => {
        response.resume()
        response.once('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers }))
      },
    )
    request.once('error', reject)
    request.end()
  })
}

it('the pages load from their own host alone, and complain of nothing', async () => {
  const page = await desk.open('/')
  const asked: string[] = []
  page.on('request', (request) => asked.push(request.url()))
  for (const path of ['/', '/machines/demo', '/new', '/keys', '/usage', '/billing', '/audit', '/hosts']) {
    await page.goto(`${desk.origin}${path}`)
    await page.locator('h1').waitFor()
  }
  expect(asked.length).toBeGreaterThan(10)
  expect(asked.filter((url) => !url.startsWith(`${desk.origin}/`))).toEqual([])
  expect(desk.complaints.filter((text) => /polic|refused to/i.test(text))).toEqual([])
  await page.context().close()
})

it('no script or style that stands in a page is run, and nothing from elsewhere is loaded or framed', async () => {
  const page = await desk.open('/')
  const refused = await page.evaluate<string[]>(`(async () => {
    const refused = []
    document.addEventListener('securitypolicyviolation', ({ effectiveDirective }) => refused.push(effectiveDirective))
    const add = (name, fields) => document.body.append(Object.assign(document.createElement(name), fields))
    add('script', { textContent: 'window.pwned = true' })
    add('style', { textContent: 'body { color: red }' })
    add('div', { innerHTML: '<p onclick="1" style="color: red">x</p>' })
    document.querySelector('p[onclick]')?.click()
    add('img', { src: 'https://elsewhere.localhost/x.png' })
    add('script', { src: 'https://elsewhere.localhost/x.js' })
    add('iframe', { src: 'https://elsewhere.localhost/' })
    add('base', { href: 'https://elsewhere.localhost/' })
    await fetch('https://elsewhere.localhost/').catch(() => {})
    const form = document.createElement('form')
    form.action = 'https://elsewhere.localhost/'
    document.body.append(form)
    form.submit()
    await new Promise((resolve) => setTimeout(resolve, 200))
    return window.pwned ? ['pwned'] : refused
  })()`)
  expect([...new Set(refused)].sort()).toEqual([
    'base-uri',
    'connect-src',
    'form-action',
    'frame-src',
    'img-src',
    'script-src-attr',
    'script-src-elem',
    'style-src-attr',
    'style-src-elem',
  ])
  await page.context().close()
})

it('each page has the policy and is kept nowhere; what it loads is kept for ever, and comes compressed', async () => {
  const cookie = await desk.cookie()
  const { headers } = await get('/', { cookie, accept: 'text/html' })
  expect(headers['content-security-policy']).toMatch(/^default-src 'none'; script-src 'self'; style-src 'self';/)
  expect(headers['content-security-policy']).not.toContain('unsafe')
  expect(headers).toMatchObject({
    'cache-control': 'no-store',
    'x-frame-options': 'DENY',
    'referrer-policy': 'same-origin',
  })
  const page = await desk.open('/')
  const script = new URL((await page.locator('script[type=module]').getAttribute('src')) ?? '', desk.origin).pathname
  await page.context().close()
  for (const [accepted, encoding] of [
    ['gzip, deflate, br', 'br'],
    ['gzip', 'gzip'],
    ['identity', undefined],
  ] as const) {
    const asset = await get(script, { 'accept-encoding': accepted })
    expect(asset.headers).toMatchObject({
      'cache-control': 'public, max-age=31536000, immutable',
      'content-type': 'text/javascript; charset=utf-8',
      vary: 'Accept-Encoding',
    })
    expect(asset.headers['content-encoding']).toBe(encoding)
  }
  expect((await get('/assets/main-00000000.js')).status).toBe(404)
  expect((await get('/assets/..%2fbuild.json')).status).toBe(404)
})

it('whoever is not signed in is asked to, and comes back; without script there is the list', async () => {
  expect(await get('/usage', { accept: 'text/html' })).toMatchObject({
    status: 303,
    headers: { location: '/signin?next=%2Fusage' },
  })
  expect((await get('/usage')).status).toBe(401)
  const list = await get('/list', { cookie: await desk.cookie(), accept: 'text/html' })
  expect([list.status, list.headers['content-security-policy']]).toEqual([
    200,
    expect.not.stringContaining('script-src'),
  ])
})
