import { eq } from 'drizzle-orm'
import { describe, expect, it } from 'vitest'
import { testDatabase } from '../test/database.ts'
import { connect, orm } from './connect.ts'
import { accounts } from './schema.ts'

describe('Drizzle and tagged SQL over one pool', () => {
  it('read dates as dates and write JSON as JSON, both', async () => {
    await using database = await testDatabase()
    const sql = database.as('owner')
    const db = orm(sql)
    const at = new Date('2026-01-02T03:04:05.678Z')
    const [made] = await db
      .insert(accounts)
      .values({ defaults: { image: 'base' }, createdAt: at })
      .returning()
    expect(made).toMatchObject({ defaults: { image: 'base' }, createdAt: at })
    const rows = await sql`select defaults, created_at, array[created_at] as many from accounts`
    expect(rows).toEqual([{ defaults: { image: 'base' }, created_at: at, many: [at] }])
    const later = new Date('2027-01-02T03:04:05.678Z')
    await sql`update accounts set defaults = ${sql.json({ cpu: '4' })}, created_at = ${later}`
    expect(await db.select().from(accounts).where(eq(accounts.createdAt, later))).toMatchObject([
      { defaults: { cpu: '4' }, createdAt: later },
    ])
  })
})

describe('a connection that the server ended', () => {
  it.each([1, 200])(
    'fails a transaction and the %i statements that it goes on with, and is replaced',
    async (pieces) => {
      await using database = await testDatabase()
      const [sql, other] = [database.as('owner'), database.as('owner')]
      const next = () =>
        Promise.all([1, 2, 3, 4].map((n) => sql`select ${n}::int as n`)).then((rows) => rows.length, String)
      for (let round = 0; round < 40; round++) {
        const work = sql.begin(async (tx) => {
          const [row] = await tx`select pg_backend_pid() as pid`
          await other`select pg_terminate_backend(${row?.pid})`
          // Before that is known here, in the moment when it is, and after.
          for (let turns = 0; turns < round; turns++) await new Promise(setImmediate)
          return await Promise.all(Array.from({ length: pieces }, (_, n) => tx`select ${n}::int as n`))
        })
        await expect(work).rejects.toThrow(/CONNECTION_CLOSED|terminating connection|ECONNRESET|EPIPE/)
        await expect.poll(next, { timeout: 60_000 }).toBe(4)
      }
    },
  )

  it('takes nothing more of a transaction that it was in', async () => {
    await using database = await testDatabase()
    const sql = connect({ url: database.url, role: 'owner', max: 1 })
    const other = database.as('owner')
    await sql`create table kept (n int)`
    const lost = Promise.withResolvers<void>()
    const late = Promise.withResolvers<unknown>()
    const work = sql.begin(async (tx) => {
      const [row] = await tx`select pg_backend_pid() as pid`
      await tx`insert into kept values (1)`
      await other`select pg_terminate_backend(${row?.pid})`
      await lost.promise
      await tx`insert into kept values (2)`.catch(late.resolve)
    })
    await expect(work).rejects.toThrow(/CONNECTION_CLOSED/)
    expect(await sql`select 1 as n`).toEqual([{ n: 1 }])
    lost.resolve()
    expect(String(await late.promise)).toContain('CONNECTION_CLOSED')
    expect(await sql`select n from kept`).toEqual([])
    await sql.end()
  })
})
