import 'reflect-metadata'
import { webcrypto } from 'node:crypto'
import { renameSync, writeFileSync } from 'node:fs'
import {
  AuthorityKeyIdentifierExtension,
  BasicConstraintsExtension,
  ExtendedKeyUsage,
  ExtendedKeyUsageExtension,
  KeyUsageFlags,
  KeyUsagesExtension,
  SubjectAlternativeNameExtension,
  SubjectKeyIdentifierExtension,
  X509Certificate,
  X509CertificateGenerator,
} from '@peculiar/x509'
import type { Sql } from '../../../migrations/connect.ts'
import { loadOrCreateSecret, readSecret } from '../../secrets.ts'

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }
const DAY_MS = 86_400_000
const ROOT_MS = 3650 * DAY_MS
/** Short enough that a renewal is nothing rare; Apple's clients take up to 825 days of a private root. */
const LEAF_MS = 90 * DAY_MS
/** A client's clock may be behind. */
const BACKDATE_MS = 3_600_000
const SECRET = 'ca'

/** A certificate with its key, both PEM; the chain begins with the leaf. */
export type Issued = { chain: string; key: string; notBefore: Date; notAfter: Date }

/** Berth's own certificate authority, for installations without ACME. */
export type Authority = {
  /** PEM of the root, which people trust */
  certificate: string
  /** SHA-256 of the root, lower-case hexadecimal: tells leaves of an older root from ours */
  fingerprint: string
  /** @param name a DNS name or `*.` and one */
  issue(name: string, now?: Date): Promise<Issued>
}

/**
 * The installation's authority, made at the first start. Gateways that start together agree on one by the row.
 * @param secretKey opens the table `secrets`
 * @param domain names the root, so that a person knows what they trust
 */
export async function loadAuthority(sql: Sql, secretKey: Buffer, domain: string): Promise<Authority> {
  let stored = await readSecret(sql, secretKey, SECRET)
  if (!stored) {
    const made = Buffer.from(JSON.stringify(await makeRoot(domain)))
    stored = await loadOrCreateSecret(sql, secretKey, SECRET, () => made)
  }
  const { certificate, key }: { certificate: string; key: string } = JSON.parse(stored.toString())
  await sql`
    insert into settings (key, value) values ('ca_certificate', ${certificate})
    on conflict (key) do update set value = excluded.value where settings.value <> excluded.value`
  const root = new X509Certificate(certificate)
  const rootKey = await webcrypto.subtle.importKey('pkcs8', pemBytes(key), ALGORITHM, false, ['sign'])
  const fingerprint = Buffer.from(await root.getThumbprint('SHA-256')).toString('hex')
  return { certificate, fingerprint, issue: (name, now = new Date()) => issue(root, rootKey, name, now) }
}

/** Puts the root where people find it. Whole or not at all: a person may be copying it. */
export function writeRoot(path: string, certificate: string): void {
  const draft = `${path}.${process.pid}`
  writeFileSync(draft, certificate, { mode: 0o644 })
  renameSync(draft, path)
}

async function makeRoot(domain: string): Promise<{ certificate: string; key: string }> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
  const now = Date.now()
  const root = await X509CertificateGenerator.createSelfSigned({
    serialNumber: serial(),
    name: [{ CN: [`Berth ${domain}`.slice(0, 64)] }, { O: ['Berth'] }],
    notBefore: new Date(now - BACKDATE_MS),
    notAfter: new Date(now + ROOT_MS),
    signingAlgorithm: ALGORITHM,
    keys,
    extensions: [
      // No intermediate below it: who steals a leaf's key can issue nothing.
      new BasicConstraintsExtension(true, 0, true),
      new KeyUsagesExtension(KeyUsageFlags.keyCertSign | KeyUsageFlags.cRLSign, true),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  })
  return { certificate: `${root.toString('pem')}\n`, key: await privatePem(keys.privateKey) }
}

async function issue(root: X509Certificate, rootKey: webcrypto.CryptoKey, name: string, now: Date): Promise<Issued> {
  const keys = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
  const notBefore = new Date(now.getTime() - BACKDATE_MS)
  const notAfter = new Date(Math.min(now.getTime() + LEAF_MS, root.notAfter.getTime()))
  const leaf = await X509CertificateGenerator.create({
    serialNumber: serial(),
    // The name alone counts as subjectAltName; a common name holds at most 64 characters.
    subject: name.length <= 64 ? [{ CN: [name] }] : [{ O: ['Berth'] }],
    issuer: root.subjectName,
    notBefore,
    notAfter,
    signingKey: rootKey,
    publicKey: keys.publicKey,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new BasicConstraintsExtension(false, undefined, true),
      new KeyUsagesExtension(KeyUsageFlags.digitalSignature, true),
      new ExtendedKeyUsageExtension([ExtendedKeyUsage.serverAuth]),
      new SubjectAlternativeNameExtension([{ type: 'dns', value: name }]),
      await SubjectKeyIdentifierExtension.create(keys.publicKey),
      await AuthorityKeyIdentifierExtension.create(root.publicKey),
    ],
  })
  return { chain: `${leaf.toString('pem')}\n`, key: await privatePem(keys.privateKey), notBefore, notAfter }
}

/** 127 random bits, positive (RFC 5280, 4.1.2.2). */
function serial(): string {
  const bytes = webcrypto.getRandomValues(new Uint8Array(16))
  bytes[0] = ((bytes[0] ?? 0) & 0x3f) | 0x40
  return Buffer.from(bytes).toString('hex')
}

/** PKCS #8 */
export async function privatePem(key: webcrypto.CryptoKey): Promise<string> {
  const bytes = Buffer.from(await webcrypto.subtle.exportKey('pkcs8', key)).toString('base64')
  return `-----BEGIN PRIVATE KEY-----\n${bytes.replace(/.{64}/g, '$&\n').trimEnd()}\n-----END PRIVATE KEY-----\n`
}

function pemBytes(pem: string): Buffer {
  return Buffer.from(pem.replace(/-----[^-]+-----/g, ''), 'base64')
}
