import { listPending } from '../../accounts/shares.ts'
import { createSiteCode } from '../../accounts/site-sessions.ts'
import { hashToken } from '../../accounts/web-sessions.ts'
import { safePath } from '../access/fields.ts'
import { parseAuthority, type Site, siteOf } from '../host.ts'
import { html } from '../pages/html.ts'
import type { Control } from './control.ts'
import { messagePage, nameOf, offerPage } from './pages.ts'

/**
 * `GET /open?to=HOST&path=PATH&state=STATE[&again=1]`: sends a signed-in browser on to a machine's host with a code for it.
 * It goes to machines' hosts only, domains that somebody brought among them, at ports that are Berth's, so it is no
 * way to be sent anywhere else. A domain may have gone to somebody else since it was added, who would get the code:
 * DNS is asked first.
 */
export function addOpen({ app, sql, installation, show, refuse, settings, listenPorts, find, isHeld }: Control): void {
  app.get('/open', async (context) => {
    const target = targetOf(context.req.query('to') ?? '', settings, listenPorts)
    const state = context.req.query('state') ?? ''
    if (!target || !/^[A-Za-z0-9_-]{43}$/.test(state)) {
      return refuse(context, NOWHERE)
    }
    const session = context.get('session')
    const { pathname, search } = new URL(context.req.url)
    const here = `${pathname}${search}`
    if (!session) return context.redirect(`/signin?${new URLSearchParams({ next: here })}`, 303)
    const { site, host } = target
    const path = safePath(context.req.query('path'))
    const route = await find(site)
    // Of a domain that leads nowhere here nothing is said: it is anybody's.
    if (!route && site.kind === 'domain') return refuse(context, NOWHERE)
    const name = route?.name ?? (site.kind === 'machine' ? site.name : site.domain)
    const code =
      route &&
      (await createSiteCode(sql, {
        sessionId: session.id,
        machineId: route.machineId,
        host,
        path,
        stateHash: hashToken(state),
      }))
    if (code === undefined) {
      const [offer] = route ? await listPending(sql, session.id, route.machineId) : []
      if (offer) return show(context, 200, offerPage(installation, session, offer, here))
      return show(
        context,
        403,
        messagePage(installation, {
          title: 'Not shared with you',
          detail: `${nameOf(session)} may not see ${name}. Whoever runs it can let you in:`,
          session,
          more: html`<pre><code>${installation.lobby} share add ${name} ${session.emails[0] ?? 'YOUR-ADDRESS'}</code></pre>
<form method="post" action="/signout"><input type="hidden" name="next" value="${here}"><button class="plain">Sign in as somebody else</button></form>
<p><a href="/">Machines you can see</a></p>`,
        }),
      )
    }
    if (site.kind === 'domain' && route && !(await isHeld(site.domain, route.machineId))) {
      return refuse(context, {
        status: 403,
        code: 'domain.not_held',
        title: 'Not signed in there',
        detail: `DNS does not show at the moment that ${site.domain} belongs to whoever runs ${name} and leads here, and it may be somebody else’s by now. ${installation.machineUrl(name)} is the machine’s own address.`,
      })
    }
    const again = context.req.query('again') === undefined ? undefined : { again: '1' }
    const callback = `https://${host}/__berth/callback?${new URLSearchParams({ code, path, ...again })}`
    context.header('Cache-Control', 'no-store')
    context.header('Referrer-Policy', 'no-referrer')
    return context.redirect(callback, 303)
  })
}

const NOWHERE = {
  status: 400,
  code: 'request.malformed',
  title: 'Not understood',
  detail: 'This address leads to no machine.',
}

function targetOf(
  to: string,
  settings: Control['settings'],
  listenPorts: ReadonlySet<number>,
): { site: Exclude<Site, { kind: 'control' }>; host: string } | undefined {
  const authority = parseAuthority(to)
  if (!authority) return undefined
  const { host, port = 443 } = authority
  const site = siteOf(authority, settings, listenPorts)
  if (site.kind === 'control') return undefined
  const isOurs = port === 443 || listenPorts.has(port) || (settings.ports && port >= 3000 && port <= 9999)
  return isOurs ? { site, host: port === 443 ? host : `${host}:${port}` } : undefined
}
