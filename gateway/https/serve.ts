import { mkdirSync } from 'node:fs'
import type { AddressInfo, Server } from 'node:net'
import { dirname, join } from 'node:path'
import { sweepSiteSessions } from '../accounts/site-sessions.ts'
import type { App } from '../app.ts'
import { httpsUrl, lobbyLine } from '../commands/machine-document.ts'
import { authorizer } from './access/authorize.ts'
import { Grants, type LiveGrant } from './access/grants.ts'
import { sitePaths } from './access/site-paths.ts'
import type { AccessLog } from './access-log.ts'
import { controlApp } from './control/app.ts'
import { answerHealth, type Readiness, serveMetrics } from './health.ts'
import { parseAuthority, siteOf } from './host.ts'
import { listeningPorts } from './machines/ports.ts'
import { type MachineRoute, RouteTable } from './machines/routes.ts'
import { wakeOf } from './machines/wake.ts'
import { pageFields } from './pages/page.ts'
import { problemPage } from './pages/problem.ts'
import type { Route } from './proxy/seams.ts'
import { serveRedirects } from './redirect.ts'
import { type HttpsOptions, type HttpsServer, startHttps } from './server.ts'
import { loadAuthority, writeRoot } from './tls/authority.ts'
import { StoredCertificates } from './tls/certificates.ts'

export type ServeHttpsOptions = {
  app: App
  secretKey: Buffer
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

  if (settings.acme !== undefined) {
    log.warn({}, 'BERTH_ACME is not in this version: certificates are of Berth’s own authority')
  }
  const endings: { server?: HttpsServer } = {}
  const routes = new RouteTable({
    sql,
    news,
    log,
    onEnded(route) {
      endings.server?.forget(route.address)
      endings.server?.revoke((_grant, machineId) => machineId === route.machineId)
    },
    onAccessChanged: () => grants.changed(),
  })
  const grants = new Grants({
    sql,
    log,
    live() {
      const found: LiveGrant[] = []
      endings.server?.revoke((key, machineId) => {
        found.push({ key, machineId })
        return false
      })
      return found
    },
    end(over) {
      const ended = new Set(over.map(({ key, machineId }) => `${key} ${machineId}`))
      endings.server?.revoke((key, machineId) => ended.has(`${key} ${machineId}`))
    },
  })
  const certificates = new StoredCertificates({
    sql,
    secretKey,
    authority,
    exists: async (name) => name === wildcardOf(settings) || (await isServed(name, settings, routes)),
    onError: (error, name) => log.error({ err: error, name }, 'a certificate could not be had'),
  })
  const controlOrigin = originOf(settings.domain, settings.https[0]?.port)
  let isStopping = false
  const readiness = readinessOf(app, () => isStopping)
  const control = controlApp({
    sql,
    log,
    settings,
    listenPorts,
    machineDomain: settings.machineDomain,
    codeSecret: app.codeSecret,
    root: authority.certificate,
    find: (name) => routes.find(name),
    installation: {
      domain: settings.domain,
      lobby: lobbyLine(settings, ''),
      machineUrl: (name) => `${httpsUrl(settings, name)}/`,
      mails: settings.smtp !== undefined,
    },
  })
  const server = await startHttps({
    settings,
    log,
    listeners,
    certificates: {
      contextFor: async (name) => await certificates.contextFor(await certificateFor(name, settings, routes)),
      expiryAt: () => certificates.expiryAt(),
    },
    controlHost(request, response) {
      if (!answerHealth(request, response, readiness)) void control(request, response)
    },
    resolve: (site) => (site.kind === 'machine' ? routes.find(site.name) : undefined),
    authorize: authorizer({
      grants,
      paths: sitePaths({ sql, domain: settings.domain, controlOrigin }),
      machineDomain: settings.machineDomain,
    }),
    wake: wakeOf(app.machines, routes),
    listeningPorts: (route: Route) => listeningPorts(sql, route.machineId),
    page: (problem) => ({ text: problemPage(problem, settings.domain), fields: pageFields() }),
    ...(options.access ? { access: options.access } : {}),
    ...(options.limits ? { limits: options.limits } : {}),
  })
  endings.server = server
  const redirects = serveRedirects(options.httpListeners ?? [], settings)
  const metrics = await serveMetrics(options.metricsListeners ?? [], server.metrics.registry, readiness)
  const stop = [
    news.on('grants', () => grants.changed()),
    news.on('keys', () => grants.changed()),
    news.onRescan(() => grants.changed()),
  ]
  const sweep = setInterval(() => {
    sweepSiteSessions(sql).catch((error) => log.warn({ err: error }, 'could not remove sign-ins that are over'))
  }, SWEEP_MS)
  sweep.unref()
  void certificates.renewDue()
  return {
    server,
    metricsAddresses: metrics.addresses,
    rootPath,
    async close(drainMs) {
      isStopping = true
      await Promise.all([server.close(drainMs), redirects.close()])
      clearInterval(sweep)
      for (const end of stop) end()
      grants.close()
      routes.close()
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

/**
 * Which certificate serves a name: its own, but for the 7000 ports of each machine, which share the wildcard. Where the
 * machines' domain is one label, as `localhost` is, no client takes a wildcard.
 */
async function certificateFor(name: string, settings: App['settings'], routes: RouteTable): Promise<string> {
  const wildcard = wildcardOf(settings)
  const authority = parseAuthority(name)
  const site = authority && siteOf(authority, settings, new Set())
  if (wildcard === undefined || site?.kind !== 'machine' || site.port === undefined) return name
  return (await routes.find(site.name)) ? wildcard : name
}

function wildcardOf({ machineDomain }: App['settings']): string | undefined {
  return machineDomain.includes('.') ? `*.${machineDomain.toLowerCase()}` : undefined
}

/** Whether a certificate should exist for a name: the control host's, and those of machines that there are. */
async function isServed(name: string, settings: App['settings'], routes: RouteTable): Promise<boolean> {
  const authority = parseAuthority(name)
  if (!authority) return false
  const site = siteOf(authority, settings, new Set())
  if (site.kind !== 'machine') return site.kind === 'control'
  const route: MachineRoute | undefined = await routes.find(site.name)
  return route !== undefined
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
