import type { Connection, ServerChannel, Session } from 'ssh2'
import type { CommandIo, Terminal } from '../app.ts'
import { faultSentence } from '../fault.ts'
import type { Log } from '../log.ts'
import { rejectChannel } from './internals.ts'

/** One session channel of the lobby: what was asked for, and the streams to answer on. */
export type SessionRequest = {
  kind: 'shell' | 'exec' | 'subsystem'
  /** the command line, or the subsystem's name; empty for a shell */
  command: string
  io: CommandIo
}

/** Runs a session to its end. What it throws is logged and becomes exit status 1. */
export type SessionHandler = (request: SessionRequest) => Promise<number>

export type Sessions = {
  /** Tells all open sessions a sentence and ends them with status 255. */
  close(sentence: string): void
}

const MAX_ENV_COUNT = 64
const MAX_ENV_VALUE_LENGTH = 4096
const MAX_COLUMNS_ROWS = 2000

/**
 * Sessions at once on one connection, as OpenSSH's MaxSessions: each may hold some of what its client sends and nobody
 * reads, and of what its client does not read, until the client closes it. Who has no account needs one.
 */
export const MAX_SESSIONS = { member: 16, stranger: 2 } as const

/**
 * Serves session channels that stay in the gateway. Everything is accepted in the tick in which it is asked for:
 * ssh2 loses what the client sends before that.
 * @param most sessions at once; those beyond are refused with a sentence
 */
export function serveSessions(client: Connection, log: Log, handler: SessionHandler, most: () => number): Sessions {
  const open = new Set<(sentence: string) => void>()
  let count = 0
  client.on('session', (accept, reject) => {
    if (count >= most()) {
      rejectChannel(client, reject, `at most ${most()} sessions at once on one connection of the lobby`)
      return
    }
    const session = accept()
    // ssh2's type says it may be undefined when the client is gone already.
    if (!session) return
    count++
    // When the client has closed it too: until then it may send.
    session.on('close', () => count--)
    serveSession(session, log, handler, open)
  })
  return {
    close(sentence) {
      for (const end of [...open]) end(sentence)
    },
  }
}

function serveSession(
  session: Session,
  log: Log,
  handler: SessionHandler,
  open: Set<(sentence: string) => void>,
): void {
  const env: Record<string, string> = {}
  const gone = new AbortController()
  let terminal: SessionTerminal | undefined

  session.on('error', () => {})
  session.on('pty', (accept, _reject, info) => {
    // ssh2 types leave `term` out; RFC 4254, 6.2 has it first.
    const term = 'term' in info && typeof info.term === 'string' ? info.term : ''
    terminal = new SessionTerminal(term, info.cols, info.rows)
    accept?.()
  })
  session.on('window-change', (accept, _reject, info) => {
    terminal?.resize(info.cols, info.rows)
    accept?.()
  })
  session.on('env', (accept, reject, { key, val }) => {
    const fits = Object.keys(env).length < MAX_ENV_COUNT && val.length <= MAX_ENV_VALUE_LENGTH
    if (!fits || !/^[A-Za-z_][A-Za-z0-9_]{0,63}$/.test(key)) return reject?.()
    env[key] = val
    accept?.()
  })
  session.on('signal', (accept, _reject, { name }) => {
    if (['INT', 'TERM', 'HUP', 'QUIT', 'KILL'].includes(name)) gone.abort()
    accept?.()
  })
  session.on('close', () => gone.abort())

  const run = (channel: ServerChannel, kind: SessionRequest['kind'], command: string) => {
    channel.on('error', () => {})
    channel.stderr.on('error', () => {})
    channel.on('close', () => gone.abort())
    const end = (sentence: string) => {
      channel.stderr.write(terminal ? `\r\n${sentence}\r\n` : `${sentence}\n`)
      gone.abort()
      void finish(channel, 255)
    }
    open.add(end)
    const io: CommandIo = { stdin: channel, stdout: channel, stderr: channel.stderr, signal: gone.signal, env }
    if (terminal) io.terminal = terminal
    handler({ kind, command, io })
      .catch((error) => {
        const sentence = faultSentence(error, log, 'a session of the lobby failed')
        if (channel.writable) channel.stderr.write(terminal ? `\r\n${sentence}\r\n` : `${sentence}\n`)
        return 1
      })
      .then((status) => finish(channel, status))
      .catch((error) => log.warn({ err: error }, 'a session did not end in order'))
      .finally(() => open.delete(end))
  }
  session.on('shell', (accept) => run(accept(), 'shell', ''))
  session.on('exec', (accept, _reject, { command }) => run(accept(), 'exec', command))
  session.on('subsystem', (accept, _reject, { name }) => run(accept(), 'subsystem', name))
}

/** Exit status and end, after everything that was written has left: ssh2 closes the channel with its standard output. */
async function finish(channel: ServerChannel, status: number): Promise<void> {
  if (!channel.writable) return
  await Promise.all([flushed(channel), flushed(channel.stderr)])
  if (!channel.writable) return
  channel.exit(status)
  channel.end()
}

function flushed(stream: ServerChannel | ServerChannel['stderr']): Promise<void> {
  return new Promise((resolve) => {
    const done = () => resolve()
    stream.once('close', done)
    if (!stream.writable) return done()
    stream.write('', done)
  })
}

class SessionTerminal implements Terminal {
  readonly term: string
  #columns: number
  #rows: number
  readonly #listeners = new Set<() => void>()

  constructor(term: string, columns: number, rows: number) {
    this.term = /^[A-Za-z0-9._+-]{1,64}$/.test(term) ? term : 'dumb'
    this.#columns = bounded(columns, 80)
    this.#rows = bounded(rows, 24)
  }

  get columns(): number {
    return this.#columns
  }
  get rows(): number {
    return this.#rows
  }

  resize(columns: number, rows: number): void {
    this.#columns = bounded(columns, this.#columns)
    this.#rows = bounded(rows, this.#rows)
    for (const listener of [...this.#listeners]) listener()
  }

  onResize(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }
}

/** Zero means unknown (RFC 4254, 6.2). */
function bounded(cells: number, fallback: number): number {
  return cells > 0 ? Math.min(cells, MAX_COLUMNS_ROWS) : fallback
}
