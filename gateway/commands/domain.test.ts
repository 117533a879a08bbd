import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { Caller } from '../app.ts'
import { startResolver, type TestResolver } from '../dns/testing/resolver.ts'
import { certificateNames, type Site, startSite } from '../https/testing/site.ts'
import { runLine } from './run.ts'
import { recordingIo } from './testing/world.ts'

const PATIENT = { timeout: 60_000, interval: 10 }

let resolver: TestResolver
let site: Site
let owner: Caller
let other: Caller
/** labels in the records of the two accounts */
let proof: string
let othersProof: string

beforeAll(async () => {
  resolver = await startResolver({ zones: [], port: () => 1 })
  site = await startSite({ resolvers: [resolver.address], env: { BERTH_ADDRESSES: '127.0.0.1' } })
  const [listen] = site.gateway.app.settings.https
  if (listen) listen.port = site.port
  owner = callerOf(site.ownerId)
  other = callerOf(await site.account('eve@example.com'))
  await site.addMachine('second')
  await site.addMachine('evil', other.accountId)
  proof = await proofOf(owner)
  othersProof = await proofOf(other)
})
afterAll(async () => {
  await site?.[Symbol.asyncDispose]()
  await resolver?.[Symbol.asyncDispose]()
})
beforeEach(async () => {
  resolver.clear()
  await site.sql`delete from custom_domains`
})

function callerOf(accountId: number): Caller {
  return { accountId, isOwner: false, keyId: null, fingerprint: '', address: '192.0.2.7', via: 'ssh', sshName: 'lobby' }
}

async function proofOf({ accountId }: Caller): Promise<string> {
  const [row] = await site.sql<{ proof: string }[]>`select domain_proof as proof from accounts where id = ${accountId}`
  return row?.proof ?? ''
}

async function run(line: string, caller = owner) {
  const io = recordingIo({ stdin: '' })
  const status = await runLine(site.gateway.app, caller, line, io)
  return { status, stdout: io.stdoutText(), stderr: io.stderrText() }
}

async function json(line: string, caller = owner): Promise<Record<string, unknown>> {
  return JSON.parse((await run(`${line} --json`, caller)).stdout)
}

/** Sets the records that `domain add` asks an account for. */
function point(domain: string, label = proof): void {
  resolver.set(domain, { cname: `${label}.custom.localhost` })
  resolver.set(`${label}.custom.localhost`, { a: ['127.0.0.1'] })
}

const page = (host: string) => `https://${host}:${site.port}/`
const refused = { status: 1, stdout: '' }

