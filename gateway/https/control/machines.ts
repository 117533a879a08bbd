import { listPending } from '../../accounts/shares.ts'
import { machinesOfSession } from '../../accounts/web-access.ts'
import { type Control, wantsHtml } from './app.ts'
import { machinesPage, signInPage } from './pages.ts'

/** `GET /`: the machines whose pages a person may see. */
export function addMachines({ app, sql, installation, show, refuse }: Control): void {
  app.get('/', async (context) => {
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
  })
}
