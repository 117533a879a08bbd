/**
 * Tokens that people mint with their own SSH key, without asking the server:
 *
 *     exe0.<base64url(JSON)>.<base64url(SSHSIG)>        ssh-keygen -Y sign -n v0@<host>, over the JSON's bytes
 *
 * The JSON is `{exp, nbf, cmds[], ctx}` and nothing else; `exp` is required and at most 400 days off. The namespace of
 * the signature names the host it is for, so that a token for one machine opens no other.
 * @see OpenSSH, PROTOCOL.sshsig
 */
import { createHash } from 'node:crypto'
import { PublicKeyError, parsePublicKey, WireReader } from '../../accounts/public-key.ts'
import { isSignedBy } from '../../ssh/verify.ts'

export const OFFLINE_PREFIX = 'exe0.'
const MAX_TOKEN_BYTES = 8192
const MAX_LIFE_S = 400 * 86_400
const MAGIC = Buffer.from('SSHSIG')
const VERSION = 1
/** Flags and counter, behind a FIDO key's signature (PROTOCOL.u2f). */
const FIDO_TRAILER_BYTES = 5
const MEMBERS = new Set(['exp', 'nbf', 'cmds', 'ctx'])

export type OfflineToken = {
  /** wire form of the key that signed: whose it is says the database */
  publicKey: Buffer
  /** `v0@demo.example.com` */
  namespace: string
  expiresAtMs: number
  notBeforeMs: number
  /** lobby commands it may run; undefined: not said */
  commands: string[] | undefined
  /** handed to the machine as JSON text */
  context: string | undefined
}

/** Why a token is no good: a sentence for whoever sent it. */
export class OfflineTokenError extends Error {
  override readonly name = 'OfflineTokenError'
}

/** A token whose signature nobody has looked at: what it says is what whoever sent it says. */
export type UncheckedToken = {
  /** wire form of the key that is said to have signed, as it was sent */
  publicKey: Buffer
  namespace: string
  /**
   * Checks the signature, which costs up to a millisecond: for keys that somebody here has.
   * @throws OfflineTokenError
   */
  verify(): OfflineToken
}

/**
 * Reads a token and checks its times.
 * @throws OfflineTokenError
 */
export function parseOfflineToken(token: string, nowMs = Date.now()): UncheckedToken {
  if (token.length > MAX_TOKEN_BYTES) throw new OfflineTokenError('the token is longer than 8 KiB')
  const [, payload, signature, more] = token.split('.')
  if (!token.startsWith(OFFLINE_PREFIX) || !payload || !signature || more !== undefined) {
    throw new OfflineTokenError('the token has not the form exe0.JSON.SIGNATURE')
  }
  const bytes = decode(payload)
  const claims = readClaims(bytes.toString('utf8'))
  const { exp, nbf = 0, cmds, ctx } = claims
  if (exp * 1000 <= nowMs) throw new OfflineTokenError('the token has expired')
  if (exp * 1000 > nowMs + MAX_LIFE_S * 1000) throw new OfflineTokenError('the token is good for more than 400 days')
  if (nbf * 1000 > nowMs) throw new OfflineTokenError('the token is not good yet')
  const envelope = sentencing(() => readEnvelope(decode(signature)))
  const { publicKey } = envelope
  const namespace = envelope.namespace.toString('utf8')
  return {
    publicKey,
    namespace,
    verify() {
      sentencing(() => checkSignature(envelope, bytes))
      return {
        publicKey,
        namespace,
        expiresAtMs: exp * 1000,
        notBeforeMs: nbf * 1000,
        commands: cmds,
        context: ctx === undefined ? undefined : printable(JSON.stringify(ctx)),
      }
    },
  }
}

type Claims = { exp: number; nbf?: number; cmds?: string[]; ctx?: unknown }

function readClaims(text: string): Claims {
  let claims: unknown
  try {
    claims = JSON.parse(text)
    refuseDuplicates(text)
  } catch (cause) {
    if (cause instanceof OfflineTokenError) throw cause
    throw new OfflineTokenError("the token's first part is not JSON", { cause })
  }
  if (typeof claims !== 'object' || claims === null || Array.isArray(claims)) {
    throw new OfflineTokenError("the token's first part is not a JSON object")
  }
  const { exp, nbf, cmds } = claims as Record<string, unknown>
  const unknown = Object.keys(claims).find((name) => !MEMBERS.has(name))
  if (unknown !== undefined) throw new OfflineTokenError('the token has a member besides exp, nbf, cmds and ctx')
  if (!isTime(exp)) throw new OfflineTokenError('the token does not say when it expires (exp, in seconds)')
  if (nbf !== undefined && !isTime(nbf)) throw new OfflineTokenError("the token's nbf is not a time in seconds")
  if (cmds !== undefined && !(Array.isArray(cmds) && cmds.every((one) => typeof one === 'string'))) {
    throw new OfflineTokenError("the token's cmds is not a list of commands")
  }
  return claims as Claims
}

function isTime(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}

