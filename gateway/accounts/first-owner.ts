import type { Sql } from '../../migrations/connect.ts'
import { loadOrCreateSecret } from '../secrets.ts'
import type { Starter } from '../start/starter.ts'
import { createInvitation, makeCode } from './invitations.ts'
import { createOwner, hasOwner } from './people.ts'

const JOIN_CODE_SECRET = 'owner_join_code'
const YEAR_MS = 365 * 86_400_000

/**
 * Sees to it that somebody owns the installation, or can.
 * @returns the one-time join code for the first owner, when the starter has no keys; the same at each start until it is
 * used, and the same from each of several gateways
 * @throws SettingsError when BERTH_OWNER is needed and no good
 */
export async function ensureOwner(sql: Sql, secretKey: Buffer, starter: Starter): Promise<string | undefined> {
  if (await hasOwner(sql)) {
    await sql`delete from secrets where name = ${JOIN_CODE_SECRET}`
    return undefined
  }
  if (starter.problem) throw starter.problem
  if (starter.keys.length > 0) {
    await createOwner(sql, starter.keys, starter.names)
    return undefined
  }
  const code = (await loadOrCreateSecret(sql, secretKey, JOIN_CODE_SECRET, () => Buffer.from(makeCode()))).toString()
  await createInvitation(sql, { accountId: null, makesOwner: true, expiresInMs: YEAR_MS }, code)
  return code
}
