import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { startResolver, type TestResolver } from '../dns/testing/resolver.ts'
import { isProved, whereItPoints } from './check.ts'
import { type Lookup, LookupError, systemLookup } from './lookup.ts'

const NOTHING = { zones: [], port: () => 1 }
/** Name servers are asked at port 53. */
const AUTHORITY = '127.0.53.1'

let resolver: TestResolver
/** the name server of shop.example */
let authority: TestResolver
let lookup: Lookup

beforeAll(async () => {
  resolver = await startResolver(NOTHING)
  authority = await startResolver(NOTHING, { host: AUTHORITY, port: 53 })
  lookup = systemLookup([resolver.address])
})
afterAll(async () => {
  await resolver?.[Symbol.asyncDispose]()
  await authority?.[Symbol.asyncDispose]()
})
beforeEach(() => {
  for (const one of [resolver, authority]) {
    one.clear()
    one.broken.clear()
    one.asked.length = 0
  }
  resolver.set('shop.example', { ns: ['ns.shop.example'], a: ['192.0.2.1'] })
  resolver.set('ns.shop.example', { a: [AUTHORITY] })
})

describe('a look-up', () => {
  it('asks the zone’s own name servers, whatever a resolver remembers', async () => {
    authority.set('_berth.shop.example', { txt: ['proof'] })
    authority.set('www.shop.example', { cname: 'target.example', a: ['192.0.2.7'] })
    authority.set('shop.example', { a: ['192.0.2.2'] })
    expect(await lookup.txt('_berth.shop.example')).toEqual(['proof'])
    expect(await lookup.cname('www.shop.example')).toEqual(['target.example'])
    expect(await lookup.addresses('shop.example')).toEqual(['192.0.2.2'])
    // The resolver was not even asked for what it would remember as missing.
    expect(resolver.asked.filter((question) => /^(_berth|www)\./.test(question))).toEqual([])
  })

  it('goes up to where a zone begins, and falls back on the resolver where the zone does not know', async () => {
    authority.set('_berth.a.b.shop.example', { txt: ['deep'] })
    expect(await lookup.txt('_berth.a.b.shop.example')).toEqual(['deep'])
    resolver.set('inner.shop.example', { txt: ['of a zone inside'] })
    expect(await lookup.txt('inner.shop.example')).toEqual(['of a zone inside'])
    expect(await lookup.txt('nothing.shop.example')).toEqual([])
    resolver.set('top.example', { txt: ['plain'] })
    expect(await lookup.txt('top.example')).toEqual(['plain'])
  })

  it('waits for servers that say nothing for a bounded time, however many a zone has', async () => {
    const silent = await Promise.all(
      [2, 3, 4, 5].map(async (n) => {
        const socket = createSocket('udp4')
        socket.bind(53, `127.0.53.${n}`)
        await once(socket, 'listening')
        return socket
      }),
    )
    resolver.set('shop.example', { ns: ['ns.silent.example'] })
    resolver.set('ns.silent.example', { a: silent.map((socket) => socket.address().address) })
    resolver.set('_berth.shop.example', { txt: ['proof'] })
    const hasty = systemLookup([resolver.address], true, { authoritiesMs: 300, resolverMs: 300 })
    expect(await hasty.txt('_berth.shop.example')).toEqual(['proof'])
    const nobody = systemLookup([`${silent[0]?.address().address}:53`], true, { authoritiesMs: 300, resolverMs: 300 })
    await expect(nobody.txt('_berth.shop.example')).rejects.toThrow(
      'the name servers of _berth.shop.example do not answer',
    )
    for (const socket of silent) socket.close()
  })

  it('falls back on the resolver when the zone’s servers do not answer, and says so when nobody does', async () => {
    authority.broken.add('_berth.shop.example')
    resolver.set('_berth.shop.example', { txt: ['proof'] })
    expect(await lookup.txt('_berth.shop.example')).toEqual(['proof'])
    resolver.broken.add('_berth.shop.example')
    await expect(lookup.txt('_berth.shop.example')).rejects.toThrow(LookupError)
  })

  it('does not ask servers that a CNAME led to: they are another zone’s', async () => {
    // www.victim.example leads to evil.example, whose owner would answer for it.
    resolver.set('www.victim.example', { cname: 'evil.example' })
    resolver.set('evil.example', { ns: ['ns.shop.example'] })
    authority.set('_berth.www.victim.example', { txt: ['of evil'] })
    expect(await lookup.txt('_berth.www.victim.example')).toEqual([])
    expect(authority.asked).toEqual([])
  })

  it('asks no name server inside the gateway’s own network', async () => {
    authority.set('_berth.shop.example', { txt: ['inner'] })
    expect(await systemLookup([resolver.address], false).txt('_berth.shop.example')).toEqual([])
    expect(authority.asked).toEqual([])
  })
})

describe('a claim', () => {
  const names = { target: 'p.custom.berth.test', challengeTarget: 'p._acme-challenge.berth.test', txt: 'berth-proof=p' }
  const claim = { domain: 'www.shop.example', wildcard: false }

  it('counts as soon as the zone has the record, and so does where it points', async () => {
    expect(await isProved(claim, names, lookup)).toBe(false)
    authority.set('www.shop.example', { cname: 'P.custom.Berth.test' })
    expect(await isProved(claim, names, lookup)).toBe(true)
    expect(await whereItPoints(claim, names, lookup, [])).toEqual({ isHere: true, elsewhere: [] })
  })

  it('points here only when every address is ours, in any spelling', async () => {
    authority.set('shop.example', { a: ['192.0.2.7', '192.0.2.8'] })
    const apex = { domain: 'shop.example', wildcard: false }
    expect(await whereItPoints(apex, names, lookup, ['192.0.2.7'])).toEqual({ isHere: false, elsewhere: ['192.0.2.8'] })
    expect(await whereItPoints(apex, names, lookup, ['192.0.2.7', '192.0.2.8'])).toMatchObject({ isHere: true })
    resolver.set('p.custom.berth.test', { a: ['192.0.2.8'] })
    expect(await whereItPoints(apex, names, lookup, ['192.0.2.7'])).toMatchObject({ isHere: true })
  })
})
