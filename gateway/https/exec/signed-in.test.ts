/** `POST /exec` by the cookie of whoever is signed in, as the dashboard sends it. */
import { afterAll, beforeAll, expect, it } from 'vitest'
import { createSession, endAllSessions } from '../../accounts/web-sessions.ts'
import { startWorld, type World } from '../../commands/testing/world.ts'
import { Client, decoded } from './testing/client.ts'

let world: World
const clients: Client[] = []
beforeAll(async () => {
  world = await startWorld({ sshd: true, https: true })
  clients.push(await Client.of(world, 'h1'), await Client.of(world, 'h2'))
  await world.run('new demo')
})
afterAll(async () => {
  for (const client of clients) client.close()
  await world?.[Symbol.asyncDispose]()
})

async function signIn(who: { accountId: number | null; email: string | null }): Promise<string> {
  return `__Host-berth=${await createSession(world.gateway.sql, who, '127.0.0.1')}`
}
const owner = () => signIn({ accountId: world.owner.accountId, email: null })
const [h1, h2] = [() => clients[0] as Client, () => clients[1] as Client]

it.each([
  ['HTTP/1.1', h1],
  ['HTTP/2', h2],
])(
  'over %s a signed-in browser runs lines from these pages, as its account, and it is in the record',
  async (_name, of) => {
    const client = of()
    const headers = { cookie: await owner(), origin: client.origin, 'sec-fetch-site': 'same-origin' }
    expect(await client.json('whoami', { headers })).toMatchObject({
      status: 200,
      document: { account: world.owner.accountId, is_owner: true },
    })
    expect((await client.json('comment demo from-a-page', { headers })).status).toBe(200)
    const [event] = await world.gateway.sql`select actor, via from events order by id desc limit 1`
    expect(event).toEqual({ actor: `account:${world.owner.accountId}`, via: 'web' })
  },
)

it('and from no other page, with the cookie that browsers send by themselves', async () => {
  const [client] = clients as [Client]
  const cookie = await owner()
  const before = await world.json('ls demo')
  for (const fields of [
    {},
    { origin: 'null' },
    { origin: `https://demo.${new URL(client.origin).host}` },
    { origin: 'https://evil.example' },
    { origin: client.origin.replace('https', 'http') },
    { 'sec-fetch-site': 'same-origin' },
    { origin: client.origin, 'sec-fetch-site': 'same-site' },
    { origin: client.origin, 'sec-fetch-site': 'cross-site' },
    { origin: client.origin, 'sec-fetch-site': 'none' },
  ]) {
    const headers = { cookie, ...(fields as Record<string, string>) }
    expect(await client.json('comment demo pwned', { headers }), JSON.stringify(fields)).toMatchObject({
      status: 403,
      document: { code: 'request.foreign_page' },
    })
  }
  expect(await world.json('ls demo')).toEqual(before)
})

it('not for readers of a mailbox, nor for whoever is signed out or suspended', async () => {
  const [client] = clients as [Client]
  const ask = async (cookie: string) =>
    (await client.json('whoami', { headers: { cookie, origin: client.origin } })).status
  expect(await ask(await signIn({ accountId: null, email: 'ada@example.com' }))).toBe(401)
  const eve = await world.account()
  const hers = await signIn({ accountId: eve.accountId, email: null })
  expect(await ask(hers)).toBe(200)
  await world.gateway.sql`update accounts set suspended_at = now() where id = ${eve.accountId}`
  expect(await ask(hers)).toBe(401)
  await world.gateway.sql`update accounts set suspended_at = null where id = ${eve.accountId}`
  await endAllSessions(world.gateway.sql, eve.accountId)
  expect(await ask(hers)).toBe(401)
})

it('what runs ends when its browser is signed out', async () => {
  const [client] = clients as [Client]
  const headers = { cookie: await owner(), origin: client.origin }
  const stream = client.start("ssh demo 'echo begun; exec sleep 600'", { headers, accept: 'application/x-ndjson' })
  await stream.until(Buffer.from('begun\n').toString('base64'))
  await endAllSessions(world.gateway.sql, world.owner.accountId)
  expect(decoded((await stream.ended).text).error).toBe('this browser was signed out')
})
