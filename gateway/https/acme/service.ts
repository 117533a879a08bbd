import { createSecureContext, type SecureContext } from 'node:tls'
import type { Dispatcher } from 'undici'
import type { App } from '../../app.ts'
import { publicAddresses } from '../../dns/addresses.ts'
import type { DomainTable } from '../../domains/table.ts'
import type { Settings } from '../../settings.ts'
import type { Challenges } from './challenges.ts'
import { AcmeClient } from './client.ts'
import { HeldCertificates } from './held.ts'
import { loadAccountKey } from './jws.ts'
import type { Method } from './order.ts'
import { challengeCertificate } from './requests.ts'
import type { OwnNames } from './store.ts'
import { CertificateWorker } from './worker.ts'

export type AcmeOptions = {
  app: App
  secretKey: Buffer
  directoryUrl: string
  challenges: Challenges
  domains: DomainTable
  /** BERTH_HTTP is served: HTTP-01 can be answered */
  servesHttp: boolean
  /** BERTH_DNS is served: DNS-01 can be answered */
  servesDns: boolean
  /** how the directory is reached; the system's roots unless given */
  dispatcher?: Dispatcher
}

export type AcmeService = {
  /** @returns undefined when the directory issued nothing for the host yet */
  contextFor(host: string): Promise<SecureContext | undefined>
  /** for a client that comes to validate (RFC 8737) */
  challengeFor(host: string): Promise<SecureContext | undefined>
  /** the same at once, as far as `contextFor` has prepared it just before */
  preparedFor(host: string): SecureContext | undefined
  expiryAt(): ReadonlyMap<string, Date>
  close(): Promise<void>
}

/** Certificates of an ACME directory: got and renewed in the background, served from Postgres. */
export async function startAcme(options: AcmeOptions): Promise<AcmeService> {
  const { app, secretKey, directoryUrl, challenges, domains, servesHttp, servesDns, dispatcher } = options
  const { sql, news, log, settings, lookup } = app
  const key = await loadAccountKey(sql, secretKey, directoryUrl)
  const ending = new AbortController()
  const { signal } = ending
  const client = new AcmeClient({ directoryUrl, key, signal, ...(dispatcher ? { dispatcher } : {}) })
  const held = new HeldCertificates({ sql, news, secretKey })
  const own = ownNames(settings, servesDns)
  const methods = methodsOf(settings, { servesHttp, servesDns })
  const addresses = publicAddresses(settings)
  const worker = new CertificateWorker({
    ...{ sql, news, log, secretKey, settings, directoryUrl, client, key, lookup, addresses, own, methods },
    signal,
  })
  worker.look()

  const prepared = new Map<string, { authorization: string; context: SecureContext }>()
  const prepare = async (host: string, authorization: string): Promise<SecureContext> => {
    const ready = prepared.get(host)
    if (ready?.authorization === authorization) return ready.context
    const { chain, key } = await challengeCertificate(host, authorization)
    const context = createSecureContext({ cert: chain, key })
    for (const other of prepared.keys()) if (challenges.last.alpn(other) === undefined) prepared.delete(other)
    prepared.set(host, { authorization, context })
    return context
  }

  return {
    async contextFor(host) {
      const ours = own.find((names) => names.some((name) => covers(name, host)))
      const row = ours?.[0] ?? (await domains.find(host))?.domain
      if (row === undefined) return undefined
      const context = await held.contextFor(row, host)
      if (!ours || !servesDns) {
        // Without a certificate a stranger's handshake may well be the validation; with one, news will have told.
        const open = context ? challenges.last : await challenges.read()
        const authorization = open.alpn(host)
        if (authorization !== undefined) await prepare(host, authorization)
      }
      return context
    },
    async challengeFor(host) {
      const authorization = (await challenges.read()).alpn(host)
      return authorization === undefined ? undefined : await prepare(host, authorization)
    },
    preparedFor: (host) => (challenges.last.alpn(host) === undefined ? undefined : prepared.get(host)?.context),
    expiryAt: () => held.expiryAt(),
    async close() {
      ending.abort()
      await worker.close()
      held.close()
    },
  }
}

/**
 * What the installation wants for itself: with its own name server one certificate for the domain and all machines,
 * or two where they are apart; without it the control host's alone, for a wildcard is proved by DNS only.
 */
function ownNames({ domain, machineDomain }: Settings, servesDns: boolean): OwnNames[] {
  const [control, machines] = [domain.toLowerCase(), machineDomain.toLowerCase()]
  if (!control.includes('.')) return []
  if (!servesDns) return [[control]]
  return control === machines ? [[control, `*.${machines}`]] : [[control], [`*.${machines}`]]
}

/** The port that a directory's servers come to is 80 or 443: where Berth has it itself, that way is the likeliest. */
function methodsOf(
  { http, https }: Settings,
  { servesHttp, servesDns }: { servesHttp: boolean; servesDns: boolean },
): Method[] {
  const isUsual = http.some(({ port }) => port === 80) || !https.some(({ port }) => port === 443)
  const direct: Method[] = isUsual ? ['http-01', 'tls-alpn-01'] : ['tls-alpn-01', 'http-01']
  return [...(servesDns ? (['dns-01'] as const) : []), ...direct.filter((way) => servesHttp || way !== 'http-01')]
}

function covers(name: string, host: string): boolean {
  if (!name.startsWith('*.')) return name === host
  const dot = host.indexOf('.')
  return dot > 0 && host.slice(dot + 1) === name.slice(2)
}
