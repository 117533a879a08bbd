import { once } from 'node:events'
import { createServer, type IncomingMessage, request } from 'node:http'
import { request as requestTls } from 'node:https'
import type { AddressInfo } from 'node:net'
import { gunzipSync } from 'node:zlib'
import { afterAll, afterEach, beforeAll, expect, it } from 'vitest'
import { tellAccounts } from '../../accounts/notices.ts'
import { createSession, endAllSessions } from '../../accounts/web-sessions.ts'
import type { Caller } from '../../app.ts'
import { startWorld, type World } from '../../commands/testing/world.ts'
import { Events } from './events.ts'
import { type Listener, listen, type ServerEvent } from './testing/listener.ts'

let world: World
let eve: Caller
let url: string
const listeners: Listener[] = []
beforeAll(async () => {
  world = await startWorld({ https: true })
  eve = await world.account()
  url = `https://localhost:${world.gateway.https?.server.addresses[0]?.port}/events`
  // Waited for, so that nothing happens to either by itself while a test listens.
  await world.run('new demo --memory 256M')
  await world.run('new spare --memory 256M')
})
afterEach(() => {
  for (const one of listeners.splice(0)) one.leave()
})
afterAll(async () => {
  await world?.[Symbol.asyncDispose]()
})

const signIn = async (accountId = world.owner.accountId): Promise<string> =>
  `__Host-berth=${await createSession(world.gateway.sql, { accountId, email: null }, '127.0.0.1')}`

async function open(cookie: string, headers: Record<string, string> = {}, query = ''): Promise<Listener> {
  const listener = await listen(`${url}${query}`, { cookie, ...headers })
  listeners.push(listener)
  return listener
}

type Machines = {
  full?: true
  set: Record<string, { vm_name: string; status: string; comment: string }>
  gone: number[]
}
const machinesIn = (event: ServerEvent) => event.said as unknown as Machines
const namesIn = (event: ServerEvent) => Object.values(machinesIn(event).set).map(({ vm_name }) => vm_name)
const shows = (name: string) => (event: ServerEvent) => event.name === 'machines' && namesIn(event).includes(name)
const isFull = (event: ServerEvent) => event.name === 'machines' && machinesIn(event).full === true

async function idOf(name: string): Promise<number> {
  const [row] = await world.gateway.sql<{ id: number }[]>`select id from machines where name = ${name} order by id desc`
  return row?.id ?? 0
}

it('tells all machines at first, then each change as ls shows it, and what is gone', async () => {
  const one = await open(await signIn())
  expect([one.status, one.headers['content-type']]).toEqual([200, 'text/event-stream'])
  expect(namesIn(await one.until(isFull)).sort()).toEqual(['demo', 'spare'])
  await world.run('comment demo for Tuesday')
  const change = await one.until(
    (event) => shows('demo')(event) && Object.values(machinesIn(event).set)[0]?.comment === 'for Tuesday',
  )
  expect(namesIn(change)).toEqual(['demo'])
  const listed = (await world.json('ls demo')).document as { vms: Record<string, unknown>[] }
  const { cost_this_month_micros: _cost, ...document } = listed.vms[0] ?? {}
  expect(machinesIn(change).set[String(await idOf('demo'))]).toEqual(document)
  await world.run('new short --memory 256M --no-wait')
  await one.until(shows('short'))
  const id = await idOf('short')
  await world.run('rm short')
  await one.until((event) => event.name === 'machines' && machinesIn(event).gone.includes(id))
})

it('answers a page once with what a stream would begin with, which goes on from there', async () => {
  const cookie = await signIn()
  const ask = async (headers: Record<string, string>) => {
    const asked = requestTls(`${url}?once`, { headers, rejectUnauthorized: false })
    asked.end()
    const [answer] = (await once(asked, 'response')) as [IncomingMessage]
    const bytes = Buffer.concat(await answer.toArray())
    const isPacked = answer.headers['content-encoding'] === 'gzip'
    return { status: answer.statusCode, isPacked, said: JSON.parse(String(isPacked ? gunzipSync(bytes) : bytes)) }
  }
  const { status, isPacked, said } = await ask({ cookie, 'accept-encoding': 'gzip, br' })
  expect([status, isPacked]).toEqual([200, true])
  const names = Object.values(said.set as Machines['set']).map(({ vm_name }) => vm_name)
  expect(names.sort()).toEqual(['demo', 'spare'])
  expect((await ask({ cookie })).isPacked).toBe(false)
  expect(await ask({})).toMatchObject({ status: 401, said: { code: 'auth.required' } })
  const on = await open(cookie, {}, `?after=${said.id}`)
  await world.run('comment demo since then')
  const change = await on.until(shows('demo'))
  expect([isFull(change), namesIn(change)]).toEqual([false, ['demo']])
  expect(on.events.filter(isFull)).toEqual([])
})

