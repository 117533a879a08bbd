import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, statSync } from 'node:fs'
import { get as getPlain } from 'node:http'
import { connect as connectHttp2 } from 'node:http2'
import { Agent, get } from 'node:https'
import { connect as connectPlain } from 'node:net'
import { join } from 'node:path'
import { expect, it } from 'vitest'
import { openListeners } from '../start/listeners.ts'
import { serveRedirects } from './redirect.ts'
import { certificateNames, startSite } from './testing/site.ts'

const PATIENT = { timeout: 60_000, interval: 10 }

it('a private machine is shown to its owner, who signs in once, and the machine is told who it is', async () => {
  await using site = await startSite()
  const browser = await site.signedIn()
  const answer = await browser.get(`${site.machine()}/a/b?c=%64`)
  expect(answer).toMatchObject({ status: 200, text: 'machine says GET /a/b?c=%64' })
  expect(browser.trail.map((url) => new URL(url).pathname)).toEqual(['/a/b', '/open', '/__berth/callback', '/a/b'])
  expect(site.asked[0]?.headers).toMatchObject({ 'x-berth-user': String(site.ownerId), 'x-forwarded-proto': 'https' })
  expect(site.asked[0]?.headers.cookie).toBeUndefined()
  await browser.get(`${site.machine()}/again`)
  expect(browser.trail).toHaveLength(1)
})

it('a stranger is sent to sign in where a person navigates, and gets 401 elsewhere', async () => {
  await using site = await startSite()
  const browser = site.browser()
  const page = await browser.get(`${site.machine()}/x`)
  expect(page.status).toBe(200)
  expect(new URL(page.url).pathname).toBe('/signin')
  expect(page.text).toContain('ssh -p')
  const script = await browser.get(`${site.machine()}/x`, { mode: 'cors', from: `${site.machine()}/` })
  expect(script.status).toBe(401)
  expect(script.headers['www-authenticate']).toBe('Bearer realm="demo"')
  expect(JSON.parse(script.text)).toMatchObject({ code: 'auth.required' })
  const form = await site.browser().send(site.machine(), { method: 'POST', body: 'a=b', from: site.machine() })
  expect([form.status, form.headers['www-authenticate']]).toEqual([401, 'Bearer realm="demo"'])
  expect(form.text).toContain('What you sent went no further.')
  expect(site.asked).toEqual([])
})

it('an account that a machine is not shared with is told so, and comes no further', async () => {
  await using site = await startSite()
  const browser = await site.signedIn(await site.account('eve@example.com'))
  const page = await browser.get(`${site.machine()}/`)
  expect(page.status).toBe(403)
  expect(page.text).toContain('share add demo eve@example.com')
  expect(site.asked).toEqual([])
})

it('the root certificate lies in the data directory for everybody to read, and every host has a certificate of it', async () => {
  await using site = await startSite()
  const path = join(site.gateway.directory, 'gateway', 'ca.pem')
  expect(readFileSync(path, 'utf8')).toBe(site.ca)
  expect(statSync(path).mode & 0o777).toBe(0o644)
  expect(new X509Certificate(site.ca).ca).toBe(true)
  expect((await site.browser().get(`${site.control}/ca.pem`)).text).toBe(site.ca)
  expect((await site.browser().get(`https://demo--3000.localhost:${site.port}/`)).status).toBe(200)
  await expect(site.browser().get(site.machine('nobody'))).rejects.toThrow()
})

it('machines share one certificate where clients take a wildcard, and a mistyped name gets a page', async () => {
  await using site = await startSite({ env: { BERTH_DOMAIN: 'berth.test' } })
  const names = (host: string) => certificateNames(site, host)
  expect(await names('berth.test')).toBe('DNS:berth.test')
  expect(await names('demo.berth.test')).toBe('DNS:*.berth.test')
  expect(await names('demo--3000.berth.test')).toBe('DNS:*.berth.test')
  expect(await names('demo--4000.berth.test')).toBe('DNS:*.berth.test')
  expect((await site.sql`select from certificates`).length).toBe(2)
  await expect(names('a.b.berth.test')).rejects.toThrow()
  const mistyped = await site.browser().get(`https://tpyo.berth.test:${site.port}/`)
  expect(mistyped).toMatchObject({ status: 404, text: expect.stringContaining('<h1>') })
})

