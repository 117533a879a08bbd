/**
 * Berth's own paths on every machine's host; they never reach the machine.
 *
 *     GET  /__berth/login?redirect=/path   signs in, by way of the control host
 *     GET  /__berth/callback?code=…&path=… comes back from there, with a code that is good once and here alone
 *     POST /__berth/logout                 forgets this host's cookie
 *     GET  /__berth/link/TOKEN             asks whether to open a shared link, POST opens it: what merely looks at
 *                                          links (chat programs, scanners of mail) uses none of its uses up
 */
import type { Sql } from '../../../migrations/connect.ts'
import { isInByLink, isOpenLink, LINK_DAYS, takeLink } from '../../accounts/shares.ts'
import { endSiteSession, takeSiteCode } from '../../accounts/site-sessions.ts'
import { makeToken } from '../../accounts/web-sessions.ts'
import { html } from '../pages/html.ts'
import { onwardField, page, pageFields } from '../pages/page.ts'
import { foreignPage } from '../proxy/gate.ts'
import type { Access, Answer, Problem, Visit } from '../proxy/seams.ts'
import { COOKIE, cookieOf, isNavigation, STATE_COOKIE, safePath, setCookie } from './fields.ts'

export const OWN_PREFIX = '/__berth/'
const STATE_S = 600

export type SitePaths = {
  answer(visit: Visit): Promise<Access>
  /** A redirect to the control host that comes back to `path` of the host that was visited. */
  toSignIn(visit: Visit, path: string): Answer
}

export type SitePathsOptions = {
  sql: Sql
  domain: string
  /** `https://example.com[:port]` */
  controlOrigin: string
}

