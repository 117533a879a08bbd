import type { Sql } from '../../migrations/connect.ts'
import { askAgain } from '../fault.ts'
import type { Log } from '../log.ts'
import type { News } from '../news.ts'

/** A signed-in connection that ends when its key or its account is taken away. */
export type LiveConnection = {
  accountId: number
  keyId: number
  /** ends it; the sentence goes to the person */
  close(sentence: string): void
}

/**
 * The signed-in connections of this process. A change of an account's keys, or its suspension, arrives as news with
 * the account's number; each of its connections is then checked against the database.
 */
export class LiveConnections {
  readonly #sql: Sql
  readonly #log: Log
  readonly #byAccount = new Map<number, Set<LiveConnection>>()
  readonly #stop: (() => void)[]
  #count = 0
  /** grows with every piece of news about keys: whoever looked a key up before compares */
  #generation = 0

  constructor(sql: Sql, news: News, log: Log) {
    this.#sql = sql
    this.#log = log
    this.#stop = [
      news.on('keys', (id) => {
        this.#generation++
        void this.#check([Number(id)])
      }),
      news.onRescan(() => {
        this.#generation++
        void this.#check([...this.#byAccount.keys()])
      }),
    ]
  }

  get generation(): number {
    return this.#generation
  }
  get count(): number {
    return this.#count
  }
  countOf(accountId: number): number {
    return this.#byAccount.get(accountId)?.size ?? 0
  }

  /**
   * @param generation as it was before the key was looked up: news in between would be missed otherwise
   * @returns to be called when the connection is gone
   */
  add(connection: LiveConnection, generation: number): () => void {
    const { accountId } = connection
    const set = this.#byAccount.get(accountId) ?? new Set()
    this.#byAccount.set(accountId, set.add(connection))
    this.#count++
    if (generation !== this.#generation) void this.#check([accountId])
    return () => {
      if (!set.delete(connection)) return
      this.#count--
      if (set.size === 0 && this.#byAccount.get(accountId) === set) this.#byAccount.delete(accountId)
    }
  }

  closeAll(sentence: string): void {
    for (const set of [...this.#byAccount.values()]) for (const connection of [...set]) connection.close(sentence)
  }

  close(): void {
    for (const stop of this.#stop) stop()
  }

  async #check(accountIds: number[]): Promise<void> {
    const affected = accountIds.filter((id) => this.#byAccount.has(id))
    if (affected.length === 0) return
    try {
      const ask = () => this.#sql<{ keyId: number; accountId: number; suspended: boolean }[]>`
        select k.id as "keyId", k.account_id as "accountId", a.suspended_at is not null as suspended
        from keys k join accounts a on a.id = k.account_id where k.account_id in ${this.#sql(affected)}`
      const good = new Map((await askAgain(ask)).map((row) => [row.keyId, row]))
      for (const accountId of affected) {
        for (const connection of [...(this.#byAccount.get(accountId) ?? [])]) {
          const key = good.get(connection.keyId)
          if (!key || key.accountId !== accountId) {
            connection.close('the key that this connection signed in with was removed from the account')
          } else if (key.suspended) connection.close('this account is suspended')
        }
      }
    } catch (error) {
      // The next rescan looks again.
      this.#log.warn({ err: error }, 'could not check signed-in connections against their keys')
    }
  }
}
