import { Readable } from 'node:stream'
import { StringDecoder } from 'node:string_decoder'
import type { Connection } from 'ssh2'
import { type App, type Caller, EXIT, type RunLine, type RunLobby } from '../app.ts'
import { shown } from '../commands/values.ts'
import { LINE_LIMIT_BYTES, LineCutter } from '../commands/words.ts'
import { faultSentence } from '../fault.ts'
import { isWaking, type Machine, MachineNotReadyError, stageOf } from '../machines.ts'
import { serveJumps } from './jump.ts'
import { relayConnection } from './relay/relay.ts'
import { MAX_SESSIONS, type SessionRequest, serveSessions } from './session.ts'
import { callerOf, lookUp, type Route, routeOf } from './sign-in.ts'
import { SIGN_UP_REFUSED, type SignUpOptions, signUpOnTerminal, signUpSentence } from './sign-up.ts'

/** A signed-in connection being served. */
export type Served = {
  /** Tells every open session a sentence and ends it. */
  close(sentence: string): void
}

export type Lobby = { runLine: RunLine; runLobby: RunLobby }

type MachineRoute = Extract<Route, { to: 'machine' }>
type LobbyRoute = Extract<Route, { to: 'lobby' | 'unknown' }>

/** `ssh demo@host`: everything goes on to the machine. */
export function serveMachine(client: Connection, app: App, caller: Caller, route: MachineRoute): Served {
  const watch = app.watches.of(route.machineId)
  return relayConnection(client, {
    pool: app.pool,
    log: app.log,
    onActivity: () => watch.carriedOverSsh(),
    resolve: async (signal, say) => {
      const telling = tellOnce(say)
      try {
        const machine = await app.machines.whenReady(route.machineId, caller, {
          signal,
          knock: 'an SSH session',
          onStage: (seen) => telling.hear(seen),
        })
        // A machine that stands still would keep the session waiting without a word.
        if (machine.observedReason) say(`${machine.name}: ${machine.observedReason}`)
        return app.machines.target(machine, caller, route.guestUser)
      } catch (error) {
        if (signal.aborted || error instanceof MachineNotReadyError) throw error
        // The relay shows the message of what is thrown here.
        throw new Error(faultSentence(error, app.log, 'a machine was not found'), { cause: error })
      } finally {
        telling.end()
      }
    },
  })
}

/** Most machines are awake before anybody has read that they wake. */
const WAKING_QUIETLY_MS = 1_000

/** Says what a session waits for, once: of a start at once, of a wake when it takes long. */
function tellOnce(say: (sentence: string) => void) {
  let told = false
  let timer: NodeJS.Timeout | undefined
  const tell = (sentence: string) => {
    if (!told) say(`${sentence}; the session begins as soon as it answers`)
    told = true
  }
  return {
    hear(machine: Machine): void {
      const { name } = machine
      if (isWaking(machine)) timer ??= setTimeout(() => tell(`${name} is waking`), WAKING_QUIETLY_MS)
      else tell(`${name} is starting (${stageOf(machine)})`)
    },
    end(): void {
      clearTimeout(timer)
    },
  }
}

/** `ssh host`: the lobby, and jumps to machines. */
export function serveAccount(client: Connection, app: App, lobby: Lobby, caller: Caller, route: LobbyRoute): Served {
  serveJumps(client, app, caller)
  const handler = (request: SessionRequest) => runInLobby(app, lobby, caller, route, request)
  return serveSessions(client, app.log, handler, () => MAX_SESSIONS.member)
}

/** A key that no account has: nothing but signing up, and then the lobby. */
export function serveSignUp(
  client: Connection,
  app: App,
  lobby: Lobby,
  options: SignUpOptions,
  onMember: (caller: Caller, served: Served) => void,
): void {
  let member: { caller: Caller; route: LobbyRoute } | undefined
  let asking = false
  const handler = async (request: SessionRequest) => {
    if (member) return await runInLobby(app, lobby, member.caller, member.route, request)
    const { io } = request
    if (!io.terminal || asking) {
      io.stderr.write(`${signUpSentence(app)}\n`)
      return SIGN_UP_REFUSED
    }
    asking = true
    try {
      if (!(await signUpOnTerminal(options, { ...io, terminal: io.terminal }))) return SIGN_UP_REFUSED
      member = await becomeMember(options)
      onMember(member.caller, sessions)
    } finally {
      asking = false
    }
    return await runInLobby(app, lobby, member.caller, member.route, request)
  }
  const most = () => (member ? MAX_SESSIONS.member : MAX_SESSIONS.stranger)
  const sessions = serveSessions(client, app.log, handler, most)
}

