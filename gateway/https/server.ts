import { constants } from 'node:crypto'
import { createServer as createHttpServer, type Server as HttpServer, type RequestListener } from 'node:http'
import { type AddressInfo, createServer as createNetServer, type Server as NetServer, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { createServer as createTlsServer, type SecureContext, TLSSocket, type Server as TlsServer } from 'node:tls'
import type { Log } from '../log.ts'
import type { Listen, Settings } from '../settings.ts'
import { addressGroup } from '../ssh/limits.ts'
import { serveListener, trackConnections } from '../start/listeners.ts'
import type { AccessLog } from './access-log.ts'
import { parseAuthority } from './host.ts'
import { HttpsMetrics } from './metrics.ts'
import { Clock } from './proxy/clock.ts'
import { type ClientConnection, PROXY_LIMITS, type ProxyContext, type ProxyLimits } from './proxy/context.ts'
import { Http1Client } from './proxy/http1.ts'
import { Http2Client } from './proxy/http2.ts'
import { POOL_LIMITS, type PoolLimits, UpstreamPool } from './proxy/pool.ts'
import type { Seams } from './proxy/seams.ts'

/** Where certificates come from; see tls/certificates.ts. */
export type Certificates = {
  /**
   * @param serverName what the client asked for by SNI, lower case; the control host for a client that did not ask
   * @returns undefined when the name is not one of ours
   */
  contextFor(serverName: string): Promise<SecureContext | undefined>
  /** For a client that offers nothing but `acme-tls/1`: the certificate that proves the name to it (RFC 8737). */
  challengeFor?(serverName: string): Promise<SecureContext | undefined>
  /** the same at once, as far as `contextFor` has prepared it just before */
  preparedFor?(serverName: string): SecureContext | undefined
  /** the certificates that contexts are held of, for the metrics */
  expiryAt(): ReadonlyMap<string, Date>
}

export type HttpsOptions = Seams & {
  settings: Pick<Settings, 'domain' | 'machineDomain' | 'https'>
  log: Log
  certificates: Certificates
  /** the application on the control host; HTTP/1.1 and HTTP/2 (Node's compatibility API) */
  controlHost: RequestListener
  /** upgrades on the control host (web terminal) */
  controlUpgrade?: (request: import('node:http').IncomingMessage, socket: Duplex, head: Buffer) => void
  access?: AccessLog
  metrics?: HttpsMetrics
  limits?: Partial<HttpsLimits>
  /** bound already, half-open connections allowed; `settings.https` is bound here unless given */
  listeners?: readonly NetServer[]
}

export type HttpsLimits = ProxyLimits & PoolLimits & ListenerLimits

export type ListenerLimits = { connections: number; connectionsPerAddress: number; handshakeMs: number; tickMs: number }

export const LISTENER_LIMITS: ListenerLimits = {
  connections: 40_000,
  connectionsPerAddress: 10_000,
  handshakeMs: 10_000,
  tickMs: 1_000,
}

export type HttpsServer = {
  readonly metrics: HttpsMetrics
  /** where it listens, in the order of the settings */
  readonly addresses: AddressInfo[]
  /**
   * Ends live exchanges and tunnels whose grant was taken back.
   * @param isRevoked asked for each live exchange that was let in with a grant
   */
  revoke(isRevoked: (grant: string, machineId: number) => boolean): void
  /** forgets kept connections to an address: its machine slept, stopped or is another one now */
  forget(address: string): void
  /** Refuses new connections, lets exchanges end; the rest is cut after `drainMs`. */
  close(drainMs: number): Promise<void>
}

/**
 * Serves the control host and every machine's host over TLS. The name in the request decides, not the one in the
 * handshake: an HTTP/2 connection may serve several names of one certificate.
 * @throws when an address cannot be listened on
 */
export async function startHttps(options: HttpsOptions): Promise<HttpsServer> {
  const limits: HttpsLimits = { ...PROXY_LIMITS, ...POOL_LIMITS, ...LISTENER_LIMITS, ...options.limits }
  const clock = new Clock(limits.tickMs)
  const pool = new UpstreamPool(clock, limits)
  const clients = new Set<ClientConnection>()
  const perAddress = new Map<string, number>()
  // TLSSocket cannot reset its connection and does not show the socket below it: found again by the peer.
  const raws = new Map<string, Socket>()
  let tunnels = 0
  const metrics =
    options.metrics ??
    new HttpsMetrics({
      clients: () => clients.size,
      upstreams: () => pool.open,
      tunnels: () => tunnels,
      certificateExpiryAt: () => options.certificates.expiryAt(),
    })
  const control = controlServer(options, limits, () => context.draining)
  const listenPorts = new Set(options.settings.https.map(({ port }) => port))
  const context: ProxyContext = {
    seams: measured(options, metrics),
    settings: options.settings,
    limits,
    listenPorts,
    pool,
    clock,
    draining: false,
    toControl(socket, bytes) {
      socket.unshift(bytes)
      control.emit('connection', socket)
    },
    finished(exchange) {
      metrics.finished(exchange)
      options.access?.write(exchange)
    },
    tunnels: {
      opened: () => tunnels++,
      closed: () => tunnels--,
    },
    failed({ code, title, detail, route, cause }) {
      options.log.warn({ code, detail, machine: route?.machineId, ...(cause ? { err: cause } : {}) }, title)
    },
  }
  const gone = (client: ClientConnection) => clients.delete(client)
  const onSecure = (socket: TLSSocket): void => {
    metrics.handshakes.inc({ result: 'done' })
    if (socket.alpnProtocol === CHALLENGE_PROTOCOL) {
      // It has seen what it came for (RFC 8737, 3); what is left of the handshake still goes out.
      socket.on('error', () => {})
      socket.end()
      return
    }
    const remoteAddress = plainAddress(socket.remoteAddress)
    if (remoteAddress === undefined) {
      socket.destroy()
      return
    }
    socket.setKeepAlive(true, 60_000)
    const client: ClientConnection =
      socket.alpnProtocol === 'h2'
        ? new Http2Client(context, socket, remoteAddress, control, gone)
        : new Http1Client(context, socket, remoteAddress, () => raws.get(peer(socket))?.resetAndDestroy(), gone)
    clients.add(client)
  }
  const tls = tlsServer(options, limits, onSecure, metrics)
  const listeners = options.listeners ?? (await bind(options.settings.https))
  for (const listener of listeners) {
    listener.maxConnections = limits.connections
    const bound = listener.address()
    if (bound && typeof bound === 'object') listenPorts.add(bound.port)
    serveListener(listener, (raw) => {
      const address = addressGroup(raw.remoteAddress ?? '')
      const count = (perAddress.get(address) ?? 0) + 1
      perAddress.set(address, count)
      const key = peer(raw)
      raws.set(key, raw)
      raw.once('close', () => {
        if (raws.get(key) === raw) raws.delete(key)
        const left = (perAddress.get(address) ?? 1) - 1
        if (left > 0) perAddress.set(address, left)
        else perAddress.delete(address)
      })
      if (count > limits.connectionsPerAddress) {
        raw.destroy()
        return
      }
      raw.setNoDelay(true)
      tls.emit('connection', raw)
    })
  }
  clock.onTick(() => {
    for (const client of clients) client.tick(clock.nowMs)
  })
  return {
    metrics,
    addresses: listeners.flatMap((listener) => listener.address() ?? []).filter((at) => typeof at === 'object'),
    revoke(isRevoked) {
      for (const client of clients) client.revoke(isRevoked)
    },
    forget: (address) => pool.drop(address),
    async close(drainMs) {
      context.draining = true
      const closed = Promise.all(listeners.map((listener) => new Promise((resolve) => listener.close(resolve))))
      for (const client of clients) client.drain()
      control.closeIdleConnections()
      const timer = setTimeout(() => {
        for (const client of clients) client.destroy()
        control.closeAllConnections()
        // Also those that are still shaking hands.
        for (const raw of raws.values()) raw.destroy()
      }, drainMs)
      await closed
      clearTimeout(timer)
      control.close()
      pool.close()
      clock.close()
    },
  }
}

/** The one that is preferred first. */
const PROTOCOLS = ['h2', 'http/1.1']
const CHALLENGE_PROTOCOL = 'acme-tls/1'

/** Without a name, or with one that is not ours, a client gets no certificate at all (RFC 6066, unrecognized_name). */
function tlsServer(
  { certificates, settings, log }: HttpsOptions,
  limits: ListenerLimits,
  onSecure: (socket: TLSSocket) => void,
  metrics: HttpsMetrics,
): TlsServer {
  // OpenSSL chooses the protocol before the certificate with TLS 1.3 and after it with TLS 1.2.
  const named = new WeakSet<object>()
  const validating = new WeakSet<object>()
  const contextFor = async (socket: object, name: string): Promise<SecureContext | undefined> => {
    named.add(socket)
    if (validating.has(socket)) return await certificates.challengeFor?.(name)
    return await certificates.contextFor(name)
  }
  const server = createTlsServer({
    minVersion: 'TLSv1.2',
    // Node would let a TLS 1.2 client renegotiate: a cheap way to burn our CPU, with nothing in it for anybody.
    secureOptions: constants.SSL_OP_NO_RENEGOTIATION,
    ALPNCallback(this: unknown, { servername, protocols }) {
      const ours = PROTOCOLS.find((protocol) => protocols.includes(protocol))
      if (ours !== undefined || !protocols.includes(CHALLENGE_PROTOCOL)) return ours
      if (!(this instanceof TLSSocket)) return undefined
      validating.add(this)
      if (!named.has(this)) return CHALLENGE_PROTOCOL
      const name = parseAuthority(servername)?.host
      const context = name === undefined ? undefined : certificates.preparedFor?.(name)
      if (context) this.setKeyCert(context)
      return context && CHALLENGE_PROTOCOL
    },
    handshakeTimeout: limits.handshakeMs,
    noDelay: true,
    allowHalfOpen: true,
    SNICallback(this: unknown, serverName, callback) {
      const name = parseAuthority(serverName || settings.domain)?.host
      if (name === undefined) return callback(new Error('malformed server name'))
      contextFor(this as TLSSocket, name).then(
        (secureContext) => {
          if (secureContext) callback(null, secureContext)
          else callback(new Error(`no certificate for ${name}`))
        },
        (error: unknown) => {
          log.error({ err: error, name }, 'no certificate could be had')
          callback(error instanceof Error ? error : new Error('no certificate'))
        },
      )
    },
  })
  server.on('secureConnection', onSecure)
  server.on('tlsClientError', (_error, socket) => {
    metrics.handshakes.inc({ result: 'failed' })
    socket.destroy()
  })
  return server
}

function controlServer(
  { controlHost, controlUpgrade, settings }: HttpsOptions,
  limits: Pick<ProxyLimits, 'stallMs'>,
  isDraining: () => boolean,
): HttpServer {
  const server = createHttpServer({ keepAliveTimeout: 75_000, maxHeaderSize: 65_536 }, (request, response) => {
    // This connection was handed over for a request to the control host; a later one may name another.
    const host = parseAuthority(request.headers.host ?? String(request.headers[':authority'] ?? ''))?.host
    if (host !== settings.domain.toLowerCase()) {
      response.writeHead(421, { connection: 'close' }).end()
      return
    }
    if (request.httpVersionMajor === 1) {
      if (isDraining()) response.setHeader('Connection', 'close')
      // A command may be silent for hours; what waits for a reader may not.
      response.setTimeout(limits.stallMs, () => {
        if (response.writableLength > 0) response.destroy()
      })
    }
    controlHost(request, response)
  })
  trackConnections(server)
  server.on('upgrade', (request, socket, head) => {
    const host = parseAuthority(request.headers.host ?? '')?.host
    if (controlUpgrade && host === settings.domain.toLowerCase()) controlUpgrade(request, socket, head)
    else socket.end('HTTP/1.1 426 Upgrade Required\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
  })
  return server
}

function measured(seams: Seams, metrics: HttpsMetrics): Seams {
  const { wake } = seams
  if (!wake) return seams
  return {
    ...seams,
    async wake(route, signal) {
      const end = metrics.wakes.startTimer()
      const awake = await wake(route, signal)
      end()
      return awake
    },
  }
}

function bind(listens: readonly Listen[]): Promise<NetServer[]> {
  const servers = listens.map(({ host, port }) => {
    const server = createNetServer({ allowHalfOpen: true })
    return new Promise<NetServer>((resolve, reject) => {
      server.once('error', reject)
      server.listen({ host, port, backlog: 4096 }, () => {
        server.off('error', reject)
        server.on('error', () => {})
        resolve(server)
      })
    })
  })
  return Promise.all(servers)
}

/** IPv4-mapped IPv6 as IPv4; undefined when the socket is closed already. */
function plainAddress(address: string | undefined): string | undefined {
  return address?.startsWith('::ffff:') ? address.slice(7) : address
}

function peer({ remoteAddress, remotePort, localPort }: Socket): string {
  return `${remoteAddress} ${remotePort} ${localPort}`
}
