import { unlessShort } from '../storage/errors.ts'
import type { MachineFiles, Store } from '../storage/store.ts'
import { publicPart } from './identity.ts'
import type { MachineRow } from './rows.ts'
import { MachineError } from './specification.ts'

/**
 * Whose files lie in a machine's place. After an older database was restored ids repeat, so that the number of a folder
 * proves nothing: the next new machine would get another account's disk and host key.
 */

type Owner = Pick<MachineRow, 'id' | 'token' | 'hostKey'>

/**
 * Whether these files are this row's: they have its token, or the host key that was reported for it. The key alone
 * tells where a token does not: for files from before there were tokens, and for rows of a database from before that.
 */
export function isOwn(files: Pick<MachineFiles, 'record' | 'hostKey'>, row: Omit<Owner, 'id'>): boolean {
  if (files.record.token === row.token) return true
  if (row.hostKey === null) return false
  try {
    return publicPart(files.hostKey).equals(row.hostKey)
  } catch {
    return false
  }
}

/** Whether another machine's files lie in this one's place. Damaged ones are nobody else's: only its owner misses them. */
export async function isTaken(store: Pick<Store, 'findMachine'>, row: Owner): Promise<boolean> {
  const files = await store.findMachine(row.id).catch(unlessShort(() => undefined))
  return files !== undefined && !isOwn(files, row)
}

/**
 * A machine's files, noted as its own from here on.
 * @returns undefined when it has none here
 * @throws MachineError when another machine's are in their place
 */
export async function ownFiles(
  store: Pick<Store, 'findMachine' | 'claimMachine'>,
  row: Owner,
): Promise<MachineFiles | undefined> {
  const files = await store.findMachine(row.id)
  if (!files) return undefined
  if (!isOwn(files, row)) {
    throw new MachineError(
      "Another machine's disk lies in its place, left from before an older database was restored, and stays untouched. " +
        'Remove this machine and make a new one, or start it again when the operator has moved that disk: doctor names it',
    )
  }
  if (files.record.token !== row.token) await store.claimMachine(row.id, row.token)
  return files
}
