import { createHmac, randomInt, timingSafeEqual } from 'node:crypto'
import type { Sql } from '../../migrations/connect.ts'

/**
 * Six digits, mailed to prove an address. So few are guessed quickly, so a code takes five tries and ten minutes, and
 * its hash is keyed with a secret that is not in the database.
 */
const VALID_MINUTES = 10
const MAX_CODES_PER_HOUR = 5

export class EmailCodeError extends Error {
  override readonly name = 'EmailCodeError'
}

/**
 * Makes a code for an address and a key and puts the mail into the outbox.
 * @param secret keys the hash
 * @throws EmailCodeError when the address or the key had too many codes within an hour
 */
export async function mailCode(
  sql: Sql,
  secret: Buffer,
  { email, publicKey, domain }: { email: string; publicKey: Buffer; domain: string },
): Promise<void> {
  const address = email.toLowerCase()
  const code = String(randomInt(1_000_000)).padStart(6, '0')
  await sql.begin(async (tx) => {
    await tx`select pg_advisory_xact_lock(hashtextextended(${`berth.email.${address}`}, 0))`
    await tx`delete from email_codes where expires_at < now() - interval '1 hour'`
    const recent = await tx`
      select from email_codes where (email = ${address} or public_key = ${publicKey})
        and expires_at > now() + ${VALID_MINUTES} * interval '1 minute' - interval '1 hour'`
    if (recent.length >= MAX_CODES_PER_HOUR) {
      throw new EmailCodeError('too many codes were mailed there within an hour; try again later')
    }
    await tx`
      insert into email_codes (email, public_key, code_hash, expires_at)
      values (${address}, ${publicKey}, ${hash(secret, address, publicKey, code)},
        now() + ${VALID_MINUTES} * interval '1 minute')`
    await tx`
      insert into mails (recipient, subject, body) values (${address}, ${`Your code for ${domain}`},
        ${`The code is ${code}. It is good for ${VALID_MINUTES} minutes.\n\nSomebody gave this address at ${domain}. If that was not you, nothing needs to be done.\n`})`
  })
}

/** Whether a code is right; a wrong one uses up one of its tries, a right one is used up. */
export async function checkCode(
  sql: Sql,
  secret: Buffer,
  { email, publicKey, code }: { email: string; publicKey: Buffer; code: string },
): Promise<boolean> {
  const address = email.toLowerCase()
  const rows = await sql<{ id: number; codeHash: Buffer }[]>`
    update email_codes set attempts_left = attempts_left - 1
    where email = ${address} and public_key = ${publicKey} and attempts_left > 0 and expires_at > now()
    returning id, code_hash as "codeHash"`
  const expected = hash(secret, address, publicKey, code.replace(/[\s-]/g, ''))
  const right = rows.find((row) => row.codeHash.length === expected.length && timingSafeEqual(row.codeHash, expected))
  if (!right) return false
  // Expired rather than deleted: the row still counts towards the codes of this hour.
  await sql`update email_codes set attempts_left = 0 where id = ${right.id}`
  return true
}

function hash(secret: Buffer, email: string, publicKey: Buffer, code: string): Buffer {
  return createHmac('sha256', secret)
    .update(`${email}\0${publicKey.toString('base64')}\0${code}`)
    .digest()
}
