import { eq } from 'drizzle-orm'
import { describe, expect, it } from 'vitest'
import { testDatabase } from '../test/database.ts'
import { orm } from './connect.ts'
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
