import { ChannelError } from '../guest/channel.ts'
import { HypervisorError } from '../hypervisor/driver.ts'
import type { Draft } from '../storage/checkpoints.ts'
import { sync } from '../storage/durable.ts'
import { StorageError } from '../storage/errors.ts'
import { beginMemory, forgetMemory, type SavedMemory } from '../storage/memory.ts'
import { type Bed, getUp, refuseWithoutRoom, thawLimitMs } from './sleeping.ts'

/**
 * How a checkpoint of a machine that runs is taken.
 *
 *     running --its disk written out--> marked (memory.new/) --filesystem frozen--> paused
 *     paused --memory written, and its disk copied meanwhile--> taken --resumed, thawed--> running
 *     marked … taken --a step fails--> running, as if nothing had been
 *
 * The mark is that of a machine on its way to sleep: a vmhost that finds a guest standing still with it has it go on,
 * and takes the checkpoint anew.
 *
 * Without memory nothing is paused: the filesystem is frozen for as long as the copy of the disk takes.
 */

const limits = {
  /** until its filesystem is written out */
  freezeMs: 30_000,
  reportMs: 45_000,
}

export type Taken = {
  /** for how long it stood still, or, without its memory, could not write */
  readonly stillMs: number
  /** from asking it to freeze its filesystem until that had thawed; null: it cannot be frozen */
  readonly frozenMs: number | null
  /** of that, until its memory was written; 0 without */
  readonly savingMs: number
  readonly saved?: SavedMemory
}

/**
 * @param record what the machine runs with
 * @throws StorageError, ChannelError or HypervisorError; it runs on then
 */
export async function takeWithMemory(
  bed: Bed,
  draft: Draft,
  record: Omit<SavedMemory, 'format' | 'stateVersion' | 'at'>,
): Promise<Taken> {
  const { hypervisor, agent, files } = bed
  const { memoryTotalBytes, memoryAvailableBytes } = await agent.report({ timeoutMs: limits.reportMs })
  const usedBytes = Math.max(0, memoryTotalBytes - memoryAvailableBytes - (await hypervisor.balloon()))
  refuseWithoutRoom(await bed.space(), record.memoryBytes, usedBytes)
  // The copy has what is in the disk's file alone, and would write it out first while the guest stands still.
  await sync(files.disk)
  const folder = await beginMemory(files.directory)
  let stillMs: number
  let frozenMs: number | null
  let savingMs = 0
  try {
    const frozenAt = performance.now()
    const isFrozen = await freeze(bed)
    // What that has had written: its hypervisor waits for it when it stands still.
    await sync(files.disk)
    const stillAt = performance.now()
    await hypervisor.pause()
    const saving = async () => {
      const savingAt = performance.now()
      await hypervisor.save(folder)
      savingMs = since(savingAt)
    }
    await bothOf(saving(), draft.takeDisk(files.disk))
    await hypervisor.resume().catch((error: unknown) => {
      // Whose checkpoint is whole all the same.
      if (!(error instanceof HypervisorError && error.code === 'hypervisor.gone')) throw error
    })
    stillMs = since(stillAt)
    await thaw(bed)
    frozenMs = isFrozen ? since(frozenAt) : null
  } catch (error) {
    await getUp(bed)
    throw error
  }
  // The mark goes with it.
  const saved: SavedMemory = {
    format: 1,
    ...record,
    usedBytes,
    stateVersion: hypervisor.stateVersion,
    at: new Date().toISOString(),
  }
  try {
    await draft.moveMemory(folder, saved)
  } catch (error) {
    await forgetMemory(files.directory)
    throw error
  }
  return { stillMs, frozenMs, savingMs, saved }
}

/** @throws StorageError or ChannelError; its filesystem is thawed then, or thaws by itself */
export async function takeDiskOfRunning(bed: Omit<Bed, 'hypervisor' | 'space'>, draft: Draft): Promise<Taken> {
  const { files } = bed
  await sync(files.disk)
  const stillAt = performance.now()
  const isFrozen = await freeze(bed)
  try {
    await draft.takeDisk(files.disk)
  } catch (error) {
    await thaw(bed)
    throw error
  }
  const held = await thaw(bed)
  if (isFrozen && !held)
    throw new StorageError('storage.failed', 'Its filesystem could not be held still for as long as the copy took')
  const stillMs = since(stillAt)
  return { stillMs, frozenMs: isFrozen ? stillMs : null, savingMs: 0 }
}

/** @param at a time of `performance.now()` */
function since(at: number): number {
  return Math.round(performance.now() - at)
}

/** @returns false for a filesystem that cannot be frozen: its copy is as after a power cut */
async function freeze({ agent, log }: Pick<Bed, 'agent' | 'log'>): Promise<boolean> {
  try {
    await agent.freeze(limits.freezeMs, { timeoutMs: limits.freezeMs })
    return true
  } catch (error) {
    if (!(error instanceof ChannelError) || error.code !== 'agent.refused') throw error
    log.debug({ err: error }, 'a checkpoint is taken without having the filesystem frozen')
    return false
  }
}

/** @returns whether it was frozen until now */
async function thaw({ agent, log }: Pick<Bed, 'agent' | 'log'>): Promise<boolean> {
  try {
    return (await agent.thaw({ timeoutMs: thawLimitMs })).wasFrozen
  } catch (error) {
    log.warn({ err: error }, 'it thaws its filesystem by itself')
    return false
  }
}

/** Both have come to their end, well or not, when this returns: nobody writes any more what is taken away then. */
async function bothOf(...works: readonly Promise<void>[]): Promise<void> {
  const failed = (await Promise.allSettled(works)).find((outcome) => outcome.status === 'rejected')
  if (failed) throw failed.reason
}
