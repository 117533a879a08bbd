import { createHmac, randomInt, timingSafeEqual } from 'node:crypto'
import type { Sql } from '../../migrations/connect.ts'

/**
 * Six digits, mailed to prove an address. So few are guessed quickly, so a code takes five tries and ten minutes, and
 * its hash is keyed with a secret that is not in the database.
 */
const VALID_MINUTES = 10
/** Of a key, and of an address for one client: a stranger who asks for somebody's codes uses up his own. */
const MAX_CODES_PER_HOUR = 5
/** Of an address, whoever asks: what a mailbox has to bear. */
const MAX_CODES_PER_ADDRESS_AND_HOUR = 20

export type CodeRequest = {
  email: string
  publicKey: Buffer
  domain: string
  /** who asks: an address group, or `account:<id>` */
  client?: string
  /** false: all is done as for an address that is known, and no mail comes of it; how long it takes tells nothing */
  isKnown?: boolean
}

export class EmailCodeError extends Error {
  override readonly name = 'EmailCodeError'
}

/**
 * Makes a code for an address and a key and puts the mail into the outbox.
 * @param secret keys the hash
 * @throws EmailCodeError when the address, the key or the client had too many codes within an hour
 */
export async function mailCode(
  sql: Sql,
  secret: Buffer,
  { email, publicKey, domain, client = '', isKnown = true }: CodeRequest,
): Promise<void> {
  const address = email.toLowerCase()
  const code = String(randomInt(1_000_000)).padStart(6, '0')
  await sql.begin(async (tx) => {
    await tx`select pg_advisory_xact_lock(hashtextextended(${`berth.email.${address}`}, 0))`
    await tx`delete from email_codes where expires_at < now() - interval '1 hour'`
    // Index: email_codes_by_email; those that are kept are few.
    const [recent] = await tx<{ near: number; all: number }[]>`
      select count(*) filter (where public_key = ${publicKey} or client = ${client})::int as near,
        count(*) filter (where email = ${address})::int as all
      from email_codes where (email = ${address} or public_key = ${publicKey})
        and expires_at > now() + ${VALID_MINUTES} * interval '1 minute' - interval '1 hour'`
    if ((recent?.near ?? 0) >= MAX_CODES_PER_HOUR || (recent?.all ?? 0) >= MAX_CODES_PER_ADDRESS_AND_HOUR) {
      throw new EmailCodeError('too many codes were mailed there within an hour; try again later')
    }
    await tx`
      insert into email_codes (email, public_key, code_hash, client, expires_at)
      values (${address}, ${publicKey}, ${hash(secret, address, publicKey, code)}, ${client},
        now() + ${VALID_MINUTES} * interval '1 minute')`
    await tx`savepoint mailing`
    await tx`
      insert into mails (recipient, subject, body) values (${address}, ${`Your code for ${domain}`},
        ${`The code is ${code}. It is good for ${VALID_MINUTES} minutes.\n\nSomebody gave this address at ${domain}. If that was not you, nothing needs to be done.\n`})`
    if (isKnown) await tx`release savepoint mailing`
    else await tx`rollback to savepoint mailing`
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
