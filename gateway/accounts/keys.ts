import type { Db, Sql } from '../../migrations/connect.ts'
import type { Log } from '../log.ts'
import { nameInComment, recordName } from './names.ts'
import type { KeyLine } from './public-key.ts'

/** A key as lists show it. */
export type AccountKey = {
  id: number
  name: string
  algorithm: string
  fingerprint: string
  comment: string
  publicKey: Buffer
  createdAt: Date
  lastUsedAt: Date | null
}

/** `message` is a sentence for the person. */
export class KeyError extends Error {
  override readonly name = 'KeyError'
  readonly code: 'key.not_found' | 'key.last' | 'key.taken' | 'key.name' | 'key.too_many'

  constructor(code: KeyError['code'], message: string) {
    super(message)
    this.code = code
  }
}

export const MAX_KEYS = 100
const MAX_KEY_NAME_LENGTH = 100
const keyTaken = (fingerprint: string) =>
  new KeyError(
    'key.taken',
    `the key ${fingerprint} belongs to another account; remove it there first, with ssh-key remove, or add another one`,
  )

export async function listKeys(sql: Db, accountId: number): Promise<AccountKey[]> {
  return await sql<AccountKey[]>`
    select id, name, algorithm, fingerprint, comment, public_key as "publicKey", created_at as "createdAt",
      last_used_at as "lastUsedAt"
    from keys where account_id = ${accountId} order by id`
}

/**
 * Adds a key to an account, and records the user part of its comment as a name that leads to the lobby.
 * @param name how lists call it; the comment, or the algorithm, unless given; a taken one gets a number
 * @returns the key, and whether it was new: adding a key twice changes nothing
 * @throws KeyError 'key.taken' when another account has it, 'key.name', 'key.too_many'
 */
export async function addKey(sql: Sql, accountId: number, line: KeyLine, name?: string): Promise<AddedKey> {
  const [added] = await addKeys(sql, accountId, [line], name)
  if (!added) throw keyTaken(line.key.fingerprint)
  return added
}

export type AddedKey = { key: AccountKey; added: boolean }

/**
 * The same for several, all of them or none.
 * @param onAdded for each that is new, in the transaction that adds it
 */
export async function addKeys(
  sql: Sql,
  accountId: number,
  lines: readonly KeyLine[],
  name?: string,
  onAdded: (tx: Pick<Sql, 'unsafe'>, key: AccountKey) => Promise<void> = async () => {},
): Promise<AddedKey[]> {
  if (name !== undefined) assertKeyName(name)
  const once = [...new Map(lines.map((line) => [line.key.fingerprint, line])).values()]
  const keys = await sql.begin(async (tx) => {
    // One writer an account at a time: the count, the choice of a name and the last-key rule all look before they write.
    await tx`select from accounts where id = ${accountId} for update`
    const isNew = new Map<string, boolean>()
    for (const line of once) isNew.set(line.key.fingerprint, await insertKey(tx, accountId, line, name))
    const there = await listKeys(tx as unknown as Sql, accountId)
    const given = there.flatMap((key) => {
      const added = isNew.get(key.fingerprint)
      return added === undefined ? [] : [{ key, added }]
    })
    for (const { key, added } of given) if (added) await onAdded(tx, key)
    return given
  })
  for (const { comment } of once) {
    const recorded = nameInComment(comment)
    if (recorded) await recordName(sql, accountId, recorded)
  }
  return keys
}

/**
 * The insert of `addKey` inside a transaction of the caller's, who holds the account's row.
 * @returns whether it was new
 */
