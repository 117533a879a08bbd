/**
 * The firewall as text for `nft -f -`: everything that keeps machines apart from each other, from the host and from
 * private networks. Rendering is pure; applying the text is one transaction, so a packet meets either all of the old
 * rules or all of the new ones. That holds for rules, not for sets that come with them: the kernel fills the set of a new rule
after it has switched to it, and a `{ 10.0.0.0/8, .. }` is empty for that moment. So what refuses is spelt out, a rule each.
 *
 * The text adds what is missing, flushes the rules and states them again. It never deletes a table, a counter or
 * `flows`: counters keep their readings and connection counts stay true across every update (`flush table` empties
 * chains only). What is counted for money: counters.ts.
 *
 * Taps are recognised by their interface group, not by name: the group is set before a tap is up, so that a tap which
 * the rules do not know yet is shut out instead of let through, and the operator's own `vmbr0` is none of our business.
 *
 * Hook priorities. `entry` is at raw (-300): spoofed packets die before conntrack remembers them. `metadata` is at
 * dstnat - 10, in front of Docker's and the operator's redirects, and `machine_ports` at dstnat + 10 behind them. `to_host` and `transit` are at filter - 10: our
 * refusals do not depend on what the operator accepts. It does not work the other way round: an accept here does not
 * overrule a drop in another table (ufw, firewalld, Docker's FORWARD policy), so those must let machines through
 * themselves, by `iifname "vm*"` or the interface group.
 *
 * @see https://wiki.nftables.org/wiki-nftables/index.php/Netfilter_hooks
 */

import { type Cidr, formatCidr, gatewayAddress, tapName } from './address.ts'
import { type CountedMachine, counterElements, renderCounters } from './counters.ts'
import type { MachineNetwork, PublicPort } from './types.ts'

/** Interface group of every tap of ours: 0xbe47. Not listed in /etc/iproute2/group, so tools print the number. */
export const TAP_GROUP = 48_711

/** What machines call the metadata service (AWS, GCP and everybody since). */
export const METADATA_ADDRESS = '169.254.169.254'

/**
 * Where the metadata service really listens, on the gateway address. Machines' port 80 is redirected here instead of the host
 * taking 169.254.169.254 for itself: on a cloud server that is the provider's own service, which the server goes on needing,
 * and a gateway listening on `:80` would collide. Under the ephemeral range, so that no outgoing connection holds it.
 */
export const METADATA_PORT = 16_925

/** Of a machine, what is reachable over HTTPS by its number. */
const MACHINE_PORTS = '3000-9999'

/** Connections (conntrack entries) one machine may have at a time, unless set; about 2.5 MB of the host's memory. */
export const FLOWS_PER_MACHINE = 8192

/**
 * Special-purpose addresses that are nobody's internet: IANA's registry (RFC 6890 and updates) without the documentation
 * networks, which are routed nowhere and which the tests play the internet with.
 */
export const NOT_THE_INTERNET = [
  '0.0.0.0/8', // RFC 1122, 3.2.1.3: this network
  '10.0.0.0/8', // RFC 1918
  '100.64.0.0/10', // RFC 6598: shared address space; carriers, and Tailscale
  '127.0.0.0/8', // RFC 1122, 3.2.1.3: loopback
  '169.254.0.0/16', // RFC 3927: link local, and the metadata services of clouds
  '172.16.0.0/12', // RFC 1918
  '192.0.0.0/24', // RFC 6890, 2.1: protocol assignments
  '192.88.99.0/24', // RFC 7526: 6to4 relays, withdrawn
  '192.168.0.0/16', // RFC 1918
  '198.18.0.0/15', // RFC 2544: benchmarks of network devices
  '224.0.0.0/4', // RFC 1112: multicast
  '240.0.0.0/4', // RFC 1112: reserved; 255.255.255.255
] as const

/** Why packets were refused: names of the counters, which keep counting across updates. */
const REFUSALS = [
  'spoofed',
  'unrouted_source',
  'not_ipv4',
  'broadcast',
  'outside_as_machine',
  'outside_to_network',
  'machine',
  'private',
  'no_uplink',
  'host',
  'inbound',
  'transit',
  'invalid',
  'flows',
] as const