export function sitePaths({ sql, domain, controlOrigin }: SitePathsOptions): SitePaths {
  const toSignIn = (visit: Visit, path: string, isAgain = false): Answer => {
    // Several tabs may set out at once: they share what is remembered.
    const state = cookieOf(visit.fields, STATE_COOKIE) ?? makeToken()
    const again = isAgain ? { again: '1' } : undefined
    const query = new URLSearchParams({ to: authorityOf(visit), path: safePath(path), state, ...again })
    return {
      status: 302,
      fields: [['Location', `${controlOrigin}/open?${query}`], setCookie(STATE_COOKIE, state, STATE_S), NO_STORE],
    }
  }

  const callback = async (visit: Visit, query: URLSearchParams): Promise<Access> => {
    const state = cookieOf(visit.fields, STATE_COOKIE)
    const taken =
      state === undefined
        ? undefined
        : await takeSiteCode(sql, {
            code: query.get('code') ?? '',
            machineId: visit.route.machineId,
            host: authorityOf(visit),
            cookieHost: visit.host,
            state,
          })
    // Of tabs that set out in the same moment one alone is remembered: the others set out once more.
    const path = query.get('path')
    if (!taken && path !== null && !query.has('again')) return { allow: false, answer: toSignIn(visit, path, true) }
    if (!taken)
      return refused(
        400,
        'auth.code',
        'That did not work',
        'The way here was taken before, or took too long. Open the page once more.',
      )
    return {
      allow: false,
      answer: {
        status: 303,
        fields: [['Location', safePath(taken.path)], setCookie(COOKIE, taken.token, 7 * 86_400), NO_STORE],
      },
    }
  }

  const logout = async (visit: Visit): Promise<Access> => {
    if (visit.method !== 'POST') return method('POST')
    const foreign = foreignPage(visit)
    if (foreign) return { allow: false, problem: foreign }
    const cookie = cookieOf(visit.fields, COOKIE)
    if (cookie !== undefined) await endSiteSession(sql, cookie)
    return {
      allow: false,
      answer: {
        status: 303,
        fields: [['Location', `${controlOrigin}/signed-out`], setCookie(COOKIE, '', 0), NO_STORE],
      },
    }
  }

  const link = async (visit: Visit, token: string): Promise<Access> => {
    const { machineId, name } = visit.route
    const gone = () =>
      refused(404, 'link.not_found', 'This link is no longer good', `Ask whoever runs ${name} for another one.`)
    const cookie = cookieOf(visit.fields, COOKIE)
    const isRead = visit.method === 'GET' || visit.method === 'HEAD'
    // Opened again: one that is used up has let this browser in all the same.
    if (isRead && cookie !== undefined && (await isInByLink(sql, { machineId, host: visit.host, token, cookie }))) {
      return { allow: false, answer: { status: 303, fields: [['Location', '/'], NO_STORE, NO_REFERRER] } }
    }
    if (isRead) {
      if (!(await isOpenLink(sql, machineId, token))) return gone()
      return answered(200, linkPage(name, token, domain), pageFields())
    }
    if (visit.method !== 'POST') return method('GET, POST')
    const foreign = foreignPage(visit)
    if (foreign) return { allow: false, problem: foreign }
    const taken = await takeLink(sql, { machineId, host: visit.host, token, address: visit.remoteAddress })
    if (!taken) return gone()
    const maxAgeS = Math.max(1, Math.round((taken.expiresAt.getTime() - Date.now()) / 1000))
    const fields = pageFields().filter(([field]) => field !== NO_REFERRER[0])
    return answered(200, openedPage(name, domain), [
      ...fields,
      ...[NO_REFERRER, setCookie(COOKIE, taken.token, maxAgeS), onwardField('/')],
    ])
  }

  return {
    toSignIn,
    async answer(visit) {
      const [path = '', queryText = ''] = visit.target.slice(OWN_PREFIX.length).split(/\?(.*)/s)
      const query = new URLSearchParams(queryText)
      if (path === 'login' || path === 'callback') {
        if (!isNavigation(visit.method, visit.fields)) return method('GET, by a person')
        if (path === 'callback') return await callback(visit, query)
        return { allow: false, answer: toSignIn(visit, safePath(query.get('redirect'))) }
      }
      if (path === 'logout') return await logout(visit)
      const token = /^link\/([A-Za-z0-9_-]{43})$/.exec(path)?.[1]
      if (token !== undefined) return await link(visit, token)
      return refused(404, 'path.not_found', 'No such page', 'Paths below /__berth/ are Berth’s own.')
    },
  }
}

const NO_STORE: [string, string] = ['Cache-Control', 'no-store']
/** What follows goes to the machine, which need not learn the link that led there. */
const NO_REFERRER: [string, string] = ['Referrer-Policy', 'no-referrer']

/** The host as the browser wrote it, without the port where it is the usual one. */
function authorityOf(visit: Visit): string {
  return visit.origin.slice('https://'.length)
}

function answered(status: number, text: string, fields: Answer['fields'] = []): Access {
  return { allow: false, answer: { status, fields, body: { type: 'text/html; charset=utf-8', text } } }
}

function refused(status: number, code: string, title: string, detail: string): Access {
  const problem: Problem = { status, code, title, detail }
  return { allow: false, problem }
}

function method(allowed: string): Access {
  return refused(405, 'request.method', 'Not that way', `This is asked for with ${allowed}.`)
}

/** Seen for a moment. */
function openedPage(name: string, domain: string): string {
  const title = `${name} is open to you`
  return page({ title, domain, body: html`<h1>${title}</h1>\n<p><a href="/">Go on</a></p>` })
}

function linkPage(name: string, token: string, domain: string): string {
  return page({
    title: `${name} is shared with you`,
    domain,
    body: html`<h1>${name} is shared with you</h1>
<p>Whoever sent you this link lets you see what <code>${name}</code> shows.</p>
<form method="post" action="${OWN_PREFIX}link/${token}"><button>Open ${name}</button></form>
<p class="dim">It lets this browser in for ${LINK_DAYS} days, unless it ends or is taken back before.</p>`,
  })
}
