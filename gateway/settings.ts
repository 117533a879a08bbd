/** One address to listen on; no host means every address, IPv6 and IPv4. */
export type Listen = { host?: string; port: number }

export type Settings = {
  dataDirectory: string
  databaseUrl: string
  /** control host */
  domain: string
  /** machines are `<name>.<machineDomain>` */
  machineDomain: string
  ssh: Listen[]
  https: Listen[]
  http: Listen[]
  /** whether `https://<machine>:3000-9999` is redirected */
  ports: boolean
  dns: Listen[]
  /** ACME directory URL; undefined: Berth's own CA */
  acme: string | undefined
  /** pool of public addresses for SSH routing by (key, address) */
  addresses: string[]
  /** machine addresses, IPv4 CIDR */
  network: string
  /** paths or keys of BERTH_OWNER; undefined: the starter's own */
  owner: string | undefined
  signup: 'invite' | 'open' | 'closed'
  smtp: string | undefined
  stripe: { key: string; host: string | undefined } | undefined
  metrics: Listen | undefined
  logLevel: string
  drainMs: number
}
