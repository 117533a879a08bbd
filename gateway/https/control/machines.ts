import { listPending } from '../../accounts/shares.ts'
import { machinesOfSession } from '../../accounts/web-access.ts'
import { showDashboard } from '../dashboard/routes.ts'
import type { Control, ControlContext } from './control.ts'
import { machinesPage, signInPage } from './pages.ts'
import { wantsHtml } from './request.ts'

/**
 * `GET /`: the dashboard; for readers of a mailbox, for programs and at `/list` the machines whose pages they may see.
 * `?of=others` leaves the person's own out.
 */
export function addMachines(control: Control): void {
  const { app, sql, installation, show, signInFirst } = control
  const list = async (context: ControlContext) => {
    const session = context.get('session')
    if (!session) {
      if (wantsHtml(context)) return show(context, 200, signInPage(installation, { next: '/' }))
      return signInFirst(context)
    }
    const machines = await machinesOfSession(sql, session.id)
    const pending = await listPending(sql, session.id)
    if (wantsHtml(context)) return show(context, 200, machinesPage(installation, { session, machines, pending }))
    const isOthersOnly = context.req.query('of') === 'others'
    context.header('Cache-Control', 'no-store')
    return context.json({
      machines: machines
        .filter(({ isOwn }) => !isOwn || !isOthersOnly)
        .map(({ name, state, isOwn, isPublic, ownerEmail }) => ({
          name,
          state,
          own: isOwn,
          public: isPublic,
          owner: isOwn ? null : ownerEmail,
          url: installation.machineUrl(name),
        })),
      offered: pending.map(({ shareId, machineName, email, ownerEmail }) => ({
        share: shareId,
        name: machineName,
        email,
        owner: ownerEmail,
      })),
    })
  }
  app.get('/', async (context) => (await showDashboard(control, context)) ?? (await list(context)))
  app.get('/list', list)
}
