import { createServer } from 'node:http'
import type { Server } from 'node:net'
import type { Settings } from '../settings.ts'
import { serveListener, trackConnections } from '../start/listeners.ts'
import { parseAuthority, siteOf } from './host.ts'

/**
 * BERTH_HTTP: sends whoever comes without TLS to the same address with it, hosts of this installation alone. 308 keeps
 * the method, so that a form is not silently turned into a page.
 */
export function serveRedirects(
  listeners: readonly Server[],
  settings: Pick<Settings, 'domain' | 'machineDomain' | 'https'>,
): { close(): Promise<void> } {
  const port = settings.https[0]?.port ?? 443
  const server = createServer({ requestTimeout: 10_000, headersTimeout: 10_000, keepAliveTimeout: 5_000 })
  server.on('request', (request, response) => {
    const authority = parseAuthority(request.headers.host ?? '')
    const path = request.url ?? '/'
    if (!authority || !path.startsWith('/') || siteOf(authority, settings, new Set()).kind === 'domain') {
      response.writeHead(404, { 'content-type': 'text/plain; charset=utf-8', connection: 'close' })
      response.end('There is nothing here\n')
      return
    }
    const location = `https://${authority.host}${port === 443 ? '' : `:${port}`}${path}`
    response.writeHead(308, { location, 'content-length': '0', connection: 'close' }).end()
  })
  trackConnections(server)
  for (const listener of listeners) serveListener(listener, (socket) => server.emit('connection', socket))
  return {
    async close() {
      const closed = Promise.all(listeners.map((listener) => new Promise((resolve) => listener.close(resolve))))
      server.closeAllConnections()
      server.close()
      await closed
    },
  }
}
