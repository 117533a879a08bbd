import { listKeys } from '../accounts/keys.ts'
import { recordedNames } from '../accounts/names.ts'
import { isEmail } from '../accounts/people.ts'
import type { Context } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { definitions, harmless } from './text.ts'
import { sayList, shown } from './values.ts'

export const whoami = defineCommand({
  name: 'whoami',
  group: 'you',
  summary: 'your account: address, keys, names that lead here',
  flags: { email: { type: 'string', value: 'ADDRESS', summary: 'set your e-mail address' } },
  examples: ['whoami', 'whoami --email you@example.com'],
  async run(context, { flags }) {
    if (flags.email !== undefined) await setEmail(context, flags.email)
    const { app, caller } = context
    const [account] = await app.sql<{ email: string | null; plan: string; created_at: Date }[]>`
      select email, plan, created_at from accounts where id = ${caller.accountId}`
    const keys = await listKeys(app.sql, caller.accountId)
    const names = await recordedNames(app.sql, caller.accountId)
    const current = keys.find((key) => key.id === caller.keyId)
    return {
      json: {
        account: caller.accountId,
        email: account?.email ?? null,
        is_owner: caller.isOwner,
        plan: account?.plan ?? '',
        fingerprint: caller.fingerprint,
        key: current?.name ?? null,
        keys: keys.length,
        names,
        address: caller.address,
        created_at: account?.created_at.toISOString() ?? null,
      },
      text: (view) =>
        definitions(
          [
            ['account', `${caller.accountId}${caller.isOwner ? ', the owner of this installation' : ''}`],
            ['e-mail', account?.email ?? 'none; to set one: whoami --email ADDRESS'],
            ['key', caller.fingerprint || 'none: a token'],
            ['called', `${harmless(current?.name ?? '-')}${keys.length > 1 ? `, one of ${keys.length}` : ''}`],
            ['names', names.length ? `${sayList(names)} and lobby lead here` : 'lobby leads here'],
            ['from', caller.address],
          ],
          view,
          0,
        ),
    }
  },
})

/**
 * Where mail works an address must be proved, which wants a code that is mailed there; without it the owner reads the
 * mail anyway, and an address is taken as typed.
 */
async function setEmail({ app, caller }: Context, typed: string): Promise<void> {
  const email = typed.trim().toLowerCase()
  if (!isEmail(email)) throw usageError(`${shown(typed)} is no e-mail address`, 'whoami --email you@example.com')
  if (app.settings.smtp !== undefined) {
    throw new CommandError('email.not_here', 1, 'an address is proved at sign-up only, in this version', {
      wayOn: 'ask the operator to set it',
    })
  }
  const rows = await app.sql`
    update accounts set email = ${email} where id = ${caller.accountId}
      and not exists (select from accounts where email = ${email} and id <> ${caller.accountId}) returning id`
  if (rows.length === 0) throw new CommandError('email.taken', 4, 'that address belongs to another account')
  await recordEvent(app.sql, caller, 'account.email_set', null, {})
}
