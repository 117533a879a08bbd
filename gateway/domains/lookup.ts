/**
 * DNS as the rest of the world sees it. The zone's own name servers are asked first: a resolver may remember for hours
 * that there was no such record, and whoever has just set it should not have to wait. What they do not have, the
 * ordinary resolver is asked for, which finds its way through zones inside zones.
 */
import { Resolver } from 'node:dns/promises'
import { BlockList, isIPv6 } from 'node:net'

/** What there is not is an empty list. */
export type Lookup = {
  txt(name: string): Promise<string[]>
  /** the name that a CNAME at `name` itself leads to: the first step, not the last */
  cname(name: string): Promise<string[]>
  /** IPv4 and IPv6, wherever CNAMEs lead */
  addresses(name: string): Promise<string[]>
}

/** `message` is a sentence for the person who looks after the domain. */
export class LookupError extends Error {
  override readonly name = 'LookupError'
}

const TRY_MS = 2_000
const TRIES = 3
/** For all tries at all servers, which take turns: four that say nothing would take a minute. */
const LIMITS = { authoritiesMs: 5_000, resolverMs: 10_000 }
const NONE = new Set(['ENOTFOUND', 'ENODATA'])
/** Name servers of a zone that are asked, and labels that are gone up to find it. */
const SERVERS_MOST = 4
const LEVELS_MOST = 8

type Ask<T> = (resolver: Resolver) => Promise<T[]>

/**
 * @param servers `address` or `address:port`; the system's own unless given
 * @param asksInner a zone's own servers are asked also where they are in a private network
 */
export function systemLookup(
  servers?: readonly string[],
  asksInner = servers !== undefined,
  { authoritiesMs, resolverMs } = LIMITS,
): Lookup {
  const ask = async <T>(name: string, query: Ask<T>): Promise<T[]> => {
    try {
      return await askOne(servers, query, resolverMs)
    } catch (cause) {
      throw new LookupError(`the name servers of ${name} do not answer`, { cause })
    }
  }

  const addressesOf = async (name: string): Promise<string[]> => {
    const [four, six] = await Promise.all([
      ask(name, (resolver) => resolver.resolve4(name)),
      ask(name, (resolver) => resolver.resolve6(name)),
    ])
    return [...four, ...six]
  }

  /** Addresses of the name servers of the zone that a name is in; none where that is not plain to see. */
  const authoritiesOf = async (name: string): Promise<string[]> => {
    // Asking for the name itself would have the resolver remember that it is not there.
    let zone = name.split('.').length > 2 ? above(name) : name
    for (let level = 0; level < LEVELS_MOST && zone.includes('.'); level++, zone = above(zone)) {
      const at = zone
      const names = await ask(at, (resolver) => resolver.resolveNs(at))
      if (names.length === 0) continue
      // No zone's head has a CNAME: servers that were found by way of one are those of another zone, and of somebody
      // else, who may say nothing about this one.
      if ((await ask(at, (resolver) => resolver.resolveCname(at))).length > 0) return []
      const found = await Promise.all(names.slice(0, SERVERS_MOST).map(addressesOf))
      const open = found.flat().filter((address) => asksInner || !isInner(address))
      return open.slice(0, SERVERS_MOST)
    }
    return []
  }

  const direct = async <T>(name: string, query: Ask<T>): Promise<T[]> => {
    const authorities = await authoritiesOf(name).catch(() => [])
    const found = authorities.length > 0 ? await askOne(authorities, query, authoritiesMs).catch(() => []) : []
    return found.length > 0 ? found : await ask(name, query)
  }

  return {
    txt: async (name) => (await direct(name, (resolver) => resolver.resolveTxt(name))).map((parts) => parts.join('')),
    cname: async (name) => (await direct(name, (resolver) => resolver.resolveCname(name))).map(plain),
    async addresses(name) {
      const [four, six] = await Promise.all([
        direct(name, (resolver) => resolver.resolve4(name)),
        direct(name, (resolver) => resolver.resolve6(name)),
      ])
      return [...four, ...six]
    },
  }
}

/** @throws what the resolver throws, but for names and records that there are not */
async function askOne<T>(servers: readonly string[] | undefined, query: Ask<T>, limitMs: number): Promise<T[]> {
  // A resolver of its own for each question: one that is given up takes no other with it.
  const resolver = new Resolver({ timeout: TRY_MS, tries: TRIES })
  if (servers) resolver.setServers(servers)
  const late = setTimeout(() => resolver.cancel(), limitMs)
  try {
    return await query(resolver)
  } catch (error) {
    if (NONE.has((error as NodeJS.ErrnoException).code ?? '')) return []
    throw error
  } finally {
    clearTimeout(late)
  }
}

function above(name: string): string {
  return name.slice(name.indexOf('.') + 1)
}

/** Compared without case and last dot. */
function plain(name: string): string {
  return name.toLowerCase().replace(/\.$/, '')
}

/** Nobody's zone has the gateway knock at the doors of its own network. */
const INNER = new BlockList()
for (const [network, prefix] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.168.0.0', 16],
  ['224.0.0.0', 3],
] as const)
  INNER.addSubnet(network, prefix)
for (const [network, prefix] of [
  ['::', 127],
  ['fc00::', 7],
  ['fe80::', 10],
  ['ff00::', 8],
] as const)
  INNER.addSubnet(network, prefix, 'ipv6')

function isInner(address: string): boolean {
  return INNER.check(address, isIPv6(address) ? 'ipv6' : 'ipv4')
}
