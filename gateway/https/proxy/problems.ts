/** What people and programs are told where a machine's answer would have been; the same for HTTP/1 and HTTP/2. */
import { answerWithin } from '../../fault.ts'
import type { ProxyContext } from './context.ts'
import { HeadError } from './head.ts'
import { CookiesTooLargeError } from './head2.ts'
import type { Problem, Route } from './seams.ts'
import type { CutError } from './upstream.ts'

/** The client sent what is no HTTP as we accept it. */
export function malformed(error: HeadError): Problem {
  if (error instanceof CookiesTooLargeError) return COOKIES_TOO_LARGE
  return { status: error.status, code: 'request.malformed', title: 'Not understood', detail: `${error.message}.` }
}

/** Any machine's page can set cookies for all of the domain, which would lock the visitor out of everything else. */
const COOKIES_TOO_LARGE: Problem = {
  status: 431,
  code: 'request.cookies_too_large',
  title: 'Too many cookies',
  detail:
    'Your browser sent more cookies than fit into a request. It was told to clear them: load the page again, and sign in again. If that does not help, clear the cookies of this domain in its settings.',
  clearCookies: true,
}

/** The pool has no connection left for the machine's port. */
export function busy(route: Route): Problem {
  return {
    status: 503,
    code: 'machine.busy',
    title: 'Too many connections',
    detail: `${route.name} has as many connections as it may have.`,
    retryAfterS: 5,
  }
}

/** Notes what was our own doing in a cut that nobody gets a page about. */
export function noteFault(error: CutError, context: ProxyContext): void {
  const cause = fault(error)
  if (cause === undefined) return
  context.failed({
    status: 500,
    code: 'gateway.failed',
    title: 'A response could not be passed on',
    detail: error.message,
    cause,
  })
}

function fault(error: CutError): unknown {
  return error.code === 'malformed' && !(error.cause instanceof HeadError) ? error.cause : undefined
}

/** The problem a person is shown when the machine gave no answer. */
export async function upstreamProblem(
  error: CutError,
  route: Route,
  port: number,
  { seams, limits }: Pick<ProxyContext, 'seams' | 'limits'>,
): Promise<Problem> {
  if (error.code !== 'refused') {
    return {
      status: error.code === 'timeout' ? 504 : 502,
      code: `machine.${error.code}`,
      title: error.code === 'malformed' ? 'The answer makes no sense' : `${route.name} did not answer`,
      detail:
        error.code === 'malformed'
          ? `What port ${port} of ${route.name} sent is not valid HTTP: ${error.message}.`
          : `Port ${port} of ${route.name}: ${error.message}.`,
      route,
      cause: fault(error),
    }
  }
  // A page without them is better than none.
  const asked = Promise.resolve(seams.listeningPorts?.(route))
  const listeningPorts = await answerWithin(limits.lookUpMs, asked).catch(() => undefined)
  return {
    status: 502,
    code: 'port.refused',
    title: `Nothing listens on port ${port}`,
    detail: `${route.name} is awake, but no program in it listens on port ${port}.`,
    ...(listeningPorts ? { listeningPorts } : {}),
    route,
  }
}
