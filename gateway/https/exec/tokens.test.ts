import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { startWorld, type World } from '../../commands/testing/world.ts'
import { Client, decoded } from './testing/client.ts'

const NDJSON = 'application/x-ndjson'

let world: World
let client: Client
let minted = 0

beforeAll(async () => {
  world = await startWorld({ sshd: true, https: true })
  client = await Client.of(world, 'h1')
  await world.run('new demo --tag web')
  await world.run('new other')
})
afterAll(async () => {
  client?.close()
  await world?.[Symbol.asyncDispose]()
})

/** A token as a person makes it. */
async function made(flags = ''): Promise<string> {
  const { status, document } = await world.json(`token new ${flags}`)
  expect(status, JSON.stringify(document)).toBe(0)
  return String(document.token)
}

const statuses = async (token: string, lines: readonly string[]) =>
  Object.fromEntries(
    await Promise.all(lines.map(async (line) => [line, (await client.post(line, { token })).status] as const)),
  )

describe('a token may run', () => {
  it('any command when none are named, but none that signs a person in', async () => {
    const token = await made()
    expect(await statuses(token, ['ls', 'whoami', 'share show demo', 'ssh-key list', 'help', 'host ls'])).toEqual({
      ls: 200,
      whoami: 200,
      'share show demo': 200,
      'ssh-key list': 200,
      help: 200,
      'host ls': 200,
    })
    expect(await statuses(token, ['browser', 'mail', 'whoami --email eve@example.com'])).toEqual({
      browser: 403,
      mail: 403,
      'whoami --email eve@example.com': 403,
    })
    expect(await statuses(await made('--cmds browser'), ['browser', 'ls'])).toEqual({ browser: 200, ls: 403 })
  })

  it('those that are named, by name or family', async () => {
    const token = await made("--cmds 'ls,share'")
    expect(await statuses(token, ['ls', 'share show demo', 'port demo', 'whoami', 'ssh demo true'])).toEqual({
      ls: 200,
      'share show demo': 200,
      'port demo': 200,
      whoami: 403,
      'ssh demo true': 403,
    })
    const { document } = await client.json('whoami', { token })
    expect(document).toMatchObject({ error: expect.stringContaining('whoami'), code: 'token.not_allowed' })
    expect(await statuses(await made('--cmds none'), ['ls', 'help'])).toEqual({ ls: 403, help: 403 })
    expect((await world.json('token new --cmds frobnicate')).status).toBe(2)
  })

  it('on one machine what is about that machine', async () => {
    const token = await made('--machine demo')
    expect((await client.json('ls', { token })).document).toMatchObject({ vms: [{ vm_name: 'demo' }] })
    expect((await client.json('rm --now other', { token })).document).toMatchObject({ not_found: ['other'] })
    expect(await statuses(token, ['ssh demo true', 'ssh other true', 'restart other', 'new third', 'trash'])).toEqual({
      'ssh demo true': 200,
      'ssh other true': 422,
      'restart other': 422,
      'new third': 403,
      trash: 403,
    })
  })

  it('on machines with a tag those, and makes such', async () => {
    const token = await made('--tag web')
    expect((await client.json('new third', { token })).document).toMatchObject({ vm_name: 'third', tags: ['web'] })
    const { document } = await client.json('ls', { token })
    expect((document.vms as { vm_name: string }[]).map(({ vm_name: name }) => name)).toEqual(['demo', 'third'])
    expect(await statuses(token, ['tag other web', 'rm --now third', 'trash'])).toEqual({
      'tag other web': 422,
      'rm --now third': 200,
      trash: 403,
    })
  })

  it('nothing for an account that is suspended, or of another’s', async () => {
    const stranger = await world.account()
    const { document } = await world.json('token new', { caller: stranger })
    const token = String(document.token)
    expect(await statuses(token, ['ssh demo true', 'host ls'])).toEqual({ 'ssh demo true': 422, 'host ls': 422 })
    await world.gateway.sql`update accounts set suspended_at = now() where id = ${stranger.accountId}`
    expect(await statuses(token, ['ls'])).toEqual({ ls: 403 })
  })
})

