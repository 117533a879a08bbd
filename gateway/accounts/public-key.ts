import { createHash, createPublicKey, type KeyObject } from 'node:crypto'

/**
 * Public keys of people: the wire form a client offers (RFC 4253, 6.6) and the lines that ssh-keygen writes.
 * Certificates, DSA and RSA below 2048 bits are refused, each with a sentence.
 */
export type PublicKey = {
  /** RSA is `ssh-rsa` here, whichever hash a signature uses */
  algorithm: KeyAlgorithm
  /** wire form, canonical: two blobs of one key are equal bytes */
  blob: Buffer
  /** `SHA256:…` as ssh-keygen -l prints it */
  fingerprint: string
  keyObject: KeyObject
  /** the FIDO application of an sk- key, `ssh:` unless chosen otherwise (PROTOCOL.u2f) */
  application?: Buffer
}

const ALGORITHMS = [
  'ssh-ed25519',
  'ecdsa-sha2-nistp256',
  'ecdsa-sha2-nistp384',
  'ecdsa-sha2-nistp521',
  'ssh-rsa',
  'sk-ssh-ed25519@openssh.com',
  'sk-ecdsa-sha2-nistp256@openssh.com',
] as const
export type KeyAlgorithm = (typeof ALGORITHMS)[number]

/** `message` is a sentence for whoever offered the key. */
export class PublicKeyError extends Error {
  override readonly name = 'PublicKeyError'
}

const MIN_RSA_BITS = 2048
/** Anybody may have a signature checked: the time that takes grows with the square of the bits … */
const MAX_RSA_BITS = 8192
/** … and with the exponent's; 65537 is what everybody uses. */
const MAX_RSA_EXPONENT_BYTES = 4
const MAX_BLOB_BYTES = 4096
const MAX_COMMENT_LENGTH = 200

/**
 * @param blob the wire form, complete: trailing bytes are refused
 * @throws PublicKeyError
 */
export function parsePublicKey(blob: Buffer): PublicKey {
  if (blob.length > MAX_BLOB_BYTES) throw new PublicKeyError('the key is too long')
  const reader = new WireReader(blob)
  const algorithm = reader.string().toString('latin1')
  refuseByName(algorithm)
  const key = { algorithm: algorithm as KeyAlgorithm, blob: Buffer.from(blob), fingerprint: fingerprintOf(blob) }
  try {
    switch (key.algorithm) {
      case 'ssh-ed25519':
        return finish(reader, { ...key, keyObject: ed25519(reader.string()) })
      case 'sk-ssh-ed25519@openssh.com': {
        const keyObject = ed25519(reader.string())
        return finish(reader, { ...key, keyObject, application: Buffer.from(reader.string()) })
      }
      case 'ecdsa-sha2-nistp256':
      case 'ecdsa-sha2-nistp384':
      case 'ecdsa-sha2-nistp521':
        return finish(reader, { ...key, keyObject: ecdsa(reader, algorithm.slice('ecdsa-sha2-'.length)) })
      case 'sk-ecdsa-sha2-nistp256@openssh.com': {
        const keyObject = ecdsa(reader, 'nistp256')
        return finish(reader, { ...key, keyObject, application: Buffer.from(reader.string()) })
      }
      case 'ssh-rsa':
        return finish(reader, { ...key, keyObject: rsa(reader.mpint(), reader.mpint()) })
    }
  } catch (cause) {
    if (cause instanceof PublicKeyError) throw cause
    throw new PublicKeyError(`that is not a valid ${algorithm} key`, { cause })
  }
}

export type KeyLine = { key: PublicKey; comment: string }

/**
 * One key as a person pastes it: a line of `id_*.pub` or authorized_keys, or the RFC 4716 form that PuTTYgen saves.
 * @throws PublicKeyError
 */
