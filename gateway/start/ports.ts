import { hostname } from 'node:os'
import type { Sql } from '../../migrations/connect.ts'
import { publish } from './keys.ts'

/** What is asked of a bound server or socket: `AddressInfo` of node:net and node:dgram. */
type Bound = { address(): { address: string; family: string; port: number } | string | null }

/** A port that this gateway has; without `address` on every address of the server. */
export type BoundPort = { protocol: 'tcp' | 'udp'; port: number; address?: string }

/**
 * The ports that bound servers have, as IPv4 sees them. One that listens on IPv6 addresses alone has none: machines, for
 * whom this is written down, have no IPv6.
 */
export function boundPorts(protocol: 'tcp' | 'udp', servers: readonly Bound[]): BoundPort[] {
  return servers.flatMap((server): BoundPort[] => {
    const bound = server.address()
    if (bound === null || typeof bound === 'string') return []
    const { address, family, port } = bound
    if (address === '::' || address === '0.0.0.0') return [{ protocol, port }]
    return family === 'IPv4' ? [{ protocol, port, address }] : []
  })
}

/**
 * Tells the vmhost of this server which ports are the gateway's, for it to let machines through to: a port of the
 * settings that another program has is no business of theirs. By server, since each has programs of its own.
 */
export async function publishPorts(sql: Sql, ports: readonly BoundPort[]): Promise<void> {
  await publish(sql, `gateway_ports@${hostname()}`, JSON.stringify(ports))
}
