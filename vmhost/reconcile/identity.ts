import { generateKeyPairSync, randomBytes } from 'node:crypto'

/** An SSH host key as sshd reads it, and its public part in SSH wire form (RFC 8709). */
export type HostKey = { readonly privateKey: string; readonly publicKey: Buffer }

const algorithm = 'ssh-ed25519'

/**
 * Makes an ed25519 key in OpenSSH's own private key format, without a passphrase.
 * @see https://github.com/openssh/openssh-portable/blob/master/PROTOCOL.key
 */
export function makeHostKey(comment: string): HostKey {
  const jwk = generateKeyPairSync('ed25519').privateKey.export({ format: 'jwk' })
  const seed = Buffer.from(jwk.d ?? '', 'base64url')
  const point = Buffer.from(jwk.x ?? '', 'base64url')
  const publicKey = Buffer.concat([string(algorithm), string(point)])
  const check = randomBytes(4)
  const secret = Buffer.concat([
    check,
    check,
    string(algorithm),
    string(point),
    string(Buffer.concat([seed, point])),
    string(comment),
  ])
  const padding = Buffer.from(Array.from({ length: (8 - (secret.length % 8)) % 8 }, (_, index) => index + 1))
  const blob = Buffer.concat([
    Buffer.from('openssh-key-v1\0'),
    string('none'),
    string('none'),
    string(''),
    Buffer.from([0, 0, 0, 1]),
    string(publicKey),
    string(Buffer.concat([secret, padding])),
  ])
  const lines = blob.toString('base64').match(/.{1,70}/g) ?? []
  const privateKey = `-----BEGIN OPENSSH PRIVATE KEY-----\n${lines.join('\n')}\n-----END OPENSSH PRIVATE KEY-----\n`
  return { privateKey, publicKey }
}

/** @returns the public part of a key that `makeHostKey` made. @throws RangeError when it is none */
export function publicPart(privateKey: string): Buffer {
  const blob = Buffer.from(privateKey.replace(/-----[^-]+-----/g, ''), 'base64')
  // magic, three strings ("none", "none", ""), the number of keys
  const at = 'openssh-key-v1\0'.length + 8 + 8 + 4 + 4
  if (blob.length < at + 4 || blob.toString('latin1', 0, 14) !== 'openssh-key-v1')
    throw new RangeError('no OpenSSH key')
  return blob.subarray(at + 4, at + 4 + blob.readUInt32BE(at))
}

/**
 * A line of authorized_keys for a key in SSH wire form. The bytes come from the database, written by the gateway:
 * whatever is not an algorithm's name followed by something would otherwise become options or a second line.
 * @returns undefined when it is no public key
 */
export function authorizedKeyLine(wire: Buffer): string | undefined {
  if (wire.length < 8 || wire.length > 8192) return undefined
  const length = wire.readUInt32BE(0)
  if (length > 64 || wire.length <= 4 + length) return undefined
  const name = wire.toString('latin1', 4, 4 + length)
  if (!/^[a-z0-9][a-z0-9@.-]*$/.test(name)) return undefined
  return `${name} ${wire.toString('base64')}`
}

/** The gateway's key as it stands in table settings: one OpenSSH public key line. */
export function parsePublicKeyLine(line: string): string | undefined {
  const [, wire] = /^\S+ ([A-Za-z0-9+/]+=*)(?: .*)?$/.exec(line.trim()) ?? []
  return wire === undefined ? undefined : authorizedKeyLine(Buffer.from(wire, 'base64'))
}

function string(value: string | Buffer): Buffer {
  const bytes = Buffer.from(value)
  const length = Buffer.alloc(4)
  length.writeUInt32BE(bytes.length)
  return Buffer.concat([length, bytes])
}