/**
 * JSON.parse takes the last of two equal keys, other readers the first: such a token means two things.
 * @param text JSON that parses, so that a string right behind `{` or a comma inside an object is a key
 * @throws OfflineTokenError
 */
function refuseDuplicates(text: string): void {
  const open: { names: Set<string> | undefined; atKey: boolean }[] = []
  for (const [piece] of text.matchAll(/"(?:[^"\\]|\\.)*"|[{}[\],]/g)) {
    const inner = open.at(-1)
    if (piece === '{') open.push({ names: new Set(), atKey: true })
    else if (piece === '[') open.push({ names: undefined, atKey: false })
    else if (piece === '}' || piece === ']') open.pop()
    else if (piece === ',') {
      if (inner) inner.atKey = true
    } else if (inner?.names && inner.atKey) {
      const name = String(JSON.parse(piece))
      if (inner.names.has(name)) throw new OfflineTokenError('the token has two members of one name')
      inner.names.add(name)
      inner.atKey = false
    }
  }
}

/** PROTOCOL.sshsig, with the key as it was sent. */
type Envelope = { publicKey: Buffer; namespace: Buffer; reserved: Buffer; hash: string; signature: Buffer }

function readEnvelope(blob: Buffer): Envelope {
  if (!blob.subarray(0, MAGIC.length).equals(MAGIC)) throw new OfflineTokenError('the token holds no SSH signature')
  if (blob.readUInt32BE(MAGIC.length) !== VERSION) throw new OfflineTokenError('the signature has another version')
  const reader = new WireReader(blob.subarray(MAGIC.length + 4))
  const publicKey = reader.string()
  const namespace = reader.string()
  const reserved = reader.string()
  const hash = reader.string().toString('latin1')
  const signature = reader.string()
  if (reader.remaining !== 0) throw new OfflineTokenError('the signature has bytes behind it')
  if (hash !== 'sha256' && hash !== 'sha512') throw new OfflineTokenError('the signature uses another hash')
  return { publicKey, namespace, reserved, hash, signature }
}

/** @throws OfflineTokenError */
function checkSignature({ publicKey, namespace, reserved, hash, signature }: Envelope, message: Buffer): void {
  const key = parsePublicKey(publicKey)
  const reader = new WireReader(signature)
  const digest = createHash(hash).update(message).digest()
  const signed = Buffer.concat([MAGIC, ...[namespace, reserved, Buffer.from(hash), digest].map(wireString)])
  const algorithm = reader.string().toString('latin1')
  const rsa = /^rsa-sha2-(256|512)$/.exec(algorithm)
  if (
    !isSignedBy(key, {
      algorithm: rsa ? 'ssh-rsa' : algorithm,
      hash: rsa ? `sha${rsa[1]}` : undefined,
      signed,
      signature: bareSignature(algorithm, reader),
    })
  ) {
    throw new OfflineTokenError('the signature is not right')
  }
}

function sentencing<T>(read: () => T): T {
  try {
    return read()
  } catch (cause) {
    if (cause instanceof PublicKeyError || cause instanceof RangeError) {
      throw new OfflineTokenError('the token holds no SSH signature', { cause })
    }
    throw cause
  }
}

/** What `isSignedBy` takes: ECDSA as DER, a FIDO signature with flags and counter behind it. */
function bareSignature(algorithm: string, reader: WireReader): Buffer {
  const signature = reader.string()
  const isFido = algorithm.startsWith('sk-')
  if (reader.remaining !== (isFido ? FIDO_TRAILER_BYTES : 0)) throw new OfflineTokenError('the signature is not right')
  if (algorithm.startsWith('ecdsa-')) {
    const parts = new WireReader(signature)
    const numbers = Buffer.concat([derInteger(parts.mpint()), derInteger(parts.mpint())])
    return Buffer.concat([
      Buffer.from(numbers.length < 128 ? [0x30, numbers.length] : [0x30, 0x81, numbers.length]),
      numbers,
    ])
  }
  return isFido ? Buffer.concat([signature, reader.rest()]) : signature
}

/** @param magnitude big-endian, without sign */
function derInteger(magnitude: Buffer): Buffer {
  const bytes = (magnitude[0] ?? 0x80) >= 0x80 ? Buffer.concat([Buffer.from([0]), magnitude]) : magnitude
  return Buffer.concat([Buffer.from([0x02, bytes.length]), bytes])
}

function wireString(bytes: Buffer): Buffer {
  const length = Buffer.alloc(4)
  length.writeUInt32BE(bytes.length)
  return Buffer.concat([length, bytes])
}

function decode(text: string): Buffer {
  const bytes = Buffer.from(text, 'base64url')
  // Node passes over what does not belong there; a token has one spelling.
  if (bytes.toString('base64url') !== text) throw new OfflineTokenError('the token is not base64url')
  return bytes
}

/** A header is ASCII; JSON can say everything in it. */
function printable(json: string): string {
  return json.replace(/[^\x20-\x7e]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
}
