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
 * Whether a query failed because the database is away, rather than that it refused the query.
 * @see https://www.postgresql.org/docs/18/errcodes-appendix.html
 */
export function databaseIsAway(error: unknown): boolean {
  // Drizzle hands on what postgres.js threw as a cause.
  let link = error
  for (let depth = 0; depth < LINKS_MAX && link instanceof Error; depth++, link = link.cause) {
    if (link instanceof DatabaseSilentError) return true
    const code = 'code' in link && typeof link.code === 'string' ? link.code : ''
    if (CONNECTION_LOST.test(code) || SERVER_AWAY.test(code)) return true
    // Anything has such errors; postgres.js adds the query to its own.
    if (UNREACHABLE.has(code) && 'query' in link) return true
  }
  return false
}
