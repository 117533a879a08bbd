import { createHash, verify } from 'node:crypto'
import { type PublicKey, WireReader } from '../accounts/public-key.ts'

/** The fields of a publickey request as ssh2 hands them over (`PublicKeyAuthContext`). */
export type SignedRequest = {
  /** algorithm of the request, `ssh-rsa` for every RSA one */
  algorithm: string
  /** of an RSA request: `sha256`, `sha512`, undefined for the SHA-1 of old clients */
  hash: string | undefined
  /** what was signed: session identifier and request (RFC 4252, 7) */
  signed: Buffer
  /**
   * the signature without its leading algorithm name; ECDSA as DER. ssh2 leaves the name where it is not the
   * request's, and then no check below passes.
   */
  signature: Buffer
}

/** PROTOCOL.u2f, "SSH U2F Signatures": the authenticator saw a touch. */
const USER_PRESENT = 0x01
const SK_TRAILER_BYTES = 5
const ED25519_SIGNATURE_BYTES = 64

/**
 * Whether the algorithm may be used with that key at all: a request names both, and they must agree.
 * RSA with SHA-1 is refused.
 */
export function isAlgorithmOf(key: PublicKey, algorithm: string, hash: string | undefined): boolean {
  return algorithm === key.algorithm && (algorithm !== 'ssh-rsa' || hash === 'sha256' || hash === 'sha512')
}

/** Whether the owner of the key signed the request. A malformed signature is a wrong one. */
export function isSignedBy(key: PublicKey, { algorithm, hash, signed, signature }: SignedRequest): boolean {
  if (!isAlgorithmOf(key, algorithm, hash)) return false
  try {
    switch (key.algorithm) {
      case 'ssh-ed25519':
        return signature.length === ED25519_SIGNATURE_BYTES && verify(null, signed, key.keyObject, signature)
      case 'ecdsa-sha2-nistp256':
        return verify('sha256', signed, key.keyObject, signature)
      case 'ecdsa-sha2-nistp384':
        return verify('sha384', signed, key.keyObject, signature)
      case 'ecdsa-sha2-nistp521':
        return verify('sha512', signed, key.keyObject, signature)
      case 'ssh-rsa':
        return hash !== undefined && verify(hash, signed, key.keyObject, signature)
      case 'sk-ssh-ed25519@openssh.com':
      case 'sk-ecdsa-sha2-nistp256@openssh.com':
        return isSignedByAuthenticator(key, signed, signature)
    }
  } catch {
    return false
  }
}

/**
 * OpenSSH's PROTOCOL.u2f: what a FIDO authenticator signs is
 * `SHA256(application) || flags (1) || counter (4) || SHA256(message)`; flags and counter follow the signature.
 */
function isSignedByAuthenticator(key: PublicKey, signed: Buffer, signature: Buffer): boolean {
  if (!key.application || signature.length < SK_TRAILER_BYTES) return false
  const inner = signature.subarray(0, signature.length - SK_TRAILER_BYTES)
  const trailer = signature.subarray(signature.length - SK_TRAILER_BYTES)
  if (((trailer[0] ?? 0) & USER_PRESENT) === 0) return false
  const sha256 = (bytes: Buffer) => createHash('sha256').update(bytes).digest()
  const message = Buffer.concat([sha256(key.application), trailer, sha256(signed)])
  if (key.algorithm === 'sk-ssh-ed25519@openssh.com') {
    return inner.length === ED25519_SIGNATURE_BYTES && verify(null, message, key.keyObject, inner)
  }
  const reader = new WireReader(inner)
  const [r, s] = [reader.mpint(), reader.mpint()]
  if (reader.remaining !== 0 || r.length > 32 || s.length > 32) return false
  const fixed = Buffer.alloc(64)
  fixed.set(r, 32 - r.length)
  fixed.set(s, 64 - s.length)
  return verify('sha256', message, { key: key.keyObject, dsaEncoding: 'ieee-p1363' }, fixed)
}
