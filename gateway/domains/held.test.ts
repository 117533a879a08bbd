import { afterAll, beforeAll, expect, it } from 'vitest'
import { startResolver, type TestResolver } from '../dns/testing/resolver.ts'
import { type Site, startSite } from '../https/testing/site.ts'
import { HeldDomains } from './held.ts'

let resolver: TestResolver
let site: Site
let target: string

beforeAll(async () => {
  resolver = await startResolver({ zones: [], port: () => 1 })
  site = await startSite({ resolvers: [resolver.address], env: { BERTH_ADDRESSES: '127.0.0.1' } })
  const [row] = await site.sql<{ proof: string }[]>`
    select domain_proof as proof from accounts where id = ${site.ownerId}`
  target = `${row?.proof}.custom.localhost`
})
afterAll(async () => {
  await site?.[Symbol.asyncDispose]()
  await resolver?.[Symbol.asyncDispose]()
})

async function bring(domain: string, wildcard = false): Promise<void> {
  await site.sql`
    insert into custom_domains (domain, machine_id, wildcard) values (${domain}, ${site.machineId}, ${wildcard})`
}

const at = (host: string) => `https://${host}:${site.port}/`

it('a domain that went to somebody else is sent nobody’s code', async () => {
  await bring('lapsed.example')
  await bring('taken.example')
  await bring('wild.example', true)
  // Its new owner has servers of his own, and kept what proved the domain before.
  resolver.set('taken.example', { a: ['192.0.2.66'] })
  resolver.set('_berth.taken.example', { txt: [`berth-proof=${target.split('.')[0]}`] })
  resolver.set('_acme-challenge.wild.example', { cname: target.replace('.custom.', '._acme-challenge.') })
  resolver.set('berth-check.wild.example', { cname: target })
  resolver.set('www.wild.example', { a: ['192.0.2.66'] })
  const browser = await site.signedIn()
  const answers: [string, number, boolean, unknown][] = []
  for (const host of ['lapsed.example', 'taken.example', 'www.wild.example']) {
    const query = new URLSearchParams({ to: `${host}:${site.port}`, path: '/', state: 'a'.repeat(43) })
    const page = await browser.get(`${site.control}/open?${query}`, { follow: false })
    answers.push([host, page.status, page.text.includes('code='), page.headers.location])
    expect(page.text).toContain('may be somebody else')
  }
  expect(answers).toEqual([
    ['lapsed.example', 403, false, undefined],
    ['taken.example', 403, false, undefined],
    ['www.wild.example', 403, false, undefined],
  ])
  resolver.set('fine.wild.example', { cname: target })
  expect((await browser.get(at('fine.wild.example'))).text).toBe('machine says GET /')
})

it('DNS is asked once in minutes, however many come at once', async () => {
  await bring('busy.example')
  resolver.set('busy.example', { cname: target })
  const browsers = await Promise.all([site.signedIn(), site.signedIn(), site.signedIn()])
  resolver.asked.length = 0
  const pages = await Promise.all(browsers.map((browser) => browser.get(at('busy.example'))))
  expect(pages.map(({ status }) => status)).toEqual([200, 200, 200])
  expect(resolver.asked.filter((question) => question.startsWith('_berth.busy.example'))).toHaveLength(1)
})

it('a domain whose name servers say nothing holds up the sign-ins of no other', async () => {
  const other = await site.addMachine('other')
  await bring('silent.example', true)
  await site.sql`insert into custom_domains (domain, machine_id) values ('fine.example', ${other})`
  const answer = async (name: string): Promise<string[]> =>
    name.endsWith('silent.example') ? await new Promise(() => {}) : [target]
  const held = new HeldDomains({
    ...{ sql: site.sql, settings: site.gateway.app.settings, addresses: [] },
    lookup: { txt: answer, cname: answer, addresses: answer },
  })
  const waiting = Array.from({ length: 60 }, (_, n) => held.isHeld(`a${n}.silent.example`, site.machineId))
  expect(await Promise.race(waiting)).toBe(false)
  expect(await held.isHeld('fine.example', other)).toBe(true)
})

it('a cookie is good at the host that it was got at, and at no other of its machine', async () => {
  await bring('www.shop.example')
  resolver.set('www.shop.example', { cname: target })
  const browser = await site.signedIn()
  await browser.get(at('www.shop.example'))
  await browser.get(at('demo.localhost'))
  await browser.get(at('demo--3000.localhost'))
  const hosts = ['www.shop.example', 'demo.localhost', 'demo--3000.localhost']
  const opened: string[] = []
  for (const from of hosts) {
    const cookie = `__Host-berth=${browser.cookies.get(from)?.get('__Host-berth')}`
    for (const to of hosts) {
      const { status } = await site.browser().get(at(to), { mode: 'cors', headers: { cookie } })
      if (status !== 401) opened.push(`${from} at ${to}`)
    }
  }
  expect(opened).toEqual(hosts.map((host) => `${host} at ${host}`))
})
