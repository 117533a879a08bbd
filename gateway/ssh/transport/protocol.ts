import type { Socket } from 'node:net'
import type { Client, Connection } from 'ssh2'

/**
 * What the relay uses of ssh2's Protocol object: its own fields and the ones that our patch adds. The single place
 * where ssh2's internals are named, apart from the patch itself; `checkSsh2` in native.ts proves at start that
 * they are there.
 */
export type Protocol = {
  /** Sends one encoded message of the connection protocol; queued by ssh2 while new keys are agreed. */
  sendPayload(payload: Buffer): void
  /** Lets memory be used again that was given to `_onWrite` and has been written. */
  releasePacket(packet: Buffer): void
  disconnect(reason: number, description?: string): void
  rekey(): void
  /** Bytes held back while new keys are agreed. */
  readonly queuedBytes: number
  /** Undefined once the connection is unusable. */
  readonly _destruct: unknown
  readonly _kex: { sessionID: Buffer } | undefined
  readonly _cipher: { _onWrite: (bytes: Buffer) => void }
  _onWrite: (bytes: Buffer) => void
  _onConnectionPacket: ((type: number, payload: Buffer) => void) | undefined
  /** May take packets at `chunk[start..end)` before they are decrypted; gives back where ssh2 goes on. */
  _onPackets: ((chunk: Buffer, start: number, end: number) => number) | undefined
  /** Passes packets on to another connection, see bulk.ts; false when nothing was done. */
  relayTo(target: Protocol, chunk: Buffer, start: number, end: number, output: Buffer, job: Uint32Array): boolean
  /** Counts what `relayTo` passed on towards new keys. */
  countRelayed(bytes: number): void
  /** Handles a payload that `relayTo` has decrypted; anything but undefined ends the parsing of the chunk there. */
  handleDecrypted(payload: Buffer): number | false | undefined
}

type Internals = { _protocol?: Protocol; _sock?: Socket }

/** The transport under an ssh2 connection of either role. */
export function transportOf(connection: Connection | Client): { protocol: Protocol; socket: Socket } {
  const { _protocol: protocol, _sock: socket } = connection as unknown as Internals
  if (protocol === undefined || socket === undefined) throw new Error('ssh2 connection has no transport yet')
  return { protocol, socket }
}

/** Ends a connection with a reason that the client prints; nothing is refused by silence. */
export function disconnectWithMessage(connection: Connection | Client, reason: number, sentence: string): void {
  const { protocol, socket } = transportOf(connection)
  if (protocol._destruct !== undefined && socket.writable) protocol.disconnect(reason, sentence)
  socket.end()
}
