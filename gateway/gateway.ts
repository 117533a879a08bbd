import { hkdfSync } from 'node:crypto'
import type { Socket as UdpSocket } from 'node:dgram'
import type { Server } from 'node:net'
import type { Dispatcher } from 'undici'
import type { Sql } from '../migrations/connect.ts'
import { ensureOwner } from './accounts/first-owner.ts'
import { LastUsed } from './accounts/keys.ts'
import { Outbox } from './accounts/outbox.ts'
import type { App, RunLine, RunLobby } from './app.ts'
import { startBilling } from './billing/service.ts'
import { startStripe } from './billing/stripe/service.ts'
import { startSetups } from './commands/setup/runner.ts'
import { createApp } from './create-app.ts'
import type { DnsServer } from './dns/server.ts'
import { startDns } from './dns/start.ts'
import type { AccessLog } from './https/access-log.ts'
import { Challenges } from './https/acme/challenges.ts'
import { type HttpsService, serveHttps } from './https/serve.ts'
import type { HttpsOptions } from './https/server.ts'
import type { Log } from './log.ts'
import type { Settings } from './settings.ts'
import type { Limits } from './ssh/limits.ts'
import { SshServer } from './ssh/server.ts'
import { loadSshKeys } from './start/keys.ts'
import { boundPorts, publishPorts } from './start/ports.ts'
import type { Starter } from './start/starter.ts'

export type GatewayOptions = {
  settings: Settings
  sql: Sql
  log: Log
  /** 32 bytes that the secrets in the database are encrypted with */
  secretKey: Buffer
  starter: Starter
  lobby: { runLine: RunLine; runLobby: RunLobby }
  /** bound, not served yet */
  sshListeners: Server[]
  /** the same for BERTH_HTTPS; without them nothing is served over HTTPS */
  httpsListeners?: Server[]
  metricsListeners?: Server[]
  /** for BERTH_HTTP */
  httpListeners?: Server[]
  /** for BERTH_DNS */
  dnsListeners?: { udp: UdpSocket[]; tcp: Server[] }
  /** name servers that are asked about people's domains; the system's own unless given */
  resolvers?: readonly string[]
  /** how BERTH_ACME's directory is reached; with the system's roots unless given */
  acmeDispatcher?: Dispatcher
  access?: AccessLog
  httpsLimits?: HttpsOptions['limits']
  limits?: Partial<Limits>
  machineSshPort?: number
  /** how long a mail waits after each failed attempt */
  mailRetrySeconds?: readonly number[]
}

/** A gateway that serves. */
export type Gateway = {
  app: App
  ssh: SshServer
  https: HttpsService | undefined
  dns: DnsServer | undefined
  /** for the first owner, when the starter had no keys */
  joinCode: string | undefined
  /** Refuses new connections, lets the others end for `drainMs`, then ends the rest. */
  close(drainMs: number): Promise<void>
}

/** Brings the rooms together over a database and bound listeners; `main.ts` and the tests both start here. */
export async function startGateway(options: GatewayOptions): Promise<Gateway> {
  const { settings, sql, log, secretKey } = options
  const keys = await loadSshKeys(sql, secretKey)
  const { sshListeners, httpsListeners = [], httpListeners = [], dnsListeners } = options
  await publishPorts(sql, [
    ...boundPorts('tcp', [...sshListeners, ...httpsListeners, ...httpListeners, ...(dnsListeners?.tcp ?? [])]),
    ...boundPorts('udp', dnsListeners?.udp ?? []),
  ])
  const joinCode = await ensureOwner(sql, secretKey, options.starter)
  const codeSecret = Buffer.from(hkdfSync('sha256', secretKey, '', 'berth e-mail codes', 32))
  const { app, close: closeApp } = await createApp({
    settings,
    sql,
    log,
    gatewayPrivateKey: keys.gateway.privateKey,
    hostPublicKey: keys.host.publicKey,
    codeSecret,
    ...(options.machineSshPort === undefined ? {} : { machineSshPort: options.machineSshPort }),
    ...(options.resolvers ? { resolvers: options.resolvers } : {}),
  })
  const lastUsed = new LastUsed(sql, log)
  const setups = startSetups(app)
  const billing = startBilling(app)
  const stripe = settings.stripe && startStripe(app)
  const outbox = settings.smtp
    ? new Outbox({
        sql,
        news: app.news,
        log,
        smtp: settings.smtp,
        from: `Berth <berth@${settings.domain}>`,
        ...(options.mailRetrySeconds ? { retrySeconds: options.mailRetrySeconds } : {}),
      })
    : undefined
  const ssh = new SshServer({
    app,
    hostKeys: [keys.host.privateKey],
    lobby: options.lobby,
    codeSecret,
    onKeyUsed: (keyId) => lastUsed.note(keyId),
    ...(options.limits ? { limits: options.limits } : {}),
  })
  for (const listener of sshListeners) ssh.attach(listener)
  const { metricsListeners, access, httpsLimits, acmeDispatcher } = options
  const challenges = new Challenges({ sql, news: app.news, log })
  const dns = dnsListeners && startDns(app, challenges, dnsListeners)
  const https = httpsListeners.length
    ? await serveHttps({
        app,
        runLine: options.lobby.runLine,
        secretKey,
        challenges,
        servesDns: dns !== undefined && dns.udpAddresses.length > 0,
        listeners: httpsListeners,
        ...(metricsListeners ? { metricsListeners } : {}),
        ...(httpListeners ? { httpListeners } : {}),
        ...(access ? { access } : {}),
        ...(httpsLimits ? { limits: httpsLimits } : {}),
        ...(acmeDispatcher ? { acmeDispatcher } : {}),
      })
    : undefined
  return {
    app,
    ssh,
    https,
    dns,
    joinCode,
    async close(drainMs) {
      // A second process on the same port goes on accepting; this one refuses what the kernel still hands it.
      for (const listener of sshListeners) listener.close()
      await Promise.all([ssh.drain(drainMs), https?.close(drainMs), dns?.close()])
      challenges.close()
      access?.close()
      await Promise.all([setups.close(), billing.close(), stripe?.close()])
      await outbox?.close()
      await lastUsed.close()
      await closeApp()
    },
  }
}
