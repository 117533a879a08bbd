import { countUnread } from '../../accounts/notices.ts'
import { type Control, type ControlContext, wantsHtml } from '../control/app.ts'
import { nameOf } from '../control/pages.ts'
import { DASHBOARD, type DashboardBuild } from './build.ts'
import { dashboardPage, POLICY } from './page.ts'

/** `/assets/NAME`: what the dashboard is made of. Names have a hash in them, so a browser may keep each for ever. */
export function addDashboardAssets({ app }: Pick<Control, 'app'>): void {
  app.get('/assets/:name', (context) => {
    const file = DASHBOARD?.files.get(context.req.param('name'))
    if (!file) return context.notFound()
    const accepted = context.req.header('accept-encoding') ?? ''
    const [encoding, bytes] =
      file.brotli && /\bbr\b/i.test(accepted)
        ? ['br', file.brotli]
        : file.gzip && /\bgzip\b/i.test(accepted)
          ? ['gzip', file.gzip]
          : [undefined, file.plain]
    return context.body(new Uint8Array(bytes), 200, {
      'Content-Type': file.type,
      ...(encoding === undefined ? {} : { 'Content-Encoding': encoding }),
      Vary: 'Accept-Encoding',
      'Cache-Control': 'public, max-age=31536000, immutable',
      'X-Content-Type-Options': 'nosniff',
      'Cross-Origin-Resource-Policy': 'same-origin',
    })
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
      const { pathname, search } = new URL(context.req.url)
      if (context.get('session')) return context.redirect('/list', 303)
      if (wantsHtml(context)) {
        return context.redirect(`/signin?${new URLSearchParams({ next: `${pathname}${search}` })}`, 303)
      }
      const refusal = { status: 401, code: 'auth.required', title: 'Not signed in', detail: 'Sign in first.' }
      return control.refuse(context, refusal)
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
