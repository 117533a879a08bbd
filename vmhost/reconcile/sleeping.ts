import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { type AgentChannel, ChannelError } from '../guest/channel.ts'
import { type Hypervisor, HypervisorError } from '../hypervisor/driver.ts'
import { sync } from '../storage/durable.ts'
import { StorageError } from '../storage/errors.ts'
import { beginMemory, forgetMemory, keepMemory, type SavedMemory } from '../storage/memory.ts'
import type { Space } from '../storage/space.ts'
import type { MachineFiles } from '../storage/store.ts'

/**
 * How a guest comes to lie on the disk, with everything it was doing.
 *
 *     awake --there is room--> marked (memory.new/) --caches given back--> slim --its filesystem written out--> frozen
 *     frozen --paused--> still --memory, then disk, on the disk--> saved --memory/ has its name--> asleep
 *     marked … saved --a step fails, or it is wanted after all--> awake, as if nothing had been
 *
 * Until the last step the guest may run on; from then on it must not, and its hypervisor is ended. The mark is made
 * first and taken away last, so that a vmhost which finds a guest standing still knows that it is to go on.
 *
 * Its filesystem is frozen, not only synced: what is on the disk is then all that its programs were told is written,
 * and a machine that is never woken from this memory loses its processes and nothing else.
 */
export type Bed = {
  readonly hypervisor: Pick<
    Hypervisor,
    'machineId' | 'setBalloon' | 'balloon' | 'pause' | 'resume' | 'save' | 'stateVersion'
  >
  readonly agent: Pick<AgentChannel, 'report' | 'freeze' | 'thaw'>
  readonly files: Pick<MachineFiles, 'directory' | 'disk'>
  space(): Promise<Space>
  readonly log: Pick<Logger, 'info' | 'warn' | 'debug'>
  /** ends the wait for caches */
  readonly signal?: AbortSignal
  readonly limits?: Partial<typeof limits>
}

const MiB = 2 ** 20
const limits = {
  /**
   * Until the guest has given its caches back; what it has not given by then is written. Emulated on a busy server it
   * gives 20 MiB a second, and takes as long to get it back when it wakes: better a larger file.
   */
  balloonMs: 6_000,
  /** without any progress: it has no more to give */
  balloonStuckMs: 1_500,
  /** until its filesystem is written out */
  freezeMs: 30_000,
}
const lookMs = 50
/** Emulated beside others that are coming up, a guest may be that slow to say anything. */
export const reportLimitMs = 45_000
export const thawLimitMs = 45_000

/**
 * Memory that is left to a guest beside what it uses: it needs some to wake, and the programs that it wakes with are
 * better read from memory than from its disk.
 */
function marginBytes(memoryBytes: number): number {
  return 24 * MiB + Math.floor(memoryBytes / 64)
}

/**
 * Saves a guest that is ready.
 * @param stillWanted asked before the guest is paused, and once more when it is saved
 * @returns what it can be restored with; undefined when it was wanted after all, and is awake
 * @throws StorageError, ChannelError or HypervisorError; it is awake then
 */
export async function layDown(
  bed: Bed,
  record: Omit<SavedMemory, 'format' | 'stateVersion' | 'at'>,
  stillWanted: () => Promise<boolean>,
): Promise<SavedMemory | undefined> {
  const { hypervisor, agent, files, log } = bed
  const { freezeMs } = { ...limits, ...bed.limits }
  const { memoryTotalBytes, memoryAvailableBytes } = await agent.report({ timeoutMs: reportLimitMs })
  // What it has given back because its server is short, it says it uses: it may take that again by itself.
  const balloonBytes = await hypervisor.balloon()
  const usedBytes = Math.max(0, memoryTotalBytes - memoryAvailableBytes - balloonBytes)
  refuseWithoutRoom(await bed.space(), record.memoryBytes, usedBytes)
  const folder = await beginMemory(files.directory)
  const took = stopwatch()
  try {
    await giveBack(bed, balloonBytes + memoryAvailableBytes - marginBytes(record.memoryBytes))
    const cachesMs = took()
    if (!(await stillWanted())) return await getUp(bed).then(() => undefined)
    await agent.freeze(freezeMs, { timeoutMs: freezeMs }).catch((error: unknown) => {
      // A filesystem that cannot be frozen is as safe as after a power cut.
      if (!(error instanceof ChannelError) || error.code !== 'agent.refused') throw error
      log.debug({ err: error }, 'it sleeps without having its filesystem frozen')
    })
    await hypervisor.pause()
    const frozenMs = took()
    await hypervisor.save(folder, { compact: true })
    const savedMs = took()
    await sync(files.disk)
    if (!(await stillWanted())) return await getUp(bed).then(() => undefined)
    const { stateVersion } = hypervisor
    const saved: SavedMemory = { format: 1, ...record, usedBytes, stateVersion, at: new Date().toISOString() }
    await keepMemory(files.directory, saved)
    log.info({ cachesMs, frozenMs, savedMs, keptMs: took() }, 'saved')
    return saved
  } catch (error) {
    await getUp(bed)
    throw error
  }
}

/**
 * Has a guest go on that was lying down, however far it had come.
 * @throws when its memory cannot be taken away: it must not run before
 */
export async function getUp({
  hypervisor,
  agent,
  files,
  log,
}: Pick<Bed, 'hypervisor' | 'agent' | 'files' | 'log'>): Promise<void> {
  // What was written is worth nothing as soon as the guest runs, and leaves its name for good before it does. The
  // mark stays until it runs, or nobody would know that it shall.
  await forgetMemory(files.directory, { keepMark: true })
  const said = (what: string) => (error: unknown) => {
    log.warn({ err: error }, what)
    return error instanceof HypervisorError && error.code === 'hypervisor.gone'
  }
  const isGone = await hypervisor.resume().then(() => false, said('a guest that shall go on does not'))
  if (!isGone) {
    await hypervisor.setBalloon(0).catch(said('balloon'))
    await agent.thaw({ timeoutMs: thawLimitMs }).catch(said('it thaws its filesystem by itself'))
  }
  await forgetMemory(files.directory)
}

/** Takes caches out of a guest, so that they are not written: what it has not used for long is read again. */
async function giveBack({ hypervisor, signal, limits: own }: Bed, targetBytes: number): Promise<void> {
  const { balloonMs, balloonStuckMs } = { ...limits, ...own }
  if (targetBytes <= 0) return
  await hypervisor.setBalloon(targetBytes)
  const deadline = performance.now() + balloonMs
  for (let most = 0, since = performance.now(); performance.now() < deadline && !signal?.aborted; await sleep(lookMs)) {
    const bytes = await hypervisor.balloon()
    if (bytes >= targetBytes) return
    if (bytes > most) {
      most = bytes
      since = performance.now()
    } else if (performance.now() - since > balloonStuckMs) return
  }
}

export function refuseWithoutRoom(space: Space, memoryBytes: number, usedBytes: number): void {
  // Its own word for what it uses is good enough: one that lies is stopped when the disk is full.
  const wanted = Math.min(memoryBytes, usedBytes + marginBytes(memoryBytes))
  if (space.freeBytes - wanted >= space.reserveBytes) return
  throw new StorageError(
    'storage.full',
    `Its server's disk has no room for the ${Math.ceil(wanted / MiB)} MiB of memory that it uses`,
  )
}

/** @returns what says how many milliseconds have passed since it was asked last */
function stopwatch(): () => number {
  let at = performance.now()
  return () => {
    const ms = Math.round(performance.now() - at)
    at += ms
    return ms
  }
}
