import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { cannotRestore } from '../../../migrations/schema.ts'
import { ChannelError } from '../../guest/channel.ts'
import { type Hypervisor, HypervisorError } from '../../hypervisor/driver.ts'
import { StorageError } from '../../storage/errors.ts'
import {
  type FoundMemory,
  findMemory,
  forgetMemory,
  memoryBytes,
  type SavedMemory,
  spendMemory,
} from '../../storage/memory.ts'
import { isShortOfSpace } from '../../storage/space.ts'
import type { Guest } from '../guest.ts'
import { isOwn } from '../ownership.ts'
import type { MachineRow } from '../rows.ts'
import { layDown, reportLimitMs } from '../sleeping.ts'
import { MachineError } from '../specification.ts'
import { LostMemoryError, restoreMemory, type Started } from '../starting.ts'
import type { World } from '../world.ts'
import type { Life } from './life.ts'
import { isDiskFull, messageOf, oneLine } from './reasons.ts'
import { type MachineState, offline } from './state.ts'

/**
 * A machine that is put to sleep, and woken.
 *
 *     guest, ready --sleep wanted--> saved (sleeping.ts) --> memory
 *     guest --it cannot be saved--> guest, and tried again, later each time
 *     memory --wanted running, and there is room--> restored --> guest
 *     memory --wanted running, and its server has not what that takes, or fails some times--> memory: it is said, and its
 *         sleep wanted again
 *     memory, left so --somebody comes for it, or a vmhost starts that has what it takes--> wanted running
 *     memory --it is proved to be damaged--> no guest: only its processes are lost, and that is said
 *
 * What its server has not now (the release of its hypervisor, KVM, a feature of the processor, memory) it may have again:
 * an update can be taken back, and a try of KVM fails on a server that is busy. Only its owner gives such a memory up.
 */
export class Sleep {
  readonly #state: MachineState
  readonly #life: Life
  readonly #world: World
  readonly #log: Logger
  #wakeFailures = 0
  #failures = 0
  #sleepAgain: NodeJS.Timeout | undefined

  constructor(state: MachineState, life: Life) {
    this.#state = state
    this.#life = life
    this.#world = state.world
    this.#log = state.log
  }