export function parseKeyLine(text: string): KeyLine {
  const trimmed = text.trim()
  if (/-----BEGIN [A-Z ]*PRIVATE KEY-----|^PuTTY-User-Key-File/m.test(trimmed)) {
    throw new PublicKeyError(
      'that is a private key: never give it to anyone; the public one is in the file ending in .pub',
    )
  }
  if (trimmed.startsWith('---- BEGIN SSH2 PUBLIC KEY ----')) return parseRfc4716(trimmed)
  if (trimmed === '')
    throw new PublicKeyError('no key was given; expected a line such as ssh-ed25519 AAAA… name@laptop')
  if (/[\r\n]/.test(trimmed)) throw new PublicKeyError('expected one key on one line')
  const [type = '', encoded = '', ...comment] = trimmed.split(/[ \t]+/)
  if (!looksLikeKeyType(type)) {
    throw new PublicKeyError(
      looksLikeKeyType(encoded) || / (ssh|ecdsa|sk)-\S+ AAAA/.test(trimmed)
        ? 'options before a key are not supported; give the line from its ssh-… on'
        : 'that is not a public key; expected a line such as ssh-ed25519 AAAA… name@laptop',
    )
  }
  refuseByName(type)
  const key = parsePublicKey(decodeBase64(encoded))
  if (key.algorithm !== type) throw new PublicKeyError(`the line says ${type} and holds a ${key.algorithm} key`)
  return { key, comment: cleanComment(comment.join(' ')) }
}

/**
 * The keys of an authorized_keys file. Comments, lines with options (they restrict a key in ways Berth would not
 * honour) and what cannot be read are passed over.
 */
export function parseKeyFile(text: string): KeyLine[] {
  const found: KeyLine[] = []
  for (const line of text.split(/\r?\n/)) {
    if (!looksLikeKeyType(line.trim().split(/[ \t]/, 1)[0] ?? '')) continue
    try {
      found.push(parseKeyLine(line))
    } catch (error) {
      if (!(error instanceof PublicKeyError)) throw error
    }
  }
  return found
}

/** `SHA256:` and unpadded base64, as OpenSSH prints it. */
export function fingerprintOf(blob: Buffer): string {
  return `SHA256:${createHash('sha256').update(blob).digest('base64').replace(/=+$/, '')}`
}

/** `ssh-ed25519 AAAA…` */
export function authorizedKeysForm(blob: Buffer): string {
  return `${new WireReader(blob).string().toString('latin1')} ${blob.toString('base64')}`
}

/** Reads SSH wire types (RFC 4251, 5) and refuses what is not canonical. */
export class WireReader {
  readonly #bytes: Buffer
  #position = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get remaining(): number {
    return this.#bytes.length - this.#position
  }

  string(): Buffer {
    if (this.remaining < 4) throw new PublicKeyError('the key is cut short')
    const length = this.#bytes.readUInt32BE(this.#position)
    if (length > this.remaining - 4) throw new PublicKeyError('the key is cut short')
    const start = this.#position + 4
    this.#position = start + length
    return this.#bytes.subarray(start, this.#position)
  }

  /** A positive mpint, without the zero byte that keeps it positive. */
  mpint(): Buffer {
    const bytes = this.string()
    const [first = 0, second = 0] = bytes
    const padded = bytes.length > 1 && first === 0
    if (bytes.length === 0 || (first & 0x80) !== 0 || (padded && (second & 0x80) === 0)) {
      throw new PublicKeyError('a number in the key is not canonical')
    }
    return padded ? bytes.subarray(1) : bytes
  }

  rest(): Buffer {
    return this.#bytes.subarray(this.#position)
  }
}

function refuseByName(algorithm: string): void {
  if (algorithm.includes('-cert-v0')) {
    throw new PublicKeyError('that is a certificate; give the key it was made for (the .pub file without -cert)')
  }
  if (algorithm === 'ssh-dss')
    throw new PublicKeyError('DSA keys are too weak; make another with ssh-keygen -t ed25519')
  if (!ALGORITHMS.some((known) => known === algorithm)) {
    const shown = /^[\x21-\x7e]{1,64}$/.test(algorithm) ? algorithm : 'of that kind'
    throw new PublicKeyError(`keys ${shown} are not known here; make another with ssh-keygen -t ed25519`)
  }
}

