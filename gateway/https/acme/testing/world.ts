import { once } from 'node:events'
import { connect as connectTls, type DetailedPeerCertificate } from 'node:tls'
import { startTestGateway, type TestGateway, type TestGatewayOptions } from '../../../../test/gateway.ts'
import { startResolver, type TestResolver } from '../../../dns/testing/resolver.ts'
import { proofNames } from '../../../domains/records.ts'
import { accountProof, giveDomain } from '../../../domains/rows.ts'
import { freePort } from '../../../ssh/relay/fixtures.ts'
import { type Pebble, startPebble } from './pebble.ts'

/** The installation `berth.test`, whose certificates are Pebble's, and a resolver that knows of both. */
export type AcmeWorld = {
  pebble: Pebble
  resolver: TestResolver
  gateway: TestGateway
  ownerId: number
  machineId: number
  httpsPort: number
  /** another gateway of the same installation, on the same ports */
  another(): Promise<TestGateway>
  /** sets the records that `domain add` asks for, and gives the domain to the machine */
  bring(domain: string, options?: { wildcard?: boolean; machineId?: number; pointing?: boolean }): Promise<void>
  /** the certificate that a client gets for a name */
  served(serverName: string, options?: Handshake): Promise<Served>
  /** waits until a client gets a certificate of Pebble's for a name */
  issued(serverName: string): Promise<Served>
  /** how a row stands */
  row(name: string): Promise<AcmeRow | undefined>
  [Symbol.asyncDispose](): Promise<void>
}

export type Handshake = {
  alpn?: string[]
  ca?: string
  minVersion?: 'TLSv1.2' | 'TLSv1.3'
  maxVersion?: 'TLSv1.2' | 'TLSv1.3'
}
export type Served = { issuer: string; names: string; serial: string; protocol: string | false | null }
export type AcmeRow = {
  names: string[]
  chain: string | null
  sealed_key: Buffer | null
  lease: number
  failures: number
  problem: string | null
  renew_at: Date | null
  not_before: Date | null
  not_after: Date | null
  try_at: Date
}

export type AcmeWorldOptions = {
  machineDomain?: string
  http?: boolean
  dns?: boolean
}

const PATIENT_MS = 15_000
const AGAIN_MS = 30

export async function startAcmeWorld({
  machineDomain = 'berth.test',
  http = true,
  dns = true,
}: AcmeWorldOptions = {}): Promise<AcmeWorld> {
  const [httpPort, httpsPort] = [await freePort(), await freePort()]
  const started: { gateway?: TestGateway } = {}
  const resolver = await startResolver({
    zones: dns ? ['berth.test', machineDomain] : [],
    port: () => started.gateway?.dns?.udpAddresses[0]?.port ?? 1,
  })
  const pebble = await startPebble({ httpPort, tlsPort: httpsPort, resolver: resolver.address })
  const options: TestGatewayOptions = {
    https: true,
    http,
    dns,
    resolvers: [resolver.address],
    acmeDispatcher: pebble.dispatcher,
    env: {
      BERTH_DOMAIN: 'berth.test',
      BERTH_MACHINE_DOMAIN: machineDomain,
      BERTH_ADDRESSES: '127.0.0.1',
      BERTH_HTTPS: `127.0.0.1:${httpsPort}`,
      BERTH_HTTP: `127.0.0.1:${httpPort}`,
      BERTH_ACME: pebble.directoryUrl,
    },
  }
  if (!dns) resolver.set('berth.test', { a: ['127.0.0.1'] })
  const gateway = await startTestGateway(options)
  started.gateway = gateway
  const ownerId = await gateway.addAccount({ owner: true })
  const machineId = await gateway.addMachine(ownerId, 'demo')
  const { sql } = gateway
  const world: AcmeWorld = {
    ...{ pebble, resolver, gateway, ownerId, machineId, httpsPort },
    another: () => startTestGateway({ ...options, database: gateway.database, secretKey: gateway.secretKey }),
    async bring(domain, { wildcard = false, machineId: to = machineId, pointing = true } = {}) {
      const names = proofNames(await accountProof(sql, ownerId), gateway.app.settings)
      if (pointing) {
        resolver.set(domain, dns ? { cname: names.target } : { a: ['127.0.0.1'] })
        resolver.set(`_berth.${domain}`, { txt: [names.txt] })
      }
      if (pointing && wildcard) {
        resolver.set(`*.${domain}`, { cname: names.target })
        resolver.set(`_acme-challenge.${domain}`, { cname: names.challengeTarget })
      }
      await giveDomain(sql, { domain, wildcard, machineId: to, accountId: ownerId })
    },
    async served(servername, { alpn = ['http/1.1'], ca, ...versions } = {}) {
      const socket = connectTls({
        ...{ host: '127.0.0.1', port: httpsPort, servername, ALPNProtocols: alpn, ...versions },
        ...(ca === undefined ? { rejectUnauthorized: false } : { ca }),
      })
      try {
        await once(socket, 'secureConnect')
        const leaf: DetailedPeerCertificate = socket.getPeerCertificate(true)
        const { issuer, subjectaltname = '', serialNumber: serial } = leaf
        return { issuer: String(issuer.CN), names: subjectaltname, serial, protocol: socket.alpnProtocol }
      } finally {
        socket.destroy()
      }
    },
    async issued(serverName) {
      const untilMs = performance.now() + PATIENT_MS
      for (;;) {
        // Of a name that the gateway has not heard of yet, it ends the handshake.
        const served = await world.served(serverName).catch(() => undefined)
        if (served?.issuer.startsWith('Pebble')) return served
        if (performance.now() > untilMs) {
          const rows = await sql`select name, failures, problem, chain is not null as held from acme_certificates`
          throw new Error(`no certificate for ${serverName}: ${JSON.stringify(rows)}`)
        }
        await new Promise((resolve) => setTimeout(resolve, AGAIN_MS))
      }
    },
    async row(name) {
      const rows = await sql<AcmeRow[]>`select * from acme_certificates where name = ${name}`
      return rows[0]
    },
    async [Symbol.asyncDispose]() {
      await gateway[Symbol.asyncDispose]()
      await pebble[Symbol.asyncDispose]()
      await resolver[Symbol.asyncDispose]()
    },
  }
  return world
}
