/**
 * The gateway's process. In order: everything imported, and ssh2 found to be what it must be; settings; starter's keys
 * read and listeners opened, which may need root; root given up; the database; then it serves and tells its supervisor.
 *
 * SIGTERM drains for BERTH_DRAIN, a second one ends what is left. Exit status 2 is a bad setting. Killing it at any
 * moment loses connections and nothing else: all that lasts is in Postgres, in transactions.
 */
import { flushCompileCache } from 'node:module'
import type { Server } from 'node:net'
import { join } from 'node:path'
import { connect } from '../migrations/connect.ts'
import { runLine } from './commands/run.ts'
import { controlUrl } from './commands/web-links.ts'
import { type Gateway, startGateway } from './gateway.ts'
import { accessLog } from './https/access-log.ts'
import { runLobby } from './lobby/lobby.ts'
import { createLog, type Log } from './log.ts'
import { readSecretKey } from './secrets.ts'
import { type Listen, parseSettings, type Settings, SettingsError } from './settings.ts'
import { checkSsh2 } from './ssh/transport/native.ts'
import { openDatagrams } from './start/datagrams.ts'
import { listenText, openListeners } from './start/listeners.ts'
import { dropPrivileges } from './start/privileges.ts'
import { readStarter } from './start/starter.ts'

const EXIT_BAD_SETTING = 2
const CONNECTIONS_TO_POSTGRES = 16
/** Faults in a row after which the process is not trusted any more. */
const FAULTS_PER_MINUTE = 20

try {
  await main()
} catch (error) {
  const bad = error instanceof SettingsError
  process.stderr.write(bad ? `${error.message}\n` : `the gateway did not start: ${chain(error)}\n`)
  process.exit(bad ? EXIT_BAD_SETTING : 1)
}

async function main(): Promise<void> {
  checkSsh2()
  const settings = parseSettings(process.env)
  const log = createLog(settings.logLevel)
  const starter = readStarter(settings.owner, process.env)
  const sshListeners = await openListeners('BERTH_SSH', settings.ssh)
  const httpsListeners = await openListeners('BERTH_HTTPS', settings.https, { allowHalfOpen: true })
  const isServed = httpsListeners.length > 0
  const httpListeners = isServed ? await openUnlessTaken('BERTH_HTTP', settings.http, log) : []
  const metricsListeners = isServed ? await openUnlessTaken('BERTH_METRICS', settings.metrics, log) : []
  const dnsListeners = {
    udp: await openDatagrams('BERTH_DNS', settings.dns),
    tcp: await openListeners('BERTH_DNS', settings.dns, { allowHalfOpen: true }),
  }
  // While the checkout can be written to; at the process's end it no longer can.
  flushCompileCache()
  dropPrivileges()
  survive(log)

  const sql = connect({
    url: settings.databaseUrl,
    role: 'berth_gateway',
    max: CONNECTIONS_TO_POSTGRES,
    applicationName: 'berth gateway',
  })
  const secretKey = readSecretKey(join(settings.dataDirectory, 'secret.key'))
  const lobby = { runLine, runLobby }
  const gateway = await startGateway({
    settings,
    sql,
    log,
    secretKey,
    starter,
    lobby,
    sshListeners,
    httpsListeners,
    httpListeners,
    metricsListeners,
    ...(settings.dns.length > 0 ? { dnsListeners } : {}),
    // A person who watches the start on a terminal wants no line for each request.
    ...(process.stdout.isTTY || !log.isLevelEnabled('info') ? {} : { access: accessLog() }),
  })
  const stop = stopper(gateway, settings, log, async () => {
    await sql.end({ timeout: 5 })
  })
  process.on('SIGTERM', stop)
  process.on('SIGINT', stop)
  process.on('SIGPWR', stop)
  announce(gateway, settings, log)
}

/**
 * Opens what Berth can do without: a port that nobody asked for by name, and that another program has, is done without.
 * @throws SettingsError when the variable is set
 */
async function openUnlessTaken(name: string, listens: readonly Listen[], log: Log): Promise<Server[]> {
  try {
    return await openListeners(name, listens)
  } catch (error) {
    if (!(error instanceof SettingsError) || process.env[name]) throw error
    log.warn({}, `${error.message}; Berth goes on without`)
    return []
  }
}

/** The facts of the launcher's ready block; without a launcher they go to standard output. */
function announce({ joinCode }: Gateway, settings: Settings, log: Log): void {
  const [first] = settings.ssh
  const port = first?.port ?? 22
  const ssh = `ssh ${port === 22 ? '' : `-p ${port} `}${settings.domain}`
  const lines: [string, string][] = joinCode
    ? [['join code', `${joinCode}   (asked for once, by the first ${ssh})`]]
    : []
  const https = settings.https.length > 0 ? `${controlUrl(settings)}/` : undefined
  log.info({ ssh: settings.ssh.map(listenText), https: settings.https.map(listenText) }, 'serving')
  if (process.send) process.send({ ready: true, ssh, ...(https === undefined ? {} : { https }), lines })
  else for (const [word, text] of lines) process.stdout.write(`${word}: ${text}\n`)
}

/** @returns for SIGTERM: the first drains, the second ends what is left; SIGPWR drains nothing, the server goes down */
function stopper(
  gateway: Gateway,
  settings: Settings,
  log: Log,
  closeRest: () => Promise<void>,
): (signal: NodeJS.Signals) => void {
  let stopping = false
  return (signal) => {
    if (stopping) process.exit(0)
    stopping = true
    const drainMs = signal === 'SIGPWR' ? 0 : settings.drainMs
    log.info({ connections: gateway.ssh.connectionCount, drainMs }, 'draining')
    gateway
      .close(drainMs)
      .then(closeRest)
      .then(
        () => process.exit(0),
        (error) => {
          log.error({ err: error }, 'the end was not in order')
          process.exit(1)
        },
      )
  }
}

/** A fault in one connection's code must not end all others; many of them in a row are another matter. */
function survive(log: Log): void {
  let faults = 0
  setInterval(() => {
    faults = 0
  }, 60_000).unref()
  const note = (error: unknown) => {
    log.error({ err: error }, 'a fault that nobody caught')
    if (++faults >= FAULTS_PER_MINUTE) process.exit(1)
  }
  process.on('uncaughtException', note)
  process.on('unhandledRejection', note)
}

function chain(error: unknown): string {
  const parts: string[] = []
  for (let link: unknown = error; link instanceof Error; link = link.cause) parts.push(link.message)
  return parts.join(': ') || String(error)
}