export type Ruleset = {
  readonly network: Cidr
  readonly allow: readonly Cidr[]
  readonly publicPorts: readonly PublicPort[]
  /** Interfaces with a default route. */
  readonly uplinks: readonly string[]
  /** Uplinks that forward only because we said so: nothing but machines' traffic may pass through them. */
  readonly opened: readonly string[]
  readonly flowsPerMachine: number
  readonly machines: readonly (Pick<MachineNetwork, 'machineId' | 'address'> & CountedMachine)[]
}

/** A base chain as `nft -j list chains` shows it. */
export type BaseChain = { readonly name: string; readonly type: string; readonly hook: string; readonly prio: number }

const BASE_CHAINS: readonly BaseChain[] = [
  { name: 'entry', type: 'filter', hook: 'prerouting', prio: -300 },
  { name: 'metadata', type: 'nat', hook: 'prerouting', prio: -110 },
  { name: 'machine_ports', type: 'nat', hook: 'prerouting', prio: -90 },
  { name: 'to_host', type: 'filter', hook: 'input', prio: -10 },
  { name: 'from_host', type: 'filter', hook: 'output', prio: -10 },
  { name: 'transit', type: 'filter', hook: 'forward', prio: -10 },
  { name: 'outwards', type: 'nat', hook: 'postrouting', prio: 100 },
]

/** The chains among `found`, all of table `inet berth`, that this version cannot take over as they are. */
export function staleChains(found: readonly { [key in keyof BaseChain]?: BaseChain[key] | undefined }[]): string[] {
  return found.flatMap(({ name, type, hook, prio }) => {
    const ours = BASE_CHAINS.find((chain) => chain.name === name)
    if (name === undefined || (ours === undefined && hook === undefined)) return []
    const same = ours !== undefined && ours.type === type && ours.hook === hook && ours.prio === prio
    return same ? [] : [name]
  })
}

/**
 * The whole firewall as one transaction. One rule a line, each with a comment that names it, for people who read
 * `nft list ruleset` and for the tests, which take rules away one by one.
 * @param stale chains of another version (`staleChains`), deleted in the same transaction
 */
export function renderRuleset(ruleset: Ruleset, stale: readonly string[] = []): string {
  const rules = chainRules(ruleset)
  const machines = ruleset.machines.map(({ machineId, address }) => `"${tapName(machineId)}" . ${address}`)
  return [
    'add table inet berth',
    'flush table inet berth',
    ...stale.map((name) => `delete chain inet berth ${name}`),
    ...REFUSALS.map((name) => `add counter inet berth refused_${name}`),
    ...renderCounters(ruleset.machines),
    'add set inet berth machines { typeof iifname . ip saddr; size 65536; }',
    'add set inet berth flows { typeof ip saddr; size 65536; flags dynamic; }',
    'add set inet berth opened { type ifname; size 1024; }',
    ...BASE_CHAINS.map(
      ({ name, type, hook, prio }) =>
        `add chain inet berth ${name} { type ${type} hook ${hook} priority ${prio}; policy accept; }`,
    ),
    // Every chain is declared before the first rule that jumps to it.
    ...rules
      .filter(({ chain }) => !BASE_CHAINS.some(({ name }) => name === chain))
      .map(({ chain }) => `add chain inet berth ${chain}`),
    ...rules.flatMap(({ chain, lines }) => lines.map((line) => `add rule inet berth ${chain} ${line}`)),
    ...replaceElements('set inet berth machines', machines),
    ...replaceElements('map inet berth direct_in', counterElements('direct_in', ruleset.machines)),
    ...replaceElements('map inet berth gateway_in', counterElements('gateway_in', ruleset.machines)),
    ...replaceElements('set inet berth opened', ruleset.opened.map(quote)),
    ...arpTable(machines),
    '',
  ].join('\n')
}

type ChainRules = { readonly chain: string; readonly lines: readonly string[] }

