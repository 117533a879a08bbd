import { acceptInvitation, acceptPending, findInvitation } from '../../accounts/shares.ts'
import { createSession } from '../../accounts/web-sessions.ts'
import { nextPath } from '../access/fields.ts'
import type { Control } from './control.ts'
import { invitationPage } from './pages.ts'
import { formOf } from './request.ts'

/**
 * Saying yes to what somebody shares: until then nothing of a person reaches the machine, so that nobody learns who
 * follows a link by sharing with them unasked.
 *
 * `/invitation/TOKEN`, from an invitation's mail: who has it reads that mailbox, or was told by who does.
 * `/share/ID`, for whoever is signed in with that address already.
 */
export function addInvitations({ app, sql, installation, show, refuse, signIn, onward }: Control): void {
  app.get('/invitation/:token', async (context) => {
    const token = context.req.param('token')
    const invitation = await findInvitation(sql, token)
    if (!invitation) return refuse(context, GONE)
    return show(context, 200, invitationPage(installation, { token, ...invitation }, context.get('session')))
  })

  app.post('/invitation/:token', async (context) => {
    const token = context.req.param('token')
    const invitation = await findInvitation(sql, token)
    if (!invitation) return refuse(context, GONE)
    const session = context.get('session')
    const accountId = session?.accountId ?? null
    if (!(await acceptInvitation(sql, token, accountId, context.get('address')))) return refuse(context, GONE)
    if (accountId === null && !session?.emails.includes(invitation.email)) {
      signIn(context, await createSession(sql, { accountId: null, email: invitation.email }, context.get('address')))
    }
    return onward(context, installation.machineUrl(invitation.machineName), ACCEPTED)
  })

  app.post('/share/:id{[0-9]{1,9}}', async (context) => {
    const form = await formOf(context)
    const session = context.get('session')
    const shareId = Number(context.req.param('id'))
    if (!session || !(await acceptPending(sql, session.id, shareId, context.get('address')))) {
      return refuse(context, GONE)
    }
    return onward(context, nextPath(form('next')), ACCEPTED)
  })
}

const ACCEPTED = 'Accepted'

const GONE = {
  status: 404,
  code: 'invitation.not_found',
  title: 'This invitation is no longer good',
  detail: 'It was accepted before, or taken back. Whoever was invited by mail can sign in with that address.',
}