it('nothing of another account is ever told, whatever happens to it', async () => {
  const hers = await open(await signIn(eve.accountId))
  expect(namesIn(await hers.until(isFull))).toEqual([])
  // Her own is told, and by then all news of it.
  await world.run('new hers --memory 256M --no-wait', { caller: eve })
  await hers.until(({ name, said }) => name === 'news' && said.what === 'audit')
  await hers.until((event) => shows('hers')(event) && Object.values(machinesIn(event).set)[0]?.status === 'running')
  const before = hers.events.length
  const mine = await open(await signIn())
  await mine.until(isFull)
  await world.run('comment demo a secret')
  await world.run('new hidden --memory 256M --no-wait')
  await mine.until(shows('hidden'))
  await world.run('rm hidden')
  await world.run('ssh-key add "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJl3dIeudNqd0DPMRD6OIh65tjkxFNOtwGcWB2gCgh3b x"')
  await mine.until(({ name, said }) => name === 'news' && said.what === 'keys')
  await world.gateway.sql`select pg_notify('machines', id::text) from machines`
  // A change of hers, without a record, comes after all of that, so all of that has passed her by.
  await world.gateway.sql`update machines set comment = 'last' where name = 'hers'`
  await hers.until((event) => shows('hers')(event) && Object.values(machinesIn(event).set)[0]?.comment === 'last')
  const told = hers.events.filter(({ name }) => name === 'machines')
  expect(told.flatMap(namesIn).every((name) => name === 'hers')).toBe(true)
  expect(told.flatMap((event) => machinesIn(event).gone)).toEqual([])
  expect(hers.events.slice(before).filter(({ name }) => name === 'news')).toEqual([])
  expect(JSON.stringify(hers.events)).not.toContain('secret')
})

it('a machine that goes to another account leaves the one and comes to the other', async () => {
  const [mine, hers] = [await open(await signIn()), await open(await signIn(eve.accountId))]
  await Promise.all([mine.until(isFull), hers.until(isFull)])
  await world.run('new traded --memory 256M --no-wait')
  await mine.until(shows('traded'))
  const id = await idOf('traded')
  await world.gateway.sql`update machines set account_id = ${eve.accountId} where id = ${id}`
  await hers.until(shows('traded'))
  await mine.until((event) => event.name === 'machines' && machinesIn(event).gone.includes(id))
})

it('one that comes back is told what it missed and no more, by either way of saying where it was', async () => {
  const cookie = await signIn()
  const before = await open(cookie)
  const { id } = await before.until(isFull)
  const keeps = await open(cookie)
  await keeps.until(isFull)
  before.leave()
  await before.ended
  await world.run('new missed --memory 256M --no-wait')
  await keeps.until(shows('missed'))
  for (const back of [await open(cookie, { 'last-event-id': id }), await open(cookie, {}, `?after=${id}`)]) {
    const first = await back.until(({ name }) => name === 'machines')
    expect([machinesIn(first).full, namesIn(first)]).toEqual([undefined, ['missed']])
  }
  const stranger = await open(cookie, { 'last-event-id': 'AAAAAAAA.3' })
  expect(namesIn(await stranger.until(({ name }) => name === 'machines'))).toEqual(
    expect.arrayContaining(['demo', 'missed', 'spare']),
  )
  await world.run('rm missed')
})

const newsOf = (what: string) => (event: ServerEvent) => event.name === 'news' && event.said.what === what

it('what servers, accounts and rates are is news for operators and for nobody else', async () => {
  const [mine, hers] = [await open(await signIn()), await open(await signIn(eve.accountId))]
  await Promise.all([mine.until(isFull), hers.until(isFull)])
  const vmhost = world.gateway.database.as('berth_vmhost')
  await vmhost`update hosts set memory_used_bytes = memory_used_bytes + 67108864`
  await mine.until(newsOf('hosts'))
  await world.account()
  await mine.until(newsOf('accounts'))
  for (const line of [
    'billing set-plan lab --machines 3',
    'billing set-rate lab fee 5',
    'billing seller --name none',
  ]) {
    const told = mine.events.filter(newsOf('rates')).length
    await world.run(line)
    await expect.poll(() => mine.events.filter(newsOf('rates')).length, { timeout: 60_000 }).toBeGreaterThan(told)
  }
  // Her own is told after all of that.
  await world.run('comment hers for Tuesday', { caller: eve })
  await hers.until(newsOf('audit'))
  expect(hers.events.filter((event) => ['hosts', 'accounts', 'rates'].some((what) => newsOf(what)(event)))).toEqual([])
})

