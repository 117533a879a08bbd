import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import type { App } from '../../app.ts'
import { httpsFindings } from '../../commands/doctor-https.ts'
import { proofNames } from '../../domains/records.ts'
import { accountProof, dropDomain } from '../../domains/rows.ts'
import { noteFailure, takeJob } from './store.ts'
import { type AcmeWorld, startAcmeWorld } from './testing/world.ts'

const PATIENT = { timeout: 60_000, interval: 30 }

async function doctor(app: App): Promise<string[]> {
  const findings = await httpsFindings(app, (check, ok, message) => ({ check, ok, message }))
  return findings.map(({ ok, message }) => `${ok ? 'ok' : 'fix'} ${message}`)
}

describe('with Berth’s own name server', () => {
  let world: AcmeWorld

  beforeAll(async () => {
    world = await startAcmeWorld()
  })
  afterAll(() => world?.[Symbol.asyncDispose]())

  it('the domain and all machines get one certificate, by DNS-01, that clients of the directory’s root accept', async () => {
    const { names } = await world.issued('berth.test')
    expect(names).toBe('DNS:berth.test, DNS:*.berth.test')
    const ca = await world.pebble.root()
    const control = await world.served('berth.test', { ca })
    for (const name of ['demo.berth.test', 'demo--3000.berth.test', 'nobody.berth.test']) {
      expect(await world.served(name, { ca })).toEqual(control)
    }
    expect((await world.gateway.sql`select from acme_challenges`).length).toBe(0)
    const row = await world.row('berth.test')
    expect(row?.sealed_key?.toString('latin1')).not.toContain('PRIVATE')
    const [life, waited] = [row?.not_after, row?.renew_at].map((at) => Number(at) - Number(row?.not_before))
    expect((waited ?? 0) / (life ?? 1)).toBeCloseTo(2 / 3, 3)
    expect(await world.gateway.sql`select name from secrets where name like 'acme_account %'`).toHaveLength(1)
  })

  it('a domain that somebody brought gets one of its own, by HTTP-01', async () => {
    await world.bring('www.shop.example')
    const { names } = await world.issued('www.shop.example')
    expect(names).toBe('DNS:www.shop.example')
    expect(await world.row('www.shop.example')).toMatchObject({ failures: 0, problem: null })
  })

  it('a wildcard and its apex get one, by DNS-01 that the domain’s own _acme-challenge leads here', async () => {
    await world.bring('wild.example', { wildcard: true })
    expect((await world.issued('wild.example')).names).toBe('DNS:wild.example, DNS:*.wild.example')
    expect((await world.served('any.wild.example')).issuer).toMatch(/^Pebble/)
  })

  it('a domain that becomes a wildcard later gets another certificate, and keeps its own until then', async () => {
    await world.bring('grows.example')
    const before = await world.issued('grows.example')
    await world.bring('grows.example', { wildcard: true })
    expect((await world.issued('any.grows.example')).names).toBe('DNS:grows.example, DNS:*.grows.example')
    expect((await world.served('grows.example')).serial).not.toBe(before.serial)
  })

  it('no order is placed for a domain that points elsewhere, or nowhere; once it points here and is asked again, it is', async () => {
    const { resolver, gateway, ownerId, machineId } = world
    const names = proofNames(await accountProof(gateway.sql, ownerId), gateway.app.settings)
    const orders = () => world.pebble.requests().filter((line) => line === 'POST /order-plz').length
    const before = orders()
    resolver.set('_berth.late.example', { txt: [names.txt] })
    resolver.set('late.example', { a: ['192.0.2.9', '127.0.0.1'] })
    await world.bring('late.example', { pointing: false })
    await expect.poll(async () => (await world.row('late.example'))?.problem, PATIENT).toBe('it points at 192.0.2.9')
    await world.bring('nowhere.example', { pointing: false })
    await expect
      .poll(async () => (await world.row('nowhere.example'))?.problem, PATIENT)
      .toBe('DNS does not show that it is yours')
    expect(orders()).toBe(before)
    expect(Number((await world.row('late.example'))?.try_at)).toBeGreaterThan(Date.now() + 30_000)
    resolver.set('late.example', { a: ['127.0.0.1'] })
    await world.bring('late.example', { pointing: false, machineId })
    expect((await world.issued('late.example')).names).toBe('DNS:late.example')
  })

  it('what the directory refuses is kept as its own words, and tried again later, each time after a longer wait', async () => {
    await world.bring('blocked.example')
    await expect.poll(async () => (await world.row('blocked.example'))?.failures, PATIENT).toBe(1)
    const { sql } = world.gateway
    expect((await world.row('blocked.example'))?.problem).toMatch(/blocked\.example|policy/i)
    expect((await world.served('blocked.example')).issuer).toBe('Berth berth.test')
    const waits: number[] = []
    for (let failure = 1; failure < 5; failure++) {
      await sql`update acme_certificates set try_at = now(), leased_until = now() where name = 'blocked.example'`
      await expect.poll(async () => (await world.row('blocked.example'))?.failures, PATIENT).toBe(failure + 1)
      waits.push(Number((await world.row('blocked.example'))?.try_at) - Date.now())
    }
    expect(waits).toEqual(waits.toSorted((a, b) => a - b))
    expect(waits.at(-1)).toBeGreaterThan(3_000_000)
    await dropDomain(sql, world.machineId, 'blocked.example')
    await expect.poll(() => world.served('blocked.example').catch(() => 'refused'), PATIENT).toBe('refused')
  })

  it('doctor says who certifies what, and that DNS leads here, or does not', async () => {
    const { app } = world.gateway
    const { host } = new URL(world.pebble.directoryUrl)
    expect(await doctor(app)).toEqual([
      `ok berth.test has a certificate of ${host}`,
      'ok no certificate is overdue',
      'ok berth.test is at 127.0.0.1',
      'ok any.berth.test is at 127.0.0.1',
      'ok DNS leads _acme-challenge.berth.test to this name server',
    ])
    expect(await world.gateway.sql`select from acme_challenges`).toHaveLength(0)
    const { sql } = world.gateway
    await sql`update acme_certificates set problem = 'no', renew_at = now() - interval '2 days', not_after = now()
      where name = 'berth.test'`
    world.resolver.zones.clear()
    expect((await doctor(app)).map((line) => line.slice(0, 60))).toEqual([
      `fix berth.test waits for a certificate of ${host}: no; tried again`.slice(0, 60),
      'fix 1 certificates were not renewed in time',
      'fix berth.test is not in DNS',
      'fix any.berth.test is not in DNS',
      'fix DNS does not lead _acme-challenge.berth.test to this nam',
    ])
    world.resolver.zones.add('berth.test')
    await sql`update acme_certificates set problem = null, not_after = not_before + interval '3 years',
      renew_at = not_before + interval '2 years' where name = 'berth.test'`
  })

  it('two gateways share what is had, answer each other’s challenges, and renew once', async () => {
    const second = await world.another()
    try {
      const { sql } = world.gateway
      const orders = async () => (await world.row('berth.test'))?.lease ?? 0
      const [was, before] = [await world.issued('demo.berth.test'), await orders()]
      // As if two thirds of its life were over.
      await sql`update acme_certificates set try_at = now() where name = 'berth.test'`
      const renewed = async () => {
        const seen = await Promise.all(Array.from({ length: 8 }, () => world.served('demo.berth.test')))
        return new Set(seen.map(({ serial }) => serial))
      }
      await expect.poll(async () => (await renewed()).has(was.serial), PATIENT).toBe(false)
      expect((await renewed()).size).toBe(1)
      expect(await orders()).toBe(before + 1)
      // New connections are shared out among both: a challenge reaches either.
      for (const name of ['one', 'two', 'three']) await world.bring(`${name}.both.example`)
      for (const name of ['one', 'two', 'three']) await world.issued(`${name}.both.example`)
    } finally {
      await second[Symbol.asyncDispose]()
    }
  })

  it('what a gateway that was killed had begun is begun again when its lease ends, and its own outcome counts no more', async () => {
    const { sql } = world.gateway
    await sql`insert into custom_domains (domain, machine_id) values ('killed.example', ${world.machineId})`
    // The gateway may have taken it already: either way the lease is the dead one's.
    await expect.poll(() => world.row('killed.example'), PATIENT).toBeDefined()
    await expect.poll(async () => (await world.row('killed.example'))?.failures, PATIENT).toBe(1)
    await sql`update acme_certificates set try_at = now() + interval '1 hour' where name <> 'killed.example'`
    await sql`update acme_certificates set tried_at = null`
    const hold = await sql.begin(async (tx) => {
      await tx`update acme_certificates set try_at = now(), leased_until = now() where name = 'killed.example'`
      const job = await takeJob(tx as unknown as typeof sql)
      await tx`update acme_certificates set leased_until = now() where name = 'killed.example'`
      return job
    })
    expect(hold?.name).toBe('killed.example')
    await world.bring('killed.example')
    await world.issued('killed.example')
    if (hold) await noteFailure(sql, hold, { problem: 'too late', wasOrdered: true })
    expect(await world.row('killed.example')).toMatchObject({ failures: 0, problem: null })
  })
})

