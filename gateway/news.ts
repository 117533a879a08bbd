import type { Sql } from '../migrations/connect.ts'
import { listenTo } from '../migrations/listen.ts'
import type { Log } from './log.ts'

const CHANNELS = [
  'machines',
  'keys',
  'console',
  'settings',
  'hosts',
  'mails',
  'grants',
  'domains',
  'certificates',
  'challenges',
  'events',
  'stripe',
] as const
export type NewsChannel = (typeof CHANNELS)[number]

/**
 * What Postgres tells the gateway (LISTEN over one connection). Notifications sent while that connection was down are
 * lost, so whoever keeps anything in memory also registers `onRescan`, called after each reconnect.
 */
export type News = {
  /** @returns stops listening */
  on(channel: NewsChannel, listener: (id: string) => void): () => void
  onRescan(listener: () => void): () => void
  close(): Promise<void>
}

/** postgres.js notices a closed connection; one that only went silent is covered by looking again now and then. */
const RESCAN_INTERVAL_MS = 60_000

/** Resolves when every channel is being listened to. */
export async function startNews(sql: Sql, log: Log): Promise<News> {
  const listeners = new Map<string, Set<(id: string) => void>>(CHANNELS.map((channel) => [channel, new Set()]))
  const rescanListeners = new Set<() => void>()
  const call = (listener: () => void) => {
    try {
      listener()
    } catch (error) {
      log.error({ err: error }, 'a listener for news failed')
    }
  }
  const rescan = () => {
    for (const listener of [...rescanListeners]) call(listener)
  }
  const listening = await listenTo(sql, CHANNELS, {
    onNotification(channel, id) {
      for (const listener of [...(listeners.get(channel) ?? [])]) call(() => listener(id))
    },
    onListeningAgain() {
      log.info({}, 'listening to Postgres again')
      rescan()
    },
  })
  const timer = setInterval(rescan, RESCAN_INTERVAL_MS)
  timer.unref()

  return {
    on(channel, listener) {
      listeners.get(channel)?.add(listener)
      return () => listeners.get(channel)?.delete(listener)
    },
    onRescan(listener) {
      rescanListeners.add(listener)
      return () => rescanListeners.delete(listener)
    },
    async close() {
      clearInterval(timer)
      rescanListeners.clear()
      await listening.close()
    },
  }
}
