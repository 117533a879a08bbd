/**
 * A gateway in the test's own process: real Postgres, real SSH server on a port of its own on the loopback interface,
 * real clients. The lobby is a stand-in unless the test hands in another one, and machines are rows that lead to an
 * address on the loopback interface.
 */
import { execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { addKey } from '../gateway/accounts/keys.ts'
import { parseKeyLine } from '../gateway/accounts/public-key.ts'
import type { RunLine, RunLobby } from '../gateway/app.ts'
import { type Gateway, type GatewayOptions, startGateway } from '../gateway/gateway.ts'
import { type Listen, parseSettings } from '../gateway/settings.ts'
import type { Limits } from '../gateway/ssh/limits.ts'
import type { SshServer } from '../gateway/ssh/server.ts'
import { openDatagrams } from '../gateway/start/datagrams.ts'
import { openListeners } from '../gateway/start/listeners.ts'
import type { Starter } from '../gateway/start/starter.ts'
import type { Sql } from '../migrations/connect.ts'
import { type TestDatabase, testDatabase } from './database.ts'

export type TestGatewayOptions = {
  /** BERTH_… variables */
  env?: Record<string, string>
  lobby?: { runLine: RunLine; runLobby: RunLobby }
  limits?: Partial<Limits>
  starter?: Starter
  /** where `ssh NAME@host` finds a machine's sshd; default 22 of its address */
  machineSshPort?: number
  /** serves HTTPS at BERTH_HTTPS too, which is on loopback, at a port the system chooses, unless `env` says otherwise */
  https?: boolean
  /** HTTPS is at a port the system chooses, as SSH always is, whatever BERTH_HTTPS and so all pages say */
  httpsElsewhere?: boolean
  httpsLimits?: GatewayOptions['httpsLimits']
  access?: GatewayOptions['access']
  /** serves BERTH_HTTP and BERTH_DNS too, where `env` says, on loopback at ports the system chooses unless it does */
  http?: boolean
  dns?: boolean
  resolvers?: readonly string[]
  acmeDispatcher?: GatewayOptions['acmeDispatcher']
  /** another gateway's database, for two of them over one */
  database?: TestDatabase
  secretKey?: Buffer
  mailRetrySeconds?: readonly number[]
  /** pino level; silent unless a test looks into a failure */
  logLevel?: string
}

export type Ran = { status: number | null; signal: NodeJS.Signals | null; stdout: string; stderr: string }

export type TestGateway = Omit<Gateway, 'ssh'> & {
  server: SshServer
  port: number
  database: TestDatabase
  /** as the owner of the database: may write every column */
  sql: Sql
  secretKey: Buffer
  /** folder for the test's own files */
  directory: string
  /** makes a key pair with ssh-keygen; @returns the private key's path */
  makeKey(name: string, type?: string, bits?: number, comment?: string): string
  publicKey(path: string): string
  /** @returns the account's number */
  addAccount(options?: { keys?: string[]; owner?: boolean; names?: string[] }): Promise<number>
  /** a machine's row as a vmhost would have it when it runs */
  addMachine(accountId: number, name: string, options?: TestMachine): Promise<number>
  /** options for OpenSSH's clients: key, port, known hosts, no configuration of the user's */
  sshOptions(key?: string): string[]
  /** `ssh` to this gateway without a terminal */
  ssh(options: {
    key?: string
    user?: string
    args?: string[]
    command?: string[]
    input?: string | Buffer
  }): Promise<Ran>
  [Symbol.asyncDispose](): Promise<void>
}

export type TestMachine = {
  state?: 'creating' | 'running' | 'stopped' | 'failed' | 'trashed'
  desired?: 'running' | 'stopped' | 'trashed'
  reason?: string
  address?: string
  loginUser?: string
  /** wire form */
  hostKey?: Buffer
}

/** Lists what it was asked, so that a test sees which line reached the lobby and for whom. */
export const standInLobby: { runLine: RunLine; runLobby: RunLobby } = {
  async runLine(_app, caller, line, io) {
    io.stdout.write(`lobby of ${caller.accountId}: ${line}\n`)
    return line === 'fail' ? 1 : 0
  },
  async runLobby(_app, caller, io, notice) {
    if (notice) io.stdout.write(`${notice}\r\n`)
    io.stdout.write(`lobby of ${caller.accountId} on ${io.terminal.term}\r\n`)
    let typed = ''
    for await (const chunk of io.stdin.iterator({ destroyOnReturn: false })) {
      typed += chunk
      if (typed.includes('\x04') || typed.includes('exit\r')) break
    }
    return 0
  },
}

/** `await using gateway = await startTestGateway()` */
export async function startTestGateway(options: TestGatewayOptions = {}): Promise<TestGateway> {
  const database = options.database ?? (await testDatabase())
  const sql = database.as('owner')
  const directory = mkdtempSync(join(tmpdir(), 'berth-gateway-'))
  const secretKey = options.secretKey ?? randomBytes(32)
  const settings = parseSettings({
    BERTH_DATA: directory,
    DATABASE_URL: database.url,
    BERTH_SSH: '127.0.0.1:0',
    ...(options.https ? { BERTH_HTTPS: '127.0.0.1:0' } : {}),
    ...(options.http ? { BERTH_HTTP: '127.0.0.1:0' } : {}),
    ...(options.dns ? { BERTH_DNS: '127.0.0.1:0' } : {}),
    ...options.env,
  })
  // On a free port, whatever port the pages and answers name.
  const anyPort = (all: readonly Listen[]) => all.map((listen) => ({ ...listen, port: 0 }))
  const listeners = await openListeners('BERTH_SSH', anyPort(settings.ssh))
  const httpsListens = options.httpsElsewhere ? anyPort(settings.https) : settings.https
  const gateway = await startGateway({
    settings,
    sql: database.as('berth_gateway'),
    log: pino({ level: options.logLevel ?? 'silent' }),
    secretKey,
    starter: options.starter ?? { keys: [], names: [] },
    lobby: options.lobby ?? standInLobby,
    sshListeners: listeners,
    ...(options.https
      ? {
          httpsListeners: await openListeners('BERTH_HTTPS', httpsListens, { allowHalfOpen: true }),
          metricsListeners: await openListeners('BERTH_METRICS', [{ host: '127.0.0.1', port: 0 }]),
        }
      : {}),
    ...(options.http ? { httpListeners: await openListeners('BERTH_HTTP', settings.http) } : {}),
    ...(options.dns
      ? {
          dnsListeners: {
            udp: await openDatagrams('BERTH_DNS', settings.dns),
            tcp: await openListeners('BERTH_DNS', settings.dns, { allowHalfOpen: true }),
          },
        }
      : {}),
    ...(options.resolvers ? { resolvers: options.resolvers } : {}),
    ...(options.acmeDispatcher ? { acmeDispatcher: options.acmeDispatcher } : {}),
    ...(options.httpsLimits ? { httpsLimits: options.httpsLimits } : {}),
    ...(options.access ? { access: options.access } : {}),
    ...(options.limits ? { limits: options.limits } : {}),
    ...(options.mailRetrySeconds ? { mailRetrySeconds: options.mailRetrySeconds } : {}),
    ...(options.machineSshPort === undefined ? {} : { machineSshPort: options.machineSshPort }),
  })
  const bound = listeners[0]?.address()
  if (!bound || typeof bound === 'string') throw new Error('the test gateway listens nowhere')
  const { port } = bound
  const knownHosts = join(directory, 'known_hosts')
  writeFileSync(knownHosts, `[127.0.0.1]:${port} ${gateway.app.hostPublicKey}\n`)

  const harness: TestGateway = {
    app: gateway.app,
    https: gateway.https,
    dns: gateway.dns,
    joinCode: gateway.joinCode,
    close: gateway.close,
    server: gateway.ssh,
    port,
    database,
    sql,
    secretKey,
    directory,
    makeKey(name, type = 'ed25519', bits, comment = `${name}@laptop`) {
      const path = join(directory, name)
      execFileSync('ssh-keygen', [
        '-q',
        '-N',
        '',
        '-t',
        type,
        ...(bits ? ['-b', String(bits)] : []),
        '-C',
        comment,
        '-f',
        path,
      ])
      chmodSync(path, 0o600)
      return path
    },
    publicKey: (path) => readFileSync(`${path}.pub`, 'utf8').trim(),
    async addAccount({ keys = [], owner = false, names = [] } = {}) {
      const rows = await sql<{ id: number }[]>`insert into accounts (is_owner) values (${owner}) returning id`
      const id = Number(rows[0]?.id)
      for (const key of keys) await addKey(sql, id, { ...parseKeyLine(harness.publicKey(key)), comment: '' })
      for (const name of names) await sql`insert into lobby_names (name, account_id) values (${name}, ${id})`
      return id
    },
    addMachine: (accountId, name, machine = {}) => addMachine(sql, accountId, name, machine),
    sshOptions: (key) => [
      ...['-F', '/dev/null', '-p', String(port), '-o', `UserKnownHostsFile=${knownHosts}`],
      ...['-o', 'GlobalKnownHostsFile=/dev/null', '-o', 'StrictHostKeyChecking=yes', '-o', 'IdentityAgent=none'],
      ...(key ? ['-i', key, '-o', 'IdentitiesOnly=yes'] : []),
    ],
    ssh: ({ key, user = 'lobby', args = [], command = [], input }) =>
      run(
        'ssh',
        [...args, ...harness.sshOptions(key), '-T', '-o', 'BatchMode=yes', `${user}@127.0.0.1`, ...command],
        input,
      ),
    async [Symbol.asyncDispose]() {
      await gateway.close(0)
      if (!options.database) await database[Symbol.asyncDispose]()
      rmSync(directory, { recursive: true, force: true })
    },
  }
  return harness
}

const RUN_LIMIT_MS = 25_000

/** Runs a client to its end. */
export function run(program: string, args: string[], input?: string | Buffer, env = process.env): Promise<Ran> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { env, timeout: RUN_LIMIT_MS, killSignal: 'SIGKILL' })
    const out: Buffer[] = []
    const err: Buffer[] = []
    child.stdout.on('data', (chunk: Buffer) => out.push(chunk))
    child.stderr.on('data', (chunk: Buffer) => err.push(chunk))
    child.stdin.on('error', () => {})
    child.stdin.end(input)
    child.once('error', reject)
    child.once('close', (status, signal) =>
      resolve({ status, signal, stdout: Buffer.concat(out).toString(), stderr: Buffer.concat(err).toString() }),
    )
  })
}

