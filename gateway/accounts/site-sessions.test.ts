import { expect, it } from 'vitest'
import { testDatabase } from '../../test/database.ts'
import { addLink, takeLink } from './shares.ts'
import { createSiteCode, sweepAccess, takeSiteCode } from './site-sessions.ts'
import { createToken } from './tokens.ts'
import { createSession, createSignInLink, hashToken } from './web-sessions.ts'

async function world() {
  const db = await testDatabase()
  const owner = db.as('owner')
  await owner`insert into hosts (name) values ('one')`
  const [row] = await owner<{ machineId: number; accountId: number }[]>`
    with a as (insert into accounts default values returning id)
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
    select id, 1, 'demo', 'base', 1, 1, 1 from a returning id as "machineId", account_id as "accountId"`
  if (!row) throw new Error('no machine')
  const sql = db.as('berth_gateway')
  const fill = (column: 'session_id' | 'link_id', id: number, count: number) => sql`
    insert into site_sessions (token_hash, machine_id, host, ${sql(column)}, expires_at)
    select sha256(n::text::bytea), ${row.machineId}, 'demo.localhost', ${id}, now() + interval '1 day'
    from generate_series(1, ${count}) n`
  const count = async () => (await sql`select from site_sessions`).length
  return { ...row, sql, fill, count, [Symbol.asyncDispose]: () => db[Symbol.asyncDispose]() }
}

it('a browser that signs in at machines again and again keeps the last thousand cookies', async () => {
  await using one = await world()
  const { sql, machineId, accountId } = one
  await createSession(sql, { accountId, email: null }, '')
  await one.fill('session_id', 1, 1000)
  const code = await createSiteCode(sql, {
    ...{ sessionId: 1, machineId, host: 'demo.localhost', path: '/' },
    stateHash: hashToken('state'),
  })
  const taken = await takeSiteCode(sql, {
    ...{ code: code ?? '', machineId, host: 'demo.localhost', cookieHost: 'demo.localhost', state: 'state' },
  })
  expect(taken?.path).toBe('/')
  expect(await one.count()).toBe(1000)
  expect(await sql`select from site_sessions where token_hash = ${hashToken(taken?.token ?? '')}`).toHaveLength(1)
})

it('a link lets ten thousand browsers in at a time, and more when theirs are over', async () => {
  await using one = await world()
  const { sql, machineId } = one
  const { token, link } = await addLink(sql, { machineId })
  await one.fill('link_id', link.id, 10_000)
  const take = () => takeLink(sql, { machineId, host: 'demo.localhost', token, address: '192.0.2.7' })
  expect(await take()).toBeUndefined()
  await sql`update site_sessions set expires_at = now() where id = 1`
  expect(await take()).toBeDefined()
})

it('what is over is removed: sign-ins and their links, shared links and tokens', async () => {
  await using one = await world()
  const { sql, machineId, accountId } = one
  const make = async () => {
    await createSession(sql, { accountId, email: null }, '')
    await createSignInLink(sql, accountId)
    await addLink(sql, { machineId, expiresInMs: 3_600_000 })
    await createToken(sql, { accountId, label: '', expiresInMs: 3_600_000 })
  }
  const tables = ['web_sessions', 'sign_in_links', 'share_links', 'tokens']
  const counts = () => Promise.all(tables.map(async (table) => (await sql`select from ${sql(table)}`).length))
  await make()
  for (const table of tables) await sql`update ${sql(table)} set expires_at = now() - interval '1 second'`
  await addLink(sql, { machineId })
  await sweepAccess(sql)
  expect(await counts()).toEqual([0, 0, 1, 0])
  await make()
  await sweepAccess(sql)
  expect(await counts()).toEqual([1, 1, 2, 1])
})
