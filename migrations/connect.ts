import { drizzle } from 'drizzle-orm/postgres-js'
import postgres from 'postgres'
import * as schema from './schema.ts'

/** The two roles a process works under; `owner` migrates and nothing else. */
export type DatabaseRole = 'berth_gateway' | 'berth_vmhost' | 'owner'

export type ConnectOptions = {
  /**
   * postgres:// URL, or the embedded server's form `postgres:///berth?socket=/dir`, which postgres.js itself has
   * no notation for.
   */
  url: string
  role: DatabaseRole
  /** connections at most, one more is opened for LISTEN */
  max?: number
  /** named in pg_stat_activity, so that an operator sees who holds a lock */
  applicationName?: string
}

export type Sql = postgres.Sql<{ int8: number }>
/** A pool or a transaction. */
export type Db = postgres.ISql<{ int8: number }>
export type Database = ReturnType<typeof orm>

const int8 = {
  to: 20,
  from: [20],
  serialize: (value: number) => String(value),
  parse: (text: string) => {
    const value = Number(text)
    if (!Number.isSafeInteger(value)) throw new RangeError(`bigint ${text} is beyond 2^53`)
    return value
  },
}

/**
 * Opens a pool. Counts of bytes and of 10^-6 USD stay below 2^53 (8 PiB, 9 billion USD), so int8 is a JS number here,
 * and a value beyond that is an error rather than a wrong figure.
 * @returns a postgres.js instance; end it with `.end({ timeout })`
 */
export function connect({ url, role, max = 8, applicationName = 'berth' }: ConnectOptions): Sql {
  const socket = embeddedSocket(url)
  const options = {
    // On the embedded server's socket the operating-system user decides which role may be taken (peer), so the role
    // is the user. Elsewhere the URL's user logs in and takes the role by SET ROLE in the start-up packet.
    ...(socket ? { ...socket, username: role === 'owner' ? 'berth' : role } : {}),
    max,
    idle_timeout: 300,
    connect_timeout: 15,
    backoff: secondsUntilRetry,
    types: { int8 },
    onnotice: () => {},
    connection: {
      application_name: applicationName,
      ...(socket || role === 'owner' ? {} : { options: `-c role=${role}` }),
    },
  }
  return socket ? postgres(options) : postgres(url, options)
}

/** A database that is back after a restart is used again within two seconds, one that was away for long within twenty. */
function secondsUntilRetry(attempts: number): number {
  return Math.min(0.05 * 2 ** attempts, attempts < 60 ? 2 : 20) * (0.5 + Math.random() / 2)
}

/**
 * Drizzle over the same pool, for plain rows; leases, ranges and aggregates are tagged SQL.
 *
 * Drizzle makes the pool it is given hand out dates as text and take JSON as text, for everybody. Both are put right
 * again: its own columns read a Date as well as text, and JSON that it has written already is passed on as it is.
 */
export function orm(sql: Sql) {
  const { parsers, serializers } = sql.options
  const before = { parsers: { ...parsers }, serializers: { ...serializers } }
  const database = drizzle(sql, { schema })
  for (const type of DATE_TYPES) {
    restore(parsers, before.parsers, type)
    restore(serializers, before.serializers, type)
  }
  for (const type of JSON_TYPES) {
    serializers[type] = (value: unknown) => (typeof value === 'string' ? value : JSON.stringify(value))
  }
  return database
}

/** Object identifiers of date, time and numeric[] types in pg_type.dat, as drizzle-orm/postgres-js changes them. */
const DATE_TYPES = [1184, 1082, 1083, 1114, 1182, 1185, 1115, 1231]
/** json and jsonb */
const JSON_TYPES = [114, 3802]

function restore<T>(table: Record<number, T>, before: Record<number, T>, type: number): void {
  const value = before[type]
  if (value === undefined) delete table[type]
  else table[type] = value
}

function embeddedSocket(url: string) {
  const parsed = new URL(url)
  const directory = parsed.searchParams.get('socket')
  return directory ? { host: directory, database: parsed.pathname.slice(1) || 'berth' } : undefined
}
