import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { Caller } from '../app.ts'
import { type Browser, type Site, startSite } from '../https/testing/site.ts'
import { runLine } from './run.ts'
import { recordingIo } from './testing/world.ts'

const PATIENT = { timeout: 60_000, interval: 10 }

let site: Site
let owner: Caller

beforeAll(async () => {
  site = await startSite()
  // Commands print addresses with the port of the settings.
  const [listen] = site.gateway.app.settings.https
  if (listen) listen.port = site.port
  owner = callerOf(site.ownerId)
})
afterAll(() => site?.[Symbol.asyncDispose]())

function callerOf(accountId: number): Caller {
  return { accountId, isOwner: false, keyId: null, fingerprint: '', address: '192.0.2.7', via: 'ssh', sshName: 'lobby' }
}

async function run(line: string, caller = owner) {
  const io = recordingIo({ stdin: '' })
  const status = await runLine(site.gateway.app, caller, line, io)
  return { status, stdout: io.stdoutText(), stderr: io.stderrText() }
}

async function json(line: string, caller = owner): Promise<Record<string, unknown>> {
  return JSON.parse((await run(`${line} --json`, caller)).stdout)
}

const statusFor = async (browser: Browser) => (await browser.get(site.machine(), { mode: 'cors' })).status

describe('browser', () => {
  it('prints a link that signs one browser in, once, after a question', async () => {
    const { stdout, status } = await run('browser')
    expect(status).toBe(0)
    expect(stdout).toMatch(/^https:\/\/localhost:\d+\/login\/[\w-]{43}\n$/)
    const browser = site.browser()
    const page = await browser.get(stdout.trim())
    expect(page.text).toContain('Sign this browser in?')
    expect((await site.browser().get(stdout.trim())).text).toContain('Sign this browser in?')
    expect((await browser.submit(page)).url).toBe(`${site.control}/`)
    expect((await site.browser().get(stdout.trim())).status).toBe(404)
    expect((await site.browser().submit(page)).status).toBe(404)
  })

  it('--qr draws it in half blocks', async () => {
    const { stdout } = await run('browser --qr')
    const lines = stdout.trimEnd().split('\n')
    expect(lines.length).toBeGreaterThan(15)
    expect(lines[0]).toMatch(/^█+$/)
    expect(new Set(lines.slice(0, -2).map((line) => line.length)).size).toBe(1)
    expect(lines.at(-1)).toMatch(/^https:/)
  })

  it('--qr --json has its dark and light squares, for a page to draw', async () => {
    const { qr } = (await json('browser --qr')) as { qr: string[] }
    expect(qr.length).toBeGreaterThan(24)
    expect(qr.every((row) => row.length === qr.length && /^[01]+$/.test(row))).toBe(true)
    // ISO/IEC 18004, 6.3.3: a finder pattern in three corners.
    const corner = ['1111111', '1000001', '1011101', '1011101', '1011101', '1000001', '1111111']
    expect(qr.slice(0, 7).map((row) => row.slice(0, 7))).toEqual(corner)
    expect(qr.slice(0, 7).map((row) => row.slice(-7))).toEqual(corner)
    expect(qr.slice(-7).map((row) => row.slice(0, 7))).toEqual(corner)
  })

  it('ls has the browsers that are signed in, and rm signs one of them out', async () => {
    const [kept, ended] = [await site.signedIn(), await site.signedIn()]
    for (const browser of [kept, ended]) await browser.get(site.machine())
    const { browsers } = (await json('browser ls')) as { browsers: { id: number; address: string; current: boolean }[] }
    const [first, second] = browsers.map(({ id }) => id).sort((a, b) => b - a)
    expect(browsers[0]).toMatchObject({ address: '127.0.0.1', current: false, last_used_at: expect.any(String) })
    expect((await run('browser ls')).stdout).toMatch(/id +from +signed in +used +ends\n/)
    expect((await run(`browser rm ${first}`)).stdout).toBe(`browser ${first} is signed out\n`)
    await expect.poll(() => statusFor(ended), PATIENT).toBe(401)
    expect(await statusFor(kept)).toBe(200)
    const stranger = callerOf(await site.gateway.addAccount())
    expect(await run(`browser rm ${second}`, stranger)).toMatchObject({ status: 3 })
    expect(await statusFor(kept)).toBe(200)
  })

  it('--sign-out-everywhere ends every browser’s sign-in', async () => {
    const browser = await site.signedIn()
    await browser.get(site.machine())
    expect(await statusFor(browser)).toBe(200)
    expect((await run('browser --sign-out-everywhere')).stdout).toMatch(/signed out\n$/)
    await expect.poll(() => statusFor(browser), PATIENT).toBe(401)
    expect((await browser.get(`${site.control}/`)).text).toContain('<h1>Sign in</h1>')
  })
})

