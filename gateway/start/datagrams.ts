import { createSocket, type Socket } from 'node:dgram'
import { isIPv4 } from 'node:net'
import type { Listen } from '../settings.ts'
import { cannotListen } from './listeners.ts'

/**
 * Binds a UDP socket to every address, with SO_REUSEPORT as the TCP listeners have it. What arrives before somebody
 * listens for messages is dropped, as datagrams may be.
 * @param name the variable the addresses come from, named when one cannot be had
 * @throws SettingsError
 */
export async function openDatagrams(name: string, listens: readonly Listen[]): Promise<Socket[]> {
  const sockets: Socket[] = []
  try {
    for (const listen of listens) sockets.push(await open(name, listen))
    return sockets
  } catch (error) {
    for (const socket of sockets) socket.close()
    throw error
  }
}

async function open(name: string, listen: Listen): Promise<Socket> {
  const { host, port } = listen
  try {
    return await bind(host !== undefined && isIPv4(host) ? 'udp4' : 'udp6', host, port)
  } catch (cause) {
    const { code } = cause as NodeJS.ErrnoException
    // A server without IPv6, or a host name that has only an IPv4 address.
    const isWithoutIpv6 = code === 'EAFNOSUPPORT' || code === 'EADDRNOTAVAIL' || code === 'ENOTFOUND'
    if (isWithoutIpv6 && !host?.includes(':')) {
      return await bind('udp4', host, port).catch((again) => {
        throw cannotListen(name, listen, again)
      })
    }
    throw cannotListen(name, listen, cause)
  }
}

function bind(type: 'udp4' | 'udp6', address: string | undefined, port: number): Promise<Socket> {
  const socket = createSocket({ type, reusePort: true })
  return new Promise((resolve, reject) => {
    socket.once('error', (error) => {
      socket.close()
      reject(error)
    })
    socket.bind({ port, ...(address === undefined ? {} : { address }) }, () => {
      socket.removeAllListeners('error')
      socket.on('error', () => {})
      resolve(socket)
    })
  })
}