it('a server that goes silent, and is heard again, is news, though nothing is written when it does', async () => {
  const { sql } = world.gateway
  const vmhost = world.gateway.database.as('berth_vmhost')
  const statusOf = async () => {
    const { hosts } = (await world.json('host ls')).document as { hosts: { status: string }[] }
    return hosts.map(({ status }) => status)
  }
  await sql`update hosts set lease_expires_at = now() + interval '1 second'`
  try {
    const one = await open(await signIn())
    await expect
      .poll(async () => one.events.some(newsOf('hosts')) && (await statusOf()), { timeout: 10_000 })
      .toEqual(['silent'])
    const before = one.events.length
    await vmhost`update hosts set lease_expires_at = now() + interval '1 hour'`
    await expect.poll(() => one.events.slice(before).some(newsOf('hosts')), { timeout: 10_000 }).toBe(true)
    expect(await statusOf()).toEqual(['up'])
  } finally {
    await sql`update hosts set lease_expires_at = now() + interval '1 hour'`
  }
})

it('what is shared with somebody is news for who reads that address', async () => {
  const { sql } = world.gateway
  await sql`update accounts set email = 'eve@example.com', email_proved_at = now() where id = ${eve.accountId}`
  const [mine, hers] = [await open(await signIn()), await open(await signIn(eve.accountId))]
  await Promise.all([mine.until(isFull), hers.until(isFull)])
  await world.run('share add demo eve@example.com')
  await hers.until(newsOf('shares'))
  await mine.until(newsOf('audit'))
  expect(mine.events.filter(newsOf('shares'))).toEqual([])
})

it('what an account is told, and that it was read, is news for its own pages and for nobody else’s', async () => {
  const [mine, hers] = [await open(await signIn()), await open(await signIn(eve.accountId))]
  await Promise.all([mine.until(isFull), hers.until(isFull)])
  await world.gateway.sql.begin(async (tx) => {
    await tellAccounts(tx, [{ accountId: eve.accountId, subject: 'the rates change', body: 'Tomorrow.\n' }])
  })
  await hers.until(newsOf('notices'))
  const before = hers.events.length
  await world.run('billing notices --read', { caller: eve })
  await expect.poll(() => hers.events.slice(before).some(newsOf('notices')), { timeout: 60_000 }).toBe(true)
  // One of another's comes after all of that.
  await world.run('comment demo for Wednesday')
  await mine.until(newsOf('audit'))
  expect(mine.events.filter(newsOf('notices'))).toEqual([])
})

it('a day that begins is news for everybody, though nothing is written then, and is told of once', async () => {
  let now = new Date('2026-11-23T23:59:59Z')
  const events = new Events(world.app, { beatMs: 20 }, () => now)
  const server = createServer((incoming, response) => void events.answer(incoming, response)).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const at = `http://127.0.0.1:${(server.address() as AddressInfo).port}/events`
  const count = (one: Listener, what: (event: ServerEvent) => boolean) => one.events.filter(what).length
  const beat = ({ name }: ServerEvent) => name === 'alive'
  const beatsMore = async (one: Listener) => {
    const before = count(one, beat)
    await expect.poll(() => count(one, beat), { timeout: 60_000 }).toBeGreaterThan(before + 1)
  }
  try {
    const both = [
      await listen(at, { cookie: await signIn() }),
      await listen(at, { cookie: await signIn(eve.accountId) }),
    ]
    listeners.push(...both)
    for (const one of both) {
      await beatsMore(one)
      expect(count(one, newsOf('day'))).toBe(0)
    }
    now = new Date('2026-11-24T00:00:00Z')
    for (const one of both) {
      await one.until(newsOf('day'))
      await beatsMore(one)
      expect(count(one, newsOf('day'))).toBe(1)
    }
    // A clock that is set back is another day, too.
    now = new Date('2026-11-23T23:00:00Z')
    for (const one of both) await expect.poll(() => count(one, newsOf('day')), { timeout: 60_000 }).toBe(2)
  } finally {
    events.close()
    server.closeAllConnections()
    server.close()
  }
})

