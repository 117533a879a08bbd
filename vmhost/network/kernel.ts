/** What the kernel has now, read with `ip -j` in one process, and the lines for `ip -batch` that make it what is wanted. */

import { readFile, writeFile } from 'node:fs/promises'
import { z } from 'zod'
import { macFor, machineOfTap, tapName } from './address.ts'
import { runCommand } from './command.ts'
import { TAP_GROUP } from './ruleset.ts'
import { type MachineNetwork, NetworkError } from './types.ts'

/** Routing protocol number on every route of ours: it says whose they are. Not listed in /etc/iproute2/rt_protos. */
export const ROUTE_PROTOCOL = 190

/** Ethernet's. Smaller paths are told to the guest by ICMP and segment clamping, not by a smaller card. */
const TAP_MTU = 1500

/**
 * Packets the kernel keeps for a guest that does not read. Each may be a 64 KiB super-packet that no socket is charged
 * for any more (tun orphans them): 512 bound one machine to 32 MiB, and are 6 ms of a gigabit in plain packets.
 */
const TAP_QUEUE_PACKETS = 512

const linkSchema = z.object({
  ifname: z.string(),
  flags: z.array(z.string()),
  mtu: z.number(),
  txqlen: z.number().optional(),
  group: z.string().optional(),
  address: z.string().optional(),
  linkinfo: z
    .object({
      info_kind: z.string().optional(),
      info_data: z
        .object({
          type: z.string().optional(),
          user: z.union([z.number(), z.string()]).optional(),
          vnet_hdr: z.boolean().optional(),
          multi_queue: z.boolean().optional(),
        })
        .optional(),
    })
    .optional(),
  addr_info: z
    .array(
      z.object({
        family: z.string(),
        local: z.string().optional(),
        prefixlen: z.number(),
        label: z.string().optional(),
      }),
    )
    .optional(),
})
const routeSchema = z.object({
  type: z.string().optional(),
  dst: z.string(),
  dev: z.string().optional(),
  table: z.string().optional(),
  protocol: z.string().optional(),
  metric: z.number().optional(),
  prefsrc: z.string().optional(),
  nexthops: z.array(z.object({ dev: z.string().optional() })).optional(),
})
const neighbourSchema = z.object({ dst: z.string(), dev: z.string(), lladdr: z.string().optional() })

export type Link = z.infer<typeof linkSchema>
export type Route = z.infer<typeof routeSchema>
export type Neighbour = z.infer<typeof neighbourSchema>
export type Kernel = {
  readonly links: ReadonlyMap<string, Link>
  readonly routes: readonly Route[]
  /** The permanent ones. */
  readonly neighbours: readonly Neighbour[]
}

/** Reads links with their addresses, IPv4 routes of all tables and permanent neighbours of this network namespace. */
export async function readKernel(): Promise<Kernel> {
  const questions = 'address show\nroute show table all\nneighbour show nud permanent\n'
  const answers = (await runCommand('ip', ['-j', '-d', '-batch', '-'], questions))
    .split('\n')
    .filter((line) => line !== '')
  const [links, routes, neighbours] = answers.map((line): unknown => JSON.parse(line))
  return {
    links: new Map(
      z
        .array(linkSchema)
        .parse(links)
        .map((link) => [link.ifname, link]),
    ),
    routes: z
      .array(routeSchema)
      .parse(routes)
      .filter(({ dst }) => !dst.includes(':')),
    neighbours: z.array(neighbourSchema).parse(neighbours ?? []),
  }
}

/** Machines' hypervisors run as this plus the machine's id. */
const FIRST_MACHINE_UID = 2_000_000

/** Is this interface a tap that Berth made? Name, kind and group must all say so. */
export function isOurTap(link: Link): boolean {
  return (
    machineOfTap(link.ifname) !== undefined &&
    link.linkinfo?.info_data?.type === 'tap' &&
    link.group === String(TAP_GROUP)
  )
}

