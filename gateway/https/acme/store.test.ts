import { describe, expect, it } from 'vitest'
import { type TestDatabase, testDatabase } from '../../../test/database.ts'
import { giveDomain } from '../../domains/rows.ts'
import { type Held, keepObtained, noteFailure, readHeld, takeJob, wantCertificates } from './store.ts'

const DIRECTORY = 'https://ca.example/dir'

async function world(db: TestDatabase) {
  const owner = db.as('owner')
  await owner`insert into hosts (name) values ('one')`
  const machine = async (name: string) => {
    const [row] = await owner<{ id: number; account: number }[]>`
      with a as (insert into accounts default values returning id)
      insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
      select id, 1, ${name}, 'base', 1, 1, 1 from a returning id, account_id as account`
    if (!row) throw new Error('no machine')
    await owner`insert into machine_names (name, machine_id) values (${name}, ${row.id})`
    return row
  }
  const sql = db.as('berth_gateway')
  const bring = async (domain: string, of: { id: number; account: number }, wildcard = false) =>
    await giveDomain(sql, { domain, wildcard, machineId: of.id, accountId: of.account })
  return { sql, machine, bring }
}

function held(overrides: Partial<Held> = {}): Held {
  const [notBefore, notAfter] = [new Date(Date.now() - 1000), new Date(Date.now() + 90 * 86_400_000)]
  return { directory: DIRECTORY, chain: 'chain', sealedKey: Buffer.from('sealed'), notBefore, notAfter, ...overrides }
}

