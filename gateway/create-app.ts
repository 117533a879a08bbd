import { orm, type Sql } from '../migrations/connect.ts'
import { Watches } from './activity/watches.ts'
import type { App } from './app.ts'
import { systemLookup } from './domains/lookup.ts'
import type { Log } from './log.ts'
import { createMachineAccess } from './machines.ts'
import { startNews } from './news.ts'
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
  const watches = new Watches({ sql, news, log })
  const pool = new MachinePool({ privateKey, log, watches })
  const { machineSshPort: sshPort } = options
  const machines = createMachineAccess({ db, news, watches, ...(sshPort === undefined ? {} : { sshPort }) })
  return {
    app: {
      ...{ settings, sql, db, log, news, watches, machines, pool, codeSecret, hostPublicKey, startedAt: new Date() },
      lookup: systemLookup(options.resolvers),
    },
    async close() {
      pool.close()
      await watches.close()
      await news.close()
    },
  }
}