describe('domain add', () => {
  it('says which records to set, for people and for programs, and is done once they are there', async () => {
    const asked = await run('domain add demo WWW.Shop.Example.')
    expect(asked).toMatchObject(refused)
    expect(asked.stderr).toBe(`DNS does not show that www.shop.example is yours
Set in DNS:
  www.shop.example  CNAME  ${proof}.custom.localhost
or, where a name heads its zone and can have no CNAME:
  _berth.www.shop.example  TXT    "berth-proof=${proof}"
  www.shop.example         A      127.0.0.1
Then the same again.
`)
    expect(await json('domain add demo www.shop.example')).toMatchObject({
      code: 'domain.unproved',
      domain: 'www.shop.example',
      records: [{ name: 'www.shop.example', type: 'CNAME', value: `${proof}.custom.localhost` }],
      records_instead: [{ type: 'TXT' }, { type: 'A', value: '127.0.0.1' }],
    })
    point('www.shop.example')
    expect(await run('domain add demo www.shop.example')).toEqual({
      status: 0,
      stdout: `https://www.shop.example:${site.port} shows demo\n`,
      stderr: '',
    })
    expect(await json('domain ls')).toEqual({
      domains: [
        {
          domain: 'www.shop.example',
          vm_name: 'demo',
          wildcard: false,
          https_url: `https://www.shop.example:${site.port}`,
          added_at: expect.any(String),
          certificate: { expires_at: null, failures: 0, problem: null, next_try_at: null },
        },
      ],
    })
    const [event] = await site.sql`select kind, machine_name, detail from events order by id desc limit 1`
    expect(event).toEqual({
      kind: 'domain.added',
      machine_name: 'demo',
      detail: { domain: 'www.shop.example', wildcard: false },
    })
  })

  it('takes the head of a zone by its TXT record, and says when it does not point here yet', async () => {
    resolver.set('_berth.shop.example', { txt: ['v=spf1 -all', `berth-proof=${proof}`] })
    const early = await run('domain add demo shop.example')
    expect(early.status).toBe(0)
    expect(early.stdout).toContain('shop.example belongs to demo, but points nowhere yet\nSet in DNS:\n')
    resolver.set('shop.example', { a: ['192.0.2.1'] })
    expect((await run('domain add demo shop.example')).stdout).toContain('but points at 192.0.2.1')
    resolver.set('shop.example', { a: ['127.0.0.1'] })
    expect(await json('domain add demo shop.example')).toEqual({
      vm_name: 'demo',
      domain: 'shop.example',
      wildcard: false,
      https_url: `https://shop.example:${site.port}`,
      points_here: true,
    })
  })

  it('believes a CNAME at the name itself only, and one to the account’s own target only', async () => {
    resolver.set('a.shop.example', { cname: 'b.shop.example' })
    point('b.shop.example')
    expect(await run('domain add demo a.shop.example')).toMatchObject(refused)
    point('c.shop.example', othersProof)
    expect(await run('domain add demo c.shop.example')).toMatchObject(refused)
    resolver.set('_berth.d.shop.example', { txt: [`berth-proof=${othersProof}`, `x berth-proof=${proof}`] })
    expect(await run('domain add demo d.shop.example')).toMatchObject(refused)
    expect(await site.sql`select from custom_domains`).toHaveLength(0)
  })

  it('of a record that was left behind lets nobody have the domain but the account that set it', async () => {
    point('old.shop.example')
    await run('domain add demo old.shop.example')
    await run('domain rm demo old.shop.example')
    expect(await run('domain add evil old.shop.example', other)).toMatchObject(refused)
    expect((await run('domain add second old.shop.example')).status).toBe(0)
  })

  it('says so when name servers do not answer', async () => {
    resolver.broken.add('broken.example')
    expect(await run('domain add demo broken.example')).toMatchObject({
      ...refused,
      stderr: 'the name servers of broken.example do not answer\n',
    })
  })

  it.each([
    ['203.0.113.7', 'is no domain'],
    ['localhost', 'is no domain'],
    ['*.shop.example', 'is no domain'],
    ['a_b.example', 'is no domain'],
    ['a-.example', 'is no domain'],
    ['shop.example/path', 'is no domain'],
    ['shop.example:8080', 'is no domain'],
    [`${'a.'.repeat(120)}example`, 'is no domain'],
    ['demo.localhost', 'is part of localhost'],
  ])('refuses %s', async (domain, why) => {
    const ran = await run(`domain add demo '${domain}'`)
    expect(ran).toMatchObject({ status: 2, stdout: '' })
    expect(ran.stderr).toContain(why)
  })

  it('takes names of any script, and a copied address', async () => {
    point('xn--bcher-kva.example')
    expect(await json('domain add demo https://Bücher.example/')).toMatchObject({ domain: 'xn--bcher-kva.example' })
  })
})