describe('wanted certificates', () => {
  it('are the installation’s own and one for each domain; what is wanted no more goes', async () => {
    await using db = await testDatabase()
    const { sql, machine, bring } = await world(db)
    const demo = await machine('demo')
    await bring('shop.example', demo)
    await bring('wild.example', demo, true)
    await wantCertificates(sql, [['berth.test', '*.berth.test']], DIRECTORY)
    const names = async () =>
      (await sql<{ names: string[] }[]>`select names from acme_certificates order by name`).map((row) =>
        row.names.join(' '),
      )
    expect(await names()).toEqual(['berth.test *.berth.test', 'shop.example', 'wild.example *.wild.example'])
    await sql`delete from custom_domains where domain = 'shop.example'`
    await bring('wild.example', demo, false)
    await wantCertificates(sql, [['berth.test'], ['*.m.test']], DIRECTORY)
    expect(await names()).toEqual(['*.m.test', 'berth.test', 'wild.example'])
  })

  it('that another directory issued are due, and are served meanwhile', async () => {
    await using db = await testDatabase()
    const { sql } = await world(db)
    await wantCertificates(sql, [['berth.test']], DIRECTORY)
    const job = await takeJob(sql)
    expect(job && (await keepObtained(sql, job, held()))).toBe(true)
    expect(await takeJob(sql)).toBeUndefined()
    await wantCertificates(sql, [['berth.test']], 'https://another.example/dir')
    expect(await takeJob(sql)).toMatchObject({ name: 'berth.test' })
    expect(await readHeld(sql, 'berth.test')).toMatchObject({ chain: 'chain' })
  })

  it('are worked on by one gateway at a time; one that lost its lease changes nothing', async () => {
    await using db = await testDatabase()
    const { sql } = await world(db)
    await wantCertificates(sql, [['a.test'], ['b.test']], DIRECTORY)
    const taken = await Promise.all([takeJob(sql), takeJob(sql), takeJob(sql)])
    expect(taken.map((job) => job?.name).sort()).toEqual(['a.test', 'b.test', undefined])
    const lost = taken.find((job) => job?.name === 'a.test')
    await sql`update acme_certificates set leased_until = now() where name = 'a.test'`
    const again = await takeJob(sql)
    if (!lost || !again) throw new Error('not taken')
    expect(await keepObtained(sql, lost, held())).toBe(false)
    await noteFailure(sql, lost, { problem: 'late', wasOrdered: true })
    expect(await keepObtained(sql, again, held({ chain: 'of the second' }))).toBe(true)
    expect(await readHeld(sql, 'a.test')).toMatchObject({ chain: 'of the second' })
  })

  it('of which other names are wanted by the time they come are not kept, and are due', async () => {
    await using db = await testDatabase()
    const { sql } = await world(db)
    await wantCertificates(sql, [['a.test']], DIRECTORY)
    const job = await takeJob(sql)
    await wantCertificates(sql, [['a.test', '*.a.test']], DIRECTORY)
    expect(job && (await keepObtained(sql, job, held()))).toBe(false)
    expect(await takeJob(sql)).toMatchObject({ names: ['a.test', '*.a.test'] })
  })

  it('that fail wait longer each time, and as long as the directory says', async () => {
    await using db = await testDatabase()
    const { sql } = await world(db)
    await wantCertificates(sql, [['a.test']], DIRECTORY)
    const waits: number[] = []
    for (let failures = 0; failures < 10; failures++) {
      await sql`update acme_certificates set try_at = now()`
      const job = await takeJob(sql)
      if (!job) throw new Error('not due')
      await noteFailure(sql, job, { problem: 'refused', wasOrdered: true })
      const [row] = await sql<{ minutes: number }[]>`
        select (extract(epoch from try_at - now()) / 60)::float as minutes from acme_certificates`
      waits.push(row?.minutes ?? 0)
    }
    const least = [1, 5, 15, 60, 180, 360, 720, 1440, 1440, 1440]
    for (const [index, wait] of waits.entries()) {
      expect(wait).toBeGreaterThan((least[index] ?? 0) - 0.1)
      expect(wait).toBeLessThan((least[index] ?? 0) * 1.5 + 0.1)
    }
    await sql`update acme_certificates set try_at = now()`
    const job = await takeJob(sql)
    const retryAt = new Date(Date.now() + 7 * 86_400_000)
    if (job) await noteFailure(sql, job, { problem: 'rateLimited', wasOrdered: true, retryAt })
    const [row] = await sql<{ at: Date }[]>`select try_at as at from acme_certificates`
    expect(Number(row?.at)).toBeGreaterThanOrEqual(retryAt.getTime())
  })

  it('are asked for at most so often an hour, by one account and by all; what DNS said no to counts not', async () => {
    await using db = await testDatabase()
    const { sql, machine, bring } = await world(db)
    const [greedy, other] = [await machine('greedy'), await machine('other')]
    for (let index = 0; index < 20; index++) await bring(`d${index}.example`, greedy)
    await bring('theirs.example', other)
    await wantCertificates(sql, [], DIRECTORY)
    const refused = await takeJob(sql)
    if (refused) await noteFailure(sql, refused, { problem: 'it points nowhere', wasOrdered: false })
    const taken: string[] = []
    for (let job = await takeJob(sql); job; job = await takeJob(sql)) {
      taken.push(job.name)
      await noteFailure(sql, job, { problem: 'refused', wasOrdered: true })
    }
    expect(taken.filter((name) => name !== 'theirs.example')).toHaveLength(15)
    expect(taken).toContain('theirs.example')
    await sql`update acme_certificates set try_at = now(), tried_at = now() - interval '61 minutes'`
    await db.as('owner')`update acme_orders set at = now() - interval '61 minutes'`
    expect(await takeJob(sql)).toBeDefined()
  })

  it('count as asked for also when their domain was taken away since', async () => {
    await using db = await testDatabase()
    const { sql, machine, bring } = await world(db)
    const demo = await machine('demo')
    let asked = 0
    for (let round = 0; round < 20; round++) {
      await bring('again.example', demo)
      await wantCertificates(sql, [], DIRECTORY)
      const job = await takeJob(sql)
      if (job) asked++
      if (job) await noteFailure(sql, job, { problem: 'refused', wasOrdered: true })
      await sql`delete from custom_domains`
    }
    expect(asked).toBe(15)
    await wantCertificates(sql, [['berth.test']], DIRECTORY)
    expect(await takeJob(sql)).toMatchObject({ name: 'berth.test' })
    await db.as('owner')`update acme_orders set at = now() - interval '25 hours'`
    await wantCertificates(sql, [], DIRECTORY)
    expect(await sql`select from acme_orders`).toHaveLength(0)
  })

  it('of machines that are gone are wanted no more', async () => {
    await using db = await testDatabase()
    const { sql, machine, bring } = await world(db)
    const demo = await machine('demo')
    await bring('shop.example', demo)
    await db.as('owner')`update machines set observed_state = 'gone' where id = ${demo.id}`
    await wantCertificates(sql, [], DIRECTORY)
    expect(await takeJob(sql)).toBeUndefined()
    expect(await sql`select from custom_domains`).toHaveLength(0)
  })
})
