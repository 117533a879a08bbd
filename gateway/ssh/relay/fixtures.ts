/** For tests and benchmarks: an sshd of the host as the machine, a bare gateway in front of it, the real client. */

import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import ssh2, { type AuthContext, type Connection, type Server, type Session } from 'ssh2'
import { MachinePool, type MachinePoolOptions } from '../pool/pool.ts'
import type { MachineTarget } from '../pool/target.ts'
import { type Sshd, startSshd } from '../testing/sshd.ts'
import { serverAlgorithms } from '../transport/algorithms.ts'
import { silentLog } from '../transport/log.ts'
import type { RelayOptions } from './options.ts'
import { type Relay, relayConnection } from './relay.ts'

export type Keys = { directory: string; clientKey: string; gatewayKey: string; hostKey: string }

/** Keys in a directory of their own, gone when disposed. */
export function makeKeys(): Keys & Disposable {
  const directory = mkdtempSync(join(tmpdir(), 'berth-ssh-'))
  const key = (name: string) => {
    const path = join(directory, name)
    execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', name, '-f', path])
    return path
  }
  return {
    directory,
    clientKey: key('client'),
    gatewayKey: key('gateway'),
    hostKey: key('host'),
    [Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
  }
}

export type Machine = Sshd & { target: MachineTarget }

/** An sshd on loopback, as the platform's own sshd in a machine would be. `config` lines come first and so win. */
export async function startMachine(keys: Keys, config: readonly string[] = []): Promise<Machine> {
  const port = await freePort()
  const authorizedKeys = [keys.clientKey, keys.gatewayKey].map((key) => readFileSync(`${key}.pub`, 'utf8'))
  const sshd = await startSshd({ listen: `127.0.0.1:${port}`, hostKey: keys.hostKey, authorizedKeys, config })
  return { ...sshd, target: targetAt(keys, port) }
}

/** A machine made of ssh2, for what no sshd does. */
export async function startFakeMachine(
  keys: Keys,
  onSession: (session: Session, client: Connection) => void,
  options: { authentication?: (context: AuthContext) => void } = {},
): Promise<{ target: MachineTarget; clients: Connection[] } & AsyncDisposable> {
  const clients: Connection[] = []
  const server = new ssh2.Server({ hostKeys: [readFileSync(keys.hostKey)], algorithms: serverAlgorithms }, (client) => {
    clients.push(client)
    client.on('error', () => {})
    client.on('authentication', options.authentication ?? ((context) => context.accept()))
    client.on('session', (accept) => onSession(accept(), client))
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  return {
    target: targetAt(keys, port),
    clients,
    [Symbol.asyncDispose]: async () => {
      for (const client of clients) client.end()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
}

export type Gateway = {
  port: number
  pool: MachinePool
  relays: Relay[]
  clients: Connection[]
  server: Server
} & AsyncDisposable

/** A gateway that lets every key in and relays to one machine. */
export async function startGateway(
  keys: Keys,
  machine: { target: MachineTarget },
  options: { relay?: Partial<RelayOptions>; pool?: Partial<MachinePoolOptions>; server?: object } = {},
): Promise<Gateway> {
  const pool = new MachinePool({ privateKey: readFileSync(keys.gatewayKey), log: silentLog, ...options.pool })
  const relays: Relay[] = []
  const clients: Connection[] = []
  const server = new ssh2.Server(
    { hostKeys: [readFileSync(keys.hostKey)], algorithms: serverAlgorithms, ...options.server },
    (client) => {
      clients.push(client)
      client.on('error', () => {})
      client.on('authentication', (context) => {
        if (context.method === 'publickey') context.accept()
        else context.reject(['publickey'])
      })
      client.on('ready', () => {
        relays.push(
          relayConnection(client, { resolve: async () => machine.target, pool, log: silentLog, ...options.relay }),
        )
      })
    },
  )
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    pool,
    relays,
    clients,
    server,
    [Symbol.asyncDispose]: async () => {
      pool.close()
      for (const client of clients) client.end()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
}

/** Arguments of the OpenSSH client, `options` first and so stronger, that reach 127.0.0.1 without reading or writing anybody's files. */
export function sshArguments(keys: Keys, port: number, options: readonly string[] = []): string[] {
  const set = (option: string) => ['-o', option]
  return [
    ...options,
    ...['-F', 'none', '-p', String(port), '-i', keys.clientKey],
    ...set('StrictHostKeyChecking=no'),
    ...set('UserKnownHostsFile=/dev/null'),
    ...set('IdentitiesOnly=yes'),
    ...set('BatchMode=yes'),
    ...set('LogLevel=ERROR'),
  ]
}

export type Outcome = { status: number | null; signal: string | null; stdout: Buffer; stderr: Buffer }

/** Runs a program to its end. */
export async function run(
  command: string,
  commandArguments: readonly string[],
  options: { input?: Buffer | string; env?: NodeJS.ProcessEnv } = {},
): Promise<Outcome> {
  const child = spawn(command, commandArguments, { env: { ...process.env, ...options.env } })
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout.on('data', (bytes: Buffer) => stdout.push(bytes))
  child.stderr.on('data', (bytes: Buffer) => stderr.push(bytes))
  child.stdin.on('error', () => {})
  child.stdin.end(options.input)
  const [status, signal] = (await once(child, 'close')) as [number | null, string | null]
  return { status, signal, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr) }
}

/** Runs the OpenSSH client to its end. */
export function ssh(
  keys: Keys,
  port: number,
  rest: readonly string[],
  options: { input?: Buffer | string; ssh?: readonly string[]; env?: NodeJS.ProcessEnv } = {},
): Promise<Outcome> {
  const given = options.ssh ?? []
  return run('ssh', [...sshArguments(keys, port, given), 'demo@127.0.0.1', ...rest], options)
}

export async function freePort(): Promise<number> {
  const server = createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

function targetAt(keys: Keys, port: number): MachineTarget {
  const hostKey = publicKey(keys.hostKey)
  return { machineId: 1, name: 'demo', address: '127.0.0.1', port, hostKey, user: 'root', accountId: 1 }
}

function publicKey(path: string): Buffer {
  const key = ssh2.utils.parseKey(readFileSync(`${path}.pub`))
  if (key instanceof Error) throw key
  return key.getPublicSSH()
}
