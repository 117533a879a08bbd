import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto'
import { readFileSync } from 'node:fs'
import type { Sql } from '../migrations/connect.ts'

const NONCE_BYTES = 12
const TAG_BYTES = 16
const KEY_BYTES = 32

export class SecretsError extends Error {
  override readonly name = 'SecretsError'
}

/** Reads `$BERTH_DATA/secret.key`: 32 bytes that exist nowhere in the database, so a dump of it opens nothing. */
export function readSecretKey(path: string): Buffer {
  let key: Buffer
  try {
    key = readFileSync(path)
  } catch (cause) {
    throw new SecretsError(`Cannot read ${path}, which npm start makes`, { cause })
  }
  if (key.length !== KEY_BYTES) throw new SecretsError(`${path} holds ${key.length} bytes, expected ${KEY_BYTES}`)
  return key
}

/** AES-256-GCM: nonce (12) || ciphertext || tag (16); the name is associated data, so rows cannot be swapped. */
export function seal(key: Buffer, name: string, plain: Buffer): Buffer {
  const nonce = randomBytes(NONCE_BYTES)
  const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(Buffer.from(name))
  return Buffer.concat([nonce, cipher.update(plain), cipher.final(), cipher.getAuthTag()])
}

/** @throws SecretsError when the key is another one or a byte was changed */
export function unseal(key: Buffer, name: string, sealed: Buffer): Buffer {
  try {
    const decipher = createDecipheriv('aes-256-gcm', key, sealed.subarray(0, NONCE_BYTES), { authTagLength: TAG_BYTES })
    decipher.setAAD(Buffer.from(name))
    decipher.setAuthTag(sealed.subarray(sealed.length - TAG_BYTES))
    return Buffer.concat([decipher.update(sealed.subarray(NONCE_BYTES, sealed.length - TAG_BYTES)), decipher.final()])
  } catch (cause) {
    throw new SecretsError(
      `The secret ${name} does not open: the data directory's secret.key is not the one it was sealed with. Put back the secret.key that belongs to this database`,
      { cause },
    )
  }
}

/**
 * The secret of that name, made when there is none. Of several processes that start together one wins the insert and
 * all read its row.
 */
export async function loadOrCreateSecret(sql: Sql, key: Buffer, name: string, make: () => Buffer): Promise<Buffer> {
  const existing = await readSecret(sql, key, name)
  if (existing) return existing
  await sql`insert into secrets (name, ciphertext) values (${name}, ${seal(key, name, make())}) on conflict do nothing`
  const made = await readSecret(sql, key, name)
  if (!made) throw new SecretsError(`The secret ${name} vanished while it was made`)
  return made
}

export async function readSecret(sql: Sql, key: Buffer, name: string): Promise<Buffer | undefined> {
  const rows = await sql<{ ciphertext: Buffer }[]>`select ciphertext from secrets where name = ${name}`
  return rows[0] && unseal(key, name, rows[0].ciphertext)
}
