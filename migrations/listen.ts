import { setTimeout as delay } from 'node:timers/promises'
import postgres from 'postgres'
import type { Sql } from './connect.ts'

export type Listening = { close(): Promise<void> }

export type ListenOptions = {
  onNotification: (channel: string, payload: string) => void
  /** The connection broke off and is there again: what was sent in between is lost. */
  onListeningAgain: () => void
}

/** Between attempts postgres.js waits by itself (`backoff`); this is for a server that lets in and refuses to listen. */
const RETRY_MS = 100

/**
 * LISTEN on several channels over one connection of its own, taken up again whenever it breaks off.
 *
 * The `listen` of postgres.js queues a query for each channel at each attempt to connect, and each attempt uses up
 * one: while the server is away they pile up. Here one query asks for all channels.
 * @returns when every channel is listened to
 * @throws PostgresError, or the socket's error, when that cannot be done the first time
 * @see https://www.postgresql.org/docs/18/sql-listen.html
 */
export async function listenTo(
  sql: Sql,
  channels: readonly string[],
  { onNotification, onListeningAgain }: ListenOptions,
): Promise<Listening> {
  let lost = Promise.withResolvers<void>()
  let closed = false
  // postgres.js makes the connection for its own `listen` in the same way; its type knows options before parsing only.
  const options = {
    ...sql.options,
    max: 1,
    idle_timeout: null,
    max_lifetime: null,
    fetch_types: false,
    onnotify: onNotification,
    onclose: () => lost.resolve(),
  }
  const connection = postgres(options as unknown as postgres.Options<Record<string, never>>)
  const query = channels.map((channel) => `listen "${channel.replaceAll('"', '""')}"`).join('; ')
  const listen = async () => {
    lost = Promise.withResolvers()
    await connection.unsafe(query)
  }

  try {
    await listen()
  } catch (error) {
    await connection.end({ timeout: 0 })
    throw error
  }
  void keepListening()
  return {
    async close() {
      closed = true
      await connection.end({ timeout: 1 })
    },
  }

  async function keepListening(): Promise<void> {
    await lost.promise
    while (!closed) {
      try {
        await listen()
        onListeningAgain()
        await lost.promise
      } catch {
        await delay(RETRY_MS)
      }
    }
  }
}
