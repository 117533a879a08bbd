import { mkdirSync } from 'node:fs'
import type { AddressInfo, Server } from 'node:net'
import { dirname, join } from 'node:path'
import type { Dispatcher } from 'undici'
import { sweepAccess } from '../accounts/site-sessions.ts'
import type { App, RunLine } from '../app.ts'
import { StripeWebhook } from '../billing/stripe/webhook.ts'
import { httpsUrl, lobbyLine } from '../commands/machine-document.ts'
import { publicAddresses } from '../dns/addresses.ts'
import { HeldDomains } from '../domains/held.ts'
import { DomainTable } from '../domains/table.ts'
import { authorizer } from './access/authorize.ts'
import { Grants, type LiveGrant } from './access/grants.ts'
import { sitePaths } from './access/site-paths.ts'
import { type AccessLog, logAnswer } from './access-log.ts'
import type { Challenges } from './acme/challenges.ts'
import { startAcme } from './acme/service.ts'
import { controlApp } from './control/app.ts'
import { Events } from './dashboard/events.ts'
import { ExecEndpoint } from './exec/exec.ts'
import { answerHealth, type Readiness, serveMetrics } from './health.ts'
import { hostsOf } from './hosts.ts'
import { listeningPorts } from './machines/ports.ts'
import { RouteTable } from './machines/routes.ts'
import { wakeOf } from './machines/wake.ts'
import { pageFields } from './pages/page.ts'
import { problemPage } from './pages/problem.ts'
import type { Route } from './proxy/seams.ts'
import { serveRedirects } from './redirect.ts'
import { type HttpsOptions, type HttpsServer, startHttps } from './server.ts'
import { Terminals } from './terminal/terminals.ts'
import { loadAuthority, writeRoot } from './tls/authority.ts'
import { StoredCertificates } from './tls/certificates.ts'

export type ServeHttpsOptions = {
  app: App
  /** runs what is asked of `POST /exec`, and what a page's button does */
  runLine: RunLine
  secretKey: Buffer
  challenges: Challenges
  /** BERTH_DNS is served */
  servesDns: boolean
  /** how BERTH_ACME's directory is reached; with the system's roots unless given */
  acmeDispatcher?: Dispatcher
  /** bound for BERTH_HTTPS, half-open connections allowed */
  listeners: readonly Server[]
  /** bound for BERTH_METRICS */
  metricsListeners?: readonly Server[]
  /** bound for BERTH_HTTP */
  httpListeners?: readonly Server[]
  access?: AccessLog
  limits?: HttpsOptions['limits']
}

export type HttpsService = {
  server: HttpsServer
  /** where BERTH_METRICS is served */
  metricsAddresses: AddressInfo[]
  /** where Berth's own root certificate lies */
  rootPath: string
  close(drainMs: number): Promise<void>
}

const SWEEP_MS = 60_000

