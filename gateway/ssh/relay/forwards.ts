import type { Upstream } from '../pool/upstream.ts'
import type { IncomingOpen } from '../transport/link.ts'
import { WireReader } from '../transport/wire.ts'

/**
 * What the machine may open channels for, because this client asked for it. A guest is hostile: without this its sshd
 * could reach the client's agent and display whenever somebody is connected.
 */
export class Permissions {
  agent = false
  x11 = false
  readonly #ports = new Set<number>()
  readonly #sockets = new Set<string>()

  /** Whether a client's channel request or the machine's CHANNEL_OPEN is covered by what the client asked for. */
  allows(open: IncomingOpen): boolean {
    switch (open.type) {
      case 'auth-agent@openssh.com':
        return this.agent
      case 'x11':
        return this.x11
      case 'forwarded-tcpip': {
        const reader = new WireReader(open.rest, 0)
        reader.bytes()
        return this.#ports.has(reader.uint32())
      }
      case 'forwarded-streamlocal@openssh.com':
        return this.#sockets.has(new WireReader(open.rest, 0).bytes().toString('latin1'))
      default:
        return false
    }
  }

  /** The machine listens for this client. */
  get listens(): boolean {
    return this.#ports.size > 0 || this.#sockets.size > 0
  }

  allowPort(port: number): void {
    this.#ports.add(port)
  }

  allowSocket(path: string): void {
    this.#sockets.add(path)
  }

  revokePort(port: number): void {
    this.#ports.delete(port)
  }

  revokeSocket(path: string): void {
    this.#sockets.delete(path)
  }

  /** Everything belonged to a connection that is gone. */
  clear(): void {
    this.agent = false
    this.x11 = false
    this.#ports.clear()
    this.#sockets.clear()
  }
}

/** Global requests that are the machine's to answer: remote forwards and their end. */
export function isForwardRequest(name: string): boolean {
  return (
    name === 'tcpip-forward' ||
    name === 'cancel-tcpip-forward' ||
    name === 'streamlocal-forward@openssh.com' ||
    name === 'cancel-streamlocal-forward@openssh.com'
  )
}

/**
 * Passes such a request on and keeps the books of what is permitted.
 * @param fields the request's own fields: address and port (RFC 4254, 7.1) or socket path
 * @param onReply `rest` holds the port that the machine chose, when 0 was asked for
 */
export function passForward(
  upstream: Upstream,
  permissions: Permissions,
  name: string,
  fields: Buffer,
  onReply: (success: boolean, rest: Buffer) => void,
): void {
  const reader = new WireReader(fields, 0)
  const addressOrPath = reader.bytes().toString('latin1')
  const port = name.includes('tcpip') ? reader.uint32() : 0
  upstream.globalRequest(name, fields, (success, rest) => {
    if (success) {
      if (name === 'tcpip-forward') permissions.allowPort(port === 0 ? new WireReader(rest, 0).uint32() : port)
      else if (name === 'cancel-tcpip-forward') permissions.revokePort(port)
      else if (name === 'streamlocal-forward@openssh.com') permissions.allowSocket(addressOrPath)
      else permissions.revokeSocket(addressOrPath)
    }
    onReply(success, rest)
  })
}