/** Is it one whose making was interrupted before it had its group? It was never up, and its owner is a machine's. */
export function isHalfMadeTap(link: Link): boolean {
  const machineId = machineOfTap(link.ifname)
  const { type, user } = link.linkinfo?.info_data ?? {}
  const neverUp = link.group === 'default' && !link.flags.includes('UP')
  return machineId !== undefined && type === 'tap' && user === FIRST_MACHINE_UID + machineId && neverUp
}

/** What an adopted tap says of its machine; undefined when it is half made and says too little. */
export function machineOnTap(link: Link, kernel: Kernel): MachineNetwork | undefined {
  const machineId = machineOfTap(link.ifname)
  const uid = link.linkinfo?.info_data?.user
  const neighbour = kernel.neighbours.find(({ dev }) => dev === link.ifname)
  if (machineId === undefined || typeof uid !== 'number' || neighbour?.lladdr === undefined) return undefined
  return { machineId, uid, address: neighbour.dst, mac: neighbour.lladdr }
}

export type TapPlan = {
  /** Lines that bring the tap into being, down: run before its sysctls are set. Empty when there is a fitting one. */
  readonly create: readonly string[]
  /** Lines that give it address, route and neighbour, and take it up. Empty when all is right. */
  readonly configure: readonly string[]
  /** It is not up yet: connections that the kernel knows of this address are those of a machine before. */
  readonly isFresh: boolean
}

/**
 * The steps from what is to what `machine` needs.
 * @param gateway the gateway address, e.g. `10.42.0.1`
 * @throws NetworkError when the name belongs to an interface that is not ours
 */
export function planTap(machine: MachineNetwork, gateway: string, kernel: Kernel): TapPlan {
  const tap = tapName(machine.machineId)
  const link = kernel.links.get(tap)
  if (link !== undefined && !isOurTap(link) && !isHalfMadeTap(link)) {
    throw new NetworkError(`There is an interface ${tap} on this host that Berth did not make; rename or remove it`)
  }
  const adopted = link !== undefined && isOurTap(link) && fits(link, machine, gateway) ? link : undefined
  const create = [
    ...(link !== undefined && adopted === undefined ? [`link delete dev ${tap}`] : []),
    `tuntap add dev ${tap} mode tap user ${machine.uid} vnet_hdr`,
    `link set dev ${tap} group ${TAP_GROUP} mtu ${TAP_MTU} txqueuelen ${TAP_QUEUE_PACKETS} address ${macFor(gateway)}`,
  ]
  const isUp = adopted?.flags.includes('UP') === true
  return {
    create: adopted === undefined ? create : [],
    isFresh: !isUp,
    configure: [
      ...planAddresses(tap, gateway, adopted),
      ...(isUp ? [] : [`link set dev ${tap} up`]),
      ...planRoutes(tap, machine.address, gateway, adopted === undefined ? [] : kernel.routes),
      ...planNeighbours(tap, machine, adopted === undefined ? [] : kernel.neighbours),
    ],
  }
}

/** What cannot be changed on a tap that a hypervisor may hold, or is not worth it. */
function fits(link: Link, machine: MachineNetwork, gateway: string): boolean {
  const { user, vnet_hdr, multi_queue } = link.linkinfo?.info_data ?? {}
  return (
    user === machine.uid &&
    vnet_hdr === true &&
    multi_queue === false &&
    link.address === macFor(gateway) &&
    link.mtu === TAP_MTU
  )
}

function planAddresses(tap: string, gateway: string, link: Link | undefined): string[] {
  const found = (link?.addr_info ?? [])
    .filter(({ family }) => family === 'inet')
    .map(({ local, prefixlen }) => `${local}/${prefixlen}`)
  const wanted = `${gateway}/32`
  return [
    ...found.filter((address) => address !== wanted).map((address) => `address delete ${address} dev ${tap}`),
    ...(found.includes(wanted) ? [] : [`address add ${wanted} dev ${tap}`]),
  ]
}

