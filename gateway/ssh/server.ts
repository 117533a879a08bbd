import type { Server as NetServer, Socket } from 'node:net'
import ssh2, { type Connection } from 'ssh2'
import type { App, Caller, RunLine, RunLobby } from '../app.ts'
import { serveListener } from '../start/listeners.ts'
import { authenticate, type SignedIn } from './authentication.ts'
import {
  type Served,
  serveAccount,
  serveMachine,
  serveSignUp,
  serveSuspended,
  suspendedSentence,
} from './connection.ts'
import { DISCONNECT, disconnect } from './internals.ts'
import { AddressLimits, DEFAULT_LIMITS, type Limits, plainAddress, type Startup } from './limits.ts'
import { LiveConnections } from './live.ts'
import { refuseEarly, refuseWaiting } from './refuse.ts'
import { callerOf, routeOf } from './sign-in.ts'
import { serverAlgorithms } from './transport/algorithms.ts'

export type SshServerOptions = {
  app: App
  /** in OpenSSH's format */
  hostKeys: string[]
  lobby: { runLine: RunLine; runLobby: RunLobby }
  /** keys the hashes of mailed codes */
  codeSecret: Buffer
  limits?: Partial<Limits>
  /** a key was used to sign in */
  onKeyUsed: (keyId: number) => void
}

const KEEPALIVE_INTERVAL_MS = 30_000
const KEEPALIVE_COUNT_MAX = 4
const MAX_CHANNELS = 512
/** What is taken on a session of the lobby before somebody reads it; a setup script and a file of keys have 64 KiB. */
const SESSION_WINDOW_BYTES = 256 * 1024
/** After a drain's deadline, clients get this long to read why. */
const LAST_WORDS_MS = 500
const RESTARTING = 'Berth is restarting; try again in a moment'

/**
 * The SSH server. It is handed sockets by net servers that somebody else has bound, so that privileged ports are
 * opened before privileges are dropped and several processes can share one.
 */
export class SshServer {
  readonly #options: SshServerOptions
  readonly #limits: Limits
  readonly #addresses: AddressLimits
  readonly #live: LiveConnections
  readonly #ssh: ssh2.Server
  readonly #sockets = new Map<Socket, Admitted>()
  #draining = false

