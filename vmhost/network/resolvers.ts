import { contains, formatCidr, parseAddress, parseCidr } from './address.ts'
import { GATEWAY_LABEL } from './host.ts'
import type { Kernel } from './kernel.ts'
import { NOT_THE_INTERNET } from './ruleset.ts'

export type ResolverSettings = {
  /** BERTH_RESOLVERS */
  readonly resolvers: readonly string[]
  /** BERTH_NETWORK */
  readonly network: string
  /** BERTH_ALLOW */
  readonly allow: readonly string[]
}

/**
 * Sentences about name servers that the rules keep machines from: without one, nothing in a machine has a name, and
 * nothing in it says why.
 * @param kernel for this server's own addresses
 */
export function describeResolvers({ resolvers, network, allow }: ResolverSettings, kernel: Kernel): string[] {
  const own = new Set(
    [...kernel.links.values()].flatMap((link) =>
      (link.addr_info ?? []).flatMap(({ label, local }) => (label === GATEWAY_LABEL ? [] : [local])),
    ),
  )
  const within = (networks: readonly string[], resolver: string) =>
    networks.find((one) => contains(parseCidr(one), parseAddress(resolver)))
  return resolvers.flatMap((resolver) => {
    const named = `BERTH_RESOLVERS names ${resolver}`
    if (within(['127.0.0.0/8'], resolver))
      return [`${named}, which in a machine is the machine itself: name the address of a name server`]
    if (within([network], resolver))
      return [`${named}, which lies in the machines' own network, where no name server is: name one outside of it`]
    if (own.has(resolver))
      return [`${named}, an address of this server, whose services machines do not reach: name one on another server`]
    const range = within(NOT_THE_INTERNET, resolver)
    if (range === undefined || within(allow, resolver)) return []
    const way = allow.length > 0 ? `add ${resolver} to BERTH_ALLOW` : `set BERTH_ALLOW=${resolver}`
    return [`${named}, which machines do not reach, since ${formatCidr(parseCidr(range))} is not the internet: ${way}`]
  })
}
