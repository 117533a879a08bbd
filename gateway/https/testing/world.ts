import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import type { RequestListener } from 'node:http'
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connect as connectTls, createSecureContext, type TLSSocket } from 'node:tls'
import { createLog } from '../../log.ts'
import type { Finished } from '../proxy/context.ts'
import type { Access, Route, Seams, Visit } from '../proxy/seams.ts'
import { type HttpsOptions, type HttpsServer, startHttps } from '../server.ts'
import { makeCertificate } from './certificate.ts'

/** A certificate for the tests' names. */
function testCertificate(): { cert: string; key: string } {
  const directory = mkdtempSync(join(tmpdir(), 'berth-https-'))
  const files = { cert: join(directory, 'cert'), key: join(directory, 'key') }
  try {
    makeCertificate(['DNS:example.test', 'DNS:*.example.test'], files)
    return { cert: readFileSync(files.cert, 'utf8'), key: readFileSync(files.key, 'utf8') }
  } finally {
    rmSync(directory, { recursive: true })
  }
}

let certificate: ReturnType<typeof testCertificate> | undefined

export type World = {
  https: HttpsServer
  port: number
  certificate: string
  /** finished exchanges, in order */
  finished: Finished[]
  visits: Visit[]
  /** a TLS connection with `http/1.1`; closed with the world */
  dial(options?: { serverName?: string; alpn?: string[] }): Promise<Wire>
  [Symbol.asyncDispose]: () => Promise<void>
}

export type WorldOptions = {
  /** the machine's port 8000: a real server on loopback */
  originPort: number
  access?: Access | ((visit: Visit) => Access | Promise<Access>)
  seams?: Partial<Seams>
  route?: Partial<Route>
  controlHost?: RequestListener
  limits?: HttpsOptions['limits']
}

/** The HTTPS server on loopback; `demo.example.test` is a machine, `example.test` the control host. */
export async function world(options: WorldOptions): Promise<World> {
  certificate ??= testCertificate()
  const { cert, key } = certificate
  const context = createSecureContext({ cert, key })
  const finished: Finished[] = []
  const visits: Visit[] = []
  const sockets = new Set<TLSSocket>()
  const route: Route = {
    machineId: 7,
    name: 'demo',
    address: '127.0.0.1',
    primaryPort: options.originPort,
    awake: true,
    ...options.route,
  }
  const https = await startHttps({
    settings: { domain: 'example.test', machineDomain: 'example.test', https: [{ host: '127.0.0.1', port: 0 }] },
    log: createLog('silent'),
    certificates: {
      contextFor: async (name) => (name.endsWith('example.test') ? context : undefined),
      expiryAt: () => new Map([['example.test', new Date(1_900_000_000_000)]]),
    },
    controlHost: options.controlHost ?? ((_request, response) => response.end('control')),
    access: { write: (exchange) => finished.push(exchange), close: () => {} },
    resolve: (site) => (site.kind === 'machine' && site.name === 'demo' ? route : undefined),
    authorize: (visit) => {
      visits.push(visit)
      if (typeof options.access === 'function') return options.access(visit)
      return options.access ?? { allow: true, by: 'public' }
    },
    ...options.seams,
    limits: { tickMs: 50, lingerMs: 500, ...options.limits },
  })
  const port = https.addresses[0]?.port ?? 0
  return {
    https,
    port,
    certificate: cert,
    finished,
    visits,
    async dial({ serverName = 'demo.example.test', alpn = ['http/1.1'] } = {}) {
      const socket = connectTls({ host: '127.0.0.1', port, servername: serverName, ca: cert, ALPNProtocols: alpn })
      sockets.add(socket)
      await once(socket, 'secureConnect')
      return new Wire(socket)
    },
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await https.close(0)
    },
  }
}

/** Raw bytes both ways. */
export class Wire {
  readonly socket: TLSSocket | Socket
  text = ''
  ended = false
  closed = false
  #waiting: (() => void)[] = []

  constructor(socket: TLSSocket | Socket) {
    this.socket = socket
    socket.on('data', (bytes) => {
      this.text += bytes.toString('latin1')
      this.#wake()
    })
    socket.on('end', () => {
      this.ended = true
      this.#wake()
    })
    socket.on('error', () => {})
    socket.on('close', () => {
      this.closed = true
      this.#wake()
    })
  }

  send(text: string): this {
    this.socket.write(text, 'latin1')
    return this
  }

  /** Waits until what came matches; fails when the connection closes without. */
  async until(pattern: RegExp | string): Promise<string> {
    const matches = () => (typeof pattern === 'string' ? this.text.includes(pattern) : pattern.test(this.text))
    while (!matches()) {
      if (this.closed) throw new Error(`closed before ${pattern}; got ${JSON.stringify(this.text)}`)
      await this.#change()
    }
    return this.text
  }

  /** Waits for the end; all that came. */
  async toEnd(): Promise<string> {
    while (!this.closed && !this.ended) await this.#change()
    this.socket.end()
    return this.text
  }

  async toClose(): Promise<string> {
    while (!this.closed) await this.#change()
    return this.text
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  #wake(): void {
    for (const resolve of this.#waiting.splice(0)) resolve()
  }
}

export type RawOrigin = {
  port: number
  /** connections in the order they came, with all bytes each brought */
  connections: Wire[]
  /** the next connection that has not been handed out yet */
  accept(): Promise<Wire>
  [Symbol.asyncDispose]: () => Promise<void>
}

/** A server that answers nothing by itself, or what `reply` says to each read. */
export async function rawOrigin(reply?: (wire: Wire, bytes: string) => void): Promise<RawOrigin> {
  const connections: Wire[] = []
  const waiting: ((wire: Wire) => void)[] = []
  let handed = 0
  const server: Server = createServer({ allowHalfOpen: true }, (socket) => {
    const wire = new Wire(socket)
    connections.push(wire)
    if (reply) socket.on('data', (bytes) => reply(wire, bytes.toString('latin1')))
    const next = waiting.shift()
    if (next) {
      handed++
      next(wire)
    }
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    port: (server.address() as AddressInfo).port,
    connections,
    accept() {
      const wire = connections[handed]
      if (!wire) return new Promise((resolve) => waiting.push(resolve))
      handed++
      return Promise.resolve(wire)
    },
    async [Symbol.asyncDispose]() {
      for (const { socket } of connections) socket.destroy()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

/** `GET /` of the machine with more header lines, as raw bytes. */
export function get(path = '/', ...lines: string[]): string {
  return `${[`GET ${path} HTTP/1.1`, 'Host: demo.example.test', ...lines].join('\r\n')}\r\n\r\n`
}

export const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'
