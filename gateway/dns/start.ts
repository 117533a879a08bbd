import type { Socket as UdpSocket } from 'node:dgram'
import type { Server } from 'node:net'
import type { App } from '../app.ts'
import type { Challenges } from '../https/acme/challenges.ts'
import { publicAddresses } from './addresses.ts'
import { type DnsServer, serveDns } from './server.ts'
import { CHALLENGE_LABEL, zone } from './zone.ts'

/** BERTH_DNS: the name server of this installation's domains. */
export function startDns(
  { settings, log }: App,
  challenges: Challenges,
  listeners: { udp: readonly UdpSocket[]; tcp: readonly Server[] },
): DnsServer {
  const { domain, machineDomain } = settings
  // One of the two may be a CNAME to the other, where only one was handed to this server.
  const own = [...new Set([domain, machineDomain])].map((name) => `${CHALLENGE_LABEL}.${name.toLowerCase()}`)
  return serveDns({
    ...listeners,
    log,
    answer: zone({
      domain,
      machineDomain,
      addresses: publicAddresses(settings),
      async challenges(name) {
        const open = await challenges.read()
        return own.includes(name) ? own.flatMap((one) => open.txt(one)) : open.txt(name)
      },
    }),
  })
}
