import { describe, expect, it } from 'vitest'
import { parseDurationMs, parseListen, parseSettings, SettingsError } from './settings.ts'

const DATABASE_URL = 'postgres:///berth?socket=/run/berth'
const parse = (env: Record<string, string>) => parseSettings({ DATABASE_URL, ...env })

describe('the gateway’s settings', () => {
  it('have the defaults that the README promises', () => {
    expect(parse({})).toEqual({
      dataDirectory: '/var/lib/berth',
      databaseUrl: DATABASE_URL,
      domain: 'localhost',
      machineDomain: 'localhost',
      ssh: [{ port: 2222 }],
      https: [{ port: 8443 }],
      http: [{ port: 8080 }],
      ports: false,
      dns: [],
      acme: undefined,
      addresses: [],
      network: '10.42.0.0/16',
      owner: undefined,
      signup: 'invite',
      smtp: undefined,
      stripe: undefined,
      metrics: [{ host: '127.0.0.1', port: 9464 }],
      logLevel: 'info',
      drainMs: 30_000,
    })
  })

  it('follow one another: the machine domain the domain, ports the HTTPS port', () => {
    const settings = parse({ BERTH_DOMAIN: 'berth.example.com', BERTH_HTTPS: ':443' })
    expect(settings.machineDomain).toBe('berth.example.com')
    expect(settings.ports).toBe(true)
    expect(parse({ BERTH_HTTPS: ':443', BERTH_PORTS: 'off' }).ports).toBe(false)
    expect(parse({ BERTH_SSH: '' }).ssh).toEqual([{ port: 2222 }])
  })

  it('take payments only with a key of Stripe’s, and send it in the clear to loopback alone', () => {
    const key = { BERTH_STRIPE_KEY: 'rk_live_abc' }
    expect(parse({ BERTH_STRIPE_HOST: 'api.example.com' }).stripe).toBeUndefined()
    expect(parse(key).stripe).toEqual({ key: 'rk_live_abc', host: undefined, webhookSecrets: [] })
    const given = { ...key, BERTH_STRIPE_HOST: 'api.example.com:8443', BERTH_STRIPE_WEBHOOK: 'whsec_a, whsec_b' }
    expect(parse(given).stripe).toEqual({
      key: 'rk_live_abc',
      host: { protocol: 'https', host: 'api.example.com', port: 8443 },
      webhookSecrets: ['whsec_a', 'whsec_b'],
    })
    expect(parse({ ...key, BERTH_STRIPE_HOST: 'http://127.0.0.1:12111' }).stripe?.host).toEqual({
      ...{ protocol: 'http', host: '127.0.0.1', port: 12111 },
    })
    for (const [name, value] of Object.entries({
      BERTH_STRIPE_KEY: 'pk_live_abc',
      BERTH_STRIPE_HOST: 'http://api.example.com',
      BERTH_STRIPE_WEBHOOK: 'secret',
    })) {
      expect(() => parse({ ...key, [name]: value })).toThrow(name)
    }
    expect(() => parse({ BERTH_STRIPE_KEY: 'pk_live_abc' })).toThrow(/not shown/)
    expect(() => parse({ ...key, BERTH_STRIPE_WEBHOOK: 'secret' })).toThrow(/not shown/)
  })

  it('have names as hosts are compared: in lower case', () => {
    const { domain, machineDomain } = parse({ BERTH_DOMAIN: 'Berth.Example.com', BERTH_MACHINE_DOMAIN: 'VM.example' })
    expect([domain, machineDomain]).toEqual(['berth.example.com', 'vm.example'])
  })

  it.each([
    ['BERTH_SSH', 'ssh', 'BERTH_SSH is "ssh": expected addresses such as :2222 or 127.0.0.1:2222, or off'],
    ['BERTH_SSH', 'off', 'BERTH_SSH is "off": expected at least one address to listen on'],
    ['BERTH_DATA', 'data', 'BERTH_DATA is "data": expected an absolute path'],
    ['BERTH_SIGNUP', 'no', 'BERTH_SIGNUP is "no": expected one of invite, open, closed'],
    ['BERTH_DOMAIN', 'a_b', 'BERTH_DOMAIN is "a_b": expected a host name such as berth.example.com'],
    ['BERTH_DRAIN', 'soon', 'BERTH_DRAIN is "soon": expected a duration such as 30s, 5m or 2h'],
    ['BERTH_PORTS', 'yes', 'BERTH_PORTS is "yes": expected one of on, off'],
    ['BERTH_SMTP', 'mail.example.com', 'BERTH_SMTP (not shown): expected a URL beginning with smtp:// or smtps://'],
    ['DATABASE_URL', 'mysql://u:secret@h/d', 'DATABASE_URL (not shown): expected a postgres:// URL'],
    ['BERTH_ADDRESSES', '1.2.3.4,x', 'BERTH_ADDRESSES is "1.2.3.4,x": expected IP addresses separated by commas'],
    [
      'BERTH_NETWORK',
      '10.42.0.1/16',
      'BERTH_NETWORK is "10.42.0.1/16": expected an IPv4 network such as 10.42.0.0/16, at least a /28, host bits zero',
    ],
    [
      'BERTH_ACME',
      'http://x',
      'BERTH_ACME is "http://x": expected off, letsencrypt, letsencrypt-staging or the https:// URL of an ACME directory',
    ],
  ])('refuse %s=%s in one line', (name, value, message) => {
    expect(() => parse({ [name]: value })).toThrow(new SettingsError(message))
  })

  it('say what is missing', () => {
    expect(() => parseSettings({})).toThrow('DATABASE_URL is not set: expected a postgres:// URL; npm start sets it')
  })

  it('take every way of writing an address', () => {
    expect(parseListen('2222')).toEqual([{ port: 2222 }])
    expect(parseListen(':22, [::1]:2222,192.0.2.1:22,*:24')).toEqual([
      { port: 22 },
      { host: '::1', port: 2222 },
      { host: '192.0.2.1', port: 22 },
      { port: 24 },
    ])
    for (const bad of ['', ':', '::1:22', '[1.2.3.4]:22', ':65536', 'a b:22', ':22,', '-x:1']) {
      expect(parseListen(bad), bad).toBeUndefined()
    }
  })

  it('take durations as people write them', () => {
    expect(['90', '500ms', '1.5m', '2h', '7d', '0'].map(parseDurationMs)).toEqual([
      90_000, 500, 90_000, 7_200_000, 604_800_000, 0,
    ])
    for (const bad of ['', '-1s', '1w', 's', '1e9', '99999999999']) expect(parseDurationMs(bad), bad).toBeUndefined()
  })
})
