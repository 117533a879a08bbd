/**
 * The control host's application. Nothing on it runs without a person's own doing: a request that another site's page
 * caused is refused unless it only navigates here, and whatever changes something wants the exact Origin of these
 * pages. Machines are on the same site as this host, so SameSite cookies alone would prove nothing.
 */
import type { IncomingMessage } from 'node:http'
import { getRequestListener, type Http2Bindings, type HttpBindings } from '@hono/node-server'
import { type Context, Hono } from 'hono'
import type { Sql } from '../../../migrations/connect.ts'
import { findSession, type WebSession } from '../../accounts/web-sessions.ts'
import type { App, RunLine } from '../../app.ts'
import { answerWithin, faultOf } from '../../fault.ts'
import type { Log } from '../../log.ts'
import { COOKIE, NEXT_MOST, setCookie } from '../access/fields.ts'
import { askerOf, ownOrigin } from '../access/foreign.ts'
import { addDashboard, addDashboardAssets } from '../dashboard/routes.ts'
import { html } from '../pages/html.ts'
import { onwardField, pageFields } from '../pages/page.ts'
import { addAssets, addTerminal } from '../terminal/routes.ts'
import { addInvitations } from './invitations.ts'
import { addInvoices } from './invoices.ts'
import { addMachines } from './machines.ts'
import { addOpen, type OpenOptions } from './open.ts'
import { type Installation, messagePage, onwardPage } from './pages.ts'
import { Rate } from './rate.ts'
import { addSignIn } from './sign-in.ts'

export type ControlOptions = OpenOptions & {
  gateway: App
  runLine: RunLine
  sql: Sql
  log: Log
  installation: Installation
  /** keys the hashes of mailed codes */
  codeSecret: Buffer
  /** PEM of Berth's own root, where certificates are its */
  root: string | undefined
}

export type ControlEnv = {
  Bindings: HttpBindings | Http2Bindings
  Variables: { session: WebSession | undefined; address: string }
}
export type ControlContext = Context<ControlEnv>

/** What the rooms of the control host are handed. */
export type Control = ControlOptions & {
  app: Hono<ControlEnv>
  /** attempts that cost a mail, or guess at a secret */
  rate: Rate
  /** sends a page with the fields that all pages have */
  show(context: ControlContext, status: number, text: string): Response
  /** a page for people, JSON for programs */
  refuse(context: ControlContext, problem: { status: number; code: string; title: string; detail: string }): Response
  signIn(context: ControlContext, token: string): void
  /**
   * Sends a browser on that has just sent a form: to one of these pages, or to where a machine is shown.
   * @param where a path that is safe, or an address of ours
   * @param title what the form did
   */
  onward(context: ControlContext, where: string, title: string): Response
}

/** A way to go on with, of which each character may have become three once more, and a few words. */
const MAX_BODY_BYTES = 3 * NEXT_MOST + 4096
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

/** One cookie of the request; the value as makeToken writes them unless told otherwise, or nothing. */
export function cookieIn(context: ControlContext, name: string, shape = /^[A-Za-z0-9_-]{43}$/): string | undefined {
  for (const pair of (context.req.header('cookie') ?? '').split(';')) {
    const equals = pair.indexOf('=')
    const value = pair.slice(equals + 1).trim()
    if (pair.slice(0, equals).trim() === name && shape.test(value)) return value
  }
  return undefined
}

export function wantsHtml(context: ControlContext): boolean {
  return /\btext\/html\b/i.test(context.req.header('accept') ?? '')
}

/**
 * The fields of a form, without control characters; `application/x-www-form-urlencoded`, which is what our pages send.
 * Of a body that is too long, or cut, no field counts.
 */
export async function formOf(context: ControlContext): Promise<(name: string) => string> {
  const form = new URLSearchParams(await bodyOf(context))
  return (name) => (form.get(name) ?? '').replace(/\p{Cc}/gu, '').trim()
}

async function bodyOf(context: ControlContext): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  try {
    for await (const chunk of context.req.raw.body ?? []) {
      bytes += chunk.length
      if (bytes > MAX_BODY_BYTES) return ''
      chunks.push(chunk)
    }
  } catch {
    return ''
  }
  return Buffer.concat(chunks).toString('utf8')
}

function addressOf(context: ControlContext): string {
  const incoming = context.env.incoming as IncomingMessage
  const address = incoming.socket?.remoteAddress ?? ''
  return address.startsWith('::ffff:') ? address.slice(7) : address
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`
}
