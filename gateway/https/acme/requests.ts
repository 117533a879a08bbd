import 'reflect-metadata'
import { createHash, webcrypto } from 'node:crypto'
import {
  Extension,
  Pkcs10CertificateRequestGenerator,
  SubjectAlternativeNameExtension,
  X509CertificateGenerator,
} from '@peculiar/x509'
import { privatePem } from '../tls/authority.ts'

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
/** id-pe-acmeIdentifier (RFC 8737, 6.1) */
const ACME_IDENTIFIER = '1.3.6.1.5.5.7.1.31'
const DAY_MS = 86_400_000

/** A new key and the request for a certificate over it. @returns `request` in DER, `key` as PKCS #8 PEM */
export async function certificateRequest(names: readonly string[]): Promise<{ request: Buffer; key: string }> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
  const request = await Pkcs10CertificateRequestGenerator.create({
    keys,
    signingAlgorithm: ALGORITHM,
    extensions: [new SubjectAlternativeNameExtension(names.map((value) => ({ type: 'dns', value })))],
  })
  return { request: Buffer.from(request.rawData), key: await privatePem(keys.privateKey) }
}

/**
 * The certificate that a TLS-ALPN-01 validation wants to see (RFC 8737, 3): self-signed, for the one name, with the
 * key authorization's digest in it. Both PEM.
 */
export async function challengeCertificate(
  name: string,
  authorization: string,
): Promise<{ chain: string; key: string }> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
  const digest = createHash('sha256').update(authorization).digest()
  // The value is an OCTET STRING of the digest's 32 bytes.
  const value = Buffer.concat([Buffer.from([0x04, digest.length]), digest])
  const now = Date.now()
  const certificate = await X509CertificateGenerator.createSelfSigned({
    serialNumber: '01',
    name: 'O=Berth',
    notBefore: new Date(now - DAY_MS),
    notAfter: new Date(now + DAY_MS),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      new SubjectAlternativeNameExtension([{ type: 'dns', value: name }]),
      new Extension(ACME_IDENTIFIER, true, value),
    ],
  })
  return { chain: certificate.toString('pem'), key: await privatePem(keys.privateKey) }
}
