import { execFileSync } from 'node:child_process'
import { randomBytes, X509Certificate } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { testDatabase } from '../../../test/database.ts'
import { loadAuthority, writeRoot } from './authority.ts'
import { StoredCertificates } from './certificates.ts'

const DAY_MS = 86_400_000

async function world() {
  const db = await testDatabase()
  const sql = db.as('berth_gateway')
  const secretKey = randomBytes(32)
  const names = new Set(['berth.example', 'demo.berth.example'])
  const errors: unknown[] = []
  const authority = await loadAuthority(sql, secretKey, 'berth.example')
  const gateway = (now?: () => Date) =>
    new StoredCertificates({
      sql,
      secretKey,
      authority,
      exists: async (name) => names.has(name),
      onError: (error) => errors.push(error),
      ...(now ? { now } : {}),
    })
  const stored = async () =>
    await sql<{ name: string; chain: string; sealed_key: Buffer; not_after: Date; renew_at: Date; not_before: Date }[]>`
      select * from certificates order by name`
  return { db, sql, secretKey, names, errors, authority, gateway, stored }
}

describe('the authority', () => {
  it('issues leaves that OpenSSL verifies for their name alone, up to a root that can sign no further authority', async () => {
    const { db, authority } = await world()
    await using _ = db
    const directory = mkdtempSync(join(tmpdir(), 'berth-ca-'))
    try {
      writeRoot(join(directory, 'ca.pem'), authority.certificate)
      const { chain, key } = await authority.issue('demo.berth.example')
      writeFileSync(join(directory, 'leaf.pem'), chain)
      const verify = (name: string) =>
        execFileSync(
          'openssl',
          [
            'verify',
            '-x509_strict',
            '-purpose',
            'sslserver',
            '-verify_hostname',
            name,
            '-CAfile',
            join(directory, 'ca.pem'),
            join(directory, 'leaf.pem'),
          ],
          { stdio: 'pipe' },
        ).toString()
      expect(verify('demo.berth.example')).toContain('OK')
      expect(() => verify('other.berth.example')).toThrow(/hostname mismatch/i)
      expect(readFileSync(join(directory, 'ca.pem'), 'utf8')).toBe(authority.certificate)
      const leaf = new X509Certificate(chain)
      expect(leaf.ca).toBe(false)
      expect(new X509Certificate(authority.certificate).ca).toBe(true)
      expect(key).toMatch(/^-----BEGIN PRIVATE KEY-----/)
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  it('is the same for every gateway that starts, also when they start together', async () => {
    await using db = await testDatabase()
    const secretKey = randomBytes(32)
    const starts = [1, 2, 3].map(() => loadAuthority(db.as('berth_gateway'), secretKey, 'berth.example'))
    const roots = (await Promise.all(starts)).map(({ certificate }) => certificate)
    expect(new Set(roots).size).toBe(1)
  })
})

describe('certificates', () => {
  it('are issued for names that exist and for no others', async () => {
    const { db, gateway, stored } = await world()
    await using _ = db
    const certificates = gateway()
    expect(await certificates.contextFor('demo.berth.example')).toBeDefined()
    expect(await certificates.contextFor('nobody.berth.example')).toBeUndefined()
    expect((await stored()).map(({ name }) => name)).toEqual(['demo.berth.example'])
    certificates.close()
  })

  it('are issued once however many clients and gateways ask at once', async () => {
    const { db, gateway, stored } = await world()
    await using _ = db
    const gateways = [gateway(), gateway(), gateway()]
    await Promise.all(gateways.flatMap((g) => [g.contextFor('demo.berth.example'), g.contextFor('demo.berth.example')]))
    const [first] = await stored()
    await Promise.all(gateways.map((g) => g.contextFor('demo.berth.example')))
    const rows = await stored()
    expect(rows).toHaveLength(1)
    expect(rows[0]?.chain).toBe(first?.chain)
    for (const g of gateways) g.close()
  })

  it('are renewed when two thirds of their life are over, by one of the gateways, and removed when the name is gone', async () => {
    const { db, gateway, stored, names, errors } = await world()
    await using _ = db
    let nowMs = Date.now()
    const now = () => new Date(nowMs)
    const [one, two] = [gateway(now), gateway(now)]
    await one.contextFor('demo.berth.example')
    await one.contextFor('berth.example')
    const [, before] = await stored()
    nowMs += 59 * DAY_MS
    await one.renewDue()
    expect((await stored())[1]?.chain).toBe(before?.chain)
    nowMs += 2 * DAY_MS
    names.delete('berth.example')
    await Promise.all([one.renewDue(), two.renewDue()])
    const after = await stored()
    expect(after).toHaveLength(1)
    expect(after[0]?.name).toBe('demo.berth.example')
    expect(after[0]?.chain).not.toBe(before?.chain)
    expect(new X509Certificate(String(after[0]?.chain)).validToDate.getTime()).toBeGreaterThan(nowMs + 89 * DAY_MS)
    expect(errors).toEqual([])
    one.close()
    two.close()
  })

  it('keep their keys sealed: the row holds no PEM, and another secret.key does not open it', async () => {
    const { db, sql, gateway, stored, authority } = await world()
    await using _ = db
    const certificates = gateway()
    await certificates.contextFor('demo.berth.example')
    const [row] = await stored()
    expect(row?.sealed_key.toString('latin1')).not.toContain('PRIVATE')
    const stranger = new StoredCertificates({
      sql,
      secretKey: randomBytes(32),
      authority,
      exists: async () => true,
      onError: () => {},
    })
    await expect(stranger.contextFor('demo.berth.example')).rejects.toThrow(/secret.key/)
    certificates.close()
    stranger.close()
  })
})
