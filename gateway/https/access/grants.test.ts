import { expect, it } from 'vitest'
import type { Sql } from '../../../migrations/connect.ts'
import { testDatabase } from '../../../test/database.ts'
import { endSiteSession } from '../../accounts/site-sessions.ts'
import { createSession, endAllSessions } from '../../accounts/web-sessions.ts'
import { createLog } from '../../log.ts'
import { Grants } from './grants.ts'

it('a cookie that was made up is signed out of without anybody hearing of it', async () => {
  await using db = await testDatabase()
  const sql = db.as('berth_gateway')
  const heard: string[] = []
  const end = Promise.withResolvers<void>()
  await db.as('owner').listen('grants', (payload) => {
    heard.push(payload)
    if (payload === 'end') end.resolve()
  })
  await db.as('owner')`insert into accounts default values`
  await createSession(sql, { accountId: 1, email: null }, '')
  await createSession(sql, { accountId: 1, email: null }, '')
  await endSiteSession(sql, 'a'.repeat(43))
  await sql`update shares set accepted_at = now()`
  for (const table of ['web_sessions', 'shares', 'share_links', 'tokens']) {
    await sql`delete from ${sql(table)} where id = 1000`
  }
  expect(await sql`select from web_sessions`).toHaveLength(2)
  await endAllSessions(sql, 1)
  await sql`select pg_notify('grants', 'end')`
  await end.promise
  expect(heard).toEqual(['web_sessions', 'end'])
})

it('news that never ends keeps nobody waiting, and whoever was let in meanwhile is looked at again', async () => {
  const looked = Promise.withResolvers<void>()
  let reads = 0
  const row = { id: 1, expiresAt: new Date(Date.now() + 60_000), accountId: 1, sessionEmail: null, email: null }
  const grants: Grants = new Grants({
    // Each read, and each part of one, hears news.
    sql: (() => {
      if (++reads > 100) throw new Error('it is read for ever')
      grants.changed()
      return Promise.resolve([row])
    }) as unknown as Sql,
    log: createLog('silent'),
    live: () => {
      looked.resolve()
      return []
    },
    end: () => {},
  })
  expect(await grants.byCookie(1, 'demo.localhost', 'a'.repeat(43))).toMatchObject({ key: 'site:1' })
  await looked.promise
  const before = reads
  await grants.byCookie(1, 'demo.localhost', 'a'.repeat(43))
  expect(reads).toBeGreaterThan(before)
  grants.close()
})
