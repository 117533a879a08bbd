/**
 * Signing in and out. By link: `browser` prints one, the page asks whether it was wanted, the POST uses it up. By
 * mail: an address, then the code; the code is bound to a cookie of the browser that asked for it, and the answer is
 * the same whether the address is known or not.
 */
import type { Db } from '../../../migrations/connect.ts'
import { checkCode, EmailCodeError, mailCode } from '../../accounts/email-codes.ts'
import { noteEvent } from '../../accounts/events.ts'
import { isEmail } from '../../accounts/people.ts'
import {
  countSessions,
  createSession,
  endAllSessions,
  endAllSessionsOfReader,
  endSession,
  hashToken,
  identityOfReader,
  makeToken,
  peekSignInLink,
  takeSignInLink,
  type WebSession,
} from '../../accounts/web-sessions.ts'
import { addressGroup } from '../../ssh/limits.ts'
import { COOKIE, nextPath, setCookie } from '../access/fields.ts'
import { html } from '../pages/html.ts'
import type { Control, ControlContext } from './control.ts'
import { codePage, confirmPage, EVERYWHERE, everywherePage, messagePage, signInPage } from './pages.ts'
import { cookieIn, formOf } from './request.ts'

/** Which browser a mailed code is for. */
const CODE_COOKIE = '__Host-berth-code'
const CODE_S = 600
/** Where a browser was going that is then signed in by a link, which knows nothing of that. */
const NEXT_COOKIE = '__Host-berth-next'
/** Browsers keep 4096 bytes of a cookie, its name and attributes included. */
const NEXT_COOKIE_MOST = 3800

export function addSignIn(control: Control): void {
  const { app, sql, installation, codeSecret, rate, show, refuse, signIn, onward } = control
  const tooMany = (context: ControlContext) => {
    if (!rate.exceeded(context.get('address'))) return undefined
    context.header('Retry-After', '60')
    return refuse(context, {
      status: 429,
      code: 'request.too_many',
      title: 'Too many attempts',
      detail: 'Wait a minute, then try again.',
    })
  }

  app.get('/signin', (context) => {
    const next = nextPath(context.req.query('next'))
    const kept = Buffer.from(next).toString('base64url')
    if (next !== '/' && kept.length <= NEXT_COOKIE_MOST) {
      context.header(...setCookie(NEXT_COOKIE, kept, CODE_S), { append: true })
    }
    return show(context, 200, signInPage(installation, { next }))
  })

  app.post('/signin', async (context) => {
    const refused = tooMany(context)
    if (refused) return refused
    const form = await formOf(context)
    const next = nextPath(form('next'))
    const email = form('email').toLowerCase()
    if (!isEmail(email)) {
      const notice = 'That is not an e-mail address.'
      return show(context, 400, signInPage(installation, { next, notice }))
    }
    const browser = makeToken()
    try {
      await mailCode(sql, codeSecret, {
        email,
        publicKey: hashToken(browser),
        domain: installation.domain,
        client: addressGroup(context.get('address')),
        isKnown: (await identityOfReader(sql, email)) !== undefined,
      })
    } catch (error) {
      // The codes that were mailed are still good.
      if (!(error instanceof EmailCodeError)) throw error
    }
    context.header(...setCookie(CODE_COOKIE, browser, CODE_S), { append: true })
    return show(context, 200, codePage(installation, { email, next }))
  })

  app.post('/signin/code', async (context) => {
    const refused = tooMany(context)
    if (refused) return refused
    const form = await formOf(context)
    const next = nextPath(form('next'))
    const email = form('email').toLowerCase()
    const browser = cookieIn(context, CODE_COOKIE)
    const isRight =
      browser !== undefined &&
      isEmail(email) &&
      (await checkCode(sql, codeSecret, { email, publicKey: hashToken(browser), code: form('code') }))
    const who = isRight ? await identityOfReader(sql, email) : undefined
    if (!who) {
      const notice = 'That is not the code, or it is too old.'
      return show(context, 403, codePage(installation, { email, next, notice }))
    }
    signIn(context, await createSession(sql, who, context.get('address')))
    for (const name of [CODE_COOKIE, NEXT_COOKIE]) context.header(...setCookie(name, '', 0), { append: true })
    return onward(context, next, SIGNED_IN)
  })

  app.get('/login/:token', async (context) => {
    const token = context.req.param('token')
    const link = await peekSignInLink(sql, token)
    if (!link) return refuse(context, STALE_LINK)
    const who = link.email ?? `account ${link.accountId}`
    const kept = cookieIn(context, NEXT_COOKIE, /^[A-Za-z0-9_-]+$/)
    const next = nextPath(context.req.query('next') ?? Buffer.from(kept ?? '', 'base64url').toString('latin1'))
    return show(context, 200, confirmPage(installation, { token, who, next }))
  })

  app.post('/login/:token', async (context) => {
    const refused = tooMany(context)
    if (refused) return refused
    const form = await formOf(context)
    const session = await takeSignInLink(sql, context.req.param('token'), context.get('address'))
    if (session === undefined) return refuse(context, STALE_LINK)
    signIn(context, session)
    context.header(...setCookie(NEXT_COOKIE, '', 0), { append: true })
    return onward(context, nextPath(form('next')), SIGNED_IN)
  })

  const noteSignOut = async (tx: Db, context: ControlContext, { accountId }: WebSession, browsers: number) => {
    if (accountId === null) return
    const [actor, address] = [`account:${accountId}`, context.get('address')]
    await noteEvent(tx, { accountId, actor, address, via: 'web', kind: 'browser.signed_out', detail: { browsers } })
  }

  const signedOut = async (context: ControlContext) => {
    context.header(...setCookie(COOKIE, '', 0), { append: true })
    const next = nextPath((await formOf(context))('next'))
    return context.redirect(next === '/' ? '/signin' : `/signin?${new URLSearchParams({ next })}`, 303)
  }

  app.post('/signout', async (context) => {
    const session = context.get('session')
    if (session) {
      await sql.begin(async (tx) => {
        await endSession(tx, session.id)
        await noteSignOut(tx, context, session, 1)
      })
    }
    return await signedOut(context)
  })

  app.get('/signout/everywhere', async (context) => {
    const session = context.get('session')
    if (!session) return context.redirect('/signin', 303)
    return show(context, 200, everywherePage(installation, session, await countSessions(sql, session)))
  })

  app.post('/signout/everywhere', async (context) => {
    const session = context.get('session')
    const accountId = session?.accountId
    if (session && accountId != null) {
      await sql.begin(async (tx) => await noteSignOut(tx, context, session, await endAllSessions(tx, accountId)))
    } else if (session) for (const email of session.emails) await endAllSessionsOfReader(sql, email)
    return await signedOut(context)
  })

  // Where a machine's own sign-out leads: it ended there, and not here.
  app.get('/signed-out', (context) => {
    const session = context.get('session')
    if (!session) return context.redirect('/signin', 303)
    return show(
      context,
      200,
      messagePage(installation, {
        title: 'Signed out of that machine',
        detail: 'This browser is still signed in here, so opening the machine again signs it in again.',
        session,
        more: html`<form class="inline" method="post" action="/signout"><button>Sign out</button></form>
${EVERYWHERE}
<p><a href="/">Machines</a></p>`,
      }),
    )
  })
}

const SIGNED_IN = 'You are signed in'

const STALE_LINK = {
  status: 404,
  code: 'link.not_found',
  title: 'This link is no longer good',
  detail: 'It was used, or is older than 10 minutes. The command browser prints another one.',
}
