/**
 * The control host's application. Nothing on it runs without a person's own doing: a request that another site's page
 * caused is refused unless it only navigates here, and whatever changes something wants the exact Origin of these
 * pages. Machines are on the same site as this host, so SameSite cookies alone would prove nothing.
 */
import type { IncomingMessage } from 'node:http'
import { getRequestListener } from '@hono/node-server'
import { Hono } from 'hono'
import { findSession } from '../../accounts/web-sessions.ts'
import { answerWithin, faultOf } from '../../fault.ts'
import { COOKIE, setCookie } from '../access/fields.ts'
import { askerOf, ownOrigin } from '../access/foreign.ts'
import { addDashboard, addDashboardAssets } from '../dashboard/routes.ts'
import { html } from '../pages/html.ts'
import { onwardField, pageFields } from '../pages/page.ts'
import { addAssets, addTerminal } from '../terminal/routes.ts'
import type { Control, ControlContext, ControlEnv, ControlOptions } from './control.ts'
import { addInvitations } from './invitations.ts'
import { addInvoices } from './invoices.ts'
import { addMachines } from './machines.ts'
import { addOpen } from './open.ts'
import { messagePage, onwardPage } from './pages.ts'
import { Rate } from './rate.ts'
import { cookieIn, wantsHtml } from './request.ts'
import { addSignIn } from './sign-in.ts'

const ATTEMPTS_A_MINUTE = 30
/** A database that is silent for so long is as good as away. */
const ANSWER_MS = 10_000
const COME_AGAIN_S = 5

/** @returns Node's own listener, for HTTP/1.1 and HTTP/2 */
export function controlApp(options: ControlOptions) {
  const { log, installation, sql } = options
  const app = new Hono<ControlEnv>()
  const rate = new Rate(ATTEMPTS_A_MINUTE)
  const fields = pageFields()
  const show = (context: ControlContext, status: number, text: string): Response => {
    for (const [name, value] of fields) context.header(name, value)
    return context.body(text, status as 200, { 'Content-Type': 'text/html; charset=utf-8' })
  }
  const refuse: Control['refuse'] = (context, { status, code, title, detail }) => {
    if (wantsHtml(context)) {
      const session = context.get('session')
      const more = html`<p><a href="/">Machines you can see</a></p>`
      return show(context, status, messagePage(installation, { title, detail, more, session }))
    }
    context.header('Cache-Control', 'no-store')
    return context.json({ error: `${title}: ${detail}`, code }, status as 200)
  }
  const control: Control = {
    ...options,
    app,
    rate,
    show,
    refuse,
    signInFirst: (context) => {
      const { pathname, search } = new URL(context.req.url)
      const next = new URLSearchParams({ next: `${pathname}${search}` })
      if (wantsHtml(context)) return context.redirect(`/signin?${next}`, 303)
      return refuse(context, { status: 401, code: 'auth.required', title: 'Not signed in', detail: 'Sign in first.' })
    },
    signIn: (context, token) => {
      const [name, value] = setCookie(COOKIE, token, 365 * 86_400)
      context.header(name, value, { append: true })
    },
    onward: (context, where, title) => {
      if (where.startsWith('/') && !where.startsWith('/open?')) return context.redirect(where, 303)
      context.header(...onwardField(where))
      return show(context, 200, onwardPage(installation, { title, where }))
    },
  }

  app.onError((error, context) => {
    const path = context.req.path.split('/')[1]
    const { isAway, message, wayOn } = faultOf(error, log, 'a page of the control host failed', { path })
    if (isAway) context.header('Retry-After', String(COME_AGAIN_S))
    return refuse(context, {
      status: isAway ? 503 : 500,
      code: isAway ? 'database.away' : 'gateway.failed',
      title: isAway ? 'Not now' : 'Something went wrong here',
      detail: `${sentence(message)} ${sentence(wayOn)}`,
    })
  })
  app.notFound((context) =>
    refuse(context, { status: 404, code: 'path.not_found', title: 'No such page', detail: 'There is nothing here.' }),
  )
  app.use(async (context, next) => {
    const foreign = foreignRequest(context)
    if (foreign !== undefined) {
      return refuse(context, { status: 403, code: 'request.foreign_page', title: 'Refused', detail: foreign })
    }
    context.set('address', addressOf(context))
    return await next()
  })
  addAssets(control)
  addDashboardAssets(control)
  app.use(async (context, next) => {
    const cookie = cookieIn(context, COOKIE)
    context.set('session', cookie === undefined ? undefined : await answerWithin(ANSWER_MS, findSession(sql, cookie)))
    return await next()
  })
  addMachines(control)
  addDashboard(control)
  addSignIn(control)
  addOpen(control)
  addInvitations(control)
  addInvoices(control)
  addTerminal(control)
  if (options.root !== undefined) {
    const { root } = options
    app.get('/ca.pem', (context) => context.body(root, 200, { 'Content-Type': 'application/x-pem-file' }))
  }
  return getRequestListener(app.fetch as Parameters<typeof getRequestListener>[0], { overrideGlobalObjects: false })
}

/** Why a request must not count, undefined when it may. */
function foreignRequest(context: ControlContext): string | undefined {
  const { method } = context.req
  const { headers } = context.env.incoming
  const own = ownOrigin(headers)
  const reads = method === 'GET' || method === 'HEAD'
  if (!reads && headers.origin !== own) return 'This is asked for from Berth’s own pages only.'
  return askerOf(method, headers, own) === 'foreign' ? 'Another site’s page asked for this.' : undefined
}

function addressOf(context: ControlContext): string {
  const incoming = context.env.incoming as IncomingMessage
  const address = incoming.socket?.remoteAddress ?? ''
  return address.startsWith('::ffff:') ? address.slice(7) : address
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`
}
