/** Keys and signatures as ACME has them: ES256 over flattened JSON (RFC 7515, 7.2.2; RFC 8555, 6.2). */
import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto'
import { z } from 'zod'
import type { Sql } from '../../../migrations/connect.ts'
import { loadOrCreateSecret } from '../../secrets.ts'

export type AccountKey = {
  privateKey: KeyObject
  jwk: { crv: string; kty: string; x: string; y: string }
  /** RFC 7638, SHA-256, base64url */
  thumbprint: string
}

export type Protected = { url: string; nonce: string } & ({ kid: string } | { jwk: AccountKey['jwk'] })

const jwkShape = z.object({ crv: z.string(), kty: z.string(), x: z.string(), y: z.string() })

/**
 * The installation's account key for a directory, made when there is none. It is kept in the table `secrets`: the
 * account that it opens holds what was proved and is counted against limits.
 */
export async function loadAccountKey(sql: Sql, secretKey: Buffer, directoryUrl: string): Promise<AccountKey> {
  const pem = await loadOrCreateSecret(sql, secretKey, `acme_account ${directoryUrl}`, () => {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    return Buffer.from(privateKey.export({ type: 'pkcs8', format: 'pem' }))
  })
  return accountKey(createPrivateKey(pem))
}

export function accountKey(privateKey: KeyObject): AccountKey {
  const jwk = jwkShape.parse(createPublicKey(privateKey).export({ format: 'jwk' }))
  const { crv, kty, x, y } = jwk
  // The members in this order and no others (RFC 7638, 3.2).
  const thumbprint = createHash('sha256').update(JSON.stringify({ crv, kty, x, y })).digest('base64url')
  return { privateKey, jwk: { crv, kty, x, y }, thumbprint }
}

/** @param payload undefined for a POST-as-GET (RFC 8555, 6.3) @returns the body of a request */
export function signed(key: AccountKey, header: Protected, payload: object | undefined): string {
  const head = encoded(JSON.stringify({ alg: 'ES256', ...header }))
  const body = payload === undefined ? '' : encoded(JSON.stringify(payload))
  const signature = sign('sha256', Buffer.from(`${head}.${body}`), {
    key: key.privateKey,
    dsaEncoding: 'ieee-p1363',
  })
  return JSON.stringify({ protected: head, payload: body, signature: signature.toString('base64url') })
}

/** What a challenge's token becomes in the hands of the account (RFC 8555, 8.1). */
export function keyAuthorization(key: AccountKey, token: string): string {
  return `${token}.${key.thumbprint}`
}

/** The TXT record of DNS-01 (RFC 8555, 8.4). */
export function dnsDigest(authorization: string): string {
  return createHash('sha256').update(authorization).digest('base64url')
}

function encoded(text: string): string {
  return Buffer.from(text).toString('base64url')
}
