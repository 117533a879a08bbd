import type { Readable, Writable } from 'node:stream'
import type { MachinePool } from './pool.ts'
import type { MachineTarget } from './target.ts'

export type MachineCommand = {
  /** Run by the login user's shell; undefined is a login shell. Bytes are passed as they are. */
  command?: string | Buffer
  /** Asks for a terminal. `modes` are RFC 4254, 8 encoded modes; default none. */
  pty?: { term: string; columns: number; rows: number; modes?: Buffer }
  env?: Record<string, string>
}

/** How a process on a machine ended. */
export type MachineExit = {
  /** Exit status; null when a signal ended it or the connection was lost. */
  status: number | null
  /** Signal name without SIG, e.g. 'TERM'. */
  signal: string | null
}

export type MachineProcess = {
  stdin: Writable
  stdout: Readable
  stderr: Readable
  /** Settles when the channel is closed and both outputs were read to their end; rejects with MachineUnreachableError when the connection is lost. */
  exit: Promise<MachineExit>
  resize(columns: number, rows: number): void
  signal(name: string): void
  /** Closes the channel at once. */
  close(): void
}

/**
 * Runs something on a machine over the pooled connection: the lobby's `ssh NAME CMD`, setup scripts, the web terminal.
 * @throws MachineUnreachableError
 */
export async function openOnMachine(
  _pool: MachinePool,
  _target: MachineTarget,
  _what: MachineCommand,
): Promise<MachineProcess> {
  throw new Error('not here yet')
}
