/**
 * What a command runs in, for tests: a real gateway over a real Postgres, a stand-in for vmhost, and OpenSSH's own
 * sshd on the loopback network in place of every machine's.
 */
import { PassThrough } from 'node:stream'
import { startTestGateway, type TestGateway } from '../../../test/gateway.ts'
import type { App, Caller, CommandIo, RunLobby, Terminal } from '../../app.ts'
import { runLobby } from '../../lobby/lobby.ts'
import { freePort } from '../../ssh/relay/fixtures.ts'
import { startSshd } from '../../ssh/testing/sshd.ts'
import { runLine } from '../run.ts'
import { type StandInHost, StandInVmhost } from './stand-in-vmhost.ts'

export type World = {
  gateway: TestGateway
  app: App
  vmhost: StandInVmhost
  machineSshPort: number
  owner: Caller
  /** private key of the owner */
  key: string
  /** Runs a line without a terminal, as `ssh host <line>` does. */
  run(line: string, options?: RunOptions): Promise<Ran>
  /** the same, and its JSON document */
  json(line: string, options?: RunOptions): Promise<{ status: number; document: Record<string, unknown> }>
  account(options?: { name?: string }): Promise<Caller>
  [Symbol.asyncDispose](): Promise<void>
}

export type RunOptions = { caller?: Caller; stdin?: string; signal?: AbortSignal; env?: Record<string, string> }
export type Ran = { status: number; stdout: string; stderr: string }

export type WorldOptions = {
  host?: StandInHost
  env?: Record<string, string>
  /** starts an sshd for the machines; without it `new` is tried with --no-wait only */
  sshd?: boolean
  /** put before every command the sshd runs, to stand in for what only a machine has */
  forceCommand?: string
  runLobby?: RunLobby
  /** serves HTTPS too, with these commands behind `POST /exec` */
  https?: boolean
  /** at a port the system chooses, whatever `env` says */
  httpsElsewhere?: boolean
}

/** `await using world = await startWorld()` */
export async function startWorld(options: WorldOptions = {}): Promise<World> {
  const machineSshPort = await freePort()
  const gateway = await startTestGateway({
    lobby: { runLine, runLobby: options.runLobby ?? runLobby },
    machineSshPort,
    https: options.https ?? false,
    httpsElsewhere: options.httpsElsewhere ?? false,
    env: { BERTH_NETWORK: '127.64.0.0/16', ...options.env },
  })
  const key = gateway.makeKey('owner')
  const accountId = await gateway.addAccount({ keys: [key], owner: true })
  const hostKeyPath = gateway.makeKey('machine-host-key')
  const hostKey = Buffer.from(gateway.publicKey(hostKeyPath).split(' ')[1] ?? '', 'base64')
  const [gatewayKey] = await gateway.sql<{ value: string }[]>`
    select value from settings where key = 'gateway_public_key'`
  const sshd = options.sshd
    ? await startSshd({
        listen: `0.0.0.0:${machineSshPort}`,
        hostKey: hostKeyPath,
        authorizedKeys: [gatewayKey?.value ?? ''],
        config: options.forceCommand ? [`ForceCommand ${options.forceCommand}`] : [],
      })
    : undefined
  const vmhost = new StandInVmhost(gateway.database.as('berth_vmhost'), { hostKey, loginUser: 'root' })
  await vmhost.start(options.host)
  const { app } = gateway
  const callerOf = (id: number, isOwner: boolean): Caller => ({
    accountId: id,
    isOwner,
    keyId: null,
    fingerprint: 'SHA256:test',
    address: '192.0.2.7',
    via: 'ssh',
    sshName: 'lobby',
  })
  const owner = callerOf(accountId, true)
  const world: World = {
    gateway,
    app,
    vmhost,
    machineSshPort,
    owner,
    key,
    async run(line, { caller = owner, stdin = '', signal = new AbortController().signal, env = {} } = {}) {
      const io = recordingIo({ stdin, signal, env })
      const status = await runLine(app, caller, line, io)
      return { status, stdout: io.stdoutText(), stderr: io.stderrText() }
    },
    async json(line, runOptions) {
      const { status, stdout } = await world.run(`${line} --json`, runOptions)
      return { status, document: JSON.parse(stdout) as Record<string, unknown> }
    },
    account: async () => callerOf(await gateway.addAccount(), false),
    async [Symbol.asyncDispose]() {
      await vmhost.stop()
      await gateway[Symbol.asyncDispose]()
      await sshd?.[Symbol.asyncDispose]()
    },
  }
  return world
}

export type RecordingIo = CommandIo & { stdoutText(): string; stderrText(): string }

/** Streams that keep what was written. */
export function recordingIo(options: {
  stdin?: string
  signal?: AbortSignal
  env?: Record<string, string>
  terminal?: Terminal
}): RecordingIo {
  const stdin = new PassThrough()
  if (options.stdin !== undefined) stdin.end(options.stdin)
  const kept = { out: '', err: '' }
  const stdout = new PassThrough().on('data', (chunk: Buffer) => {
    kept.out += chunk
  })
  const stderr = new PassThrough().on('data', (chunk: Buffer) => {
    kept.err += chunk
  })
  return {
    stdin,
    stdout,
    stderr,
    signal: options.signal ?? new AbortController().signal,
    env: options.env ?? {},
    ...(options.terminal ? { terminal: options.terminal } : {}),
    stdoutText: () => kept.out,
    stderrText: () => kept.err,
  }
}
