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
  /** The same without a copy, for a payload with room; false when nothing was done. Destroys the payload. */
  sendPayloadInPlace(payload: Buffer): boolean
  disconnect(reason: number, description?: string): void
  rekey(): void
  /** Whether the payloads that this side receives lie in memory of their own with room for a header and a tag. */
  readonly payloadHasRoom: boolean
  /** Bytes held back while new keys are agreed. */
  readonly queuedBytes: number
  /** Undefined once the connection is unusable. */
  readonly _destruct: unknown
  readonly _kex: { sessionID: Buffer } | undefined
  readonly _cipher: { _onWrite: (bytes: Buffer) => void }
  _onWrite: (bytes: Buffer) => void
  _onConnectionPacket: ((type: number, payload: Buffer) => void) | undefined
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