  constructor(options: SshServerOptions) {
    this.#options = options
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits }
    this.#addresses = new AddressLimits(this.#limits)
    this.#live = new LiveConnections(options.app.sql, options.app.news, options.app.log)
    // The last two come with the patch in ssh/patches, so ssh2's type does not know them.
    const config = {
      hostKeys: options.hostKeys,
      algorithms: serverAlgorithms,
      ident: 'Berth',
      keepaliveInterval: KEEPALIVE_INTERVAL_MS,
      keepaliveCountMax: KEEPALIVE_COUNT_MAX,
      maxChannels: MAX_CHANNELS,
      sessionWindow: SESSION_WINDOW_BYTES,
    }
    this.#ssh = new ssh2.Server(config, (client, { header }) => this.#greet(client, header.versions.software))
  }

  /** Serves what a bound net server accepts. */
  attach(listener: NetServer): void {
    serveListener(listener, (socket) => this.#admit(socket))
  }

  get connectionCount(): number {
    return this.#sockets.size
  }
  get signedInCount(): number {
    return this.#live.count
  }

  /**
   * Refuses new connections and waits for the others to end.
   * @returns when all have, or when `timeoutMs` has passed and the rest was told and ended
   */
  async drain(timeoutMs: number): Promise<void> {
    this.#draining = true
    for (const [socket, admitted] of this.#sockets) {
      if (!admitted.isMember) admitted.end(RESTARTING, socket)
    }
    const emptied = this.#whenEmpty()
    const timer = AbortSignal.timeout(Math.max(1, timeoutMs))
    await Promise.race([emptied, new Promise((resolve) => timer.addEventListener('abort', resolve, { once: true }))])
    if (this.#sockets.size > 0) {
      this.#live.closeAll('Berth is restarting; connect again in a moment')
      await Promise.race([emptied, new Promise((resolve) => setTimeout(resolve, LAST_WORDS_MS))])
    }
    for (const socket of this.#sockets.keys()) socket.destroy()
    this.#live.close()
    this.#addresses.close()
  }

  #whenEmpty(): Promise<void> {
    return new Promise((resolve) => {
      const check = () => this.#sockets.size === 0 && resolve()
      for (const socket of this.#sockets.keys()) socket.once('close', () => setImmediate(check))
      check()
    })
  }

  #admit(socket: Socket): void {
    // An error without a listener would end the process.
    socket.on('error', () => {})
    const ip = socket.remoteAddress
    if (!ip) {
      socket.destroy()
      return
    }
    const admitted = new Admitted(plainAddress(ip))
    const place = this.#placeFor(ip, (text) => admitted.end(text, socket))
    if (typeof place === 'string') {
      refuseEarly(socket, place)
      return
    }

    this.#sockets.set(socket, admitted)
    socket.setNoDelay(true)
    socket.setKeepAlive(true, 60_000)
    const handshakeTimer = setTimeout(
      () => admitted.end('Berth: the key exchange took too long', socket),
      this.#limits.handshakeMs,
    )
    let deadline = setTimeout(
      () => admitted.end(`Berth: nobody signed in within ${Math.round(this.#limits.loginGraceMs / 1000)} s`, socket),
      this.#limits.loginGraceMs,
    )
    admitted.onHandshake = () => clearTimeout(handshakeTimer)
    // Who has no account, or a suspended one, is a stranger still: it keeps its place and has a deadline.
    admitted.onStranger = (limitMs, text) => {
      clearTimeout(deadline)
      deadline = setTimeout(() => admitted.end(`Berth: ${text}`, socket), limitMs)
    }
    admitted.onMember = () => {
      clearTimeout(deadline)
      place.end()
    }
    socket.once('close', () => {
      clearTimeout(handshakeTimer)
      clearTimeout(deadline)
      place.end()
      this.#sockets.delete(socket)
    })
    this.#ssh.injectSocket(socket)
  }

  #placeFor(ip: string, drop: (text: string) => void): Startup | string {
    if (this.#draining) return RESTARTING
    if (this.#sockets.size >= this.#limits.connections) {
      return 'Berth: the server has too many connections; try again later'
    }
    return this.#addresses.admit(ip, drop)
  }

  /** ssh2 has read the client's identification; errors of this connection are ours from here on. */
  #greet(client: Connection, software: string): void {
    const { app } = this.#options
    const admitted = this.#sockets.get(socketOf(client))
    if (!admitted) {
      client.end()
      return
    }
    admitted.client = client
    client.on('error', (error) => {
      app.log.debug({ err: error, address: admitted.address }, 'a connection broke off')
    })
    client.on('handshake', () => admitted.onHandshake())
    const options = {
      sql: app.sql,
      log: app.log,
      limits: this.#limits,
      software,
      generation: () => this.#live.generation,
      onFailedSignature: () => this.#addresses.failed(admitted.address),
      onUnknownKey: () => this.#addresses.askedInVain(admitted.address),
    }
    authenticate(client, options, (who) => this.#serve(client, who, admitted))
  }

  #serve(client: Connection, who: SignedIn, admitted: Admitted): void {
    const { address } = admitted
    const { app, lobby, codeSecret, onKeyUsed } = this.#options
    const { signIn, typed, key } = who
    if (!signIn) {
      admitted.onStranger(this.#limits.signUpMs, 'the sign-up took too long')
      const onFailure = () => this.#addresses.failed(address)
      const timeoutMs = this.#limits.signUpDialogMs
      serveSignUp(
        client,
        app,
        lobby,
        { app, key, typed, address, codeSecret, timeoutMs, onFailure },
        (caller, served) => {
          admitted.becomeMember()
          this.#keep(client, caller, served, -1)
          app.log.info({ account: caller.accountId, address, key: key.fingerprint }, 'an account was made')
        },
      )
      return
    }
    const full = this.#fullFor(signIn.accountId)
    if (full) {
      disconnect(client, DISCONNECT.tooManyConnections, full)
      return
    }
    const route = routeOf(signIn, typed)
    const caller = callerOf(signIn, typed, address)
    app.log.info({ account: caller.accountId, address, to: route.to, key: caller.fingerprint }, 'signed in')
    onKeyUsed(signIn.keyId)
    if (route.to === 'suspended') {
      admitted.onStranger(this.#limits.suspendedMs, suspendedSentence(app))
      serveSuspended(client, app)
      return
    }
    admitted.becomeMember()
    const served =
      route.to === 'machine'
        ? serveMachine(client, app, caller, route)
        : serveAccount(client, app, lobby, caller, route)
    this.#keep(client, caller, served, who.generation)
  }

  /** @returns the sentence to refuse another connection of the account with */
  #fullFor(accountId: number): string | undefined {
    const { connections, connectionsPerAccount, reservedConnections, fewConnections } = this.#limits
    const count = this.#live.countOf(accountId)
    if (count >= connectionsPerAccount) return 'Berth: this account has too many connections'
    // A few accounts must not be able to shut all others out.
    if (count >= fewConnections && this.#sockets.size > connections - reservedConnections) {
      return `Berth: the server is nearly full, and this account has ${count} connections; try again later`
    }
    return undefined
  }

  #keep(client: Connection, caller: Caller, served: Served, generation: number): void {
    if (caller.keyId === null) return
    const forget = this.#live.add(
      {
        accountId: caller.accountId,
        keyId: caller.keyId,
        close: (sentence) => {
          served.close(sentence)
          // What was just written to the sessions goes out first.
          setTimeout(() => disconnect(client, DISCONNECT.byApplication, `Berth: ${sentence}`), LAST_WORDS_MS / 5)
        },
      },
      generation,
    )
    client.once('close', forget)
  }
}

/** One accepted connection on its way to being signed in. */
class Admitted {
  readonly address: string
  client: Connection | undefined
  isMember = false
  onHandshake = () => {}
  onStranger = (_limitMs: number, _text: string) => {}
  onMember = () => {}

  constructor(address: string) {
    this.address = address
  }

  becomeMember(): void {
    this.isMember = true
    this.onMember()
  }

  end(text: string, socket: Socket): void {
    if (this.client) disconnect(this.client, DISCONNECT.byApplication, text)
    // ssh2 has sent its identification and waits for the client's.
    else refuseWaiting(socket, text)
  }
}

function socketOf(client: Connection): Socket {
  return (client as unknown as { _sock: Socket })._sock
}
