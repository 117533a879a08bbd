import { getTableColumns, getTableName, is } from 'drizzle-orm'
import { PgTable } from 'drizzle-orm/pg-core'
import { describe, expect, it } from 'vitest'
import { testDatabase } from '../test/database.ts'
import * as schema from './schema.ts'

describe('schema.ts and the SQL files', () => {
  it('name the same columns with the same nullability', async () => {
    await using db = await testDatabase()
    const rows = await db.as('owner')<{ table: string; column: string; required: boolean }[]>`
      select table_name as table, column_name as column, is_nullable = 'NO' as required
      from information_schema.columns join information_schema.tables using (table_schema, table_name)
      where table_schema = 'public' and table_type = 'BASE TABLE' and table_name <> 'migrations'`
    const inSql = rows.map((row) => `${row.table}.${row.column}${row.required ? '' : '?'}`)
    const inDrizzle = Object.values(schema)
      .filter((table) => is(table, PgTable))
      .flatMap((table) =>
        Object.values(getTableColumns(table)).map((c) => `${getTableName(table)}.${c.name}${c.notNull ? '' : '?'}`),
      )
    expect(inDrizzle.sort()).toEqual(inSql.sort())
  })
})

describe('the roles', () => {
  async function world() {
    const db = await testDatabase()
    const owner = db.as('owner')
    await owner`insert into hosts (name) values ('one')`
    await owner`insert into accounts (email) values ('a@example.com')`
    await owner`insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
      values (1, 1, 'demo', 'base', 2, 1, 1)`
    return { db, owner, gateway: db.as('berth_gateway'), vmhost: db.as('berth_vmhost') }
  }

  it('let the gateway write what is wanted and never what a vmhost observed or its host says of itself', async () => {
    const { db, gateway } = await world()
    await using _ = db
    await gateway`update machines set desired_state = 'stopped' where id = 1`
    await expect(gateway`update machines set observed_state = 'stopped' where id = 1`).rejects.toThrow(
      /permission denied/,
    )
    await expect(gateway`update machines set host_id = 1 where id = 1`).rejects.toThrow(/permission denied/)
    await expect(gateway`update machines set image = '/etc/shadow' where id = 1`).rejects.toThrow(/permission denied/)
    await expect(gateway`update hosts set hypervisor = 'x' where id = 1`).rejects.toThrow(/permission denied/)
    await expect(gateway`delete from machines`).rejects.toThrow(/permission denied/)
  })

  it('let a vmhost write what it observed and nothing of people and names', async () => {
    const { db, vmhost } = await world()
    await using _ = db
    await vmhost`update machines set observed_state = 'running' where id = 1`
    await expect(vmhost`update machines set name = 'x' where id = 1`).rejects.toThrow(/permission denied/)
    await expect(vmhost`select * from secrets`).rejects.toThrow(/permission denied/)
    await expect(vmhost`select email from accounts`).rejects.toThrow(/permission denied/)
    await expect(vmhost`insert into keys (account_id, name, algorithm, public_key, fingerprint)
      values (1, 'k', 'ssh-ed25519', ''::bytea, 'f')`).rejects.toThrow(/permission denied/)
  })

  it('let nobody change an event that was written', async () => {
    const { db, owner, gateway } = await world()
    await using _ = db
    await gateway`insert into events (actor, kind) values ('gateway', 'test')`
    await expect(gateway`delete from events`).rejects.toThrow(/permission denied/)
    await expect(owner`update events set kind = 'x'`).rejects.toThrow(/append only/)
    await expect(owner`truncate events`).rejects.toThrow(/append only/)
  })
})

