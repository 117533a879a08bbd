import { countUnread } from '../../accounts/notices.ts'
import { sendAsset } from '../control/asset.ts'
import type { Control, ControlContext } from '../control/control.ts'
import { nameOf } from '../control/pages.ts'
import { wantsHtml } from '../control/request.ts'
import { DASHBOARD, type DashboardBuild } from './build.ts'
import { dashboardPage, POLICY } from './page.ts'

/** `/assets/NAME`: what the dashboard is made of. Names have a hash in them, so a browser may keep each for ever. */
export function addDashboardAssets({ app }: Pick<Control, 'app'>): void {
  app.get('/assets/:name', (context) => {
    const file = DASHBOARD?.files.get(context.req.param('name'))
    return file ? sendAsset(context, file) : context.notFound()
  })
}

/**
 * The dashboard at each of its paths, for whoever is signed in with an account. Readers of a mailbox have none: they have
 * the list of what is shared with them, at `/list`.
 */
export function addDashboard(control: Control): void {
  if (!DASHBOARD) return
  for (const route of DASHBOARD.routes) {
    if (route.path === '/') continue
    control.app.get(route.path, async (context) => {
      const shown = await showDashboard(control, context, route)
      if (shown) return shown
      return context.get('session') ? context.redirect('/list', 303) : control.signInFirst(context)
    })
  }
}

/** The page at a path of the dashboard; undefined when there is none for whoever asks. */
export async function showDashboard(
  { installation, show, sql }: Pick<Control, 'installation' | 'show' | 'sql'>,
  context: ControlContext,
  route: DashboardBuild['routes'][number] | undefined = DASHBOARD?.routes.find(({ path }) => path === '/'),
): Promise<Response | undefined> {
  const session = context.get('session')
  if (!DASHBOARD || !route || !session || session.accountId === null || !wantsHtml(context)) return undefined
  const { domain, lobby, machineUrl } = installation
  const told = {
    ...{ domain, lobby, machineUrl: machineUrl('NAME') },
    ...{ account: session.accountId, who: nameOf(session), isOperator: session.isOwner },
    notices: await countUnread(sql, session.accountId),
  }
  const answer = show(context, 200, dashboardPage(DASHBOARD, route, told))
  answer.headers.set('Content-Security-Policy', POLICY)
  return answer
}