it('news that were lost while the database was not listened to are told as if all of it had happened', async () => {
  const one = await open(await signIn(eve.accountId))
  await one.until(isFull)
  await world.gateway.sql`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and query ilike 'listen%' and pid <> pg_backend_pid()`
  for (const topic of ['keys', 'shares', 'audit', 'notices', 'day']) await one.until(newsOf(topic))
  expect(one.events.filter((event) => newsOf('hosts')(event) || newsOf('accounts')(event))).toEqual([])
})

it('signed out, suspended: the stream ends at once and says so, and nobody else’s does', async () => {
  const cookies = [await signIn(), await signIn(eve.accountId)]
  const [mine, hers] = [await open(cookies[0] ?? ''), await open(cookies[1] ?? '')]
  await Promise.all([mine.until(isFull), hers.until(isFull)])
  await endAllSessions(world.gateway.sql, world.owner.accountId)
  await mine.until(({ name }) => name === 'end')
  await mine.ended
  expect((await open(cookies[0] ?? '')).status).toBe(401)
  await world.run('new after --memory 256M --no-wait', { caller: eve })
  await hers.until(shows('after'))
  expect(mine.events.some(shows('after'))).toBe(false)
  await world.gateway.sql`update accounts set suspended_at = now() where id = ${eve.accountId}`
  await hers.until(({ name }) => name === 'end')
  await hers.ended
  await world.gateway.sql`update accounts set suspended_at = null where id = ${eve.accountId}`
})

it('is for signed-in browsers of these pages alone', async () => {
  const cookie = await signIn()
  expect((await open('')).status).toBe(401)
  expect((await open(`__Host-berth=${'a'.repeat(43)}`)).status).toBe(401)
  expect((await open(cookie, { 'sec-fetch-site': 'same-site' })).status).toBe(403)
  expect((await open(cookie, { 'sec-fetch-site': 'cross-site' })).status).toBe(403)
  expect((await open(cookie, { origin: 'https://demo.localhost' })).status).toBe(403)
  const mail = await createSession(world.gateway.sql, { accountId: null, email: 'ada@example.com' }, '127.0.0.1')
  expect((await open(`__Host-berth=${mail}`)).status).toBe(401)
})

it('one browser has so many and no more, and a place is free again when a page is closed', async () => {
  const cookie = await signIn()
  const many = await Promise.all(Array.from({ length: 16 }, () => open(cookie)))
  expect(many.map(({ status }) => status)).toEqual(Array(16).fill(200))
  const refused = await open(cookie)
  expect([refused.status, refused.headers['retry-after']]).toEqual([429, '5'])
  expect((await open(await signIn())).status).toBe(200)
  many[0]?.leave()
  await expect.poll(async () => (await open(cookie)).status, { timeout: 10_000 }).toBe(200)
})

it('one that is refused leaves nothing to follow, and does not keep what nobody hears', async () => {
  const events = new Events(world.app, { all: 1, idleMs: 20 })
  const server = createServer((incoming, response) => void events.answer(incoming, response)).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const [mine, hers] = [await signIn(), await signIn(eve.accountId)]
  const ask = (cookie: string) =>
    new Promise<{ status: number | undefined; leave(): void }>((resolve) => {
      const headers = { cookie, 'sec-fetch-site': 'same-origin' }
      const asked = request({ host: '127.0.0.1', port, path: '/events', headers, agent: false }, (response) => {
        response.on('error', () => {}).resume()
        resolve({ status: response.statusCode, leave: () => asked.destroy() })
      })
      asked.on('error', () => {}).end()
    })
  try {
    const first = await ask(hers)
    expect([first.status, (await ask(mine)).status, events.followed]).toEqual([200, 429, 1])
    first.leave()
    await expect.poll(async () => (await ask(mine)).status).toBe(200)
    expect((await ask(hers)).status).toBe(429)
    await expect.poll(() => events.followed).toBe(1)
  } finally {
    events.close()
    server.closeAllConnections()
    server.close()
  }
})

it('says since when it hears nothing of the database, and that it hears again', async () => {
  const one = await open(await signIn())
  await one.until(isFull)
  await world.gateway.sql.begin(async (tx) => {
    await tx`lock table machine_names in access exclusive mode`
    await tx`lock table accounts in access exclusive mode`
    await tx`lock table hosts in access exclusive mode`
    await world.gateway.database.as('owner')`select pg_notify('machines', ${String(await idOf('demo'))})`
    const { said } = await one.until(({ name }) => name === 'stale')
    expect(Date.parse(String(said.since))).toBeLessThanOrEqual(Date.now())
  })
  const stale = one.events.findIndex(({ name }) => name === 'stale')
  await expect.poll(() => one.events.slice(stale).some(({ name }) => name === 'alive'), { timeout: 20_000 }).toBe(true)
})
