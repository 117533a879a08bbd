import type { Socket } from 'node:net'

/**
 * Refusals before any key exchange. They cost no cryptography: the identification line and one unencrypted
 * SSH_MSG_DISCONNECT, which every client prints (RFC 4253, 4.2, 6 and 11.1). A plain line of text, which the RFC
 * allows too, would be shown by none.
 */
const MSG_DISCONNECT = 1
const TOO_MANY_CONNECTIONS = 12
/** Sockets kept open for a moment so that the client can read why; beyond this many they are closed at once. */
const MAX_LINGERING = 256
const LINGER_MS = 3_000

let lingering = 0

/** Refuses a connection that nothing was sent on yet. */
export function refuseEarly(socket: Socket, text: string): void {
  endWith(socket, Buffer.concat([Buffer.from('SSH-2.0-Berth\r\n'), disconnectPacket(text)]))
}

/** Refuses a connection on which our identification was sent and the client's has not come. */
export function refuseWaiting(socket: Socket, text: string): void {
  endWith(socket, disconnectPacket(text))
}

function endWith(socket: Socket, lastBytes: Buffer): void {
  socket.on('error', () => {})
  if (lingering >= MAX_LINGERING || !socket.writable) {
    socket.destroy()
    return
  }
  lingering++
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  socket.once('close', () => {
    lingering--
    clearTimeout(timer)
  })
  // What the client sends is read and dropped: closing with unread bytes would be a reset, which eats our message.
  socket.removeAllListeners('data')
  socket.resume()
  socket.end(lastBytes)
}

/** An unencrypted packet: length, padding length, payload, padding to a multiple of 8 (RFC 4253, 6). */
function disconnectPacket(text: string): Buffer {
  const description = Buffer.from(text)
  const payloadLength = 1 + 4 + 4 + description.length + 4
  let padding = 8 - ((5 + payloadLength) % 8)
  if (padding < 4) padding += 8
  const packet = Buffer.alloc(5 + payloadLength + padding)
  packet.writeUInt32BE(packet.length - 4, 0)
  packet[4] = padding
  packet[5] = MSG_DISCONNECT
  packet.writeUInt32BE(TOO_MANY_CONNECTIONS, 6)
  packet.writeUInt32BE(description.length, 10)
  description.copy(packet, 14)
  return packet
}
