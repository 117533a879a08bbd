import type { Socket } from 'node:net'
import type { Connection, ServerChannel } from 'ssh2'

/**
 * The few things that ssh2 has and does not offer. `disconnect` with a description and `sendPayload` come from the
 * patch kept in ssh/patches; a test of the server notices when either is gone.
 */
type Internals = {
  _sock: Socket
  _protocol: {
    /** undefined once the connection is done for */
    _destruct?: unknown
    disconnect(reason: number, description: string): void
    sendPayload(payload: Buffer): void
    channelOpenFail(recipient: number, reason: number, description: string): void
  }
}

/** RFC 4253, 11.1 */
export const DISCONNECT = {
  protocolError: 2,
  serviceNotAvailable: 7,
  byApplication: 11,
  tooManyConnections: 12,
  noMoreAuthMethods: 14,
} as const

/** RFC 4252, 5.4 */
const USERAUTH_BANNER = 53

/** How long a client has to read why it was disconnected. */
const LINGER_MS = 2_000

/** Ends a connection and says why; clients print the text. */
export function disconnect(client: Connection, reason: number, text: string): void {
  const { _protocol: protocol, _sock: socket } = client as unknown as Internals
  try {
    if (socket.writable && protocol._destruct) {
      protocol.disconnect(reason, text)
      socket.end()
    }
  } catch {
    // It was ending already.
  }
  setTimeout(() => socket.destroy(), LINGER_MS).unref()
}

/** A line on the client's stderr before it is signed in. */
export function sendBanner(client: Connection, text: string): void {
  const message = Buffer.from(`${text}\r\n`)
  const payload = Buffer.alloc(1 + 4 + message.length + 4)
  payload[0] = USERAUTH_BANNER
  payload.writeUInt32BE(message.length, 1)
  message.copy(payload, 5)
  const { _protocol: protocol } = client as unknown as Internals
  if (protocol._destruct) protocol.sendPayload(payload)
}

/** Whether ssh2 can still send anything. */
export function isOpen(client: Connection): boolean {
  const { _protocol: protocol, _sock: socket } = client as unknown as Internals
  return Boolean(protocol._destruct) && socket.writable
}

/** Refuses a channel with a reason, which ssh2's own `reject` leaves empty and clients print. */
export function rejectChannel(client: Connection, reject: () => void, text: string): void {
  const { _protocol: protocol } = client as unknown as Internals
  const send = protocol.channelOpenFail
  protocol.channelOpenFail = (recipient, reason) => send.call(protocol, recipient, reason, text)
  try {
    if (isOpen(client)) reject()
  } finally {
    protocol.channelOpenFail = send
  }
}

/** How much the client lets us send on a channel just now; 0 when the channel is being closed. */
export function sendWindowBytes(channel: ServerChannel): number {
  const { outgoing } = channel as unknown as { outgoing: { window: number; state: string } }
  return outgoing.state === 'open' ? outgoing.window : 0
}
