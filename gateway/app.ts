import type { Readable, Writable } from 'node:stream'
import type { Database, Sql } from '../migrations/connect.ts'
import type { Watches } from './activity/watches.ts'
import type { CommandError } from './commands/error.ts'
import type { Lookup } from './domains/lookup.ts'
import type { Log } from './log.ts'
import type { MachineAccess } from './machines.ts'
import type { News } from './news.ts'
import type { Settings } from './settings.ts'
import type { MachinePool } from './ssh/pool/pool.ts'
import type { RunningCommand } from './ssh/pool/run-on-machine.ts'

/** What every room of a running gateway is handed. */
export type App = {
  settings: Settings
  /** postgres.js under the role berth_gateway: leases, aggregates, transactions */
  sql: Sql
  /** Drizzle over the same pool: plain rows */
  db: Database
  log: Log
  /** what Postgres tells us (LISTEN), and when to look again because something may have been missed */
  news: News
  /** the machines that this gateway is connected to: which of them sleep, and what was carried */
  watches: Watches
  /** which machines an account may see and reach */
  machines: MachineAccess
  /** the gateway's connections to the machines' sshd; see `openOnMachine` in ssh/pool/open-on-machine.ts */
  pool: MachinePool
  /** keys the hashes of mailed codes; in no database */
  codeSecret: Buffer
  /** what DNS says of domains that people bring */
  lookup: Lookup
  /** the SSH host key as `ssh-ed25519 AAAA…`, for known_hosts lines */
  hostPublicKey: string
  /** when this process began to serve */
  startedAt: Date
}

/** Who gave a command, and how. */
export type Caller = {
  accountId: number
  isOwner: boolean
  /** the key that signed in; null when a token did */
  keyId: number | null
  /** `SHA256:…` of that key, empty for a token */
  fingerprint: string
  /** IP address the call came from, IPv4-mapped IPv6 written as IPv4 */
  address: string
  /** `web`: a page of the control host, by `POST /exec` or a form */
  via: 'ssh' | 'exec' | 'web'
  /** the line being run, as the audit record has it */
  command?: string
  /** the SSH user name that was typed, empty but over SSH */
  sshName: string
  /** the signed-in browser that a page's command came from */
  sessionId?: number
  /** what a token was limited to; a key that signs in is limited to nothing */
  scope?: TokenScope
}

/** What a token may do of what its account may. */
export type TokenScope = {
  /** the row of a token that can be revoked; undefined for one that was minted offline with `keyId` */
  tokenId: number | undefined
  /** Unix milliseconds */
  expiresAtMs: number
  /** lobby commands by name (`share show`) or family (`share`); undefined: none were named */
  commands: readonly string[] | undefined
  /** the only machine that it reaches */
  machineId: number | undefined
  /** it reaches machines with this tag alone */
  tag: string | undefined
}

/** A person's terminal. `columns` and `rows` are current; listen to hear of a change. */
export type Terminal = {
  readonly term: string
  readonly columns: number
  readonly rows: number
  /** @returns stops listening */
  onResize(listener: () => void): () => void
}

/**
 * What a command reads and writes. Writers are flow-controlled by the client: await 'drain' (or use pipeline) for
 * anything long. The signal is aborted when the client is gone, interrupts with Ctrl-C or sends a signal.
 */
export type CommandIo = {
  stdin: Readable
  stdout: Writable
  stderr: Writable
  /** absent when there is none: no colour, no progress then */
  terminal?: Terminal
  signal: AbortSignal
  /** what the client sent with `SetEnv`/`SendEnv`, bounded */
  env: Record<string, string>
  /** every command answers as with `--json` */
  json?: true
  /** is told what went wrong, and nothing is printed of it */
  onFailure?: (failure: CommandError) => void
  /** who asks cannot wait longer for a machine: commands answer with what they have by then, as with `--no-wait` */
  patienceMs?: number
  /**
   * Takes what `ssh NAME CMD` started, in place of the streams above.
   * @returns the exit status
   */
  attach?: (remote: RunningCommand) => Promise<number>
  /** with `json`: hears what a terminal would show before the document */
  tell?: (piece: Piece) => Promise<void>
}

/** What a command says before it has ended. */
export type Piece =
  /** what it is doing; the newest counts */
  | { progress: string; part?: { doneBytes: number; totalBytes: number } }
  /** printed, to be put behind what was printed before */
  | { text: string }
  /** a sentence for the person */
  | { remark: string }

/** Runs one command line of the lobby. Never rejects: a failure is a sentence on stderr and an exit status. */
export type RunLine = (app: App, caller: Caller, line: string, io: CommandIo) => Promise<number>

/** The lobby on a terminal, until the person leaves. `notice` is printed first. Never rejects. */
export type RunLobby = (
  app: App,
  caller: Caller,
  io: CommandIo & { terminal: Terminal },
  notice?: string,
) => Promise<number>

/** The exit statuses of a line of the lobby, as `doc scripts` names them. */
export const EXIT = { done: 0, failed: 1, usage: 2, notFound: 3, notAllowed: 4, busy: 5 } as const