describe('a domain', () => {
  it('belongs to one machine at a time', async () => {
    point('www.shop.example')
    await run('domain add demo www.shop.example')
    expect(await run('domain add second www.shop.example')).toEqual({
      ...refused,
      stderr: 'www.shop.example belongs to demo\nto give it to another: domain rm demo www.shop.example\n',
    })
    expect((await run('domain rm second www.shop.example')).status).toBe(3)
    expect((await run('domain rm demo www.shop.example')).status).toBe(0)
    expect((await run('domain add second www.shop.example')).status).toBe(0)
    expect((await run('domain ls demo')).stdout).toMatch(/^no domain of your own/)
    expect((await run('domain ls second')).stdout).toContain('www.shop.example')
  })

  it('stays with the account that has it while DNS shows that one’s proof, and goes to another’s when it does not', async () => {
    resolver.set('shop.example', { a: ['127.0.0.1'] })
    resolver.set('_berth.shop.example', { txt: [`berth-proof=${proof}`] })
    await run('domain add demo shop.example')
    resolver.set('_berth.shop.example', { txt: [`berth-proof=${proof}`, `berth-proof=${othersProof}`] })
    expect(await run('domain add evil shop.example', other)).toEqual({
      ...refused,
      stderr: 'shop.example belongs to somebody else here\n',
    })
    resolver.set('_berth.shop.example', { txt: [`berth-proof=${othersProof}`] })
    expect((await run('domain add evil shop.example', other)).status).toBe(0)
    expect((await run('domain ls')).stdout).toMatch(/^no domain/)
    expect((await run('domain rm demo shop.example')).status).toBe(3)
  })

  it('is its owner’s alone to add, see and remove', async () => {
    point('www.shop.example', othersProof)
    for (const line of ['domain add demo www.shop.example', 'domain ls demo', 'domain rm demo www.shop.example']) {
      expect([line, (await run(line, other)).status]).toEqual([line, 3])
    }
  })

  it('shows the machine after one sign-in at the control host, and tells it who comes and by which name', async () => {
    point('www.shop.example')
    await run('domain add demo www.shop.example')
    const browser = await site.signedIn()
    const shown = await browser.get(`${page('www.shop.example')}a?b`)
    expect(shown).toMatchObject({ status: 200, text: 'machine says GET /a?b' })
    expect(browser.trail.map((url) => `${new URL(url).hostname}${new URL(url).pathname}`)).toEqual([
      'www.shop.example/a',
      'localhost/open',
      'www.shop.example/__berth/callback',
      'www.shop.example/a',
    ])
    expect(site.asked.at(-1)?.headers).toMatchObject({
      'x-berth-user': String(owner.accountId),
      'x-forwarded-host': `www.shop.example:${site.port}`,
    })
    expect(site.asked.at(-1)?.headers.cookie).toBeUndefined()
    expect([...(browser.cookies.get('www.shop.example')?.keys() ?? [])].sort()).toEqual([
      '__Host-berth',
      '__Host-berth-state',
    ])
    expect((await site.browser().get(page('www.shop.example'), { mode: 'cors' })).status).toBe(401)
    const eve = await site.signedIn(other.accountId)
    expect((await eve.get(page('www.shop.example'))).status).toBe(403)
  })

  it('is come back to after signing in by mail: not by the form’s redirect, which browsers stop at its page’s policy', async () => {
    point('www.shop.example')
    await run('domain add demo www.shop.example')
    await site.sql`update accounts set email = 'ada@example.com', email_proved_at = now() where id = ${owner.accountId}`
    const browser = site.browser()
    const asked = await browser.submit(await browser.get(`${page('www.shop.example')}deep`), {
      email: 'ada@example.com',
    })
    const [mail] = await site.sql<{ body: string }[]>`select body from mails order by id desc limit 1`
    const code = /\d{6}/.exec(mail?.body ?? '')?.[0] ?? ''
    const step = await browser.submit(asked, { code }, '', { follow: false })
    expect(step).toMatchObject({ status: 200, headers: { 'cache-control': 'no-store' } })
    expect(step.headers.location).toBeUndefined()
    const onward = /^0; url=(.*)$/.exec(String(step.headers.refresh))?.[1] ?? ''
    expect(await browser.get(new URL(onward, step.url).href)).toMatchObject({
      status: 200,
      text: 'machine says GET /deep',
    })
    expect(new URL(browser.trail[1] ?? '').host).toBe(`www.shop.example:${site.port}`)
  })

  it('does not let a cookie of another host in, nor other sites’ pages use its own', async () => {
    point('www.shop.example')
    point('blog.shop.example')
    await run('domain add demo www.shop.example')
    await run('domain add second blog.shop.example')
    const browser = await site.signedIn()
    await browser.get(page('www.shop.example'))
    const cookie = `__Host-berth=${browser.cookies.get('www.shop.example')?.get('__Host-berth')}`
    const at = async (host: string, from?: string) =>
      (await site.browser().get(page(host), { mode: 'cors', headers: { cookie }, ...(from ? { from } : {}) })).status
    expect(await at('blog.shop.example')).toBe(401)
    expect(await at('www.shop.example')).toBe(200)
    expect(await at('www.shop.example', page('blog.shop.example'))).toBe(403)
  })

  it('follows its machine through a rename, the trash and back', async () => {
    point('www.shop.example')
    const id = await site.addMachine('moved')
    await run('domain add moved www.shop.example')
    await run('share set-public moved')
    const status = async () => (await site.browser().get(page('www.shop.example'), { mode: 'cors' })).status
    await expect.poll(status, PATIENT).toBe(200)
    await run('rename moved elsewhere')
    // The name is free, and another's from now on.
    await site.addMachine('moved', other.accountId)
    await expect.poll(status, PATIENT).toBe(200)
    expect((await run('domain ls')).stdout).toContain('elsewhere')
    expect((await run('domain add elsewhere www.shop.example')).status).toBe(0)
    await site.sql`delete from machine_names where machine_id = ${id}`
    await site.sql`update machines set desired_state = 'trashed' where id = ${id}`
    await expect.poll(() => status().catch(() => 404), PATIENT).toBe(404)
    await site.sql`insert into machine_names (name, machine_id) values ('back', ${id})`
    await site.sql`update machines set desired_state = 'running' where id = ${id}`
    await expect.poll(() => status().catch(() => 404), PATIENT).toBe(200)
  })

  it('that is removed shows nothing any more, at once', async () => {
    point('www.shop.example')
    await run('domain add demo www.shop.example')
    const browser = await site.signedIn()
    expect((await browser.get(page('www.shop.example'))).status).toBe(200)
    await run('domain rm demo www.shop.example')
    await expect
      .poll(() => browser.get(page('www.shop.example')).catch(() => 'no certificate'), PATIENT)
      .toBe('no certificate')
    const open = await browser.get(
      `${site.control}/open?to=www.shop.example:${site.port}&path=/&state=${'x'.repeat(43)}`,
      { follow: false },
    )
    expect(open.status).toBe(400)
  })
})

