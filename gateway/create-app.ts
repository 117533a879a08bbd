import { orm, type Sql } from '../migrations/connect.ts'
import type { App } from './app.ts'
import { systemLookup } from './domains/lookup.ts'
import type { Log } from './log.ts'
import { createMachineAccess } from './machines.ts'
import { type News, startNews } from './news.ts'
import type { Settings } from './settings.ts'
import { MachinePool } from './ssh/pool/pool.ts'

export type AppOptions = {
  settings: Settings
  sql: Sql
  log: Log
  /** the key that every machine's sshd accepts, in OpenSSH's format */
  gatewayPrivateKey: string
  /** `ssh-ed25519 AAAA…` */
  hostPublicKey: string
  /** keys the hashes of mailed codes */
  codeSecret: Buffer
  /** where the platform's sshd listens in guests; tests put a stand-in elsewhere */
  machineSshPort?: number
  /** name servers that are asked about people's domains; the system's own unless given */
  resolvers?: readonly string[]
}

/** @returns the app and what ends it; the database connection stays the caller's */
export async function createApp(options: AppOptions): Promise<{ app: App; close: () => Promise<void> }> {
  const { settings, sql, log, hostPublicKey, codeSecret, gatewayPrivateKey: privateKey } = options
  const db = orm(sql)
  const news = await startNews(sql, log)
  const pool = new MachinePool({ privateKey, log })
  const machines = createMachineAccess(db, news, options.machineSshPort)
  const stop = forgetEndedMachines(sql, news, pool, log)
  return {
    app: {
      ...{ settings, sql, db, log, news, machines, pool, codeSecret, hostPublicKey, startedAt: new Date() },
      lookup: systemLookup(options.resolvers),
    },
    async close() {
      stop()
      pool.close()
      await news.close()
    },
  }
}

/** News come in bursts while a machine starts; one query answers for all of a moment. */
const GATHER_MS = 20

/**
 * Connections to a machine that stopped or was started anew are dead, and TCP would take long to say so: the pool
 * forgets them as soon as the row tells.
 */
function forgetEndedMachines(sql: Sql, news: News, pool: MachinePool, log: Log): () => void {
  const readyAt = new Map<number, number>()
  const changed = new Set<number>()
  let timer: NodeJS.Timeout | undefined
  const look = async () => {
    timer = undefined
    const ids = [...changed]
    changed.clear()
    try {
      const rows = await sql<{ id: number; readyAt: Date | null; running: boolean }[]>`
        select id, observed_ready_at as "readyAt", observed_state = 'running' as running
        from machines where id in ${sql(ids)}`
      const seen = new Map(rows.map((row) => [row.id, row]))
      for (const id of ids) {
        const row = seen.get(id)
        const now = row?.running ? row.readyAt?.getTime() : undefined
        // One that ran before this gateway came is heard of for the first time when it ends.
        const begins = readyAt.get(id) === undefined
        if (now === undefined || (!begins && readyAt.get(id) !== now)) pool.forget(id)
        if (now === undefined) readyAt.delete(id)
        else readyAt.set(id, now)
      }
    } catch (error) {
      log.warn({ err: error }, 'could not see which machines ended')
    }
  }
  const note = (id: number) => {
    changed.add(id)
    timer ??= setTimeout(() => void look(), GATHER_MS)
  }
  const stopNews = news.on('machines', (id) => note(Number(id)))
  const stopRescan = news.onRescan(() => {
    for (const id of readyAt.keys()) note(id)
  })
  return () => {
    clearTimeout(timer)
    stopNews()
    stopRescan()
  }
}
