import { createServer, type Server } from 'node:net'
import type { Listen } from '../settings.ts'
import { SettingsError } from '../settings.ts'

/** Connections that wait in the kernel while the process is busy: bursts of ssh must not be dropped. */
const BACKLOG = 1024

/**
 * Opens every address. SO_REUSEPORT lets a successor, or a second process, listen on the same ports; the kernel
 * shares new connections out among them. What is accepted waits until `attach` serves it.
 * @param name the variable the addresses come from, named when one cannot be had
 * @throws SettingsError
 */
export async function openListeners(name: string, listens: readonly Listen[]): Promise<Server[]> {
  const servers: Server[] = []
  try {
    for (const listen of listens) servers.push(await open(name, listen))
    return servers
  } catch (error) {
    for (const server of servers) server.close()
    throw error
  }
}

/** `127.0.0.1:2222`, `:2222` */
export function listenText({ host, port }: Listen): string {
  return `${host === undefined ? '' : host.includes(':') ? `[${host}]` : host}:${port}`
}

async function open(name: string, listen: Listen): Promise<Server> {
  const server = createServer({ allowHalfOpen: false, pauseOnConnect: false })
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen({ ...listen, reusePort: true, backlog: BACKLOG, exclusive: true }, resolve)
    })
  } catch (cause) {
    const { code = 'unknown' } = cause as NodeJS.ErrnoException
    const why =
      {
        EADDRINUSE: 'another program listens there',
        EACCES: 'the port needs root',
        EADDRNOTAVAIL: 'no such address here',
      }[code] ?? code
    throw new SettingsError(`${name} is "${listenText(listen)}": ${why}`, { cause })
  }
  return server
}
