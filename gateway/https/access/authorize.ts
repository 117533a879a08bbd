/**
 * Who is let in at a machine's host. In this order: Berth's own paths; a token; the host's cookie; a port that is open
 * to all. Who has none of them signs in, when a person navigates, and gets 401 otherwise.
 */
import { Rate } from '../control/rate.ts'
import type { MachineRoute } from '../machines/routes.ts'
import { foreignPage } from '../proxy/gate.ts'
import type { Access, MaybePromise, Problem, Visit } from '../proxy/seams.ts'
import { credentialOf } from './credentials.ts'
import { COOKIE, cookieOf, fieldOf, isNavigation } from './fields.ts'
import type { Grant, Grants } from './grants.ts'
import { OWN_PREFIX, type SitePaths } from './site-paths.ts'

/** From one address: each is a look-up, and of a key that is known a signature to check. */
const BAD_TOKENS_A_MINUTE = 300
const MINUTE_S = 60

export type AuthorizeOptions = {
  grants: Grants
  paths: SitePaths
  machineDomain: string
}

export function authorizer({ grants, paths, machineDomain }: AuthorizeOptions) {
  const badTokens = new Rate(BAD_TOKENS_A_MINUTE)
  const tooMany: Access = {
    allow: false,
    problem: {
      status: 429,
      code: 'request.too_many',
      title: 'Too many bad tokens',
      detail: 'Wait a minute, then try again.',
      retryAfterS: MINUTE_S,
    },
  }
  return (visit: Visit): MaybePromise<Access> => {
    // What `resolve` gave is what comes back here.
    const route = visit.route as MachineRoute
    if (visit.target.startsWith(OWN_PREFIX)) return paths.answer(visit)
    if (route.isSuspended) return { allow: false, problem: suspended(route) }
    const credential = credentialOf(visit.fields)
    if (credential) {
      const { token, inAuthorization } = credential
      const admit = (grant: Grant): Access => ({
        ...admitted(grant, 'credential'),
        ...(inAuthorization ? { stripAuthorization: true } : {}),
      })
      const host = `${route.name}.${machineDomain}`
      // Whoever is known goes on, also behind an address that others share.
      const known = grants.recallToken(route.machineId, host, token)
      if (known) return admit(known)
      if (badTokens.isOver(visit.remoteAddress)) return tooMany
      return then(grants.byToken(route.machineId, host, token), (grant) => {
        if (grant) return admit(grant)
        badTokens.exceeded(visit.remoteAddress)
        return { allow: false, problem: unauthorized(visit, 'auth.invalid', 'This token does not open this machine.') }
      })
    }
    const cookie = cookieOf(visit.fields, COOKIE)
    if (cookie === undefined) return withoutCredential(visit, route, paths)
    return then(grants.byCookie(route.machineId, visit.host, cookie), (grant) => {
      if (!grant) return withoutCredential(visit, route, paths)
      // Another site's page gets of an open port what everybody gets, and not the visitor's name with it.
      if (isOpen(visit, route) && foreignPage(visit)) return publicly(visit)
      return admitted(grant, 'cookie')
    })
  }
}

function admitted({ key, identity, endsAtMs }: Grant, by: 'cookie' | 'credential'): Extract<Access, { allow: true }> {
  return { allow: true, by, grant: key, endsAtMs, ...(identity ? { identity } : {}) }
}

function isOpen(visit: Visit, route: MachineRoute): boolean {
  return route.isPublic && visit.port === route.primaryPort
}

function publicly(visit: Visit): Access {
  return { allow: true, by: 'public', grant: `public:${visit.port}` }
}

function withoutCredential(visit: Visit, route: MachineRoute, paths: SitePaths): Access {
  if (isOpen(visit, route)) return publicly(visit)
  if (visit.upgrade === undefined && isNavigation(visit.method, visit.fields)) {
    return { allow: false, answer: paths.toSignIn(visit, visit.target) }
  }
  return { allow: false, problem: unauthorized(visit, 'auth.required', 'Sign in, or send a token.') }
}

function unauthorized(visit: Visit, code: string, detail: string): Problem {
  const realm = visit.route.name
  // A browser's page would see a password dialog pop up; git, on the other hand, sends nothing before it is asked so.
  const basic = fieldOf(visit.fields, 'sec-fetch-mode') === undefined
  const fields: [string, string][] = [
    ['WWW-Authenticate', `Bearer realm="${realm}"`],
    ...(basic ? ([['WWW-Authenticate', `Basic realm="${realm}", charset="UTF-8"`]] as [string, string][]) : []),
  ]
  return { status: 401, code, title: 'Not signed in', detail, fields }
}

function suspended(route: MachineRoute): Problem {
  return {
    status: 403,
    code: 'account.suspended',
    title: 'Not available',
    detail: 'The account that this machine belongs to is suspended.',
    route,
  }
}

function then<T, R>(value: MaybePromise<T>, next: (value: T) => R): MaybePromise<R> {
  return value instanceof Promise ? value.then(next) : next(value)
}
