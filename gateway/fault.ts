import type { Log } from './log.ts'

/** What a person is told when something failed through no doing of theirs; the chain of causes is in the log. */
export type Fault = { isAway: boolean; message: string; wayOn: string }

/**
 * Puts a failure that nobody foresaw into the log and into words.
 * @param what failed, for the operator
 * @param fields of the log line
 */
export function faultOf(error: unknown, log: Log, what: string, fields: Record<string, unknown> = {}): Fault {
  if (databaseIsAway(error)) {
    log.warn({ err: error, ...fields }, `${what}: the database is away`)
    return { isAway: true, message: 'the database does not answer', wayOn: 'try again in a moment' }
  }
  const reference = Math.random().toString(36).slice(2, 10)
  log.error({ err: error, reference, ...fields }, what)
  return {
    isAway: false,
    message: 'that failed for a reason of ours, and nothing you typed',
    wayOn: `tell the operator to look for ${reference} in the log`,
  }
}

/** The same as one sentence. */
export function faultSentence(error: unknown, log: Log, what: string): string {
  const { message, wayOn } = faultOf(error, log, what)
  return `${message}; ${wayOn}`
}

/** Raised by postgres.js itself. */
const CONNECTION_LOST = /^CONNECT(_TIMEOUT|ION_(CLOSED|ENDED|DESTROYED))$/
/** Of the socket; the file of a Unix socket is not there while its server is not. */
const UNREACHABLE = new Set([
  'ENOENT',
  'ECONNREFUSED',
  'ECONNRESET',
  'EPIPE',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
])
/** Class 08, and of 57 the shutdowns and "cannot connect now". */
const SERVER_AWAY = /^(08...|57P0[123])$/
/** Of a connection that there was: Postgres ended it, or it broke off. */
const CONNECTION_BROKEN = /^(CONNECTION_CLOSED|57P0[12]|ECONNRESET|EPIPE)$/
/** More than a pool has connections, all of which may have been ended at once, and none of them known to be. */
const ATTEMPTS_MOST = 20
const LINKS_MAX = 5

/** The database holds its connections and answers nothing: its disk hangs, or somebody holds a lock. */
export class DatabaseSilentError extends Error {
  override readonly name = 'DatabaseSilentError'
}

/**
 * What a query gives, when it gives it in time. The query itself is left to the database.
 * @throws DatabaseSilentError after `limitMs`
 */
export async function answerWithin<T>(limitMs: number, query: Promise<T>): Promise<T> {
  const silent = Promise.withResolvers<never>()
  const timer = setTimeout(
    () => silent.reject(new DatabaseSilentError(`a query has no answer after ${limitMs} ms`)),
    limitMs,
  )
  try {
    return await Promise.race([query, silent.promise])
  } finally {
    clearTimeout(timer)
  }
}

/**
 * What a query gives that only reads, or may be repeated. Where its connection turns out to have been ended (Postgres was
 * restarted, or an operator did it), it is asked over another one; a database that takes no connections fails it at once.
 * @throws what the last attempt failed with
 */
export async function askAgain<T>(query: () => PromiseLike<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await query()
    } catch (error) {
      if (attempt >= ATTEMPTS_MOST || !codesOf(error).some((code) => CONNECTION_BROKEN.test(code))) throw error
    }
  }
}

/**
 * Whether a query failed because the database is away, rather than that it refused the query.
 * @see https://www.postgresql.org/docs/18/errcodes-appendix.html
 */
export function databaseIsAway(error: unknown): boolean {
  if (linksOf(error).some((link) => link instanceof DatabaseSilentError)) return true
  return codesOf(error).some((code) => CONNECTION_LOST.test(code) || SERVER_AWAY.test(code) || UNREACHABLE.has(code))
}

/** Codes of Postgres, of postgres.js and of its sockets. */
function codesOf(error: unknown): string[] {
  return linksOf(error).flatMap((link) => {
    if (!('code' in link) || typeof link.code !== 'string') return []
    // Anything has errors of sockets and files; postgres.js adds the query to its own.
    return UNREACHABLE.has(link.code) && !('query' in link) ? [] : [link.code]
  })
}

/** Drizzle hands on what postgres.js threw as a cause. */
function linksOf(error: unknown): Error[] {
  const links: Error[] = []
  for (let link = error; link instanceof Error && links.length < LINKS_MAX; link = link.cause) links.push(link)
  return links
}