describe('without a name server and without BERTH_HTTP', () => {
  it('the control host and people’s domains get theirs by TLS-ALPN-01, which no other client is shown', async () => {
    await using world = await startAcmeWorld({ dns: false, http: false })
    expect((await world.issued('berth.test')).names).toBe('DNS:berth.test')
    expect((await world.served('demo.berth.test')).issuer).toBe('Berth berth.test')
    expect((await doctor(world.gateway.app))[1]).toMatch(
      /^fix machines' names have certificates of Berth's own authority/,
    )
    await world.bring('shop.example')
    const first = await world.issued('shop.example')
    expect(first).toMatchObject({ names: 'DNS:shop.example', protocol: 'http/1.1' })
    await expect(world.served('shop.example', { alpn: ['acme-tls/1'] })).rejects.toThrow()
    // Renewed while it is served: visitors get the certificate that is held, the directory the one that it looks for.
    const { sql } = world.gateway
    await sql`insert into acme_challenges (kind, name, token, value) values ('tls-alpn-01', 'shop.example', 't', 't.x')`
    const challenge = async (version: 'TLSv1.2' | 'TLSv1.3') =>
      await world.served('shop.example', { alpn: ['acme-tls/1'], minVersion: version, maxVersion: version })
    await expect
      .poll(() => challenge('TLSv1.3').catch(() => undefined), PATIENT)
      .toMatchObject({ protocol: 'acme-tls/1' })
    expect((await challenge('TLSv1.2')).serial).toBe((await challenge('TLSv1.3')).serial)
    expect((await challenge('TLSv1.3')).serial).not.toBe(first.serial)
    expect(await world.served('shop.example', { alpn: ['h2', 'acme-tls/1'] })).toEqual({ ...first, protocol: 'h2' })
    await sql`delete from acme_challenges`
    await sql`update acme_certificates set try_at = now() where name = 'shop.example'`
    await expect.poll(async () => (await world.served('shop.example')).serial, PATIENT).not.toBe(first.serial)
    expect((await world.served('shop.example')).issuer).toMatch(/^Pebble/)
    await world.bring('wild.example', { wildcard: true })
    await expect
      .poll(async () => (await world.row('wild.example'))?.problem, PATIENT)
      .toBe('a wildcard needs BERTH_DNS')
  })
})

it('machines on a domain of their own have a certificate of their own', async () => {
  await using world = await startAcmeWorld({ machineDomain: 'machines.test' })
  expect((await world.issued('berth.test')).names).toBe('DNS:berth.test')
  expect((await world.issued('demo.machines.test')).names).toBe('DNS:*.machines.test')
})
