import { answerWithin, databaseIsAway } from '../../fault.ts'
import type { Settings } from '../../settings.ts'
import { askerOf, type Said } from '../access/foreign.ts'
import { type Authority, parseAuthority, type Site, siteOf } from '../host.ts'
import type { ProxyLimits } from './context.ts'
import { type Field, HeadError } from './head.ts'
import {
  type Access,
  type Answer,
  type MaybePromise,
  type Problem,
  type Route,
  type Seams,
  type Visit,
  WakeError,
} from './seams.ts'

/** A request that was let in, and where it goes. */
export type Admitted = { route: Route; port: number; access: Extract<Access, { allow: true }> }
export type Refused = { answer: Answer } | { problem: Problem }
export type Outcome = Admitted | Refused

export type GateOptions = {
  seams: Seams
  settings: Pick<Settings, 'domain' | 'machineDomain'>
  listenPorts: ReadonlySet<number>
  limits: Pick<ProxyLimits, 'lookUpMs'>
}

/** Whether what let a request in is over by now: a token, a link or a sign-in that had its time. */
export function isOver(admitted: Admitted | undefined): boolean {
  const endsAtMs = admitted?.access.endsAtMs
  return endsAtMs !== undefined && Date.now() >= endsAtMs
}

/** What is known of a request before anything is decided; the same for HTTP/1 and HTTP/2. */
export type Arrival = {
  site: Exclude<Site, { kind: 'control' }>
  authority: Authority
  method: string
  target: string
  fields: readonly Field[]
  remoteAddress: string
  upgrade: string | undefined
}

/**
 * Reads where a request goes from its Host and its target, which may be in absolute form (RFC 9112, 3.2.2).
 * @returns `target` in origin form or `*`, byte for byte as it was sent
 * @throws HeadError when malformed, or when target and Host name different hosts
 */
export function direct(
  method: string,
  target: string,
  hostField: string,
  options: Pick<GateOptions, 'settings' | 'listenPorts'>,
): { site: Site; authority: Authority; target: string } {
  const authority = parseAuthority(hostField)
  if (!authority) throw new HeadError('malformed Host header')
  if (method === 'CONNECT' || method === 'TRACE') throw new HeadError(`${method} is not offered here`, 405)
  let path = target
  if (!target.startsWith('/') && !(target === '*' && method === 'OPTIONS')) {
    const absolute = /^https?:\/\/([^/?]+)(.*)$/is.exec(target)
    const named = absolute?.[1] === undefined ? undefined : parseAuthority(absolute[1])
    if (!named) throw new HeadError('malformed request target')
    if (named.host !== authority.host || (named.port ?? 443) !== (authority.port ?? 443)) {
      throw new HeadError('the request target names another host')
    }
    const rest = absolute?.[2] ?? ''
    path = rest.startsWith('/') ? rest : `/${rest}`
  }
  return { site: siteOf(authority, options.settings, options.listenPorts), authority, target: path }
}

/**
 * Decides a request at a machine's host: which machine, may it come in, is the machine awake. Answers at once unless
 * something it asks is a promise. Never rejects.
 */
export function admit(arrival: Arrival, options: GateOptions, signal: () => AbortSignal): MaybePromise<Outcome> {
  try {
    const outcome = chain(soon(options.seams.resolve(arrival.site), options), (route) => {
      if (!route) return { problem: NOT_FOUND }
      const visit = visitOf(arrival, route)
      return chain(soon(options.seams.authorize(visit), options), (access) => decide(access, visit, options, signal))
    })
    return outcome instanceof Promise ? outcome.catch(failed) : outcome
  } catch (error) {
    return failed(error)
  }
}

function decide(
  access: Access,
  visit: Visit,
  { seams, limits }: GateOptions,
  signal: () => AbortSignal,
): MaybePromise<Outcome> {
  if (!access.allow) return refused(access)
  if (access.by === 'cookie') {
    const problem = foreignPage(visit)
    if (problem) return { problem }
  }
  const { route } = visit
  // It may have been told to sleep a moment ago, which its connections hear of first.
  if (!seams.wake || (route.awake && route.watch?.isHeld !== true)) return { route, port: visit.port, access }
  return seams.wake(visit, signal()).then(
    // Waking takes its time, and the grant may have been taken back meanwhile.
    (route): MaybePromise<Outcome> =>
      chain(
        soon(seams.authorize({ ...visit, route }), { limits }),
        (again): Outcome => (again.allow ? { route, port: visit.port, access: again } : refused(again)),
      ),
    (error: unknown): Outcome => {
      if (!(error instanceof WakeError)) throw error
      return {
        problem: {
          status: 503,
          code: error.code,
          title: error.title ?? `${visit.route.name} is not awake`,
          detail: error.message,
          ...(error.retryAfterS === undefined ? {} : { retryAfterS: error.retryAfterS }),
          route: visit.route,
        },
      }
    },
  )
}

function refused(access: Extract<Access, { allow: false }>): Refused {
  return 'answer' in access ? { answer: access.answer } : { problem: access.problem }
}

function visitOf(arrival: Arrival, route: Route): Visit {
  const { host, port } = arrival.authority
  return {
    route,
    port: arrival.site.port ?? route.primaryPort,
    host,
    origin: port === undefined || port === 443 ? `https://${host}` : `https://${host}:${port}`,
    method: arrival.method,
    target: arrival.target,
    fields: arrival.fields,
    remoteAddress: arrival.remoteAddress,
    upgrade: arrival.upgrade,
  }
}

/** Only the machine's own pages, and a person who navigates, may use a cookie. */
export function foreignPage(visit: Pick<Visit, 'fields' | 'origin' | 'method' | 'upgrade'>): Problem | undefined {
  const said: Said = {}
  for (const { name, value } of visit.fields) {
    if (name === 'origin' || name === 'sec-fetch-site' || name === 'sec-fetch-mode' || name === 'sec-fetch-dest') {
      said[name] = value
    }
  }
  // Browsers send Origin with every WebSocket; scripts use a token.
  if (visit.upgrade !== undefined) return said.origin?.toLowerCase() === visit.origin ? undefined : FOREIGN
  return askerOf(visit.method, said, visit.origin) === 'foreign' ? FOREIGN : undefined
}

const NOT_FOUND: Problem = {
  status: 404,
  code: 'machine.not_found',
  title: 'No such machine',
  detail: 'There is no machine of this name here.',
}
const FOREIGN: Problem = {
  status: 403,
  code: 'request.foreign_page',
  title: 'Refused',
  detail: 'Another site’s page asked for this with your sign-in. Open the page itself, or use a token.',
}

function failed(error: unknown): Outcome {
  return { problem: { ...(databaseIsAway(error) ? AWAY : INTERNAL), cause: error } }
}

/** A database that keeps its connections and says nothing must not keep everybody waiting. */
function soon<T>(value: MaybePromise<T>, { limits }: Pick<GateOptions, 'limits'>): MaybePromise<T> {
  return value instanceof Promise ? answerWithin(limits.lookUpMs, value) : value
}

const AWAY: Problem = {
  status: 503,
  code: 'busy',
  title: 'Not at the moment',
  detail: 'The database of this installation does not answer. Try again in a moment.',
  retryAfterS: 5,
}

const INTERNAL: Problem = {
  status: 500,
  code: 'gateway.failed',
  title: 'Something went wrong here',
  detail: 'The gateway could not decide this request. It has been noted; try again.',
}

function chain<T, R>(value: MaybePromise<T>, next: (value: T) => MaybePromise<R>): MaybePromise<R> {
  return value instanceof Promise ? value.then(next) : next(value)
}