it('the control host answers /healthz and /readyz, and 404 in JSON for programs', async () => {
  await using site = await startSite()
  const browser = site.browser()
  expect(await browser.get(`${site.control}/healthz`)).toMatchObject({ status: 200, text: 'ok\n' })
  expect(await browser.get(`${site.control}/readyz`)).toMatchObject({ status: 200 })
  const missing = await browser.get(`${site.control}/nothing`, { headers: { accept: 'application/json' } })
  expect([missing.status, JSON.parse(missing.text).code]).toEqual([404, 'path.not_found'])
  expect((await browser.get(`${site.control}/nothing`)).text).toContain('<h1>No such page</h1>')
  const owner = await site.signedIn()
  for (const name of ['tpyo', 'de%00mo', 'demo%ff']) {
    expect([name, (await owner.get(`${site.control}/terminal/${name}`)).status]).toEqual([name, 404])
  }
})

it('the access log has what the control host answered, over both protocols', async () => {
  const lines: string[] = []
  await using site = await startSite({
    finished: ({ protocol, method, host, path, status }) =>
      lines.push(`${protocol} ${method} ${host} ${path.split('?')[0]} ${status}`),
  })
  const browser = site.browser()
  const page = await browser.get(`${site.control}/signin?next=/x`)
  await browser.submit(page, { email: 'nobody' })
  await browser.get(`${site.control}/nothing`)
  const host = `localhost:${site.port}`
  const client = connectHttp2(`https://127.0.0.1:${site.port}`, { ca: site.ca, servername: 'localhost' })
  const stream = client.request({ ':path': '/signin', ':authority': host })
  stream.resume()
  await once(stream, 'close')
  client.destroy()
  await expect
    .poll(() => lines)
    .toEqual([
      `h1 GET ${host} /signin 200`,
      `h1 POST ${host} /signin 400`,
      `h1 GET ${host} /nothing 404`,
      `h2 GET ${host} /signin 200`,
    ])
})

it('BERTH_HTTP sends to the same address with TLS, hosts of this installation alone', async () => {
  const listeners = await openListeners('BERTH_HTTP', [{ host: '127.0.0.1', port: 0 }])
  const redirects = serveRedirects(
    listeners,
    { domain: 'berth.example', machineDomain: 'berth.example', https: [{ port: 8443 }] },
    {
      isCustom: (host) => host === 'shop.example',
      challenge: async (host, token) => (host === 'shop.example' && token === 'abc' ? 'abc.thumbprint' : undefined),
    },
  )
  const bound = listeners[0]?.address()
  const port = typeof bound === 'object' ? (bound?.port ?? 0) : 0
  const ask = (host: string, path: string) =>
    new Promise<[number | undefined, string | undefined]>((resolve, reject) => {
      getPlain({ host: '127.0.0.1', port, path, headers: { host }, agent: false }, (response) => {
        response.resume()
        resolve([response.statusCode, response.headers.location])
      }).once('error', reject)
    })
  expect(await ask('demo.berth.example:8080', '/a?b')).toEqual([308, 'https://demo.berth.example:8443/a?b'])
  expect(await ask('berth.example', '/')).toEqual([308, 'https://berth.example:8443/'])
  expect(await ask('shop.example', '/a')).toEqual([308, 'https://shop.example:8443/a'])
  expect(await ask('shop.example', '/.well-known/acme-challenge/abc')).toEqual([200, undefined])
  expect((await ask('berth.example', '/.well-known/acme-challenge/abc'))[0]).toBe(308)
  for (const host of ['evil.example', 'berth.example@evil.example', 'evil.example/']) {
    expect(await ask(host, '/')).toEqual([404, undefined])
  }
  const silent = Array.from({ length: 100 }, () => connectPlain(port, '127.0.0.1').on('error', () => {}))
  await expect.poll(() => silent.filter((socket) => socket.destroyed).length, PATIENT).toBeGreaterThanOrEqual(36)
  for (const socket of silent) socket.destroy()
  await expect.poll(() => ask('berth.example', '/').catch(() => [0])).toEqual([308, 'https://berth.example:8443/'])
  await redirects.close()
})

