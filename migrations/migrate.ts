import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { connect, type Sql } from './connect.ts'

export type Migration = { number: number; name: string; text: string; sha256: string }

export class MigrationError extends Error {
  override name = 'MigrationError'
}

/** Held for the whole run, so that two processes starting together do not both create a table. */
const MIGRATION_LOCK = 0x62657274

/**
 * Reads `NNNN_name.sql` files and asserts that their numbers are 1, 2, 3 … without a gap or a repeat: two branches
 * that each added number 7 must not merge silently.
 * @throws MigrationError
 */
export function readMigrations(directory: string | URL = new URL('.', import.meta.url)): Migration[] {
  const files = readdirSync(directory)
    .filter((file) => file.endsWith('.sql'))
    .sort()
  return files.map((file, index) => {
    const match = /^(\d{4})_([a-z0-9_]+)\.sql$/.exec(file)
    if (!match?.[1] || !match[2]) throw new MigrationError(`${file} is not named like 0001_what_it_does.sql`)
    if (Number(match[1]) !== index + 1) {
      throw new MigrationError(`${file} stands where number ${index + 1} is due: numbers have no gap and no repeat`)
    }
    const text = readFileSync(new URL(file, directory instanceof URL ? directory : `file://${directory}/`), 'utf8')
    return { number: index + 1, name: match[2], text, sha256: createHash('sha256').update(text).digest('hex') }
  })
}

/**
 * Brings a database up to date: each file in a transaction of its own, in order, once.
 * @param sql a connection of the database's owner
 * @returns the numbers applied now
 * @throws MigrationError when a landed file was edited, or the database is newer than this Berth
 */
export async function migrate(sql: Sql, migrations: Migration[] = readMigrations()): Promise<number[]> {
  // One reserved connection: an advisory lock belongs to the session that took it.
  const session = await sql.reserve()
  try {
    await session`select pg_advisory_lock(${MIGRATION_LOCK})`
    await session.unsafe(`
      create table if not exists migrations (
        number integer primary key,
        name text not null,
        sha256 text not null,
        applied_at timestamptz not null default now()
      )`)
    const applied = await session<{ number: number; name: string; sha256: string }[]>`
      select number, name, sha256 from migrations order by number`
    for (const [index, row] of applied.entries()) {
      const known = migrations[index]
      if (row.number !== index + 1)
        throw new MigrationError(`the database lacks migration ${index + 1} before ${row.number}`)
      if (!known) {
        throw new MigrationError(
          `the database has migration ${row.number} (${row.name}), which this Berth does not know: start a newer Berth`,
        )
      }
      if (known.sha256 !== row.sha256) {
        throw new MigrationError(`migration ${row.number} (${row.name}) was edited after it had been applied`)
      }
    }
    await ensureRoles(session)
    const done: number[] = []
    for (const migration of migrations.slice(applied.length)) {
      await session.unsafe('begin')
      try {
        await session.unsafe(migration.text)
        await session`insert into migrations (number, name, sha256)
          values (${migration.number}, ${migration.name}, ${migration.sha256})`
        await session.unsafe('commit')
      } catch (cause) {
        await session.unsafe('rollback')
        throw new MigrationError(`migration ${migration.number} (${migration.name}) failed`, { cause })
      }
      done.push(migration.number)
    }
    return done
  } finally {
    await session`select pg_advisory_unlock(${MIGRATION_LOCK})`.catch(() => {})
    session.release()
  }
}

/**
 * The roles that the grants name. They belong to the whole cluster, so another database's migration may have made
 * them a moment ago: "exists already" is success.
 */
async function ensureRoles(session: Pick<Sql, 'unsafe'>) {
  for (const role of ['berth_gateway', 'berth_vmhost']) {
    await session.unsafe(`
      do $$ begin
        if not exists (select from pg_roles where rolname = '${role}') then
          begin
            create role ${role} login;
          exception when duplicate_object or unique_violation then null;
          end;
        end if;
        if not pg_has_role(current_user, '${role}', 'member') then
          grant ${role} to current_user;
        end if;
      exception when insufficient_privilege then
        raise exception 'the database user % may not create the role ${role}: give it CREATEROLE, or create the roles berth_gateway and berth_vmhost and grant them to it', current_user;
      end $$`)
  }
}

if (import.meta.main) {
  const url = process.env.DATABASE_URL
  if (!url) {
    console.error('DATABASE_URL is not set: it names the database to migrate')
    process.exit(2)
  }
  const sql = connect({ url, role: 'owner', max: 1, applicationName: 'berth migrate' })
  try {
    const done = await migrate(sql)
    if (done.length > 0)
      console.log(`database: applied ${done.length === 1 ? 'migration' : 'migrations'} ${done.join(', ')}`)
  } catch (error) {
    for (let link: unknown = error; link instanceof Error; link = link.cause) console.error(link.message)
    process.exitCode = 1
  } finally {
    await sql.end({ timeout: 5 })
  }
}
