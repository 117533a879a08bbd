import 'reflect-metadata'
import { generateKeyPairSync, webcrypto } from 'node:crypto'
import { Pkcs10CertificateRequest, SubjectAlternativeNameExtension, X509CertificateGenerator } from '@peculiar/x509'
import { expect, it } from 'vitest'
import type { Sql } from '../../../migrations/connect.ts'
import type { AcmeClient } from './client.ts'
import { AcmeError } from './error.ts'
import { accountKey } from './jws.ts'
import { obtain } from './order.ts'

const ALGORITHM = { name: 'ECDSA', namedCurve: 'P-256', hash: 'SHA-256' }

/** What comes of an order when a directory hands out this behind the leaf. */
async function obtained(behind: string) {
  const root = await webcrypto.subtle.generateKey(ALGORITHM, true, ['sign', 'verify'])
  const certificate = async (_order: unknown, request: Buffer) => {
    const leaf = await X509CertificateGenerator.create({
      subject: 'CN=a.example',
      issuer: 'CN=root',
      notAfter: new Date(Date.now() + 86_400_000),
      publicKey: await new Pkcs10CertificateRequest(request).publicKey.export(),
      signingKey: root.privateKey,
      signingAlgorithm: ALGORITHM,
      extensions: [new SubjectAlternativeNameExtension([{ type: 'dns', value: 'a.example' }])],
    })
    return `${leaf.toString('pem')}\n${behind}`
  }
  const order = { url: '', status: 'ready', authorizations: [], finalize: '' }
  return await obtain({
    client: { newOrder: async () => order, certificate } as unknown as AcmeClient,
    key: accountKey(generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey),
    sql: undefined as unknown as Sql,
    names: ['a.example'],
    method: 'http-01',
    recordNames: () => [],
  })
}

it('a chain that cannot be served is refused, instead of kept in place of one that can', async () => {
  expect((await obtained('')).chain).toContain('BEGIN CERTIFICATE')
  const broken = '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n'
  await expect(obtained(broken)).rejects.toThrow(AcmeError)
})