function chainRules(ruleset: Ruleset): ChainRules[] {
  const fromTap = `iifgroup ${TAP_GROUP}`
  const toTap = `oifgroup ${TAP_GROUP}`
  const network = formatCidr(ruleset.network)
  const gateway = gatewayAddress(ruleset.network)
  return [
    {
      chain: 'entry',
      lines: [
        `${fromTap} goto entry_machine comment "what machines send"`,
        'iifname "lo" accept comment "the host to itself"',
        // The host answers on any of its addresses whatever interface asks (weak host model): the gateway address,
        // and what listens there for machines, is not for neighbours of the host.
        `ip saddr ${network} ${refuse('outside_as_machine', 'drop', 'no machine is out there')}`,
        `ip daddr ${network} ${refuse('outside_to_network', 'drop', 'machines are reached through the gateway')}`,
      ],
    },
    {
      chain: 'entry_machine',
      lines: [
        `meta nfproto != ipv4 ${refuse('not_ipv4', 'drop', 'machines have no IPv6')}`,
        `iifname . ip saddr != @machines ${refuse('spoofed', 'drop', 'only its own address')}`,
        // The same by the routing table, which is written apart from the set: two mistakes are needed to let one through.
        `fib saddr . iif oif missing ${refuse('unrouted_source', 'drop', 'only addresses routed to this tap')}`,
        ...['broadcast', 'multicast', 'anycast'].map(
          (type) => `fib daddr type ${type} ${refuse('broadcast', 'drop', 'nobody to broadcast to')}`,
        ),
      ],
    },
    {
      chain: 'metadata',
      lines: [
        `${fromTap} ip daddr ${METADATA_ADDRESS} tcp dport 80 dnat ip to ${gateway}:${METADATA_PORT} comment "metadata service"`,
      ],
    },
    { chain: 'machine_ports', lines: redirectMachinePorts(ruleset.publicPorts) },
    {
      chain: 'to_host',
      lines: [
        `iifgroup != ${TAP_GROUP} accept comment "not from a machine"`,
        'ct state established,related accept comment "answers to the gateway"',
        `ct state invalid ${refuse('invalid', 'drop', 'belongs to no connection')}`,
        ...limitFlows(ruleset.flowsPerMachine),
        `ip daddr ${gateway} icmp type echo-request limit rate 50/second burst 50 packets accept comment "ping the gateway"`,
        // By the address that the machine asked for: the port itself, asked directly, is a service of the host like any other.
        `tcp dport ${METADATA_PORT} ct status dnat ct original ip daddr ${METADATA_ADDRESS} ct original proto-dst 80 accept comment "metadata service"`,
        ...ruleset.publicPorts.map(
          ({ protocol, port, address }) =>
            `${address === undefined ? 'fib daddr type local' : `ip daddr ${address}`} ${protocol} dport ${port} accept comment "the gateway"`,
        ),
        refuse('host', REJECT, 'no other service of the host'),
      ],
    },
    {
      chain: 'from_host',
      lines: [
        `oifgroup != ${TAP_GROUP} accept comment "not to a machine"`,
        // As the service sends it; the machine sees the metadata address.
        `ip saddr ${gateway} tcp sport ${METADATA_PORT} accept comment "metadata is free"`,
        'counter name oifname map @gateway_in comment "what the host sends"',
      ],
    },
    {
      chain: 'transit',
      lines: [
        `${fromTap} goto from_machine comment "what machines send"`,
        `${toTap} goto to_machine comment "what machines get"`,
        // Forwarding was off before Berth switched it on: the host does not become a router for anybody else.
        `iifname @opened ${refuse('transit', 'drop', 'forwarding is on for machines only')}`,
      ],
    },
    {
      chain: 'from_machine',
      lines: [
        `${toTap} ${refuse('machine', REJECT, 'no other machine')}`,
        `ip daddr ${network} ${refuse('machine', REJECT, 'no address of machines')}`,
        ...ruleset.allow.map(
          (allowed) => `ip daddr ${formatCidr(allowed)} goto outside comment "allowed by the operator"`,
        ),
        ...NOT_THE_INTERNET.map((range) => `ip daddr ${range} ${refuse('private', REJECT, 'no private network')}`),
        // Anything behind a tunnel or a bridge is not the internet either, whatever its addresses look like.
        ...ruleset.uplinks.map((uplink) => `oifname ${quote(uplink)} goto outside comment "the internet"`),
        refuse('no_uplink', REJECT, 'only by a default route'),
      ],
    },
    {
      chain: 'outside',
      lines: [
        CLAMP_SEGMENT_SIZE,
        `ct state invalid ${refuse('invalid', 'drop', 'would leave untranslated')}`,
        'jump egress_policy comment "what this machine may reach"',
        ...limitFlows(ruleset.flowsPerMachine),
        'accept comment "out"',
      ],
    },
    // Per machine, later: a verdict map by source address, in front of established connections so that a change counts at once.
    { chain: 'egress_policy', lines: [] },
    {
      chain: 'to_machine',
      lines: [
        CLAMP_SEGMENT_SIZE,
        'ct state established,related counter name oifname map @direct_in comment "what others send"',
        'ct state established,related accept comment "answers"',
        refuse('inbound', 'drop', 'only processes of the host open connections to machines'),
      ],
    },
    {
      chain: 'outwards',
      lines: [
        `ip saddr ${network} ${`oifgroup != ${TAP_GROUP}`} oifname != "lo" masquerade comment "by the host's address"`,
      ],
    },
  ]
}

