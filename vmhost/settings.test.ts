import { describe, expect, test } from 'vitest'
import { parseSettings } from './settings.ts'

const url = { DATABASE_URL: 'postgres:///berth?socket=/x' }

describe('the settings of a vmhost', () => {
  test('have the defaults that the README promises', () => {
    expect(parseSettings({ ...url, BERTH_DATA: '' })).toEqual({
      dataDirectory: '/var/lib/berth',
      databaseUrl: 'postgres:///berth?socket=/x',
      network: '10.42.0.0/16',
      resolvers: ['1.1.1.1', '8.8.8.8'],
      ntp: 'pool.ntp.org',
      allow: [],
      hypervisor: 'auto',
      cloudHypervisor: undefined,
      accelerator: 'auto',
      meterEveryMs: 60_000,
      logLevel: 'info',
      publicPorts: [],
    })
  })

  test('open the ports of the gateway to machines where one runs, and no port of a server that runs none', () => {
    expect(parseSettings({ ...url, BERTH_SIDES: 'gateway,vmhost' }).publicPorts).toEqual([
      { protocol: 'tcp', port: 2222 },
      { protocol: 'tcp', port: 8443 },
      { protocol: 'tcp', port: 8080 },
    ])
    const listening = { BERTH_SSH: ':22', BERTH_HTTPS: ':443', BERTH_HTTP: ':80', BERTH_DNS: ':53' }
    expect(parseSettings({ ...url, ...listening, BERTH_SIDES: 'vmhost' }).publicPorts).toEqual([])
  })

  test.each([
    ['BERTH_ACCEL', 'xen', 'BERTH_ACCEL is "xen": expected auto, kvm or tcg'],
    ['BERTH_HYPERVISOR', 'xen', 'BERTH_HYPERVISOR is "xen": expected auto, cloud-hypervisor or qemu'],
    ['CLOUD_HYPERVISOR', 'ch', 'CLOUD_HYPERVISOR is "ch": expected the absolute path of a program'],
    ['BERTH_NETWORK', '10.42.0.1/16', /^BERTH_NETWORK is "10\.42\.0\.1\/16": expected an IPv4 network/],
    ['BERTH_RESOLVERS', '1.1.1.1,x', /^BERTH_RESOLVERS is "1\.1\.1\.1,x": expected IPv4 addresses/],
    ['BERTH_NTP', 'a b', 'BERTH_NTP is "a b": expected a host name or IPv4 address'],
    ['BERTH_NTP', 'a:eth1', 'BERTH_NTP is "a:eth1": expected a host name or IPv4 address'],
    ['BERTH_METER', '1', 'BERTH_METER is "1": expected a duration such as 10s or 1m'],
    ['BERTH_METER', '11m', 'BERTH_METER is "11m": expected at most 10m'],
    ['BERTH_SSH', '2222', /^BERTH_SSH is "2222": expected listen addresses/],
    ['BERTH_DATA', 'data', 'BERTH_DATA is "data": expected an absolute path'],
    ['BERTH_DATA', `/${'x'.repeat(80)}`, /: expected at most 64 bytes$/],
    ['DATABASE_URL', 'mysql://root:geheim@h', 'DATABASE_URL: expected a postgres:// URL'],
  ])('%s=%s is refused by name, with what was expected', (name, value, message) => {
    expect(() => parseSettings({ ...url, [name]: value })).toThrow(message)
  })

  test('DNS is opened to machines as it is answered: by UDP and by TCP, on the addresses that it listens on', () => {
    const { publicPorts } = parseSettings({
      ...url,
      BERTH_SIDES: 'gateway,vmhost',
      BERTH_SSH: 'off',
      BERTH_DNS: '203.0.113.2:53,[::1]:53',
      BERTH_HTTPS: 'off',
      BERTH_HTTP: 'off',
    })
    expect(publicPorts).toEqual([
      { protocol: 'udp', port: 53, address: '203.0.113.2' },
      { protocol: 'tcp', port: 53, address: '203.0.113.2' },
    ])
  })

  test('ports of machines lead to the HTTPS listener where HTTPS is on 443, or where the operator says so', () => {
    const https = (env: Record<string, string>) =>
      parseSettings({ ...url, BERTH_SIDES: 'gateway,vmhost', ...env }).publicPorts.filter(
        ({ forMachinePorts }) => forMachinePorts,
      )
    expect(https({})).toEqual([])
    expect(https({ BERTH_PORTS: 'on' })).toEqual([{ protocol: 'tcp', port: 8443, forMachinePorts: true }])
    expect(https({ BERTH_HTTPS: '203.0.113.2:443' })).toMatchObject([{ port: 443, address: '203.0.113.2' }])
    expect(https({ BERTH_HTTPS: ':443', BERTH_PORTS: 'off' })).toEqual([])
  })

  test('no database is said to be missing', () => {
    expect(() => parseSettings({})).toThrow(/^DATABASE_URL is missing: expected a postgres:\/\/ URL/)
  })
})
