import type { DomainTable } from '../domains/table.ts'
import type { Settings } from '../settings.ts'
import { parseAuthority, type Site, siteOf } from './host.ts'
import type { MachineRoute, RouteTable } from './machines/routes.ts'

type MaybePromise<T> = T | Promise<T>

/** What a host name leads to, of the installation's own and of the domains that people brought. */
export type Hosts = {
  /** the machine of a site; undefined when there is none */
  route(site: Exclude<Site, { kind: 'control' }>): MaybePromise<MachineRoute | undefined>
  /** the machine that a domain which somebody brought leads to */
  custom(host: string): MaybePromise<MachineRoute | undefined>
  /** the name of the certificate, of Berth's own authority, that serves a host */
  certificateFor(host: string): Promise<string>
  /** whether a certificate of that name should exist */
  isServed(name: string): Promise<boolean>
}

export function hostsOf(
  settings: Pick<Settings, 'domain' | 'machineDomain'>,
  routes: RouteTable,
  domains: DomainTable,
): Hosts {
  const custom = (host: string): MaybePromise<MachineRoute | undefined> =>
    chain(domains.find(host), (entry) => {
      if (!entry) return undefined
      return chain(routes.find(entry.machineName), (route) => {
        // The name may be another machine's since it was read: nobody is shown that one instead.
        return route?.machineId === entry.machineId ? route : routes.byId(entry.machineId)
      })
    })
  const route = (site: Exclude<Site, { kind: 'control' }>): MaybePromise<MachineRoute | undefined> =>
    site.kind === 'machine' ? routes.find(site.name) : custom(site.domain)
  const machines = wildcardOf(settings)
  const siteOfName = (name: string): Site | undefined => {
    const authority = parseAuthority(name)
    return authority && siteOf(authority, settings, new Set())
  }

  return {
    route,
    custom,
    /**
     * Machines share one, and so do names below a wildcard that somebody brought: a new machine waits for none, its
     * 7000 ports need none, and a name that was mistyped gets a page that says so. Where the machines' domain is one
     * label, as `localhost` is, no client takes a wildcard, and each machine has its own.
     */
    async certificateFor(host) {
      const site = siteOfName(host)
      if (site?.kind === 'domain') {
        const entry = await domains.find(host)
        return entry && entry.domain !== host ? `*.${entry.domain}` : host
      }
      return site?.kind === 'machine' && machines !== undefined ? machines : host
    },
    async isServed(name) {
      if (name === machines) return true
      if (name.startsWith('*.')) {
        const entry = await domains.find(name.slice(2))
        return entry?.wildcard === true && entry.domain === name.slice(2)
      }
      const site = siteOfName(name)
      if (!site) return false
      return site.kind === 'control' || (await route(site)) !== undefined
    },
  }
}

function wildcardOf({ machineDomain }: Pick<Settings, 'machineDomain'>): string | undefined {
  return machineDomain.includes('.') ? `*.${machineDomain.toLowerCase()}` : undefined
}

function chain<T, R>(value: MaybePromise<T>, next: (value: T) => MaybePromise<R>): MaybePromise<R> {
  return value instanceof Promise ? value.then(next) : next(value)
}