describe('names', () => {
  it('of machines and recorded lobby names exclude each other, even when written at the same moment', async () => {
    await using db = await testDatabase()
    const owner = db.as('owner')
    await owner`insert into hosts (name) values ('one')`
    await owner`insert into accounts default values`
    await owner`insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
      select 1, 1, 'm' || n, 'base', 1, 1, 1 from generate_series(1, 20) n`
    const first = db.as('berth_gateway')
    const second = db.as('berth_gateway')
    for (let n = 1; n <= 20; n++) {
      const outcomes = await Promise.allSettled([
        first`insert into machine_names values (${`name${n}`}, ${n})`,
        second`insert into lobby_names (name, account_id) values (${`name${n}`}, 1)`,
      ])
      expect(outcomes.filter((o) => o.status === 'fulfilled')).toHaveLength(1)
    }
  })

  it.each(['Demo', '1demo', '-demo', 'demo-', 'de--mo', 'd_mo', 'a'.repeat(41), ''])(
    'refuse %j for a machine',
    async (name) => {
      await using db = await testDatabase()
      const owner = db.as('owner')
      await owner`insert into hosts (name) values ('one')`
      await owner`insert into accounts default values`
      await expect(owner`insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
      values (1, 1, ${name}, 'base', 1, 1, 1)`).rejects.toThrow(/machines_name_check/)
    },
  )
})

describe('news for operators', () => {
  it('are of what is shown of servers and accounts alone, once for all of a statement', async () => {
    await using db = await testDatabase()
    const owner = db.as('owner')
    const heard: string[] = []
    const over = Promise.withResolvers<void>()
    for (const channel of ['hosts', 'accounts']) {
      await owner.listen(channel, (id) => (id === 'over' ? over.resolve() : heard.push(`${channel} ${id}`)))
    }
    const expected: string[] = []
    const tells = async (news: readonly string[], change: () => Promise<unknown>) => {
      await change()
      expected.push(...news)
    }
    await tells(
      ['hosts 1'],
      () => owner`insert into hosts (name, lease_expires_at) values ('one', now() + interval '30 s')`,
    )
    await tells(['accounts 1'], () => owner`insert into accounts default values`)
    await tells(
      ['hosts 1', 'accounts 1'],
      () =>
        owner`insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
        select 1, 1, 'm' || n, 'base', 1, 1, 1 from generate_series(1, 20) n`,
    )
    await tells(['hosts 1', 'accounts 1'], () => owner`update machines set observed_state = 'running'`)
    await tells([], () => owner`update machines set observed_awake_because = 'an SSH session', observed_at = now()`)
    await tells(
      [],
      () => owner`update hosts set lease_expires_at = now() + interval '31 s', memory_available_bytes = 7`,
    )
    await tells(['hosts 1'], () => owner`update hosts set memory_used_bytes = 7`)
    await tells(['hosts 1'], () => owner`update hosts set lease_expires_at = now() - interval '1 s'`)
    await tells(['hosts 1'], () => owner`update hosts set lease_expires_at = now() + interval '30 s'`)
    await tells([], () => owner`update accounts set defaults = '{"cpu": 1}'`)
    await tells(['accounts 1'], () => owner`update accounts set max_machines = 3`)
    await tells(
      ['accounts 1'],
      () => owner`insert into spend_limits (account_id, whose, micros, hard) values (1, 'own', 1, false)`,
    )
    await tells(['accounts 1'], () => owner`insert into credits (account_id, micros, reason) values (1, 1, 'x')`)
    await owner`select pg_notify('hosts', 'over')`
    await over.promise
    expect(heard).toEqual(expected)
  })
})

describe('news of notices', () => {
  it('are of one that is told and of one that is read, once for all that are read together', async () => {
    await using db = await testDatabase()
    const [owner, gateway] = [db.as('owner'), db.as('berth_gateway')]
    const heard: string[] = []
    const over = Promise.withResolvers<void>()
    await owner.listen('notices', (id) => (id === 'over' ? over.resolve() : heard.push(id)))
    await owner`insert into accounts default values`
    await owner`insert into accounts default values`
    await gateway`insert into notices (account_id, subject, body) values (1, 'a', ''), (1, 'b', ''), (2, 'c', '')`
    await gateway`update notices set read_at = now() where account_id = 1 and read_at is null`
    await gateway`update notices set read_at = read_at where account_id = 1`
    await owner`select pg_notify('notices', 'over')`
    await over.promise
    expect(heard).toEqual(['1', '2', '1'])
  })
})