it('an orderly stop ends idle connections at once, to the control host and to machines, and lets requests end', async () => {
  await using site = await startSite({
    origin: (_request, response) => setTimeout(() => response.end('finished'), 300),
  })
  const browser = await site.signedIn()
  await browser.get(site.machine())
  const metricsPort = site.gateway.https?.metricsAddresses[0]?.port
  const agent = new Agent({ keepAlive: true, maxSockets: 10, ca: site.ca })
  const idle = (host: string) =>
    new Promise((resolve, reject) => {
      const request = get(
        { host: '127.0.0.1', port: site.port, servername: host, agent, headers: { host } },
        (response) => response.resume().once('end', resolve),
      )
      request.once('error', reject)
    })
  await Promise.all([idle('localhost'), idle('demo.localhost')])
  const asked = site.asked.length
  const last = browser.get(`${site.machine()}/last`)
  await expect.poll(() => site.asked.length, PATIENT).toBe(asked + 1)
  const began = performance.now()
  const closed = site.gateway.https?.close(20_000)
  const probe = await fetch(`http://127.0.0.1:${metricsPort}/readyz`)
  expect([probe.status, await probe.text()]).toEqual([503, 'The gateway is stopping\n'])
  await closed
  expect(performance.now() - began).toBeLessThan(5_000)
  expect(await last).toMatchObject({ status: 200, text: 'finished' })
  agent.destroy()
})

it('a machine that is stopped stays stopped: its page says so', async () => {
  await using site = await startSite()
  await site.addMachine('off', site.ownerId, { state: 'stopped' })
  const browser = await site.signedIn()
  const page = await browser.get(site.machine('off'))
  expect(page.status).toBe(503)
  expect(page.text).toContain('<h1>off is stopped</h1>')
  expect(page.text).toContain('Its owner starts it with: <code>start off</code>')
  const [row] = await site.sql`select desired_state from machines where name = 'off'`
  expect(row).toEqual({ desired_state: 'stopped' })
})

it('a request to a machine that is starting is held until it runs', async () => {
  await using site = await startSite()
  const id = await site.addMachine('late', site.ownerId, { state: 'creating' })
  const browser = await site.signedIn()
  const page = browser.get(site.machine('late'))
  // Held: the code that led here is used up.
  const arrived = async () => (await site.sql`select from site_sessions`).length
  await expect.poll(arrived, PATIENT).toBe(1)
  await site.sql`update machines set observed_state = 'running', observed_stage = 'ready', observed_boot = 1,
    observed_ready_at = now() where id = ${id}`
  expect(await page).toMatchObject({ status: 200, text: 'machine says GET /' })
})

it('nothing that listens: 502, and which ports do', async () => {
  await using site = await startSite()
  await site.sql`update machines set web_port = 1 where id = ${site.machineId}`
  await site.sql`insert into machine_reports (machine_id, at, report)
    values (${site.machineId}, now(), ${site.sql.json({ listeningPorts: [22, 5173] })})`
  const browser = await site.signedIn()
  const page = await browser.get(site.machine())
  expect(page.status).toBe(502)
  expect(page.text).toContain('<h1>Nothing listens on port 1</h1>')
  expect(page.text).toContain(`<a class="mono" href="${site.machine('demo--5173')}/">5173</a>`)
  const dashed = await browser.get(site.machine('demo--3999'))
  expect(dashed.text).toContain(`what <span class="mono">${site.machine()}</span> shows: <code>port demo 5173</code>`)
  const json = await browser.get(site.machine(), { headers: { accept: 'application/json' } })
  expect(JSON.parse(json.text)).toMatchObject({ code: 'port.refused', listening_ports: [22, 5173] })
})

it('another name and another port are followed at once', async () => {
  await using site = await startSite()
  const browser = await site.signedIn()
  await browser.get(site.machine())
  await site.sql.begin(async (sql) => {
    await sql`update machines set name = 'other' where id = ${site.machineId}`
    await sql`update machine_names set name = 'other' where machine_id = ${site.machineId}`
  })
  await expect.poll(async () => (await browser.get(site.machine('other'))).status, PATIENT).toBe(200)
  const [before] = await site.sql<
    { port: number }[]
  >`select web_port as port from machines where id = ${site.machineId}`
  await site.sql`update machines set web_port = 1 where id = ${site.machineId}`
  await expect.poll(async () => (await browser.get(site.machine('other'))).status, PATIENT).toBe(502)
  await site.sql`update machines set web_port = ${before?.port ?? 0} where id = ${site.machineId}`
  await expect.poll(async () => (await browser.get(site.machine('other'))).status, PATIENT).toBe(200)
})
