import { BlockList, isIP, isIPv4 } from 'node:net'
import { type NetworkInterfaceInfo, networkInterfaces } from 'node:os'
import type { Settings } from '../settings.ts'

/** One response carries them all. */
const ADDRESSES_MOST = 8

/**
 * Where this installation is reached, for the answers of its name server and to tell whether a domain points here:
 * BERTH_ADDRESSES, else the addresses that BERTH_HTTPS names, else the public ones of this server's interfaces, else
 * (behind another router, or with no public network at all) its private ones.
 */
export function publicAddresses(
  settings: Pick<Settings, 'addresses' | 'https' | 'network'>,
  interfaces: NodeJS.Dict<NetworkInterfaceInfo[]> = networkInterfaces(),
): string[] {
  if (settings.addresses.length > 0) return settings.addresses.slice(0, ADDRESSES_MOST)
  const listened = settings.https.flatMap(({ host }) => (host !== undefined && isIP(host) ? [host] : []))
  const named = listened.filter((address) => address !== '0.0.0.0' && address !== '::')
  if (named.length > 0) return named.slice(0, ADDRESSES_MOST)
  const machines = new BlockList()
  const [network = '', prefix] = settings.network.split('/')
  machines.addSubnet(network, Number(prefix))
  const own = Object.values(interfaces)
    .flatMap((addresses) => addresses ?? [])
    .filter(({ internal, address }) => !internal && !LINK_LOCAL.check(address, family(address)))
    .map(({ address }) => address)
    .filter((address) => !machines.check(address, family(address)))
  const open = own.filter((address) => !PRIVATE.check(address, family(address)))
  return [...new Set(open.length > 0 ? open : own)].slice(0, ADDRESSES_MOST)
}

const LINK_LOCAL = new BlockList()
LINK_LOCAL.addSubnet('169.254.0.0', 16)
LINK_LOCAL.addSubnet('fe80::', 10, 'ipv6')

/** RFC 1918, RFC 6598 (carriers' NAT), RFC 4193. */
const PRIVATE = new BlockList()
PRIVATE.addSubnet('10.0.0.0', 8)
PRIVATE.addSubnet('172.16.0.0', 12)
PRIVATE.addSubnet('192.168.0.0', 16)
PRIVATE.addSubnet('100.64.0.0', 10)
PRIVATE.addSubnet('fc00::', 7, 'ipv6')

function family(address: string): 'ipv4' | 'ipv6' {
  return isIPv4(address) ? 'ipv4' : 'ipv6'
}
