import { expect, test } from 'vitest'
import {
  formatAddress,
  formatCidr,
  gatewayAddress,
  macFor,
  machineOfTap,
  overlaps,
  parseAddress,
  parseCidr,
  suggestNetwork,
  tapName,
} from './address.ts'
import { publicPorts } from './listen.ts'
import { staleChains } from './ruleset.ts'

test('addresses survive the way there and back, the high ones included', () => {
  for (const address of ['0.0.0.0', '10.42.0.1', '127.255.255.255', '128.0.0.0', '255.255.255.255']) {
    expect(formatAddress(parseAddress(address))).toBe(address)
  }
})

test.each(['', '1.2.3', '1.2.3.4.5', '1.2.3.256', '01.2.3.4', '1.2.3.-4', ' 1.2.3.4', '1.2.3.4\n', '0x1.2.3.4', '::1'])(
  '%j is no address',
  (text) => {
    expect(() => parseAddress(text)).toThrow(RangeError)
  },
)

test.each(['10.0.0.0/33', '10.0.0.0/', '10.0.0.0/8/8', '10.0.0.0/08', '10.42.0.1/16'])('%j is no network', (text) => {
  expect(() => parseCidr(text)).toThrow(RangeError)
})

test('a network with host bits set is told what it may have meant', () => {
  expect(() => parseCidr('10.42.9.9/16')).toThrow('the network is 10.42.0.0/16')
})

test('networks overlap when one holds the other, not when they are neighbours', () => {
  const pairs: [string, string, boolean][] = [
    ['10.42.0.0/16', '10.0.0.0/8', true],
    ['10.42.0.0/16', '10.42.255.255', true],
    ['10.42.0.0/16', '10.43.0.0/16', false],
    ['0.0.0.0/0', '255.255.255.255', true],
    ['192.168.0.0/17', '192.168.128.0/17', false],
  ]
  for (const [one, other, expected] of pairs) {
    expect(overlaps(parseCidr(one), parseCidr(other)), `${one} ${other}`).toBe(expected)
    expect(overlaps(parseCidr(other), parseCidr(one)), `${other} ${one}`).toBe(expected)
  }
})

test('the gateway is the first address, a MAC says its address', () => {
  expect(gatewayAddress(parseCidr('10.42.0.0/16'))).toBe('10.42.0.1')
  expect(macFor('10.42.0.5')).toBe('02:be:0a:2a:00:05')
  expect(formatCidr(parseCidr('10.42.0.0/16'))).toBe('10.42.0.0/16')
})

test("a tap has the machine's id, and no other interface is taken for one", () => {
  expect(tapName(17)).toBe('vm17')
  expect(machineOfTap('vm17')).toBe(17)
  for (const name of ['vmbr0', 'vmnet8', 'vm', 'vm0', 'vm017', 'vm1a', 'vm1.5', 'xvm1', 'vm12345678901234']) {
    expect(machineOfTap(name), name).toBeUndefined()
  }
  for (const id of [0, -1, 1.5, Number.NaN, 1e13]) expect(() => tapName(id), String(id)).toThrow(RangeError)
})

test('a suggested network is free, near the default, and missing when there is none', () => {
  expect(suggestNetwork([])).toBe('10.42.0.0/16')
  expect(suggestNetwork([parseCidr('10.42.0.0/15')])).toBe('10.44.0.0/16')
  expect(suggestNetwork([parseCidr('10.0.0.0/8')])).toBe('172.16.0.0/16')
  expect(suggestNetwork(['10.0.0.0/8', '172.16.0.0/12'].map(parseCidr))).toBe('192.168.0.0/16')
  expect(suggestNetwork(['10.0.0.0/8', '172.16.0.0/12', '192.168.1.0/24'].map(parseCidr))).toBeUndefined()
})

test('listen settings open the ports that machines can reach', () => {
  expect(publicPorts(':2222', 'tcp')).toEqual([{ protocol: 'tcp', port: 2222 }])
  expect(publicPorts('203.0.113.5:22, [::]:2222,0.0.0.0:23,*:24', 'tcp')).toEqual([
    { protocol: 'tcp', port: 22, address: '203.0.113.5' },
    { protocol: 'tcp', port: 2222 },
    { protocol: 'tcp', port: 23 },
    { protocol: 'tcp', port: 24 },
  ])
  for (const off of ['off', '', '[2001:db8::5]:22']) expect(publicPorts(off, 'udp'), off).toEqual([])
  for (const bad of ['2222', ':0', ':65536', 'example.com:22', '1.2.3:22', ':22;drop']) {
    expect(() => publicPorts(bad, 'tcp'), bad).toThrow(RangeError)
  }
})

test('chains of another version are found, chains without a hook that are not ours are left to be', () => {
  const entry = { name: 'entry', type: 'filter', hook: 'prerouting', prio: -300 }
  const moved = { ...entry, prio: -200 }
  const former = { name: 'former', type: 'filter', hook: 'output', prio: 0 }
  expect(staleChains([entry, { name: 'from_machine' }])).toEqual([])
  expect(staleChains([moved, former])).toEqual(['entry', 'former'])
})