describe('a token that a token makes', () => {
  it('may run no more, lives no longer, and ends with it', async () => {
    const token = await made('--cmds ls,token --expires 1h')
    const { document } = await client.json('token new --expires 30d', { token })
    const child = String(document.token)
    expect(document.cmds).toEqual(['ls', 'token'])
    expect(Date.parse(String(document.expires_at))).toBeLessThan(Date.now() + 3_700_000)
    expect(await statuses(token, ['token new --cmds whoami'])).toEqual({ 'token new --cmds whoami': 403 })
    expect(await statuses(await made(), ['token new --cmds browser'])).toEqual({ 'token new --cmds browser': 403 })
    expect(await statuses(child, ['ls', 'whoami'])).toEqual({ ls: 200, whoami: 403 })
    const { document: listed } = await world.json('token ls')
    const parent = (listed.tokens as { id: number; cmds: string[] }[]).find(({ cmds }) => cmds?.includes('token'))
    await world.run(`token rm ${parent?.id}`)
    expect(await statuses(child, ['ls'])).toEqual({ ls: 401 })
  })
})

it('a key that was added with a token is named when the token is removed: it does not end with it', async () => {
  const { document } = await world.json('token new')
  const key = world.gateway.publicKey(world.gateway.makeKey('added'))
  const added = await client.post(`ssh-key add '${key}'`, { token: String(document.token) })
  expect(added.status).toBe(200)
  expect((await world.run(`token rm ${document.id}`)).stdout).toMatch(/still good: added@laptop; .*ssh-key remove/)
})

describe('a token that was minted offline', () => {
  const mint = (host: string, claims: Record<string, unknown> = {}): string => {
    const payload = JSON.stringify({ exp: Math.round(Date.now() / 1000) + 3600, ...claims })
    const file = join(world.gateway.directory, `payload-${minted++}`)
    writeFileSync(file, payload)
    execFileSync('ssh-keygen', ['-Y', 'sign', '-q', '-f', world.key, '-n', `v0@${host}`, file], { stdio: 'ignore' })
    const armored = readFileSync(`${file}.sig`, 'utf8').replace(/-----[^-]+-----/g, '')
    return `exe0.${Buffer.from(payload).toString('base64url')}.${Buffer.from(armored, 'base64').toString('base64url')}`
  }

  it('for this host runs the commands it names, or any; for a machine’s none', async () => {
    expect((await client.json('whoami', { token: mint('localhost') })).document).toMatchObject({
      account: world.owner.accountId,
      key: expect.any(String),
    })
    expect(await statuses(mint('localhost', { cmds: ['ls'] }), ['ls', 'whoami'])).toEqual({ ls: 200, whoami: 403 })
    expect(await statuses(mint('demo.localhost'), ['ls'])).toEqual({ ls: 401 })
    expect(await statuses(mint('localhost', { exp: 1 }), ['ls'])).toEqual({ ls: 401 })
  })

  it('ends what it runs with its time', async () => {
    const token = mint('localhost', { exp: Math.ceil(Date.now() / 1000) + 4 })
    const stream = client.start("ssh demo 'echo up; sleep 1000'", { token, accept: NDJSON })
    await stream.until('stdout')
    expect(decoded((await stream.ended).text).error).toBe('the token has expired')
  })
})

describe('what is taken away ends what runs, within a second', () => {
  it.each([
    ['a token is removed', (id: number) => world.run(`token rm ${id}`)],
    ['its account is suspended', () => world.gateway.sql`update accounts set suspended_at = now()`],
  ])('when %s', async (_what, takeAway) => {
    const { document } = await world.json('token new')
    const stream = client.start("ssh demo 'echo up; sleep 1000'", { token: String(document.token), accept: NDJSON })
    await stream.until('stdout')
    const beganAt = performance.now()
    await takeAway(Number(document.id))
    expect(decoded((await stream.ended).text).error).toBe('the token was taken back')
    expect(performance.now() - beganAt).toBeLessThan(1_000)
    await world.gateway.sql`update accounts set suspended_at = null`
  })
})
