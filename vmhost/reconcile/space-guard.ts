import { totalmem } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { readUnwrittenBytes } from '../memory/host-memory.ts'
import { giveUpBallast, keepBallast } from '../storage/ballast.ts'
import { run } from '../storage/command.ts'
import { isShortOfSpace, type Space } from '../storage/space.ts'
import type { World } from './world.ts'

/**
 * Has machines stand still before what they write takes the last space.
 *
 * Of a filesystem that they share with Postgres, so that somebody can still remove something: it has the ballast's then.
 * Of the filesystem under a volume, because what finds no block there is lost, though the guest was told that it is
 * written: a write-back that fails drops its pages, and a hypervisor that hears of it can never say again what is on the
 * disk (fsync(2)). A volume that is full itself is no such case: QEMU is told so at once, and stops the guest.
 */
export class SpaceGuard {
  readonly #store: Pick<World['store'], 'space' | 'volume'>
  readonly #stopsWithoutSpace: boolean
  readonly #standStill: () => Promise<void>
  readonly #log: Pick<Logger, 'error'>
  #isShort = false
  #writing: Promise<void> | undefined

  /**
   * @param options.stopsWithoutSpace the hypervisor stops a guest whose write finds no space in the store
   * @param options.standStill has every machine stand still, if it does not yet; it goes on by itself when there is space
   */
  constructor(options: {
    store: Pick<World['store'], 'space' | 'volume'>
    stopsWithoutSpace: boolean
    standStill: () => Promise<void>
    log: Pick<Logger, 'error'>
  }) {
    this.#store = options.store
    this.#stopsWithoutSpace = options.stopsWithoutSpace
    this.#standStill = options.standStill
    this.#log = options.log
  }

  /** Looks once; as often as machines can write much. */
  async look(): Promise<void> {
    const { ballast } = this.#store.volume
    const was = this.#isShort
    let space = await this.#store.space()
    if (!this.#isShortOf(space) && (await this.#writeOut(space))) space = await this.#store.space()
    this.#isShort = this.#isShortOf(space)
    if (!this.#isShort) {
      if (ballast) await keepBallast(ballast)
      return
    }
    if (!was) this.#log.error("the server's disk is nearly full: machines stand still until there is space")
    // One that has just been started too. What cannot be stopped must not keep the space from Postgres.
    await this.#standStill()
    if (ballast) await giveUpBallast(ballast)
  }

  #isShortOf(space: Space): boolean {
    const under = this.#stopsWithoutSpace ? space.underlyingFreeBytes : undefined
    return isShortOfSpace({ ...space, freeBytes: under ?? space.freeBytes }, this.#isShort)
  }

  /**
   * @returns whether anything may have changed
   */
  async #writeOut(space: Space): Promise<boolean> {
    const isToBe = (unwrittenBytes: number | undefined) =>
      isToBeWritten(space, { memoryBytes: totalmem(), unwrittenBytes })
    // As long as there is plenty, that costs nothing to know.
    if (!isToBe(undefined) || !isToBe(await readUnwrittenBytes().catch(() => undefined))) return false
    // Others may fill it meanwhile. Then this waits, as the volume does, until there is space again.
    this.#writing ??= run('sync', ['-f', this.#store.volume.path])
      .then(
        () => {},
        () => {},
      )
      .finally(() => {
        this.#writing = undefined
      })
    await Promise.race([this.#writing, sleep(writeMostMs, undefined, { ref: false })])
    return true
  }
}

/**
 * What machines wrote into a volume takes space under it only when the kernel writes it out. With little left there
 * that must not be later: then what is seen to be free is. Where next to nothing waits, nothing would come of it.
 * @param kernel.unwrittenBytes that wait to be written; undefined: nobody says how much that is
 */
export function isToBeWritten(
  { totalBytes, underlyingFreeBytes, reserveBytes }: Pick<Space, 'totalBytes' | 'underlyingFreeBytes' | 'reserveBytes'>,
  { memoryBytes, unwrittenBytes }: { memoryBytes: number; unwrittenBytes: number | undefined },
): boolean {
  if (underlyingFreeBytes === undefined) return false
  // The kernel has those that write wait when a fifth of the memory waits to be written (vm.dirty_ratio).
  const most = Math.min(memoryBytes, totalBytes) / 4
  const unwritten = unwrittenBytes ?? most
  if (unwritten < reserveBytes / 64) return false
  return underlyingFreeBytes <= Math.min(most, unwritten + soonWrittenBytes) + reserveBytes
}

const writeMostMs = 5_000
/** That machines write before the next look. */
const soonWrittenBytes = 4 * 2 ** 30
