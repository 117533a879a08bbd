import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Server, Socket } from 'node:net'
import type { Settings } from '../settings.ts'
import { serveListener, trackConnections } from '../start/listeners.ts'
import { parseAuthority, siteOf } from './host.ts'

export type RedirectOptions = {
  /** whether a host that is none of the installation's own is a domain that somebody brought */
  isCustom(host: string): boolean | Promise<boolean>
  /** what HTTP-01 wants to read, where an order is open */
  challenge(host: string, token: string): Promise<string | undefined>
}

const CONNECTIONS = 512
const CONNECTIONS_PER_ADDRESS = 64
const CHALLENGE_PATH = '/.well-known/acme-challenge/'

/**
 * BERTH_HTTP: sends whoever comes without TLS to the same address with it, hosts of this installation alone. 308 keeps
 * the method, so that a form is not silently turned into a page. What an ACME directory looks for is answered here
 * (RFC 8555, 8.3).
 */
export function serveRedirects(
  listeners: readonly Server[],
  settings: Pick<Settings, 'domain' | 'machineDomain' | 'https'>,
  options: RedirectOptions,
): { close(): Promise<void> } {
  const port = settings.https[0]?.port ?? 443
  const server = createServer({
    requestTimeout: 10_000,
    headersTimeout: 10_000,
    keepAliveTimeout: 5_000,
    connectionsCheckingInterval: 2_000,
  })
  const perAddress = new Map<string, number>()
  /** Few are enough for redirects; file descriptors are SSH's and HTTPS' too. */
  const admit = (socket: Socket) => {
    const address = socket.remoteAddress ?? ''
    const count = (perAddress.get(address) ?? 0) + 1
    if (count > CONNECTIONS_PER_ADDRESS) {
      socket.destroy()
      return
    }
    perAddress.set(address, count)
    socket.once('close', () => {
      const left = (perAddress.get(address) ?? 1) - 1
      if (left > 0) perAddress.set(address, left)
      else perAddress.delete(address)
    })
    server.emit('connection', socket)
  }
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    const authority = parseAuthority(request.headers.host ?? '')
    const path = request.url ?? '/'
    if (!authority || !path.startsWith('/')) return say(response, 404, 'There is nothing here\n')
    const token = path.startsWith(CHALLENGE_PATH) ? path.slice(CHALLENGE_PATH.length) : ''
    if (/^[A-Za-z0-9_-]{1,512}$/.test(token)) {
      const authorization = await options.challenge(authority.host, token)
      if (authorization !== undefined) return say(response, 200, authorization, 'application/octet-stream')
    }
    const isForeign = siteOf(authority, settings, new Set()).kind === 'domain'
    if (isForeign && !(await options.isCustom(authority.host))) return say(response, 404, 'There is nothing here\n')
    const location = `https://${authority.host}${port === 443 ? '' : `:${port}`}${path}`
    response.writeHead(308, { location, 'content-length': '0', connection: 'close' }).end()
  }
  server.on('request', (request, response) => {
    answer(request, response).catch(() => say(response, 503, 'Try again in a moment\n'))
  })
  trackConnections(server)
  for (const listener of listeners) {
    listener.maxConnections = CONNECTIONS
    serveListener(listener, admit)
  }
  return {
    async close() {
      const closed = Promise.all(listeners.map((listener) => new Promise((resolve) => listener.close(resolve))))
      server.closeAllConnections()
      server.close()
      await closed
    },
  }
}

function say(response: ServerResponse, status: number, text: string, type = 'text/plain; charset=utf-8'): void {
  response.writeHead(status, { 'content-type': type, 'cache-control': 'no-store', connection: 'close' }).end(text)
}
