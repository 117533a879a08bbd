/**
 * What a machine may know of itself, at http://169.254.169.254/ for those who are it: its name and address.
 * Machines are hostile, and there may be hundreds: everything they can hold on to has a bound, per machine and in all.
 */

import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { Socket } from 'node:net'
import { type NameLookup, type NetworkContext, NetworkError } from './types.ts'

const CONNECTIONS_PER_MACHINE = 16
const CONNECTIONS = 2048
const HEADER_BYTES = 4096
const REQUESTS_PER_CONNECTION = 100
/** From the connection's first byte to the whole request; and how long an idle connection is kept. */
const REQUEST_TIMEOUT_MS = 5000
const LOOKUP_TIMEOUT_MS = 5000

export type MetadataOptions = NetworkContext & {
  /** Where to listen: the gateway address and the port that machines' requests are redirected to. Port 0 takes any. */
  readonly address: string
  readonly port: number
  /** Is this the address of a machine on this host? */
  readonly isMachine: (address: string) => boolean
  readonly lookup: NameLookup
}

export type MetadataService = { readonly port: number; close(): Promise<void> }

/** Starts the service. @throws NetworkError when the port cannot be had */
export async function serveMetadata(options: MetadataOptions): Promise<MetadataService> {
  const connections = new Map<string, number>()
  const server = createServer(
    {
      maxHeaderSize: HEADER_BYTES,
      headersTimeout: REQUEST_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      keepAliveTimeout: REQUEST_TIMEOUT_MS,
      connectionsCheckingInterval: 1000,
    },
    (request, response) => {
      answer(request, response, options).catch((cause: unknown) => {
        options.log.error({ err: cause, sourceIp: request.socket.remoteAddress }, 'metadata request failed')
        if (!response.headersSent) send(response, 503, { error: 'the name of this machine cannot be looked up now' })
      })
    },
  )
  server.maxConnections = CONNECTIONS
  server.maxRequestsPerSocket = REQUESTS_PER_CONNECTION
  server.on('connection', (socket: Socket) => {
    const remote = socket.remoteAddress
    const count = connections.get(remote ?? '') ?? 0
    // Boundary: the firewall lets only machines' redirected requests in. Defence in depth: a process of the host, or
    // whatever a broken rule lets through, is nobody's machine and gets nothing.
    if (remote === undefined || socket.localAddress !== options.address || !options.isMachine(remote)) {
      socket.destroy()
      return
    }
    if (count >= CONNECTIONS_PER_MACHINE) {
      socket.end('HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
      socket.destroySoon()
      return
    }
    connections.set(remote, count + 1)
    socket.once('close', () => {
      const left = (connections.get(remote) ?? 1) - 1
      if (left > 0) connections.set(remote, left)
      else connections.delete(remote)
    })
  })
  server.on('clientError', (error: NodeJS.ErrnoException, socket) => {
    const status = error.code === 'HPE_HEADER_OVERFLOW' ? '431 Request Header Fields Too Large' : '400 Bad Request'
    if (!socket.writable) socket.destroy()
    else socket.end(`HTTP/1.1 ${status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`, () => socket.destroy())
  })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', reject)
  server.listen({ host: options.address, port: options.port }, resolve)
  await promise.catch((cause: unknown) => {
    throw new NetworkError(`The metadata service cannot listen on ${options.address}:${options.port}`, { cause })
  })
  server.off('error', reject)
  server.on('error', (err) => options.log.error({ err }, 'metadata service'))
  const bound = server.address()
  return {
    port: bound !== null && typeof bound === 'object' ? bound.port : options.port,
    async close() {
      const closed = new Promise<void>((done) => server.close(() => done()))
      server.closeAllConnections()
      await closed
    },
  }
}

async function answer(request: IncomingMessage, response: ServerResponse, options: MetadataOptions): Promise<void> {
  const sourceIp = request.socket.remoteAddress ?? ''
  if (request.method !== 'GET' && request.method !== 'HEAD') {
    response.setHeader('Allow', 'GET, HEAD')
    send(response, 405, { error: 'only GET is answered here' })
    return
  }
  const path = (request.url ?? '').split('?')[0]
  if (path !== '/') {
    send(response, 404, { error: 'there is nothing but / here' })
    return
  }
  const name = await withTimeout(options.lookup(sourceIp))
  if (name === undefined) send(response, 404, { error: `no machine has the address ${sourceIp}` })
  else send(response, 200, { name, source_ip: sourceIp })
}

function send(response: ServerResponse, status: number, body: Record<string, string>): void {
  const text = `${JSON.stringify(body)}\n`
  // A name may change with the next request, and the body of a refused request is nothing to wait for.
  const hasBody =
    response.req.headers['content-length'] !== undefined || response.req.headers['transfer-encoding'] !== undefined
  response.writeHead(status, {
    'Content-Type': 'application/json',
    'Content-Length': Buffer.byteLength(text),
    'Cache-Control': 'no-store',
    ...(hasBody ? { Connection: 'close' } : {}),
  })
  response.end(text)
}

async function withTimeout<T>(work: Promise<T>): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new NetworkError('the lookup of a name took too long')), LOOKUP_TIMEOUT_MS)
  try {
    return await Promise.race([work, promise])
  } finally {
    clearTimeout(timer)
  }
}
