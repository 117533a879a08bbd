import { describe, expect, test } from 'vitest'
import { describeResolvers } from './resolvers.ts'
import { NOT_THE_INTERNET } from './ruleset.ts'

const server = {
  links: new Map([
    ['lo', { ifname: 'lo', flags: [], mtu: 65_536, addr_info: [{ family: 'inet', local: '127.0.0.1', prefixlen: 8 }] }],
    [
      'eth0',
      { ifname: 'eth0', flags: [], mtu: 1500, addr_info: [{ family: 'inet', local: '203.0.113.2', prefixlen: 24 }] },
    ],
  ]),
  routes: [],
  neighbours: [],
}
const say = (resolvers: string[], allow: string[] = []) =>
  describeResolvers({ resolvers, network: '10.42.0.0/16', allow }, server)

describe('name servers of machines', () => {
  test('on the internet, or allowed, are nothing to speak of', () => {
    expect(say(['1.1.1.1', '8.8.8.8'])).toEqual([])
    expect(say(['192.168.7.53', '10.0.0.2'], ['192.168.7.0/24', '10.0.0.2'])).toEqual([])
  })

  test('in a private network are named one by one, with the way to allow them', () => {
    expect(say(['192.168.7.53', '1.1.1.1'])).toEqual([
      'BERTH_RESOLVERS names 192.168.7.53, which machines do not reach, since 192.168.0.0/16 is not the internet: set BERTH_ALLOW=192.168.7.53',
    ])
    expect(say(['169.254.169.253'], ['10.0.0.0/24'])).toEqual([
      'BERTH_RESOLVERS names 169.254.169.253, which machines do not reach, since 169.254.0.0/16 is not the internet: add 169.254.169.253 to BERTH_ALLOW',
    ])
  })

  test.each(NOT_THE_INTERNET)('in %s, which the rules refuse, are never passed over in silence', (range) => {
    const [address = ''] = range.split('/')
    expect(say([address])).toHaveLength(1)
  })

  test('that no BERTH_ALLOW opens are not said to be a matter of it', () => {
    for (const [resolver, why] of [
      ['127.0.0.53', 'in a machine is the machine itself'],
      ['10.42.0.1', "the machines' own network"],
      ['203.0.113.2', 'an address of this server'],
    ] as const) {
      const sentences = say([resolver], ['0.0.0.0/0'])
      expect(sentences.join()).toContain(why)
      expect(sentences.join()).not.toContain('BERTH_ALLOW')
    }
  })
})