function looksLikeKeyType(word: string): boolean {
  return /^(ssh|ecdsa|sk-ssh|sk-ecdsa)-[a-z0-9@.-]+$/.test(word)
}

function parseRfc4716(text: string): KeyLine {
  const lines = text.split(/\r?\n/).map((line) => line.trim())
  const end = lines.findIndex((line) => line.startsWith('---- END'))
  let comment = ''
  let encoded = ''
  let continues = false
  for (const line of lines.slice(1, end === -1 ? undefined : end)) {
    const header = !encoded && /^([A-Za-z-]+): ?(.*)$/.exec(line)
    if (header && header[1]?.toLowerCase() === 'comment') comment = (header[2] ?? '').replace(/^"|"$/g, '')
    if (!header && !continues) encoded += line
    continues = Boolean(header || continues) && line.endsWith('\\')
  }
  return { key: parsePublicKey(decodeBase64(encoded)), comment: cleanComment(comment) }
}

function decodeBase64(text: string): Buffer {
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(text)) throw new PublicKeyError('the key is not in base64; was the line cut?')
  return Buffer.from(text, 'base64')
}

/** A comment is shown in lists: control characters would let a pasted key write on somebody's terminal. */
function cleanComment(comment: string): string {
  return comment
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, '')
    .trim()
    .slice(0, MAX_COMMENT_LENGTH)
}

function finish(reader: WireReader, key: PublicKey): PublicKey {
  if (reader.remaining !== 0) throw new PublicKeyError('there is something after the end of the key')
  return key
}

function ed25519(point: Buffer): KeyObject {
  if (point.length !== 32) throw new PublicKeyError('an ed25519 key has 32 bytes')
  return createPublicKey({ key: { kty: 'OKP', crv: 'Ed25519', x: point.toString('base64url') }, format: 'jwk' })
}

function ecdsa(reader: WireReader, curve: string): KeyObject {
  const named = reader.string().toString('latin1')
  const point = reader.string()
  const shape = { nistp256: ['P-256', 32], nistp384: ['P-384', 48], nistp521: ['P-521', 66] }[curve] as
    | [string, number]
    | undefined
  if (!shape || named !== curve) throw new PublicKeyError('the key names two different curves')
  const [crv, length] = shape
  // SEC 1, 2.3.3: only the uncompressed form is used by SSH (RFC 5656, 3.1 allows others, OpenSSH does not).
  if (point.length !== 1 + 2 * length || point[0] !== 0x04)
    throw new PublicKeyError('the point of the key is malformed')
  const x = point.subarray(1, 1 + length).toString('base64url')
  const y = point.subarray(1 + length).toString('base64url')
  return createPublicKey({ key: { kty: 'EC', crv, x, y }, format: 'jwk' })
}

function rsa(exponent: Buffer, modulus: Buffer): KeyObject {
  const bits = modulus.length * 8 - Math.clz32(modulus[0] ?? 0) + 24
  if (bits < MIN_RSA_BITS) {
    throw new PublicKeyError(
      `RSA keys need ${MIN_RSA_BITS} bits, this one has ${bits}; make another with ssh-keygen -t ed25519`,
    )
  }
  if (bits > MAX_RSA_BITS) throw new PublicKeyError(`RSA keys have at most ${MAX_RSA_BITS} bits, this one has ${bits}`)
  const odd = ((exponent.at(-1) ?? 0) & 1) === 1
  if (!odd || exponent.length > MAX_RSA_EXPONENT_BYTES || (exponent.length === 1 && (exponent[0] ?? 0) < 3)) {
    throw new PublicKeyError('the exponent of that RSA key is unusual')
  }
  const key = { kty: 'RSA', n: modulus.toString('base64url'), e: exponent.toString('base64url') }
  return createPublicKey({ key, format: 'jwk' })
}
