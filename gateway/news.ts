export type NewsChannel = 'machines' | 'keys' | 'console' | 'settings' | 'hosts' | 'mails'

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
