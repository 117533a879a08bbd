import { checkCode, EmailCodeError, mailCode } from '../accounts/email-codes.ts'
import { listKeys } from '../accounts/keys.ts'
import { recordedNames } from '../accounts/names.ts'
import { isEmail } from '../accounts/people.ts'
import { planOf } from '../billing/plans.ts'
import type { Context } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { keyDocument } from './ssh-key.ts'
import { definitions, harmless } from './text.ts'
import { sayList, shown } from './values.ts'

export const whoami = defineCommand({
  name: 'whoami',
  group: 'you',
  onMachines: true,
  summary: 'your account: address, keys, names that lead here',
  flags: {
    email: { type: 'string', value: 'ADDRESS', summary: 'set your e-mail address' },
    code: { type: 'string', value: 'CODE', secret: true, summary: 'the code that was mailed there' },
  },
  examples: ['whoami', 'whoami --email you@example.com'],
  async run(context, { flags }) {
    if (flags.email !== undefined) await setEmail(context, flags.email, flags.code)
    else if (flags.code !== undefined) throw usageError('--code belongs to --email ADDRESS')
    const { app, caller } = context
    const [account] = await app.sql<{ email: string | null; created_at: Date }[]>`
      select email, created_at from accounts where id = ${caller.accountId}`
    const keys = await listKeys(app.sql, caller.accountId)
    const names = await recordedNames(app.sql, caller.accountId)
    const current = keys.find((key) => key.id === caller.keyId)
    return {
      json: {
        account: caller.accountId,
        email: account?.email ?? null,
        is_owner: caller.isOwner,
        plan: await planOf(app.sql, caller.accountId),
        fingerprint: caller.fingerprint,
        key: current?.name ?? null,
        keys: keys.length,
        ssh_keys: keys.map((key) => ({ ...keyDocument(key), current: key.id === caller.keyId })),
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

/** Where mail works an address is proved by a code that is mailed there; without mail it is taken as typed. */
async function setEmail(context: Context, typed: string, code: string | undefined): Promise<void> {
  const { app, caller } = context
  const email = typed.trim().toLowerCase()
  if (!isEmail(email)) throw usageError(`${shown(typed)} is no e-mail address`, 'whoami --email you@example.com')
  // Whoever reads that mailbox can sign in, also when the token is gone.
  if (caller.scope) throw new CommandError('token.not_allowed', 4, 'a token may not set the address of its account')
  // First of all, or everybody could find out who has an account here.
  if (app.settings.smtp !== undefined) await prove(context, email, code)
  const [other] = await app.sql`select from accounts where email = ${email} and id <> ${caller.accountId}`
  if (other) throw emailTaken()
  try {
    // Another address that nobody proved must not inherit the proof of the one before.
    await app.sql.begin(async (tx) => {
      await tx`
        update accounts set email = ${email}, email_proved_at = case when ${app.settings.smtp !== undefined} then now() end
        where id = ${caller.accountId} and (email is distinct from ${email} or ${app.settings.smtp !== undefined})`
      await recordEvent(tx, caller, 'account.email_set', null, {})
    })
  } catch (error) {
    // Somebody else proved it in the meantime.
    if (error instanceof Error && 'constraint_name' in error && error.constraint_name === 'accounts_email_key')
      throw emailTaken()
    throw error
  }
}

async function prove({ app, caller, ask }: Context, email: string, given: string | undefined): Promise<void> {
  // Codes at sign-up are bound to the key that asks; here an account asks, whatever signed it in.
  const client = `account:${caller.accountId}`
  const publicKey = Buffer.from(client)
  if (given === undefined) {
    try {
      await mailCode(app.sql, app.codeSecret, { email, publicKey, domain: app.settings.domain, client })
    } catch (error) {
      if (error instanceof EmailCodeError) throw new CommandError('email.busy', 5, error.message)
      throw error
    }
  }
  const code = given ?? (await ask(`the code that was mailed to ${email}: `))
  if (code === undefined) {
    throw new CommandError('email.code_mailed', 1, `a code was mailed to ${email}; nothing is changed yet`, {
      wayOn: `whoami --email ${email} --code CODE`,
    })
  }
  if (await checkCode(app.sql, app.codeSecret, { email, publicKey, code })) return
  throw new CommandError('email.wrong_code', 4, 'that is not the code, or it is too old', {
    wayOn: `for a new one: whoami --email ${email}`,
  })
}

function emailTaken(): CommandError {
  return new CommandError('email.taken', 4, 'that address belongs to another account', {
    wayOn: 'if that one is yours too, add this key to it from there: ssh-key add',
  })
}