export async function insertKey(
  tx: Pick<Sql, 'unsafe'>,
  accountId: number,
  { key, comment }: KeyLine,
  name?: string,
): Promise<boolean> {
  const existing = await tx.unsafe('select name from keys where account_id = $1', [accountId])
  if (existing.length >= MAX_KEYS)
    throw new KeyError('key.too_many', `an account has at most ${MAX_KEYS} keys; to remove one: ssh-key remove`)
  const taken = new Set(existing.map((row) => String(row.name)))
  const base = (name ?? (comment || key.algorithm)).slice(0, MAX_KEY_NAME_LENGTH - 4)
  let chosen = base
  for (let n = 2; taken.has(chosen); n++) chosen = `${base}-${n}`
  const inserted = await tx.unsafe(
    `insert into keys (account_id, name, algorithm, public_key, fingerprint, comment) values ($1, $2, $3, $4, $5, $6)
     on conflict do nothing returning id`,
    [accountId, chosen, key.algorithm, key.blob, key.fingerprint, comment],
  )
  if (inserted.length > 0) return true
  const owners = await tx.unsafe('select account_id from keys where public_key = $1', [key.blob])
  if (owners[0]?.account_id !== accountId) throw keyTaken(key.fingerprint)
  return false
}

/**
 * Removes a key by name, fingerprint or number. Connections that signed in with it end within a second.
 * @param onRemoved in its transaction
 * @throws KeyError 'key.not_found', 'key.last'
 */
export async function removeKey(
  sql: Sql,
  accountId: number,
  which: string,
  onRemoved: (tx: Db, key: AccountKey) => Promise<void> = async () => {},
): Promise<AccountKey> {
  return await sql.begin(async (tx) => {
    // Two removals at once must not each leave the other's key as the last one.
    await tx`select from accounts where id = ${accountId} for update`
    const keys = await listKeys(tx, accountId)
    const key = pick(keys, which)
    if (keys.length === 1) {
      throw new KeyError('key.last', 'that is the last key of this account; add another one first: ssh-key add')
    }
    await tx`delete from keys where id = ${key.id}`
    await onRemoved(tx, key)
    return key
  })
}

/**
 * @returns the key as it was
 * @throws KeyError 'key.not_found', 'key.name'
 */
export async function renameKey(sql: Db, accountId: number, which: string, name: string): Promise<AccountKey> {
  assertKeyName(name)
  const keys = await listKeys(sql, accountId)
  const key = pick(keys, which)
  if (keys.some((other) => other.id !== key.id && other.name === name)) {
    throw new KeyError('key.name', `another key of this account is called ${name}`)
  }
  await sql`update keys set name = ${name} where id = ${key.id} and account_id = ${accountId}`
  return key
}

function pick(keys: AccountKey[], which: string): AccountKey {
  const key =
    keys.find((one) => one.name === which) ??
    keys.find((one) => one.fingerprint === which || one.fingerprint === `SHA256:${which}`) ??
    keys.find((one) => String(one.id) === which)
  if (!key) throw new KeyError('key.not_found', `no key called ${which}; to see them: ssh-key list`)
  return key
}

function assertKeyName(name: string): void {
  if (name.length === 0 || name.length > MAX_KEY_NAME_LENGTH || /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u.test(name)) {
    throw new KeyError('key.name', `a key's name has 1 to ${MAX_KEY_NAME_LENGTH} printable characters`)
  }
}

/** When each key was last used, written in batches: a sign-in waits for no write. */
export class LastUsed {
  readonly #sql: Sql
  readonly #log: Log
  readonly #seen = new Map<number, Date>()
  readonly #timer: NodeJS.Timeout

  constructor(sql: Sql, log: Log, intervalMs = 10_000) {
    this.#sql = sql
    this.#log = log
    this.#timer = setInterval(() => void this.flush(), intervalMs)
    this.#timer.unref()
  }

  note(keyId: number): void {
    this.#seen.set(keyId, new Date())
  }

  async flush(): Promise<void> {
    const batch = [...this.#seen]
    if (batch.length === 0) return
    this.#seen.clear()
    try {
      await this.#sql`
        update keys set last_used_at = greatest(last_used_at, seen.at)
        from unnest(${batch.map(([id]) => id)}::int[], ${batch.map(([, at]) => at.toISOString())}::timestamptz[]) as seen (id, at)
        where keys.id = seen.id`
    } catch (error) {
      this.#log.warn({ err: error }, 'could not note when keys were last used')
    }
  }

  async close(): Promise<void> {
    clearInterval(this.#timer)
    await this.flush()
  }
}
