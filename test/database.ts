import { randomBytes } from 'node:crypto'
import { connect, type DatabaseRole, type Sql } from '../migrations/connect.ts'
import { embeddedUrl } from '../migrations/embedded.ts'

export type TestDatabase = {
  url: string
  /** a connection as the given role; closed with the database */
  as: (role: DatabaseRole) => Sql
  [Symbol.asyncDispose]: () => Promise<void>
}

/**
 * A migrated database of the test's own, copied from the run's template. `await using db = await testDatabase()`
 * drops it at the end of the block.
 */
export async function testDatabase(): Promise<TestDatabase> {
  const directory = process.env.BERTH_TEST_POSTGRES
  if (!directory) throw new Error('no test server: run through test/vitest.config.ts, project unit')
  const name = `test_${randomBytes(6).toString('hex')}`
  const admin = connect({ url: embeddedUrl(directory, 'postgres'), role: 'owner', max: 1 })
  // Copying a template wants nobody connected to it, and two copies at once exclude each other.
  await admin`select pg_advisory_lock(1)`
  await admin.unsafe(`create database ${name} template berth_template`)
  await admin`select pg_advisory_unlock(1)`
  const url = embeddedUrl(directory, name)
  const opened: Sql[] = []
  return {
    url,
    as: (role) => {
      const sql = connect({ url, role, max: 4, applicationName: 'berth test' })
      opened.push(sql)
      return sql
    },
    [Symbol.asyncDispose]: async () => {
      await Promise.all(opened.map((sql) => sql.end({ timeout: 2 })))
      await admin.unsafe(`drop database ${name} with (force)`)
      await admin.end()
    },
  }
}
