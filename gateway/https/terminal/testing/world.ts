/**
 * For tests: a gateway with HTTPS, and a machine made of the host's sshd and the real exe-hold, whose place alone is
 * another one than in a machine.
 */
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { WebSocket } from 'ws'
import { buildInit } from '../../../../init/build.ts'
import { standInLobby, startTestGateway, type TestGateway } from '../../../../test/gateway.ts'
import { INPUT_WINDOW_BYTES, type ToBrowser } from '../../../../web/terminal/protocol.ts'
import { parseKeyLine } from '../../../accounts/public-key.ts'
import { createSession } from '../../../accounts/web-sessions.ts'
import { runLine } from '../../../commands/run.ts'
import { makeKeys, startMachine } from '../../../ssh/relay/fixtures.ts'

export type HeldStatus = { name: string; state: string; attached: number; output_bytes: number }

export type TerminalWorld = {
  gateway: TestGateway
  ownerId: number
  machineId: number
  /** `https://localhost:<port>` */
  control: string
  ca: string
  /** folder that the machine's programs may write to */
  directory: string
  /** @returns a Cookie field that is signed in */
  signIn(accountId?: number): Promise<string>
  /** another gateway of the same installation; @returns its control host */
  another(options?: { port?: number }): Promise<{ gateway: TestGateway; control: string }>
  open(options?: OpenOptions): Promise<Visitor>
  held(): Promise<HeldStatus[]>
} & AsyncDisposable

export type OpenOptions = {
  cookie?: string
  machine?: string
  session?: string
  columns?: number
  rows?: number
  control?: string
  /** false: none is sent */
  origin?: string | false
  /** nothing is said to be shown by itself */
  silent?: boolean
}

export async function startTerminalWorld(): Promise<TerminalWorld> {
  const hold = buildInit('exe-hold')
  const stack = new AsyncDisposableStack()
  const directory = mkdtempSync(join(tmpdir(), 'berth-terminal-'))
  // Holders that end write what is left of their sessions.
  stack.defer(() => rmSync(directory, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 }))
  const environment = { EXE_HOLD_DIRECTORY: join(directory, 'hold'), SHELL: '/bin/sh', PS1: '$ ' }
  const shell = join(directory, 'shell')
  const exports = Object.entries(environment).map(([name, value]) => `export ${name}='${value}'\n`)
  writeFileSync(
    shell,
    `#!/bin/sh\n${exports.join('')}exec /bin/sh -c "$(printf %s "$SSH_ORIGINAL_COMMAND" | sed 's,/exe/bin/exe-hold,${hold},g')"\n`,
  )
  chmodSync(shell, 0o755)
  const run = async (...words: string[]) =>
    (await promisify(execFile)(hold, words, { env: { ...process.env, ...environment } })).stdout
  const held = async (): Promise<HeldStatus[]> => JSON.parse(await run('ls', '--json')).sessions
  const keys = stack.use(makeKeys())
  const sshd = stack.use(await startMachine(keys, [`ForceCommand ${shell}`]))
  stack.defer(async () => {
    for (const { name, state } of await held()) if (state === 'running') await run('kill', name, 'KILL')
  })
  const lobby = { ...standInLobby, runLine }
  const options = { https: true, machineSshPort: sshd.target.port, lobby }
  const gateway = stack.use(await startTestGateway(options))
  const { sql, database, secretKey } = gateway
  const [key] = await sql<{ value: string }[]>`select value from settings where key = 'gateway_public_key'`
  sshd.authorize([key?.value ?? ''])
  const [root] = await sql<{ value: string }[]>`select value from settings where key = 'ca_certificate'`
  const ca = root?.value ?? ''
  const ownerId = await gateway.addAccount({ owner: true })
  const hostKey = parseKeyLine(readFileSync(`${keys.hostKey}.pub`, 'utf8')).key.blob
  const running = { address: '127.0.0.1', loginUser: 'root', hostKey }
  const machineId = await gateway.addMachine(ownerId, 'demo', running)
  const control = controlOf(gateway)
  const signIn = async (accountId = ownerId) => {
    const token = await createSession(sql, { accountId, email: null }, '127.0.0.1')
    return `__Host-berth=${token}`
  }
  const cookie = await signIn()
  const visitors: Visitor[] = []
  stack.defer(() => {
    for (const visitor of visitors) visitor.socket.terminate()
  })
  return {
    gateway,
    ownerId,
    machineId,
    control,
    ca,
    directory,
    signIn,
    async another({ port = 0 } = {}) {
      const env = { BERTH_HTTPS: `127.0.0.1:${port}` }
      const second = stack.use(await startTestGateway({ ...options, env, database, secretKey }))
      return { gateway: second, control: controlOf(second) }
    },
    async open(wanted = {}) {
      const at = wanted.control ?? control
      const { machine = 'demo', session = 'main', columns = 80, rows = 24, origin = at, silent = false } = wanted
      const used = wanted.cookie ?? cookie
      const size = `columns=${columns}&rows=${rows}`
      const socket = new WebSocket(`${at.replace('https', 'wss')}/terminal/${machine}/${session}/socket?${size}`, {
        ca,
        headers: { cookie: used },
        ...(origin === false ? {} : { origin }),
      })
      const visitor = new Visitor(socket, silent, used)
      visitors.push(visitor)
      await once(socket, 'open')
      return visitor
    },
    held,
    [Symbol.asyncDispose]: () => stack.disposeAsync(),
  }
}