/**
 * `https://NAME.domain:3000` and its like: the HTTPS listener tells the ports apart by what the client asked for. What
 * a program of the host listens on stays that program's. @see https://docs.kernel.org/networking/tproxy.html, `socket`
 */
function redirectMachinePorts(ports: readonly PublicPort[]): string[] {
  const redirects = ports
    .filter(({ forMachinePorts }) => forMachinePorts)
    .map(({ port, address }) =>
      address === undefined
        ? `fib daddr type local tcp dport ${MACHINE_PORTS} redirect to :${port} comment "ports of machines"`
        : `ip daddr ${address} tcp dport ${MACHINE_PORTS} dnat ip to ${address}:${port} comment "ports of machines"`,
    )
  if (redirects.length === 0) return []
  return [`tcp dport ${MACHINE_PORTS} socket wildcard 0-1 accept comment "in use on the host"`, ...redirects]
}

/** Says no at once (EHOSTUNREACH in the guest) instead of letting a developer wait for a time-out. @see RFC 1812, 5.2.7.1 code 13 */
const REJECT = 'reject with icmpx admin-prohibited'

/** For paths with a smaller MTU behind routers that swallow ICMP. @see RFC 4459, 3.2 */
const CLAMP_SEGMENT_SIZE = 'tcp flags syn / syn,rst tcp option maxseg size set rt mtu comment "segments fit the path"'

function refuse(reason: (typeof REFUSALS)[number], verdict: string, comment: string): string {
  return `counter name refused_${reason} ${verdict} comment "${comment}"`
}

/** A machine that opens connections without end fills the host's table, and nobody else gets one: the gateway included. */
function limitFlows(flowsPerMachine: number): string[] {
  return [
    `ct state new add @flows { ip saddr ct count over ${flowsPerMachine} } ${refuse('flows', 'drop', 'too many connections')}`,
  ]
}

/**
 * ARP: a machine may ask and answer for its own address only (or for none: the probe of RFC 5227). Otherwise one
 * machine asking under many names fills the neighbour table of the whole host (net.ipv4.neigh.default.gc_thresh3).
 */
function arpTable(machines: readonly string[]): string[] {
  const rules = [
    `iifgroup != ${TAP_GROUP} accept comment "not from a machine"`,
    'arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ip 0.0.0.0 accept comment "a probe"',
    'arp htype 1 arp ptype ip arp hlen 6 arp plen 4 iifname . arp saddr ip @machines accept comment "its own address"',
    'counter name refused_arp drop comment "somebody else\'s address"',
  ]
  return [
    'add table arp berth',
    'flush table arp berth',
    'add counter arp berth refused_arp',
    'add set arp berth machines { typeof iifname . arp saddr ip; size 65536; }',
    'add chain arp berth entry { type filter hook input priority 0; policy accept; }',
    ...rules.map((rule) => `add rule arp berth entry ${rule}`),
    ...replaceElements('set arp berth machines', machines),
  ]
}

/** @param named kind, family, table and name, such as `map inet berth direct_in` */
function replaceElements(named: string, elements: readonly string[]): string[] {
  const name = named.slice(named.indexOf(' ') + 1)
  return [`flush ${named}`, ...(elements.length > 0 ? [`add element ${name} { ${elements.join(', ')} }`] : [])]
}

function quote(name: string): string {
  return `"${name}"`
}
