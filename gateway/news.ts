import type { Sql } from '../migrations/connect.ts'
import { listenTo } from '../migrations/listen.ts'
import type { Log } from './log.ts'

const CHANNELS = [
  'machines',
  'keys',
  'console',
  'settings',
  'hosts',
  'accounts',
  'rates',
  'mails',
  'grants',
  'shares',
  'notices',
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
  /** @param listener `isAgain`: the connection was down; otherwise it is time to look whether it only seems up */
  onRescan(listener: (isAgain: boolean) => void): () => void
  close(): Promise<void>
}

/** postgres.js notices a closed connection; one that only went silent is covered by looking again now and then. */
const RESCAN_INTERVAL_MS = 60_000

/** Resolves when every channel is being listened to. */
export async function startNews(sql: Sql, log: Log): Promise<News> {
  const listeners = new Map<string, Set<(id: string) => void>>(CHANNELS.map((channel) => [channel, new Set()]))
  const rescanListeners = new Set<(isAgain: boolean) => void>()
  const call = (listener: () => void) => {
    try {
      listener()
    } catch (error) {
      log.error({ err: error }, 'a listener for news failed')
    }
  }
  const rescan = (isAgain: boolean) => {
    for (const listener of [...rescanListeners]) call(() => listener(isAgain))
  }
  const listening = await listenTo(sql, CHANNELS, {
    onNotification(channel, id) {
      for (const listener of [...(listeners.get(channel) ?? [])]) call(() => listener(id))
    },
    onListeningAgain() {
      log.info({}, 'listening to Postgres again')
      rescan(true)
    },
  })
  const timer = setInterval(rescan, RESCAN_INTERVAL_MS, false)
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
