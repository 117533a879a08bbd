import { hypervisorUid } from '../hypervisor/driver.ts'
import { type Checkpoint, type CopiedMachine, readRestored } from '../storage/checkpoints.ts'
import { StorageError } from '../storage/errors.ts'
import type { MachineFiles } from '../storage/store.ts'
import type { CheckpointRow } from './checkpoint-rows.ts'
import { makeHostKey } from './identity.ts'
import type { MachineRow, RestoreWish } from './rows.ts'
import type { World } from './world.ts'

/**
 * How a machine becomes what a checkpoint holds: one that has no disk yet is made of it, another goes back to it.
 *
 *     wanted --its checkpoint is still being taken--> wanted
 *     wanted --what it is now was kept, and nothing of it runs--> its files are those of the checkpoint --> restored
 *     wanted --its checkpoint is not to be had, or what it is now cannot be kept--> as it was, and says why
 *
 * Restored, it is off, or asleep with the checkpoint's memory, and goes from there to wherever it is wanted. Whoever is
 * cut off begins again: the number of a restore is noted in a machine's files when it is done, and in its row then.
 */

/** @returns the checkpoint; `waits`: it is not there yet; or a sentence why it will not be */
export async function findSource(
  row: MachineRow,
  wish: RestoreWish,
  { checkpoints, checkpointRows }: Pick<World, 'checkpoints' | 'checkpointRows'>,
): Promise<Checkpoint | 'waits' | { problem: string }> {
  const wanted = wish.from === null ? undefined : await checkpointRows.one(wish.from)
  // Of its account, whatever the row says: the gateway, which wrote it, is not root, and this process is.
  if (!wanted || wanted.accountId !== row.accountId) return { problem: 'The checkpoint is not on its server' }
  const problem = notThere(wanted)
  if (problem !== undefined) return { problem }
  if (wanted.observedState === 'waiting') return 'waits'
  try {
    const found = await checkpoints.find(wanted.id, wanted.token)
    return found ?? { problem: 'The files of the checkpoint are not on its server any more' }
  } catch (error) {
    // Tried again it is as damaged, and as long as it is tried nothing else is done for the machine.
    if (!(error instanceof StorageError)) throw error
    return { problem: 'The files of the checkpoint are damaged' }
  }
}

function notThere({ observedState, observedReason, desiredState }: CheckpointRow): string | undefined {
  // One that was removed since keeps why it failed, and only such a one has a reason.
  if (observedState === 'failed' || (observedState === 'gone' && observedReason !== null))
    return `The checkpoint failed: ${observedReason ?? 'no reason was reported'}`
  return observedState === 'gone' || desiredState === 'gone' ? 'The checkpoint was removed' : undefined
}

/** Whether that was done before, by whoever was cut off then. */
export async function isRestored(files: Pick<MachineFiles, 'directory'> | undefined, wish: RestoreWish) {
  return files !== undefined && (await readRestored(files.directory)) >= wish.number
}

/**
 * Makes a machine's files those of a checkpoint. Nothing of it may run.
 * @param files what it has; undefined: it is made of it
 * @throws StorageError
 */
export async function layRestored(
  row: MachineRow,
  wish: RestoreWish,
  source: Checkpoint,
  files: MachineFiles | undefined,
  { checkpoints, store }: Pick<World, 'checkpoints' | 'store'>,
): Promise<void> {
  const target = {
    directory: store.directoryOf(row.id),
    uid: hypervisorUid(row.id),
    boot: Math.max(1, row.desiredBoot),
    restore: wish.number,
  }
  if (files) {
    await checkpoints.restoreMachine(source, target)
    return
  }
  const made: CopiedMachine = {
    ...target,
    diskBytes: Math.max(row.diskBytes, source.diskBytes),
    hostKey: makeHostKey(row.name).privateKey,
    token: row.token,
  }
  await checkpoints.makeMachine(source, made)
}
