/** What the host brings along: its own networks, its default routes, its forwarding, other firewalls. */

import { z } from 'zod'
import {
  type Cidr,
  formatCidr,
  isMachineAddress,
  overlaps,
  parseAddress,
  parseCidr,
  suggestNetwork,
} from './address.ts'
import { runCommand } from './command.ts'
import { isOurTap, type Kernel, ROUTE_PROTOCOL, type Route } from './kernel.ts'
import { NetworkError, NetworkTakenError } from './types.ts'

/** Label of the gateway address on `lo`: marks it as ours. @see ip-address(8), at most 15 characters, interface name first */
export const GATEWAY_LABEL = 'lo:berth'

/** Conntrack entries kept for the host itself, the gateway's clients among them, whatever machines do. */
const FLOWS_OF_HOST = 65_536

/**
 * Routes to less than a /8 are somebody's way of saying `default`: 0.0.0.0/1 and 128.0.0.0/1 (OpenVPN), or everything but the
 * private networks (WireGuard's AllowedIPs).
 */
const DEFAULT_ROUTE_PREFIX = 7

/**
 * @throws NetworkTakenError when `network` overlaps an address or route of the host that is not Berth's own; the message names
 *   it and suggests a /16 that is free
 */
export function checkOverlap(network: Cidr, kernel: Kernel): void {
  const taken = hostNetworks(kernel)
  const clash = taken.find((one) => overlaps(one.network, network))
  if (clash === undefined) return
  const free = suggestNetwork(taken.map((one) => one.network))
  const advice =
    free === undefined
      ? 'set BERTH_NETWORK to a network that is free here'
      : `set BERTH_NETWORK=${free}, which is free here`
  throw new NetworkTakenError(
    `BERTH_NETWORK ${formatCidr(network)} overlaps ${formatCidr(clash.network)}, a network of this host (${clash.device}); ${advice}`,
  )
}

function hostNetworks({ links, routes }: Kernel): { network: Cidr; device: string }[] {
  const addresses = [...links.values()].flatMap((link) =>
    (link.addr_info ?? []).flatMap(({ family, local, label }) =>
      family !== 'inet' || local === undefined || label === GATEWAY_LABEL || isOurTap(link)
        ? []
        : [{ network: parseCidr(local), device: link.ifname }],
    ),
  )
  const routed = routes.flatMap((route) => {
    const link = links.get(route.dev ?? '')
    const isOurs = route.protocol === String(ROUTE_PROTOCOL) || (link !== undefined && isOurTap(link))
    // Unreachable, blackhole and prohibit name networks that are not here; the tables' own are covered by addresses.
    if (isOurs || route.type !== 'unicast' || route.table === 'local') return []
    const network = destination(route)
    return network.prefix <= DEFAULT_ROUTE_PREFIX ? [] : [{ network, device: devicesOf(route).join(', ') || 'a route' }]
  })
  return [...addresses, ...routed]
}

/** Interfaces that lead to the internet: those of default routes in any table (policy routing, several paths). Sorted. */
export function findUplinks(kernel: Kernel): string[] {
  const devices = kernel.routes
    .filter((route) => route.type === 'unicast' && destination(route).prefix <= DEFAULT_ROUTE_PREFIX)
    .flatMap(devicesOf)
  return [...new Set(devices)].filter((device) => device !== 'lo').sort()
}

/** Interfaces that lead to networks which the operator allows. Answers come in there, so they must forward as well. */
export function devicesTowards(allowed: readonly Cidr[], kernel: Kernel): string[] {
  const devices = kernel.routes
    .filter((route) => route.type === 'unicast' && allowed.some((network) => overlaps(destination(route), network)))
    .filter((route) => destination(route).prefix > DEFAULT_ROUTE_PREFIX && route.protocol !== String(ROUTE_PROTOCOL))
    .flatMap(devicesOf)
  return [...new Set(devices)].filter((device) => device !== 'lo').sort()
}

function destination(route: Route): Cidr {
  return route.dst === 'default' ? parseCidr('0.0.0.0/0') : parseCidr(route.dst)
}

function devicesOf(route: Route): string[] {
  return [route.dev, ...(route.nexthops ?? []).map(({ dev }) => dev)].filter((dev) => dev !== undefined)
}

/**
 * Lines for `ip -batch` that put the gateway address on `lo` (so that it is there before the first tap, for listeners) and
 * make every address without a machine unreachable instead of leaving by the default route.
 */
export function planHost(network: Cidr, gateway: string, { links, routes }: Kernel): string[] {
  const labelled = (links.get('lo')?.addr_info ?? []).filter(({ label }) => label === GATEWAY_LABEL)
  const wanted = formatCidr(network)
  const stops = routes.filter((route) => route.type === 'unreachable' && route.protocol === String(ROUTE_PROTOCOL))
  return [
    ...labelled.filter(({ local }) => local !== gateway).map(({ local }) => `address delete ${local}/32 dev lo`),
    ...(labelled.some(({ local }) => local === gateway)
      ? []
      : [`address add ${gateway}/32 dev lo label ${GATEWAY_LABEL}`]),
    ...stops
      .filter(({ dst }) => dst !== wanted)
      .map(({ dst }) => `route delete unreachable ${dst} protocol ${ROUTE_PROTOCOL}`),
    ...(stops.some(({ dst }) => dst === wanted) ? [] : [`route add unreachable ${wanted} protocol ${ROUTE_PROTOCOL}`]),
  ]
}

/** @returns size of the connection table at which no number of hostile machines leaves the host without entries */
export function conntrackSize(machines: number, flowsPerMachine: number): number {
  return FLOWS_OF_HOST + machines * flowsPerMachine
}

const chainListSchema = z.object({
  nftables: z.array(
    z.object({
      chain: z
        .object({
          family: z.string(),
          table: z.string(),
          name: z.string(),
          type: z.string().optional(),
          hook: z.string().optional(),
          prio: z.number().optional(),
          policy: z.string().optional(),
        })
        .optional(),
    }),
  ),
})

export type Chain = NonNullable<z.infer<typeof chainListSchema>['nftables'][number]['chain']>

/** Every nftables chain of this network namespace, those of iptables-nft included. */
export async function readChains(): Promise<Chain[]> {
  const list = chainListSchema.parse(JSON.parse(await runCommand('nft', ['-j', 'list', 'chains'])))
  return list.nftables.flatMap(({ chain }) => (chain === undefined ? [] : [chain]))
}

/** Sentences about firewalls beside ours that drop what they do not know, which would cut machines off. */
export function describeForeignDrops(chains: readonly Chain[]): string[] {
  const what: Record<string, string> = {
    forward: 'machines have no internet',
    input: 'machines reach neither the metadata service nor, where it is not open to all, the gateway',
  }
  return chains
    .filter(
      ({ family, table, policy }) => policy === 'drop' && table !== 'berth' && (family === 'ip' || family === 'inet'),
    )
    .flatMap(({ family, table, name, hook }) => {
      const consequence = what[hook ?? '']
      if (consequence === undefined) return []
      return [
        `Firewall chain ${name} (table ${family} ${table}) drops what it does not know: unless it lets interfaces vm* through, ${consequence}`,
      ]
    })
}

/** May a machine have this address in `network`? @throws NetworkError if not */
export function checkMachineAddress(network: Cidr, address: string): void {
  if (!isMachineAddress(network, parseAddress(address))) {
    throw new NetworkError(`${address} is no machine's address in ${formatCidr(network)}`)
  }
}
