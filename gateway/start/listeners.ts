import type { Server as HttpServer } from 'node:http'
import { createServer, type Server, type Socket } from 'node:net'
import type { Listen } from '../settings.ts'
import { SettingsError } from '../settings.ts'

/** Connections that wait in the kernel while the process is busy: bursts of ssh must not be dropped. */
const BACKLOG = 1024

/** What was accepted before anybody served it. */
const early = new WeakMap<Server, Socket[]>()

export type ListenerOptions = {
  /** a client that has ended its side is still answered; default false */
  allowHalfOpen?: boolean
}

/**
 * Opens every address. SO_REUSEPORT lets a successor, or a second process, listen on the same ports; the kernel
 * shares new connections out among them. What is accepted waits until `serveListener` takes it.
 * @param name the variable the addresses come from, named when one cannot be had
 * @throws SettingsError
 */
export async function openListeners(
  name: string,
  listens: readonly Listen[],
  options: ListenerOptions = {},
): Promise<Server[]> {
  const servers: Server[] = []
  try {
    for (const listen of listens) {
      const server = await open(name, listen, options)
      const waiting: Socket[] = []
      early.set(server, waiting)
      server.on('connection', (socket) => waiting.push(socket.on('error', ignore)))
      servers.push(server)
    }
    return servers
  } catch (error) {
    for (const server of servers) server.close()
    throw error
  }
}

/** Serves what a bound server accepts, beginning with what it has accepted already. */
export function serveListener(server: Server, serve: (socket: Socket) => void): void {
  const waiting = early.get(server)
  if (waiting) server.removeAllListeners('connection')
  early.delete(server)
  server.on('connection', serve)
  for (const socket of waiting ?? []) {
    if (socket.destroyed) continue
    serve(socket)
    socket.off('error', ignore)
  }
}

/**
 * An HTTP server that never listens itself, and is handed connections, knows none of them: no timeout would apply, and
 * none could be closed. Node begins to keep its list with this event (lib/_http_server.js, setupConnectionsTracking).
 */
export function trackConnections(server: HttpServer): void {
  server.emit('listening')
}

/** `127.0.0.1:2222`, `:2222` */
export function listenText({ host, port }: Listen): string {
  return `${host === undefined ? '' : host.includes(':') ? `[${host}]` : host}:${port}`
}

async function open(name: string, listen: Listen, { allowHalfOpen = false }: ListenerOptions): Promise<Server> {
  const server = createServer({ allowHalfOpen, pauseOnConnect: false })
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen({ ...listen, reusePort: true, backlog: BACKLOG, exclusive: true }, resolve)
    })
  } catch (cause) {
    throw cannotListen(name, listen, cause)
  }
  return server
}

export function cannotListen(name: string, listen: Listen, cause: unknown): SettingsError {
  const { code = 'unknown' } = cause as NodeJS.ErrnoException
  const why =
    {
      EADDRINUSE: 'another program listens there',
      EACCES: 'the port needs root',
      EADDRNOTAVAIL: 'no such address here',
    }[code] ?? code
  return new SettingsError(`${name} is "${listenText(listen)}": ${why}`, { cause })
}

function ignore(): void {}