function controlOf(gateway: TestGateway): string {
  return `https://localhost:${gateway.https?.server.addresses[0]?.port}`
}

/** Speaks the page's protocol and keeps what it was shown. */
export class Visitor {
  readonly socket: WebSocket
  readonly cookie: string
  readonly told: ToBrowser[] = []
  text = ''
  bytes = 0
  code: number | undefined
  reason = ''
  #room = INPUT_WINDOW_BYTES
  #changed: (() => void)[] = []

  constructor(socket: WebSocket, silent: boolean, cookie: string) {
    this.socket = socket
    this.cookie = cookie
    socket.on('error', () => {})
    socket.on('message', (bytes: Buffer, isBinary) => {
      if (isBinary) {
        this.bytes += bytes.length
        this.text = (this.text + bytes.toString('utf8')).slice(-200_000)
        if (!silent) this.say({ seen: bytes.length })
      } else {
        const message = JSON.parse(bytes.toString('utf8')) as ToBrowser
        if ('taken' in message) this.#room += message.taken
        else this.told.push(message)
      }
      this.#wake()
    })
    socket.on('close', (code, reason) => {
      this.code = code
      this.reason = reason.toString('utf8')
      this.#wake()
    })
  }

  /** Waits until something holds; fails when the connection closes without. */
  async until(holds: () => boolean): Promise<void> {
    while (!holds()) {
      if (this.code !== undefined) throw new Error(`closed with ${this.code}; told ${JSON.stringify(this.told)}`)
      await this.#change()
    }
  }

  shows(pattern: RegExp): Promise<void> {
    return this.until(() => pattern.test(this.text))
  }

  attached(): Promise<void> {
    return this.until(() => this.told.some((message) => 'state' in message && message.state === 'attached'))
  }

  /** @returns the code it was closed with */
  async closed(): Promise<number> {
    while (this.code === undefined) await this.#change()
    return this.code
  }

  say(message: unknown): void {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message))
  }

  /** Types, as fast as there is room for it. */
  async type(text: string | Buffer): Promise<void> {
    const bytes = Buffer.from(text)
    for (let at = 0; at < bytes.length; at += 16_384) {
      const piece = bytes.subarray(at, at + 16_384)
      await this.until(() => this.#room >= piece.length)
      this.#room -= piece.length
      this.socket.send(piece)
    }
  }

  async leave(): Promise<void> {
    this.socket.close()
    await this.closed()
  }

  #change(): Promise<void> {
    return new Promise((resolve) => this.#changed.push(resolve))
  }

  #wake(): void {
    for (const resolve of this.#changed.splice(0)) resolve()
  }
}
