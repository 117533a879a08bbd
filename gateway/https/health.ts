import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { Registry } from 'prom-client'
import type { Listen } from '../settings.ts'

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
 * @throws when an address cannot be listened on
 */
export async function serveMetrics(listens: readonly Listen[], registry: Registry, readiness: Readiness) {
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
  const servers = await Promise.all(
    listens.map(({ host, port }) => {
      const server = createServer({ requestTimeout: 10_000 }, listener)
      return new Promise<typeof server>((resolve, reject) => {
        server.once('error', reject)
        server.listen({ host, port }, () => resolve(server))
      })
    }),
  )
  return {
    addresses: servers.map((server) => server.address() as AddressInfo),
    async close() {
      for (const server of servers) server.closeAllConnections()
      await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))))
    },
  }
}

const PLAIN = { 'content-type': 'text/plain; charset=utf-8', 'cache-control': 'no-store' }