describe('a wildcard', () => {
  it('leads every name one label below there too, with one certificate for them; a domain of its own goes first', async () => {
    const missing = await run('domain add demo shop.example --wildcard')
    expect(missing.stderr).toContain(`  *.shop.example       CNAME  ${proof}.custom.localhost`)
    resolver.set('_berth.shop.example', { txt: [`berth-proof=${proof}`] })
    point('shop.example')
    point('*.shop.example')
    expect((await run('domain add demo shop.example --wildcard')).status).toBe(0)
    expect((await run('domain ls')).stdout).toContain('shop.example, *.shop.example')
    expect((await run('share show demo')).stdout).toContain('also at shop.example and *.shop.example\n')
    expect(await json('share show demo')).toMatchObject({ domains: [{ domain: 'shop.example', wildcard: true }] })
    await run('domain add second blog.shop.example')
    const browser = await site.signedIn()
    for (const host of ['shop.example', 'a.shop.example', 'b.shop.example', 'blog.shop.example']) {
      expect((await browser.get(page(host))).status).toBe(200)
    }
    const names = (host: string) => certificateNames(site, host)
    expect(await names('a.shop.example')).toBe('DNS:*.shop.example')
    expect(await names('blog.shop.example')).toBe('DNS:blog.shop.example')
    await expect(names('deep.a.shop.example')).rejects.toThrow()
    await run('domain add demo shop.example')
    await expect.poll(() => names('c.shop.example').catch(() => 'none'), PATIENT).toBe('none')
  })

  it('is no proof by its own CNAME: who may set one below may not have all', async () => {
    point('shop.example')
    point('*.shop.example')
    expect(await run('domain add demo shop.example --wildcard')).toMatchObject(refused)
  })
})