/** The web side of a gateway: TLS, the control host, and the proxy in front of every machine's ports. */
export async function serveHttps(options: ServeHttpsOptions): Promise<HttpsService> {
  const { app, secretKey, listeners } = options
  const { sql, news, log } = app
  const settings = withBoundPort(app.settings, listeners)
  const listenPorts = new Set([...settings.https, ...bound(listeners)].map(({ port }) => port))
  const authority = await loadAuthority(sql, secretKey, settings.domain)
  const rootPath = join(settings.dataDirectory, 'gateway', 'ca.pem')
  try {
    mkdirSync(dirname(rootPath), { recursive: true, mode: 0o711 })
    writeRoot(rootPath, authority.certificate)
  } catch (error) {
    // People find it at /ca.pem of the control host as well.
    log.error({ err: error }, 'the root certificate could not be put into the data directory')
  }

  const endings: { server?: HttpsServer } = {}
  const routes = new RouteTable({
    sql,
    news,
    log,
    watches: app.watches,
    onEnded(route) {
      endings.server?.forget(route.address)
      endings.server?.revoke((_grant, machineId) => machineId === route.machineId)
    },
    onAccessChanged: () => grants.changed(),
  })
  const domains = new DomainTable({ sql, news })
  const hosts = hostsOf(settings, routes, domains)
  const held = new HeldDomains({ sql, settings, lookup: app.lookup, addresses: publicAddresses(settings) })
  const grants = new Grants({
    sql,
    log,
    live() {
      const found: LiveGrant[] = []
      endings.server?.revoke((key, machineId) => {
        found.push({ key, machineId })
        return false
      })
      return [...found, ...terminals.live()]
    },
    end(over) {
      const ended = new Set(over.map(({ key, machineId }) => `${key} ${machineId}`))
      endings.server?.revoke((key, machineId) => ended.has(`${key} ${machineId}`))
      terminals.end(({ key, machineId }) => ended.has(`${key} ${machineId}`))
    },
  })
  const terminals = new Terminals({
    app,
    generation: () => grants.generation,
    follow: (machineName) => routes.find(machineName),
  })
  const certificates = new StoredCertificates({
    sql,
    secretKey,
    authority,
    exists: (name) => hosts.isServed(name),
    onError: (error, name) => log.error({ err: error, name }, 'a certificate could not be had'),
  })
  const { challenges, servesDns, acmeDispatcher: dispatcher } = options
  const acme =
    settings.acme === undefined
      ? undefined
      : await startAcme({
          ...{ app: { ...app, settings }, secretKey, directoryUrl: settings.acme, challenges, domains, servesDns },
          servesHttp: (options.httpListeners ?? []).length > 0,
          ...(dispatcher ? { dispatcher } : {}),
        })
  const controlOrigin = originOf(settings.domain, settings.https[0]?.port)
  let isStopping = false
  const readiness = readinessOf(app, () => isStopping)
  const control = controlApp({
    gateway: app,
    runLine: options.runLine,
    sql,
    log,
    settings,
    listenPorts,
    codeSecret: app.codeSecret,
    root: authority.certificate,
    find: (site) => hosts.route(site),
    isHeld: (host, machineId) => held.isHeld(host, machineId),
    installation: {
      domain: settings.domain,
      lobby: lobbyLine(settings, ''),
      machineUrl: (name) => `${httpsUrl(settings, name)}/`,
      mails: settings.smtp !== undefined,
    },
  })
  const exec = new ExecEndpoint({
    app,
    runLine: options.runLine,
    finished: (exchange) => options.access?.write(exchange),
  })
  const events = new Events(app)
  const webhook = new StripeWebhook(app)
  const server = await startHttps({
    settings,
    log,
    listeners,
    certificates: {
      // What the directory has not issued yet, Berth's own authority does: a warning is better than no page.
      contextFor: async (name) =>
        (await acme?.contextFor(name)) ?? (await certificates.contextFor(await hosts.certificateFor(name))),
      challengeFor: async (name) => await acme?.challengeFor(name),
      preparedFor: (name) => acme?.preparedFor(name),
      expiryAt: () => new Map([...certificates.expiryAt(), ...(acme?.expiryAt() ?? [])]),
    },
    controlHost(request, response) {
      if (answerHealth(request, response, readiness) || exec.answer(request, response)) return
      if (options.access) logAnswer(options.access, request, response)
      if (events.answer(request, response)) return
      if (webhook.answer(request, response)) return
      void control(request, response)
    },
    controlUpgrade: (request, socket, head) => terminals.upgrade(request, socket, head),
    resolve: (site) => hosts.route(site),
    authorize: authorizer({
      grants,
      paths: sitePaths({ sql, domain: settings.domain, controlOrigin }),
      machineDomain: settings.machineDomain,
    }),
    wake: wakeOf(app.machines, routes),
    listeningPorts: (route: Route) => listeningPorts(sql, route.machineId),
    page: (problem) => ({
      text: problemPage(problem, {
        domain: settings.domain,
        control: controlOrigin,
        addressOf: (name, port) => httpsUrl(settings, port === undefined ? name : `${name}--${port}`),
      }),
      fields: pageFields(),
    }),
    ...(options.access ? { access: options.access } : {}),
    ...(options.limits ? { limits: options.limits } : {}),
  })
  endings.server = server
  const redirects = serveRedirects(options.httpListeners ?? [], settings, {
    isCustom: async (host) => (await domains.find(host)) !== undefined,
    challenge: async (host, token) => (await challenges.read()).http(host, token),
  })
  const metrics = await serveMetrics(options.metricsListeners ?? [], server.metrics.registry, readiness)
  const stop = [
    news.on('domains', (domain) => {
      for (const name of [domain, `*.${domain}`]) certificates.forget(name)
    }),
    news.on('grants', () => grants.changed()),
    news.on('keys', () => grants.changed()),
    news.onRescan(() => grants.changed()),
  ]
  const sweep = setInterval(() => {
    sweepAccess(sql).catch((error) => log.warn({ err: error }, 'could not remove sign-ins that are over'))
  }, SWEEP_MS)
  sweep.unref()
  void certificates.renewDue()
  return {
    server,
    metricsAddresses: metrics.addresses,
    rootPath,
    async close(drainMs) {
      isStopping = true
      terminals.close()
      events.close()
      await Promise.all([server.close(drainMs), redirects.close(), acme?.close()])
      clearInterval(sweep)
      for (const end of stop) end()
      exec.close()
      grants.close()
      routes.close()
      domains.close()
      certificates.close()
      await metrics.close()
    },
  }
}

/** A port of 0 in the settings is whatever the system chose. */
function withBoundPort(settings: App['settings'], listeners: readonly Server[]): App['settings'] {
  const [first] = bound(listeners)
  const [asked] = settings.https
  if (!first || (asked && asked.port !== 0)) return settings
  return { ...settings, https: [{ ...asked, port: first.port }] }
}

function bound(listeners: readonly Server[]): AddressInfo[] {
  return listeners.flatMap((listener) => listener.address() ?? []).filter((at) => typeof at === 'object')
}

function originOf(host: string, port = 443): string {
  return `https://${host}${port === 443 ? '' : `:${port}`}`
}

function readinessOf({ sql }: App, isStopping: () => boolean): Readiness {
  return async () => {
    // A load balancer that asks is told before the last connection is gone.
    if (isStopping()) return ['The gateway is stopping']
    const late = new Promise<readonly string[]>((resolve) => {
      setTimeout(() => resolve(['The database does not answer']), 2_000).unref()
    })
    const asked = sql`select 1`.then(
      () => [],
      () => ['The database does not answer'],
    )
    return await Promise.race([asked, late])
  }
}
