import { createInvitation, InvitationError, listInvitations, revokeInvitation } from '../accounts/invitations.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { lobbyLine } from './machine-document.ts'
import { recordEvent } from './machine-steps.ts'
import { table } from './text.ts'
import { sayWhen, shown } from './values.ts'

const invitationIds: Completer = async ({ app, caller }) =>
  (await listInvitations(app.sql, caller.accountId)).map((invitation) => String(invitation.id))

export const inviteNew = defineCommand({
  name: 'invite new',
  group: 'you',
  summary: 'a join code for somebody who has no account here',
  description: 'It is shown once; here only its hash is kept.',
  flags: {
    uses: { type: 'integer', min: 1, max: 1000, summary: 'how many may use it; 1 unless given' },
    expires: { type: 'duration', aliases: ['exp'], value: '7d', summary: 'how long it is good; 7d unless given' },
  },
  examples: ['invite new', 'invite new --uses 5 --expires 1d'],
  async run({ app, caller }, { flags }) {
    if (app.settings.signup === 'closed') {
      throw new CommandError('signup.closed', 4, 'sign-up is closed here, so nobody could use an invitation', {
        wayOn: 'the operator opens it with BERTH_SIGNUP=invite',
      })
    }
    try {
      const { code, invitation } = await app.sql.begin(async (tx) => {
        const made = await createInvitation(tx, {
          accountId: caller.accountId,
          ...(flags.uses === undefined ? {} : { uses: flags.uses }),
          ...(flags.expires === undefined ? {} : { expiresInMs: flags.expires }),
        })
        const { id, usesLeft: uses } = made.invitation
        await recordEvent(tx, caller, 'invitation.created', null, { id, uses })
        return made
      })
      const command = lobbyLine(app.settings, '')
      const uses = invitation.usesLeft === 1 ? 'one account' : `${invitation.usesLeft} accounts`
      return {
        json: {
          id: invitation.id,
          code,
          uses_left: invitation.usesLeft,
          expires_at: invitation.expiresAt.toISOString(),
          ssh: command,
        },
        text: (view) =>
          `${view.style.bold(code)}\nfor ${uses}, until ${invitation.expiresAt.toISOString().slice(0, 16).replace('T', ' ')} UTC\n` +
          `whoever gets it types ${view.style.accent(command)} and pastes it\n`,
      }
    } catch (error) {
      if (error instanceof InvitationError) throw usageError(error.message)
      throw error
    }
  },
})

export const inviteLs = defineCommand({
  name: 'invite ls',
  aliases: ['invite list'],
  group: 'you',
  summary: 'the join codes that can still be used',
  async run({ app, caller }) {
    const invitations = await listInvitations(app.sql, caller.accountId)
    return {
      json: {
        invitations: invitations.map((one) => ({
          id: one.id,
          uses_left: one.usesLeft,
          expires_at: one.expiresAt.toISOString(),
          created_at: one.createdAt.toISOString(),
        })),
      },
      text: (view) =>
        invitations.length === 0
          ? 'no open invitation; to make one: invite new\n'
          : table(
              invitations,
              [
                { title: 'id', value: (one) => String(one.id), right: true },
                { title: 'uses left', value: (one) => String(one.usesLeft), right: true },
                { title: 'made', value: (one) => sayWhen(one.createdAt) },
                { title: 'ends', value: (one) => sayWhen(one.expiresAt) },
              ],
              view,
            ),
    }
  },
})

export const inviteRm = defineCommand({
  name: 'invite rm',
  aliases: ['invite remove', 'invite delete'],
  group: 'you',
  summary: 'take a join code back',
  arguments: { id: { label: 'ID', complete: invitationIds } },
  async run({ app, caller }, { args }) {
    const id = /^\d{1,9}$/.test(args.id) ? Number(args.id) : 0
    await app.sql.begin(async (tx) => {
      if (!(await revokeInvitation(tx, caller.accountId, id))) {
        throw new CommandError('invitation.not_found', 3, `no invitation ${shown(args.id)}`, {
          wayOn: 'invite ls shows those there are',
        })
      }
      await recordEvent(tx, caller, 'invitation.revoked', null, { id })
    })
    return { json: { revoked: id }, text: `invitation ${id} is void\n` }
  },
})