async function addMachine(sql: Sql, accountId: number, name: string, machine: TestMachine): Promise<number> {
  const { state = 'running', reason = null, hostKey = Buffer.alloc(0), loginUser = 'dev' } = machine
  const desired = machine.desired ?? (state === 'stopped' || state === 'trashed' ? state : 'running')
  return await sql.begin(async (tx) => {
    await tx`insert into hosts (name) values ('test') on conflict do nothing`
    const rows = await tx<{ id: number }[]>`
      insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, desired_state,
        observed_state, observed_boot, observed_reason, observed_stage, observed_host_key, observed_login_user,
        observed_ready_at)
      select ${accountId}, id, ${name}, 'base', 1, 1073741824, 1073741824, ${desired}, ${state},
        ${state === 'creating' ? 0 : 1}, ${reason}, ${state === 'running' ? 'ready' : 'boot'}, ${hostKey}, ${loginUser},
        ${state === 'running' ? new Date() : null} from hosts where name = 'test' returning id`
    const id = Number(rows[0]?.id)
    if (desired !== 'trashed') await tx`insert into machine_names (name, machine_id) values (${name}, ${id})`
    const address = machine.address ?? `127.0.${id >> 8}.${(id & 255) + 1}`
    await tx`insert into addresses (address, machine_id) values (${address}, ${id})`
    return id
  })
}