  async towardsAsleep(row: MachineRow): Promise<void> {
    const guest = this.#state.guest
    if (guest) {
      // Its readiness, or its going on, brings another turn.
      if (guest.ready && !guest.standsStill && !this.#sleepAgain) await this.#sleep(row, guest)
      return
    }
    this.forgetFailures()
    if (row.observedState === 'failed') return
    await this.#life.disconnect()
    if (row.observedState !== 'asleep') await this.#sayAsleep(row)
  }

  /**
   * Saves a guest and ends its hypervisor; it is `saved` then. Otherwise it is awake, or ended by itself.
   * @returns why it could not be saved, if that was tried
   */
  async layDown(guest: Guest, isWanted: (row: MachineRow) => boolean): Promise<string | undefined> {
    const { sleeps, store, rows, outbox, signal } = this.#world
    const row = this.#state.row
    const { hypervisor, agent, files, boot } = guest
    let isTold = false
    try {
      // Who says nothing takes no place meanwhile from those that can sleep.
      await agent.report({ timeoutMs: reportLimitMs })
    } catch (error) {
      return this.#notLaidDown(error)
    }
    using slot = await this.#state.slot(sleeps, isWanted)
    if (!slot) return undefined
    await this.#state.gettingUp
    this.#state.saved = undefined
    guest.lying = true
    try {
      if (!this.#state.runsWith)
        throw new MachineError('it was started by an earlier version of Berth, and can after a restart')
      await this.#state.seeSize(hypervisor)
      const bed = { hypervisor, agent, files, space: () => store.space(), log: this.#log, signal }
      const isStillWanted = async () => {
        const now = signal.aborted ? undefined : await rows.one(this.#state.id).catch(() => row)
        return now !== undefined && isWanted(now) && isOwn(files, now)
      }
      this.#state.saved = await layDown(bed, { ...this.#state.runsWith, boot }, async () => {
        const isIt = await isStillWanted()
        if (isTold || !isIt) return isIt
        // Whoever wants it awake from here on must not take it for ready: it stands still, and hears nothing.
        this.#state.observe({ observedReadyAt: null })
        isTold = true
        await outbox.flushed(this.#state.id)
        return isStillWanted()
      })
    } catch (error) {
      return this.#notLaidDown(error)
    } finally {
      guest.lying = false
      const isUp = this.#state.saved || this.#state.ending || (await guest.getsUp(() => forgetMemory(files.directory)))
      if (isUp && isTold && !this.#state.saved && !this.#state.ending) guest.sayReady()
    }
    this.#state.again = true
    if (!this.#state.saved) return undefined
    await this.#life.endGuest(guest, 'quit')
    await this.#life.disconnect()
    return undefined
  }

  /** @returns why, if that is not told by itself */
  #notLaidDown(error: unknown): string | undefined {
    const { signal, couldNotSleep } = this.#world
    signal.throwIfAborted()
    this.#log.warn({ err: error }, 'could not be saved')
    // Its hypervisor is gone.
    if (this.#state.ending) return undefined
    // On a full disk the next one would fare no better. What a guest says of it is no reason to wait for that guest.
    const isFull = error instanceof StorageError ? error.code === 'storage.full' : isDiskFull(error)
    if (!isFull || error instanceof ChannelError) couldNotSleep?.(this.#state.id)
    return oneLine(messageOf(error))
  }

  async wake(row: MachineRow, saved: SavedMemory): Promise<void> {
    const { wakes, driver } = this.#world
    const obstacle = await driver.obstacle(saved.stateVersion)
    if (obstacle !== undefined) {
      await this.#leaveAsleep(row, saved, obstacle)
      return
    }
    const isWanted = (now: MachineRow) => now.desiredState === 'running' && now.desiredBoot === row.desiredBoot
    using room = await this.#room(saved, isWanted)
    if (!room) return
    const slot = await this.#state.slot(wakes, isWanted)
    if (!slot) return
    this.#state.observe({
      observedState: 'running',
      observedStage: 'network',
      observedBoot: saved.boot,
      observedReason: null,
      observedReadyAt: null,
      observedStartedAt: null,
    })
    let started: Started | undefined
    try {
      started = await restoreMemory(this.#life.starting(row), saved)
      // Before it runs, and for good: from here on its disk is not the one that it was saved with.
      const { hypervisor, files } = started
      await spendMemory(files.directory)
      this.#state.saved = undefined
      this.#wakeFailures = 0
      const onReady = () => this.isAwake(hypervisor, files.directory)
      await this.#life.run(started, { boot: saved.boot, restored: true, slot, onReady })
    } catch (error) {
      slot[Symbol.dispose]()
      await started?.hypervisor.kill()
      this.#world.signal.throwIfAborted()
      await this.#notWoken(error, row, saved.boot)
    }
  }

  /**
   * What a wake leaves to do. Whoever woke it is about to sign in, and gets the processors first: a guest that takes its
   * memory back has its hands full, emulated for seconds.
   */
  isAwake(hypervisor: Hypervisor, directory: string): void {
    this.#state.gettingUp = this.#takeBack(hypervisor, directory)
  }

  async #takeBack(hypervisor: Hypervisor, directory: string): Promise<void> {
    const { driver, signal } = this.#world
    this.#state.isTakingBack = true
    try {
      await sleep(signInMs[driver.accelerator], undefined, { signal, ref: false })
      await hypervisor.setBalloon(0)
      await forgetMemory(directory)
    } catch (error) {
      // What is not done yet, another vmhost does: the memory that was used is still there to tell it.
      if (!signal.aborted) this.#log.warn({ err: error }, 'after it woke')
    } finally {
      this.#state.isTakingBack = false
    }
  }

  /** It was wanted awake when its server could not restore it; where that is over, it is wanted awake again. */
  async wantAgain(): Promise<void> {
    const { saved, row } = this.#state
    if (!saved || row.desiredState !== 'asleep' || row.asleepBecause !== cannotRestore) return
    const { driver, rows } = this.#world
    if ((await driver.obstacle(saved.stateVersion)) === undefined) await rows.wakeLeftAsleep(this.#state.id)
  }

  /** Its hypervisor is not there: it sleeps, or has lost what it was doing. */
  async findAsleep({ saved, damaged, used, unfinished }: FoundMemory): Promise<void> {
    this.#state.saved = saved
    if (saved) return
    if (damaged) await this.#state.lose('what was kept of its memory is damaged')
    else if (used) await this.#state.lose('its server, or its hypervisor, ended while it woke')
    else if (unfinished) await this.#state.lose('its server, or its hypervisor, ended while it was put to sleep')
  }

  forgetFailures(): void {
    if (this.#failures === 0) return
    clearTimeout(this.#sleepAgain)
    this.#sleepAgain = undefined
    this.#failures = 0
    this.#state.observe({ observedReason: null })
  }

  async #sleep(row: MachineRow, guest: Guest): Promise<void> {
    const problem = await this.layDown(guest, (now) => this.#state.isSleepWanted(now))
    if (problem !== undefined) this.#failed(problem)
    if (!this.#state.saved) return
    this.forgetFailures()
    await this.#sayAsleep(row)
  }

  async #sayAsleep(row: MachineRow): Promise<void> {
    const saved = this.#state.saved
    const because = row.desiredState === 'running' ? 'its server shut down' : (row.asleepBecause ?? 'told to')
    const bytes = saved ? await memoryBytes(this.#world.store.directoryOf(this.#state.id)) : null
    const lost =
      this.#state.lost === undefined ? null : `It has lost its memory and starts from its disk: ${this.#state.lost}`
    this.#state.observe({
      observedState: 'asleep',
      observedReason: lost,
      ...offline,
      observedAsleepBecause: because,
      observedAsleepAt: saved ? new Date(saved.at) : new Date(),
      observedSavedBytes: bytes,
    })
    this.#state.record('asleep', { because, bytes })
  }

  #failed(problem: string): void {
    const waitMs = Math.min(sleepAgainFirstMs * 2 ** this.#failures++, sleepAgainMostMs)
    this.#state.observe({ observedReason: oneLine(`It could not be put to sleep, which is tried again: ${problem}`) })
    this.#sleepAgain = setTimeout(() => {
      this.#sleepAgain = undefined
      void this.#state.poke()
    }, waitMs).unref()
  }

  async #leaveAsleep(row: MachineRow, saved: SavedMemory, because: string): Promise<void> {
    const { rows, outbox, store } = this.#world
    this.#log.warn({ because }, 'is left asleep')
    await this.#life.disconnect()
    // This vmhost has begun to wake it, or one before that was ended.
    if (this.#state.said !== 'asleep') {
      this.#state.observe({
        observedState: 'asleep',
        observedReason: null,
        ...offline,
        observedAsleepBecause: row.asleepBecause,
        observedAsleepAt: new Date(saved.at),
        observedSavedBytes: await memoryBytes(store.directoryOf(this.#state.id)),
      })
      await outbox.flushed(this.#state.id)
    }
    // Wanted by a newer start, it is given up instead.
    await rows.leaveAsleep(this.#state.id, row.desiredBoot, oneLine(because))
    // The reason is this one from here on.
    this.#state.saysTrouble = false
    this.#state.again = true
  }

  /** @returns undefined when it is not wanted awake any more, or there is no memory for it and its row says so */
  async #room(saved: SavedMemory, isWanted: (row: MachineRow) => boolean): Promise<Disposable | undefined> {
    const { room, rows, signal } = this.#world
    const stillWanted = async () => {
      const now = signal.aborted ? undefined : await rows.one(this.#state.id).catch(() => this.#state.row)
      return now !== undefined && isWanted(now)
    }
    const bytes = (saved.usedBytes ?? saved.memoryBytes) + wakeOverheadBytes
    const found = await room(this.#state.id, { bytes, isWanted: stillWanted })
    if (!found) this.#state.again = true
    return found
  }

  /**
   * What is proved not to be restorable boots from its disk. Whatever else fails says nothing of the memory: it is tried
   * again, and it sleeps on when that has failed some times too.
   */
  async #notWoken(error: unknown, row: MachineRow, boot: number): Promise<void> {
    const directory = this.#world.store.directoryOf(this.#state.id)
    const memory = await findMemory(directory)
    this.#state.saved = memory.saved
    this.#state.again = true
    if (error instanceof MachineError) {
      await this.#life.disconnect()
      this.#state.fail(messageOf(error), boot)
      return
    }
    if (memory.saved && !(error instanceof LostMemoryError)) {
      const space = await this.#world.store.space()
      // A hypervisor on a full disk cannot even say what is wrong.
      if (isShortOfSpace(space, false)) throw new StorageError('storage.full', fullDisk, { cause: error })
      const code = error instanceof HypervisorError ? error.code : undefined
      const isProved = code === 'hypervisor.unreadable'
      if (code === 'hypervisor.gone') {
        // Somebody ended it, and nothing is wrong with what it was restored from.
        if (this.#life.crashed() === undefined) return
      } else if (++this.#wakeFailures < (isProved ? wakesProving : wakesMost)) throw error
      if (!isProved) {
        this.#wakeFailures = 0
        this.#log.warn({ err: error }, 'was not restored')
        await this.#leaveAsleep(row, memory.saved, `Its memory could not be restored: ${messageOf(error)}`)
        return
      }
    }
    this.#wakeFailures = 0
    await forgetMemory(directory)
    this.#state.saved = undefined
    await this.#state.lose(messageOf(error))
  }

  /** Whatever waits stops waiting. */
  close(): void {
    clearTimeout(this.#sleepAgain)
  }
}

const fullDisk = "Its server's disk is full, and it sleeps on"
/** What a hypervisor takes that has just been started, beside its guest. */
const wakeOverheadBytes = 64 * 2 ** 20
/** Whoever waits for it is told after so many tries. */
const wakesMost = 3
/** What is there and cannot be read is looked at once more before it is given up. */
const wakesProving = 2
const signInMs = { kvm: 300, tcg: 3_000 }
const sleepAgainFirstMs = 30_000
const sleepAgainMostMs = 600_000
