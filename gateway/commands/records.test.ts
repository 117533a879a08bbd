import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { startWorld, type World } from './testing/world.ts'

describe('a change whose record cannot be written', () => {
  let world: World
  let invitation = 0
  beforeAll(async () => {
    world = await startWorld({ https: true })
    await world.run('new demo --no-wait --memory 256M --disk 1G')
    await world.run('share add demo boss@example.com')
    await world.run('share add-link demo')
    invitation = Number((await world.json('invite new')).document.id)
    await world.run('token new')
    await world.run('defaults write memory 2G')
    await world.gateway.sql.unsafe(`create function no_records() returns trigger language plpgsql as $$ begin
      raise exception 'no records today'; end $$;
      create trigger no_records before insert on events for each row execute function no_records()`)
  })
  afterAll(() => world?.[Symbol.asyncDispose]())

  /** Rows of everything that these commands may write, but for those of the audit record. */
  const all = async () => {
    const tables = [
      'accounts',
      'hosts',
      'plans',
      'rates',
      'shares',
      'share_links',
      'invitations',
      'tokens',
      'keys',
      'settings',
    ]
    const rows = tables.map(async (table) => {
      const { sql } = world.gateway
      const columns = table === 'hosts' ? sql`draining, memory_overcommit` : sql`*`
      return [table, await sql`select ${columns} from ${sql(table)} order by 1, 2`]
    })
    return JSON.stringify(await Promise.all(rows), (_, value) => (typeof value === 'bigint' ? String(value) : value))
  }

  it.each([
    'share add demo ada@example.com',
    'share remove demo boss@example.com',
    'share add-link demo',
    'share remove-link demo 1',
    'invite new',
    'invite rm ID',
    'token new',
    'token rm 1',
    'defaults write memory 1G',
    'defaults delete memory',
    'whoami --email other@example.com',
    'ssh-key rename ssh-ed25519 laptop',
    'host drain server1',
    'host overcommit 1.5',
    'billing set-plan team --machines 3',
    'billing set-rate usage cpu 0.05',
    'billing details --name Ada',
    'billing seller --name Berths',
  ])('%s is not made', async (line) => {
    const before = await all()
    const ran = await world.run(line.replace('ID', String(invitation)))
    expect(ran.status, ran.stdout + ran.stderr).not.toBe(0)
    // That it failed of what it was to fail of.
    expect(ran.stderr).not.toMatch(/not found|no such|no link|no token|no invitation|no key/)
    expect(await all()).toBe(before)
  })
})
