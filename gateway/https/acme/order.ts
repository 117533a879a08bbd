import { createPublicKey, X509Certificate } from 'node:crypto'
import { createSecureContext } from 'node:tls'
import type { Sql } from '../../../migrations/connect.ts'
import { type Challenge, openChallenges } from './challenges.ts'
import type { AcmeChallenge, AcmeClient, Authorization } from './client.ts'
import { AcmeError } from './error.ts'
import { type AccountKey, dnsDigest, keyAuthorization } from './jws.ts'
import { certificateRequest } from './requests.ts'

export type Method = 'dns-01' | 'http-01' | 'tls-alpn-01'

/** A certificate with its key, both PEM; the chain begins with the leaf. */
export type Obtained = { chain: string; key: string; notBefore: Date; notAfter: Date }

export type OrderOptions = {
  client: AcmeClient
  key: AccountKey
  sql: Sql
  names: readonly string[]
  /** how the names are to be proved; no other way is tried */
  method: Method
  /** where the TXT record of a name's DNS-01 has to stand, for every way that leads to this name server */
  recordNames(name: string): readonly string[]
}

/**
 * Obtains one certificate: an order, its authorizations proved together, the request, the chain.
 * @throws AcmeError with the directory's reason
 */
export async function obtain(options: OrderOptions): Promise<Obtained> {
  const { client, names } = options
  const order = await client.newOrder(names)
  const authorizations = await Promise.all(
    order.authorizations.map(async (url) => ({ url, ...(await client.authorization(url)) })),
  )
  const open = authorizations.filter(({ status }) => status === 'pending')
  const proofs = open.map((authorization) => proofOf(authorization, options))
  // A wildcard and its apex have two authorizations and one name for the record: both values stand there together.
  const close =
    proofs.length === 0
      ? undefined
      : await openChallenges(
          options.sql,
          proofs.flatMap(({ shown }) => shown),
        )
  try {
    await Promise.all(proofs.map(({ challenge }) => client.ready(challenge)))
    await Promise.all(open.map(({ url }) => client.untilValid(url)))
  } finally {
    // An order that is over must not leave its challenges; should that fail, they expire.
    await close?.().catch(() => {})
  }
  const { request, key } = await certificateRequest(names)
  const chain = await client.certificate(order, request)
  return { chain, key, ...checked(chain, key, names) }
}

function proofOf(
  { name, challenges }: Authorization,
  { key, method, recordNames }: OrderOptions,
): { challenge: AcmeChallenge; shown: Challenge[] } {
  const challenge = challenges.find(({ type }) => type === method)
  if (!challenge) throw new AcmeError(`the directory does not offer ${method} for ${name}`)
  const { token } = challenge
  if (!/^[A-Za-z0-9_-]{1,512}$/.test(token)) throw new AcmeError('the directory’s token is malformed')
  const value = keyAuthorization(key, token)
  const shown: Challenge[] =
    method === 'dns-01'
      ? recordNames(name).map((at) => ({ kind: method, name: at, value: dnsDigest(value) }))
      : [{ kind: method, name, token, value }]
  return { challenge, shown }
}

/** That what came is a certificate for our key and all the names, before anybody is served with it. */
function checked(chain: string, key: string, names: readonly string[]): { notBefore: Date; notAfter: Date } {
  let leaf: X509Certificate
  try {
    leaf = new X509Certificate(chain)
  } catch (cause) {
    throw new AcmeError('what the directory issued is no certificate', { cause })
  }
  const spki = { type: 'spki', format: 'pem' } as const
  if (leaf.publicKey.export(spki) !== createPublicKey(key).export(spki)) {
    throw new AcmeError('the directory issued a certificate for another key')
  }
  const missing = names.find((name) => leaf.checkHost(name.replace('*', 'any')) === undefined)
  if (missing !== undefined) throw new AcmeError(`the certificate that the directory issued is not for ${missing}`)
  try {
    // Reads what is behind the leaf, too.
    createSecureContext({ cert: chain, key })
  } catch (cause) {
    throw new AcmeError('the chain that the directory issued cannot be served', { cause })
  }
  return { notBefore: leaf.validFromDate, notAfter: leaf.validToDate }
}