/** Looks the new account up as its next connection would: the name that was typed may be one that cannot be recorded. */
async function becomeMember({
  app,
  key,
  typed,
  address,
}: SignUpOptions): Promise<{ caller: Caller; route: LobbyRoute }> {
  const signIn = await lookUp(app.sql, key.blob, typed)
  if (!signIn) throw new Error(`the account of key ${key.fingerprint} was taken away while it was made`)
  const route = routeOf(signIn, typed)
  return { caller: callerOf(signIn, typed, address), route: route.to === 'unknown' ? route : { to: 'lobby' } }
}

/** A suspended account is told so; it signed in correctly, and silence would look like a fault. */
export function serveSuspended(client: Connection, app: App): void {
  const handler = async ({ io }: SessionRequest) => {
    io.stderr.write(`${suspendedSentence(app)}${io.terminal ? '\r' : ''}\n`)
    return EXIT.notAllowed
  }
  serveSessions(client, app.log, handler, () => MAX_SESSIONS.stranger)
}

export function suspendedSentence(app: App): string {
  return `this account is suspended; ask whoever runs ${app.settings.domain}`
}

async function runInLobby(
  app: App,
  lobby: Lobby,
  caller: Caller,
  route: LobbyRoute,
  { kind, command, io }: SessionRequest,
): Promise<number> {
  const { terminal } = io
  if (kind === 'shell' && terminal) {
    const notice = route.to === 'unknown' ? noticeOf(app, route.name) : undefined
    return await lobby.runLobby(app, caller, { ...io, terminal }, notice)
  }
  const newline = terminal ? '\r\n' : '\n'
  if (route.to === 'unknown') {
    io.stderr.write(`${unknownSentence(app, route.name)}${newline}`)
    return EXIT.notFound
  }
  if (kind === 'subsystem') {
    io.stderr.write(
      `the lobby has no ${shown(command)}; use it on a machine: sftp NAME@${app.settings.domain}${newline}`,
    )
    return EXIT.usage
  }
  return kind === 'exec' ? await lobby.runLine(app, caller, command, io) : await runLines(app, lobby, caller, io)
}

/**
 * `ssh host < commands`: each line is a command, run one after the other; the last one's status is the session's. Line
 * breaks inside quotes belong to the command, as in a shell's script.
 */
async function runLines(app: App, lobby: Lobby, caller: Caller, io: SessionRequest['io']): Promise<number> {
  let status: number = EXIT.done
  for await (const line of linesOf(io.stdin)) {
    if (io.signal.aborted) break
    if (line.length > LINE_LIMIT_BYTES) {
      io.stderr.write(`a command line has at most ${LINE_LIMIT_BYTES / 1024} KiB; is a quote not closed?\n`)
      return EXIT.usage
    }
    if (line.trim() === '') continue
    if (/^\s*(exit|logout|quit)\s*$/.test(line)) break
    status = await lobby.runLine(app, caller, line, { ...io, stdin: Readable.from([]) })
  }
  return status
}

/** @yields whole lines; one that is too long is not waited for */
async function* linesOf(stdin: SessionRequest['io']['stdin']): AsyncGenerator<string> {
  const cutter = new LineCutter()
  const decoder = new StringDecoder()
  for await (const chunk of stdin.iterator({ destroyOnReturn: false })) {
    yield* cutter.push(decoder.write(chunk))
    if (cutter.rest.length > LINE_LIMIT_BYTES) break
  }
  yield cutter.rest
}

function unknownSentence(app: App, name: string): string {
  return `no machine called ${shown(name)}; the lobby is lobby@${app.settings.domain}`
}

/** `ssh demo.example.com` without the lines of ssh-config sends the local user name, and so ends up here too. */
function noticeOf(app: App, name: string): string {
  return `no machine called ${shown(name)}; this is the lobby. To reach a machine: ssh NAME@${app.settings.domain}, or ssh NAME.${app.settings.machineDomain} after adding what ssh-config prints`
}
