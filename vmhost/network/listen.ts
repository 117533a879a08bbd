import { parseAddress } from './address.ts'
import type { PublicPort } from './types.ts'

/**
 * The ports that a listen setting opens to machines. IPv6 addresses open none: machines have no IPv6, except `[::]`,
 * which takes IPv4 as well.
 * @param listen value of BERTH_SSH and its like: `:2222`, `203.0.113.5:22,[::]:2222`, `off` or empty
 * @throws RangeError when a part is no listen address
 */
export function publicPorts(listen: string, protocol: 'tcp' | 'udp'): PublicPort[] {
  const parts = listen.split(',').map((part) => part.trim())
  return parts.flatMap((part): PublicPort[] => {
    if (part === '' || part === 'off') return []
    const match = /^(?<host>|\[[0-9a-fA-F:.]+\]|[0-9.]+|\*):(?<port>[1-9][0-9]{0,4})$/.exec(part)
    const { host = '', port: portText = '' } = match?.groups ?? {}
    const port = Number(portText)
    if (match === null || port > 65_535) throw new RangeError(`${JSON.stringify(part)} is no listen address`)
    if (host === '' || host === '*' || host === '0.0.0.0' || host === '[::]') return [{ protocol, port }]
    if (host.startsWith('[')) return []
    parseAddress(host)
    return [{ protocol, port, address: host }]
  })
}
