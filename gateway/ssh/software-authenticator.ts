/**
 * A FIDO authenticator in software, for tests: makes sk- keys and signs as OpenSSH's PROTOCOL.u2f says. Nothing of the
 * code under test is used, so the formats come from the document.
 */
import { createHash, generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import { createServer } from 'node:net'

export const ED25519 = 'sk-ssh-ed25519@openssh.com'
export const ECDSA = 'sk-ecdsa-sha2-nistp256@openssh.com'

const [FAILURE, IDENTITIES, SIGN] = [5, 11, 13]

/** RFC 4251, 5 */
export function string(bytes: Buffer | string): Buffer {
  const content = Buffer.from(bytes as string)
  const length = Buffer.alloc(4)
  length.writeUInt32BE(content.length)
  return Buffer.concat([length, content])
}

export function mpint(bytes: Buffer): Buffer {
  let start = 0
  while (start < bytes.length - 1 && bytes[start] === 0) start++
  const trimmed = bytes.subarray(start)
  return string((trimmed[0] ?? 0) & 0x80 ? Buffer.concat([Buffer.alloc(1), trimmed]) : trimmed)
}

export type SignOptions = { flags?: number; counter?: number; application?: string; delayMs?: number }

export class SoftwareAuthenticator {
  readonly type: string
  readonly blob: Buffer
  readonly #key: KeyObject
  readonly #application: string

  constructor(type: typeof ED25519 | typeof ECDSA, application = 'ssh:') {
    this.type = type
    this.#application = application
    if (type === ED25519) {
      const { publicKey, privateKey } = generateKeyPairSync('ed25519')
      const point = Buffer.from(String(publicKey.export({ format: 'jwk' }).x), 'base64url')
      this.#key = privateKey
      this.blob = Buffer.concat([string(type), string(point), string(application)])
    } else {
      const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
      const { x, y } = publicKey.export({ format: 'jwk' })
      const point = Buffer.concat([
        Buffer.of(4),
        Buffer.from(String(x), 'base64url'),
        Buffer.from(String(y), 'base64url'),
      ])
      this.#key = privateKey
      this.blob = Buffer.concat([string(type), string('nistp256'), string(point), string(application)])
    }
  }

  /** `string type, string signature, byte flags, uint32 counter` */
  sign(message: Buffer, { flags = 1, counter = 7, application = this.#application }: SignOptions = {}): Buffer {
    const trailer = Buffer.alloc(5)
    trailer[0] = flags
    trailer.writeUInt32BE(counter, 1)
    const sha256 = (bytes: Buffer | string) => createHash('sha256').update(bytes).digest()
    const signed = Buffer.concat([sha256(application), trailer, sha256(message)])
    let inner: Buffer
    if (this.type === ED25519) inner = sign(null, signed, this.#key)
    else {
      const pair = sign('sha256', signed, { key: this.#key, dsaEncoding: 'ieee-p1363' })
      inner = Buffer.concat([mpint(pair.subarray(0, 32)), mpint(pair.subarray(32))])
    }
    return Buffer.concat([string(this.type), string(inner), trailer])
  }

  /** As ssh2 hands it over: without type and length. */
  handedOver(signature: Buffer): Buffer {
    return signature.subarray(4 + this.type.length + 4)
  }
}

/**
 * An ssh-agent that holds one software authenticator (draft-ietf-sshm-ssh-agent): OpenSSH's client leaves signing with
 * an sk- key to the agent, so the rest of the sign-in is the real client's.
 */
export async function serveAgent(path: string, device: SoftwareAuthenticator, options: SignOptions = {}) {
  const server = createServer((socket) => {
    let received = Buffer.alloc(0)
    socket.on('error', () => {})
    socket.on('data', (chunk) => {
      received = Buffer.concat([received, chunk])
      while (received.length >= 4 && received.length >= 4 + received.readUInt32BE(0)) {
        const message = received.subarray(4, 4 + received.readUInt32BE(0))
        received = received.subarray(4 + message.length)
        const reply = string(answer(message))
        // Only signing takes the time that a person takes.
        if (message[0] === SIGN && options.delayMs) setTimeout(() => socket.write(reply), options.delayMs)
        else socket.write(reply)
      }
    })
  })
  const answer = (message: Buffer): Buffer => {
    if (message[0] === IDENTITIES) {
      return Buffer.concat([Buffer.of(12, 0, 0, 0, 1), string(device.blob), string('token@laptop')])
    }
    if (message[0] !== SIGN) return Buffer.of(FAILURE)
    // string key, string what to sign, uint32 flags
    const keyLength = message.readUInt32BE(1)
    const start = 1 + 4 + keyLength + 4
    const toSign = message.subarray(start, start + message.readUInt32BE(start - 4))
    return Buffer.concat([Buffer.of(14), string(device.sign(toSign, options))])
  }
  await new Promise<void>((resolve) => server.listen(path, resolve))
  return { [Symbol.asyncDispose]: () => new Promise<void>((resolve) => server.close(() => resolve())) }
}