describe('port', () => {
  it('says and sets what the address shows, also as share port', async () => {
    const { port } = await json('port demo')
    expect(await json('port demo 1')).toEqual({
      status: 'updated',
      vm_name: 'demo',
      port: 1,
      share: 'private',
      https_url: site.machine(),
    })
    const browser = await site.signedIn()
    await expect.poll(async () => (await browser.get(site.machine())).status, PATIENT).toBe(502)
    expect((await run(`share port demo ${port}`)).stdout).toBe(`${site.machine()} shows port ${port} of demo\n`)
    await expect.poll(async () => (await browser.get(site.machine())).status, PATIENT).toBe(200)
    expect(await run('port demo 70000')).toMatchObject({ status: 2, stdout: '' })
    expect((await run('port tpyo')).status).toBe(3)
    expect((await run('share --help')).stdout).toMatch(/^share port +the port that/m)
    expect((await run('share prot demo')).stderr).toContain('did you mean share port')
  })
})

it('ls -l names the page', async () => {
  expect((await run('ls demo -l')).stdout).toContain(`\n  ${site.machine()}\n`)
})

describe('share', () => {
  it('set-public and set-private open and close the page', async () => {
    const stranger = site.browser()
    expect(await statusFor(stranger)).toBe(401)
    expect((await run('share set-public demo')).stdout).toBe(`everybody may see ${site.machine()}\n`)
    await expect.poll(() => statusFor(stranger), PATIENT).toBe(200)
    expect((await run('share show demo')).stdout).toContain('open to everybody')
    await run('share set-private demo')
    await expect.poll(() => statusFor(stranger), PATIENT).toBe(401)
  })

  it('add mails an invitation; its link lets the reader in, without an account, until it is removed', async () => {
    const ran = await run("share add demo Ada@Example.com --message 'have a look'")
    expect(ran).toMatchObject({ status: 0, stderr: '' })
    const [mail] = await site.sql<{ body: string; subject: string }[]>`
      select subject, body from mails where recipient = 'ada@example.com' order by id desc limit 1`
    expect(mail?.subject).toBe('demo is shared with you')
    expect(mail?.body).toContain('have a look')
    expect(await json('share show demo')).toMatchObject({ users: [{ email: 'ada@example.com', status: 'pending' }] })
    const url = /https:\/\/localhost:\d+\/invitation\/[\w-]{43}/.exec(mail?.body ?? '')?.[0] ?? ''
    const ada = site.browser()
    const page = await ada.get(url)
    expect(page.text).toContain('signed in as <b>ada@example.com</b>')
    const shown = await ada.submit(page)
    expect(shown).toMatchObject({ status: 200, text: 'machine says GET /' })
    expect(site.asked.at(-1)?.headers).toMatchObject({
      'x-berth-email': 'ada@example.com',
      'x-berth-user': 'mail:ada@example.com',
    })
    expect(await json('share show demo')).toMatchObject({ users: [{ email: 'ada@example.com', status: 'active' }] })
    expect((await site.browser().get(url)).status).toBe(404)
    expect((await ada.get(`${site.control}/list`)).text).toContain('Shared with you')
    await run('share remove demo ada@example.com')
    await expect.poll(() => statusFor(ada), PATIENT).toBe(401)
    expect((await run('share remove demo ada@example.com')).status).toBe(3)
  })

  it('add-link prints a link that remove-link ends', async () => {
    const { url, token } = await json('share add-link demo --uses 2 --expires 1h')
    const browser = site.browser()
    await browser.submit(await browser.get(String(url)))
    expect(await statusFor(browser)).toBe(200)
    expect(await json('share show demo')).toMatchObject({
      links: [{ token, use_count: 1, uses_left: 1, last_used_at: expect.any(String) }],
    })
    expect((await run(`share remove-link demo ${token}`)).status).toBe(0)
    await expect.poll(() => statusFor(browser), PATIENT).toBe(401)
  })

  it('is the owner’s alone: whom a machine is shared with can share it no further', async () => {
    const friend = await site.account('bob@example.com')
    await run('share add demo bob@example.com')
    for (const line of [
      'share show demo',
      'share set-public demo',
      'share add-link demo',
      'port demo 22',
      'token new --machine demo',
    ]) {
      expect([line, (await run(line, callerOf(friend))).status]).toEqual([line, 3])
    }
  })
})

describe('token', () => {
  it('new prints one that opens the pages, ls shows it, rm ends it', async () => {
    const { token, id } = await json('token new --machine demo --label ci --expires 1h')
    expect(token).toMatch(/^exe1\.[0-9a-z]{26}$/)
    const ask = async () =>
      (await site.browser().get(site.machine(), { mode: 'cors', headers: { authorization: `Bearer ${token}` } })).status
    expect(await ask()).toBe(200)
    expect(await json('token ls')).toMatchObject({
      tokens: [{ id, label: 'ci', machine: 'demo', last_used_at: expect.any(String) }],
    })
    expect((await run(`token rm ${id}`, callerOf(await site.account()))).status).toBe(3)
    expect((await run(`token rm ${id}`)).status).toBe(0)
    await expect.poll(ask, PATIENT).toBe(401)
  })

  it('is what ssh-key generate-api-key makes', async () => {
    expect(await json('ssh-key generate-api-key --label=sdk --exp=1d')).toMatchObject({
      token: expect.stringMatching(/^exe1\./),
    })
  })
})