function planRoutes(tap: string, address: string, gateway: string, routes: readonly Route[]): string[] {
  // The kernel's own routes come and go with the addresses they belong to.
  const found = routes.filter(({ dev, table, protocol }) => dev === tap && table !== 'local' && protocol !== 'kernel')
  const isRight = (route: Route): boolean =>
    route.dst === address &&
    route.protocol === String(ROUTE_PROTOCOL) &&
    route.prefsrc === gateway &&
    route.metric === undefined
  return [
    ...found
      .filter((route) => !isRight(route))
      .map(({ dst, metric }) => `route delete ${dst} dev ${tap}${metric === undefined ? '' : ` metric ${metric}`}`),
    ...(found.some(isRight)
      ? []
      : [`route replace ${address}/32 dev ${tap} src ${gateway} protocol ${ROUTE_PROTOCOL}`]),
  ]
}

function planNeighbours(tap: string, machine: MachineNetwork, neighbours: readonly Neighbour[]): string[] {
  const found = neighbours.filter(({ dev }) => dev === tap)
  const mac = machine.mac ?? macFor(machine.address)
  const isRight = ({ dst, lladdr }: Neighbour): boolean => dst === machine.address && lladdr === mac
  return [
    ...found.filter(({ dst }) => dst !== machine.address).map(({ dst }) => `neighbour delete ${dst} dev ${tap}`),
    ...(found.some(isRight) ? [] : [`neighbour replace ${machine.address} lladdr ${mac} dev ${tap} nud permanent`]),
  ]
}

/**
 * Settings of every tap, under /proc/sys/net. @see kernel documentation, networking/ip-sysctl.rst
 *
 * IPv6 is off: machines have no IPv6 address (the `ip=` of their kernel knows none, and the internet behind BERTH_NETWORK is
 * IPv4), and with it on the host would offer every service bound to `[::]` at the tap's link-local address, beside all rules.
 */
const TAP_SYSCTLS: readonly (readonly [path: string, value: string])[] = [
  ['ipv6/conf/TAP/disable_ipv6', '1'],
  ['ipv4/conf/TAP/rp_filter', '1'],
  ['ipv4/conf/TAP/accept_redirects', '0'],
  ['ipv4/conf/TAP/send_redirects', '0'],
  ['ipv4/conf/TAP/accept_source_route', '0'],
  ['ipv4/conf/TAP/proxy_arp', '0'],
  ['ipv4/conf/TAP/route_localnet', '0'],
  ['ipv4/conf/TAP/forwarding', '1'],
]

/** @returns true when something had to be changed */
export async function setTapSysctls(tap: string): Promise<boolean> {
  let changed = false
  for (const [path, value] of TAP_SYSCTLS) changed = (await setSysctl(path.replace('TAP', tap), value)) || changed
  return changed
}

/**
 * Writes /proc/sys/net/`path` unless it reads `value` already. A missing file is what a kernel without that feature has
 * (IPv6 switched off at boot) and passes.
 * @returns true when it was written
 * @throws NetworkError when it cannot be written
 */
export async function setSysctl(path: string, value: string): Promise<boolean> {
  const now = await readSysctl(path)
  if (now === undefined || now === value) return false
  try {
    await writeFile(`/proc/sys/net/${path}`, value)
  } catch (cause) {
    throw new NetworkError(`/proc/sys/net/${path} is ${now} and cannot be set to ${value}`, { cause })
  }
  return true
}

/** @returns the value without white space around it; undefined when the kernel has no such setting */
export async function readSysctl(path: string): Promise<string | undefined> {
  const text = await readFile(`/proc/sys/net/${path}`, 'utf8').catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === 'ENOENT') return undefined
    throw new NetworkError(`/proc/sys/net/${path} cannot be read`, { cause })
  })
  return text?.trim()
}
