import { listPending } from '../../accounts/shares.ts'
import { machinesOfSession } from '../../accounts/web-access.ts'
import { showDashboard } from '../dashboard/routes.ts'
import { type Control, type ControlContext, wantsHtml } from './app.ts'
import { machinesPage, signInPage } from './pages.ts'

/** `GET /`: the dashboard; for readers of a mailbox, for programs and at `/list` the machines whose pages they may see. */
export function addMachines(control: Control): void {
  const { app, sql, installation, show, refuse } = control
  const list = async (context: ControlContext) => {
    const session = context.get('session')
    if (!session) {
      if (wantsHtml(context)) return show(context, 200, signInPage(installation, { next: '/' }))
      return refuse(context, { status: 401, code: 'auth.required', title: 'Not signed in', detail: 'Sign in first.' })
    }
    const machines = await machinesOfSession(sql, session.id)
    if (wantsHtml(context)) {
      const pending = await listPending(sql, session.id)
      return show(context, 200, machinesPage(installation, { session, machines, pending }))
    }
    context.header('Cache-Control', 'no-store')
    return context.json({
      machines: machines.map(({ name, state, isOwn, isPublic }) => ({
        name,
        state,
        own: isOwn,
        public: isPublic,
        url: installation.machineUrl(name),
      })),
    })
  }
  app.get('/', (context) => showDashboard(control, context) ?? list(context))
  app.get('/list', list)
}
