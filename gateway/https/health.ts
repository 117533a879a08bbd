import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http'
import type { AddressInfo, Server } from 'node:net'
import type { Registry } from 'prom-client'
import type { Listen } from '../settings.ts'
import { serveListener, trackConnections } from '../start/listeners.ts'

/** What keeps the gateway from serving, one sentence each; none: ready. */
export type Readiness = () => Promise<readonly string[]>

/**
 * Answers `/healthz` (the process runs) and `/readyz` (it can serve: 200, or 503 with the reasons), for the control
 * host and BERTH_METRICS alike.
 * @returns false when the request was for something else
 */
export function answerHealth(request: IncomingMessage, response: ServerResponse, readiness: Readiness): boolean {
  const path = request.url?.split('?')[0]
  if (path === '/healthz') {
    response.writeHead(200, PLAIN).end('ok\n')
    return true
  }
  if (path !== '/readyz') return false
  readiness().then(
    (reasons) => {
      response.writeHead(reasons.length === 0 ? 200 : 503, PLAIN)
      response.end(reasons.length === 0 ? 'ready\n' : `${reasons.join('\n')}\n`)
    },
    () => response.writeHead(503, PLAIN).end('The gateway could not find out\n'),
  )
  return true
}

/**
 * Serves `/metrics` in Prometheus' text format, and the two health pages, on BERTH_METRICS.
 * @param listens addresses, or servers that are bound already
 * @throws when an address cannot be listened on
 */
export async function serveMetrics(listens: readonly (Listen | Server)[], registry: Registry, readiness: Readiness) {
  const listener: RequestListener = (request, response) => {
    if (answerHealth(request, response, readiness)) return
    if (request.url?.split('?')[0] !== '/metrics') {
      response.writeHead(404, PLAIN).end('There is /metrics, /healthz and /readyz\n')
      return
    }
    registry.metrics().then(
      (text) => response.writeHead(200, { 'content-type': registry.contentType }).end(text),
      () => response.writeHead(500, PLAIN).end('The metrics could not be read\n'),
    )
  }
  const doors: Server[] = []
  const servers = listens.map((listen) => {
    const server = createServer({ requestTimeout: 10_000 }, listener)
    if ('address' in listen) {
      trackConnections(server)
      serveListener(listen, (socket) => server.emit('connection', socket))
      doors.push(listen)
      return Promise.resolve(server)
    }
    doors.push(server)
    return new Promise<typeof server>((resolve, reject) => {
      server.once('error', reject)
      server.listen({ host: listen.host, port: listen.port }, () => resolve(server))
    })
  })
  const serving = await Promise.all(servers)
  return {
    addresses: doors.map((door) => door.address() as AddressInfo),
    async close() {
      const closed = Promise.all(doors.map((door) => new Promise((resolve) => door.close(resolve))))
      for (const server of serving) {
        server.closeAllConnections()
        server.close()
      }
      await closed
    },
  }
}

const PLAIN = { 'content-type': 'text/plain; charset=utf-8', 'cache-control': 'no-store' }
