import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { ChannelError } from '../guest/channel.ts'
import { type Hypervisor, HypervisorError } from '../hypervisor/driver.ts'
import { ImageError } from '../images/errors.ts'
import type { Seat } from '../memory/keeper.ts'
import { type MachineNetwork, NetworkError } from '../network/types.ts'
import type { Draft } from '../storage/checkpoints.ts'
import { StorageError } from '../storage/errors.ts'
import {
  type FoundMemory,
  findMemory,
  forgetMemory,
  memoryBytes,
  type SavedMemory,
  spendMemory,
} from '../storage/memory.ts'
import { spaceProblem } from '../storage/space.ts'
import type { DiskImage, MachineFiles } from '../storage/store.ts'
import type { CheckpointObservation, CheckpointRow } from './checkpoint-rows.ts'
import { type Taken, takeDiskOfRunning, takeWithMemory } from './checkpointing.ts'
import { type Ending, Guest, type GuestOwner, saidLast } from './guest.ts'
import type { Load } from './idleness.ts'
import { obtainImage } from './image.ts'
import { isOwn, isTaken, ownFiles } from './ownership.ts'
import { findSource, isRestored, layRestored } from './restoring.ts'
import { type MachineRow, notAsleep, type Observation, type RestoreWish } from './rows.ts'
import { getUp, layDown } from './sleeping.ts'
import type { Slots } from './slots.ts'
import { MachineError, movedTo } from './specification.ts'
import {
  bootFromDisk,
  LostMemoryError,
  networkOf,
  type RunsWith,
  readRunsWith,
  restoreMemory,
  type Started,
  type Starting,
} from './starting.ts'
import type { World } from './world.ts'

/**
 * One machine on its way from what it is to what is wanted.
 *
 * A turn compares the row (wanted) with the guest (actual) and takes the steps between them; turns never overlap,
 * and whatever happens meanwhile (a row changed, the guest switched itself off, a limit ran out) only asks for
 * another one. A step that is cut off by kill -9 leaves a state that the next vmhost's first turn starts from.
 *
 *     no guest --start--> guest
 *     guest --ended by itself--> no guest, and then:
 *         switched off when it was ready   -> desired and observed `stopped`
 *         its hypervisor gone              -> started again, a few times
 *         anything else                    -> `failed` with its reason, until another start is asked for
 *     guest --another state or boot wanted--> stopped in order, then whatever is wanted
 *     guest, ready --sleep wanted--> saved (sleeping.ts) --> memory
 *     memory --wanted running--> restored --> guest
 *     memory --another boot, stop or trash wanted, or it cannot be restored--> no guest: only its processes are lost
 *     anything, no guest after it --restore wanted--> the files of a checkpoint (restoring.ts), off or asleep
 *     anything --checkpoint wanted--> as before (checkpointing.ts)
 *     anything --gone--> nothing left, and only then name and address given back
 *     anything --no row any more--> stopped in order, its files kept
 */
export class Machine {
  readonly id: number
  readonly #world: World
  readonly #log: Logger
  #row: MachineRow
  #guest: Guest | undefined
  #ending: Ending | undefined
  #network: MachineNetwork | undefined
  /** what its guest runs with, where it is known */
  #runsWith: RunsWith | undefined
  /** it sleeps, and this is what it goes on from */
  #saved: SavedMemory | undefined
  /** why it has lost what it was doing; said when it is ready, or asleep */
  #lost: string | undefined
  /** the last of a wake, or of a sleep that was cut off: the next sleep waits for it */
  #gettingUp: Promise<void> | undefined
  /** it has just woken, and has not got back yet what it gave before it slept */
  #isTakingBack = false
  #wakeFailures = 0
  #sleepFailures = 0
  /** its guest could not make use of a disk of this size */
  #refusedDiskBytes: number | undefined
  #sleepAgain: NodeJS.Timeout | undefined
  #crashes: number[] = []
  #turn: Promise<void> | undefined
  #again = false
  /** its reason is a step that failed, which the next one that does not takes away */
  #saysTrouble = false
  /** ends a wait for a slot, or for an orderly stop, when the row changed meanwhile */
  #interrupt = new AbortController()
  #over = false
  #isServerGoingDown = false

  constructor(row: MachineRow, world: World) {
    this.id = row.id
    this.#row = row
    this.#world = world
    this.#log = world.log.child({ machine: row.id })
  }

  get row(): MachineRow {
    return this.#row
  }

  /** Nothing is to be done for it here any more: it is gone for good, or no row of this server is about it. */
  get over(): boolean {
    return this.#over
  }

  get pid(): number | undefined {
    return this.#guest?.hypervisor.pid
  }

  /** What the host's network must have for it now; undefined: nothing. */
  get network(): MachineNetwork | undefined {
    return this.#network
  }

  /** Its guest, where memory may be taken from it and given to it. */
  get seat(): Seat | undefined {
    const guest = this.#guest
    if (!guest?.givesMemory || !this.#runsWith || this.#isTakingBack) return undefined
    const { hypervisor, agent } = guest
    const { memoryBytes } = this.#runsWith
    return { id: this.id, pid: hypervisor.pid, memoryBytes, hypervisor, report: (options) => agent.report(options) }
  }

  /** Hash of the boot set that it runs, or sleeps, with. */
  get bootSet(): string | undefined {
    return (this.#runsWith ?? this.#saved)?.bootSet
  }

  /** What its guest did lately; undefined while none is ready. */
  get load(): Load | undefined {
    return this.#guest?.ready ? this.#guest.load : undefined
  }

  /** Nothing is to be done for it that its row, as it is now, did not ask for at its last turn. */
  isAtRest(row: MachineRow): boolean {
    if (this.#guest || this.#turn || this.#network || row.restore || row.hasCheckpointWork) return false
    const { desiredState, desiredBoot, observedState } = this.#row
    const isSame =
      row.desiredState === desiredState && row.desiredBoot === desiredBoot && row.observedState === observedState
    return isSame && row.token === this.#row.token && atRest[row.desiredState] === row.observedState
  }

  /** Looks again: the row may have changed. @returns when there is nothing left to do for now */
  poke(): Promise<void> {
    this.#again = true
    this.#interrupt.abort()
    this.#turn ??= this.#turns().finally(() => {
      this.#turn = undefined
    })
    return this.#turn
  }

  /** The account's keys, or the gateway's, have changed. */
  async keysChanged(): Promise<void> {
    await this.#guest?.updateKeys()
  }

  /** The server's disk is nearly full. */
  async standStill(): Promise<void> {
    await this.#guest?.standStill()
  }

  /**
   * The server goes down: whatever runs sleeps, and wakes with the next vmhost, since it is wanted running all the while.
   * Resolves when it sleeps, or cannot.
   */
  async sleepThroughShutdown(): Promise<void> {
    this.#isServerGoingDown = true
    await this.poke()
  }

  /** Takes over the hypervisor that an earlier vmhost started, if there is one. Before the first turn. */
  async adopt(): Promise<void> {
    const { driver, store } = this.#world
    const directory = store.directoryOf(this.id)
    let hypervisor: Hypervisor | undefined
    try {
      hypervisor = await driver.adopt(this.id, directory)
    } catch (error) {
      // It does not answer and so cannot be trusted with a disk; its guest is started again from what it had synced.
      this.#log.warn({ err: error }, 'the hypervisor does not answer and is ended')
      await driver.destroy(this.id, directory)
    }
    const files = await store.findMachine(this.id).catch(() => undefined)
    const isOurs = files !== undefined && isOwn(files, this.#row)
    const memory = isOurs ? await findMemory(directory) : noMemory
    const { address, observedBoot, observedState, isReady } = this.#row
    if (!hypervisor) {
      this.#findAsleep(memory)
      return
    }
    if (!isOurs || address === null || memory.saved || memory.damaged) {
      // Saved, and not ended yet, or restored, and not running yet: the memory is the machine.
      await hypervisor.quit()
      this.#findAsleep(memory)
      return
    }
    this.#runsWith = await readRunsWith(directory)
    this.#network = networkOf({ id: this.id, address }, this.#runsWith?.commandLine)
    const ready = observedState === 'running' && isReady && !memory.used
    const guest = this.#attend({ hypervisor, files, boot: observedBoot, ready, restored: memory.used, slot: undefined })
    this.#log.info({ pid: hypervisor.pid }, 'adopted')
    if (memory.used) await hypervisor.resume().catch((error) => this.#log.warn({ err: error }, 'resume'))
    else if (memory.unfinished) {
      // It was on its way to sleep, and may stand still for no other reason.
      guest.lying = true
      await hypervisor.resume().catch((error) => this.#log.warn({ err: error }, 'resume'))
      this.#gettingUp = getUp({ hypervisor, agent: guest.agent, files, log: this.#log })
        .catch((error) => this.#log.warn({ err: error }, 'a guest that was found lying down'))
        .finally(() => {
          guest.lying = false
        })
    }
    await guest.catchUp()
  }

  /** Its hypervisor is not there: it sleeps, or has lost what it was doing. */
  #findAsleep({ saved, damaged, used, unfinished }: FoundMemory): void {
    this.#saved = saved
    if (saved) return
    if (damaged) this.#lose('what was kept of its memory is damaged')
    else if (used) this.#lose('its server, or its hypervisor, ended while it woke')
    else if (unfinished) this.#lose('its server, or its hypervisor, ended while it was put to sleep')
  }

  #lose(why: string): void {
    this.#lost = oneLine(why)
    this.#log.warn({ why }, 'its memory is lost')
    this.#record('memory-lost', { reason: oneLine(why) })
  }

  /** Lets go: the machine runs on, whatever waits stops waiting. Once the world's signal has been given. */
  async release(): Promise<void> {
    this.#interrupt.abort()
    clearTimeout(this.#sleepAgain)
    await this.#turn?.catch(() => {})
    await this.#guest?.release()
  }

  async #turns(): Promise<void> {
    for (let waitMs = retryFirstMs; this.#again && !this.#over && !this.#world.signal.aborted; ) {
      this.#again = false
      this.#interrupt = new AbortController()
      let row: MachineRow | undefined
      try {
        // The row must not be older than what was reported: a failure that is still on its way would be started again.
        await this.#world.outbox.flushed(this.id)
        row = await this.#world.rows.one(this.id)
        await this.#step(row)
        waitMs = retryFirstMs
        if (this.#saysTrouble) this.#observe({ observedReason: null })
      } catch (error) {
        if (this.#world.signal.aborted) return
        if (this.#interrupt.signal.aborted && (error as Error).name === 'AbortError') continue
        this.#log.error({ err: error }, 'a step failed and is tried again')
        this.#again = true
        // Without a row the database is away, which is nothing of this machine's; and one that has failed has its reason.
        if (row && row.observedState !== 'failed') {
          this.#observe({
            observedReason: oneLine(`What is to be done with it fails and is tried again: ${messageOf(error)}`),
          })
          this.#saysTrouble = true
        }
        await sleep(waitMs, undefined, { signal: this.#world.signal, ref: false }).catch(() => {})
        waitMs = Math.min(waitMs * 2, retryMostMs)
      }
    }
  }

  async #step(row: MachineRow | undefined): Promise<void> {
    if (!row) {
      await this.#leave()
      return
    }
    if (this.#guest && !isOwn(this.#guest.files, row)) {
      // An older database came back, and another machine has its number: nothing of this one may be told under it.
      this.#log.warn('its row is another machine by now: it is ended, and its files are kept')
      await this.#endGuest(this.#guest, 'quit')
      await this.#disconnect()
    }
    this.#row = row
    if (row.observedState === 'gone') {
      await this.#vanish(row)
      return
    }
    if (this.#ending) {
      await this.#bury(this.#ending)
      return
    }
    if (row.hasCheckpointWork) await this.#tendCheckpoints(row)
    const { restore, desiredState } = row
    const isLeaving = this.#isServerGoingDown || desiredState === 'trashed' || desiredState === 'gone'
    if (restore && !isLeaving && !(await this.#restore(row, restore))) return
    switch (row.desiredState) {
      case 'running':
        if (this.#isServerGoingDown) {
          if (this.#guest) await this.#towardsAsleep(row)
        } else await this.#towardsRunning(row)
        return
      case 'asleep':
      case 'paused':
        await this.#towardsAsleep(row)
        return
      case 'stopped':
      case 'trashed':
        if (this.#guest) await this.#stop(this.#guest)
        await this.#disconnect()
        await this.#dropMemory(row, row.desiredState)
        this.#lost = undefined
        if (row.observedState !== row.desiredState) {
          // It took its time to stop, and may be wanted back by now: then it was never in the trash.
          if ((await this.#world.rows.one(this.id))?.desiredState !== row.desiredState) {
            this.#observe(offline)
            this.#again = true
            return
          }
          this.#observe({ observedState: row.desiredState, observedReason: null, ...offline })
          this.#record(row.desiredState)
        }
        return
      case 'gone':
        await this.#vanish(row)
        return
    }
  }

  async #towardsRunning(row: MachineRow): Promise<void> {
    const guest = this.#guest
    this.#forgetSleepFailures()
    if (!guest) {
      if (row.observedState === 'failed' && row.desiredBoot <= row.observedBoot) return
      if (this.#saved && row.desiredBoot <= this.#saved.boot) await this.#wake(row, this.#saved)
      else await this.#start(row)
      return
    }
    if (row.desiredBoot > guest.boot) {
      await this.#stop(guest)
      this.#again = true
      return
    }
    // Adopted, and reported as something else by a vmhost that was ended half way.
    if (guest.ready && row.observedState !== 'running') guest.sayReady()
    // It was to be put to sleep, and is wanted after all.
    else if (guest.ready && row.asleepBecause !== null) this.#observe(notAsleep)
    guest.updateIdentity()
    if (guest.givesMemory && row.diskBytes > (row.observedDiskBytes ?? 0)) await this.#growDisk(row, guest)
  }

  /** While it runs: its disk, then what its guest knows of it, then its filesystem. Each may have been done before. */
  async #growDisk(row: MachineRow, guest: Guest): Promise<void> {
    if (this.#refusedDiskBytes === row.diskBytes) return
    const diskBytes = await this.#world.store.growDisk(this.id, row.diskBytes)
    await guest.hypervisor.diskGrown(diskBytes)
    try {
      await guest.agent.grow({ timeoutMs: growLimitMs })
    } catch (error) {
      if (!(error instanceof ChannelError) || error.code !== 'agent.refused') throw error
      this.#refusedDiskBytes = row.diskBytes
      this.#observe({ observedReason: oneLine(`Its disk has grown, and its filesystem has not: ${error.message}`) })
      return
    }
    this.#observe({ observedDiskBytes: diskBytes, observedReason: null })
    this.#log.info({ diskBytes }, 'its disk has grown')
  }

  async #towardsAsleep(row: MachineRow): Promise<void> {
    const guest = this.#guest
    if (guest) {
      // Its readiness, or its going on, brings another turn.
      if (guest.ready && !guest.standsStill && !this.#sleepAgain) await this.#sleep(row, guest)
      return
    }
    this.#forgetSleepFailures()
    if (row.observedState === 'failed') return
    await this.#disconnect()
    if (row.observedState !== 'asleep') await this.#sayAsleep(row)
  }

  async #sleep(row: MachineRow, guest: Guest): Promise<void> {
    const problem = await this.#layDown(guest, (now) => this.#isSleepWanted(now))
    if (problem !== undefined) this.#sleepFailed(problem)
    if (!this.#saved) return
    this.#forgetSleepFailures()
    await this.#sayAsleep(row)
  }

  /**
   * Saves a guest and ends its hypervisor; it is `#saved` then. Otherwise it is awake, or ended by itself.
   * @returns why it could not be saved, if that was tried
   */
  async #layDown(guest: Guest, isWanted: (row: MachineRow) => boolean): Promise<string | undefined> {
    const { sleeps, store, rows, outbox, signal } = this.#world
    const row = this.#row
    let isTold = false
    using slot = await this.#slot(sleeps, isWanted)
    if (!slot) return undefined
    await this.#gettingUp
    const { hypervisor, agent, files, boot } = guest
    this.#saved = undefined
    guest.lying = true
    try {
      if (!this.#runsWith)
        throw new MachineError('it was started by an earlier version of Berth, and can after a restart')
      const bed = { hypervisor, agent, files, space: () => store.space(), log: this.#log, signal }
      const isStillWanted = async () => {
        const now = signal.aborted ? undefined : await rows.one(this.id).catch(() => row)
        return now !== undefined && isWanted(now) && isOwn(files, now)
      }
      this.#saved = await layDown(bed, { ...this.#runsWith, boot }, async () => {
        const isIt = await isStillWanted()
        if (isTold || !isIt) return isIt
        // Whoever wants it awake from here on must not take it for ready: it stands still, and hears nothing.
        this.#observe({ observedReadyAt: null })
        isTold = true
        await outbox.flushed(this.id)
        return isStillWanted()
      })
    } catch (error) {
      signal.throwIfAborted()
      this.#log.warn({ err: error }, 'could not be saved')
      // Its hypervisor is gone: that is told by itself.
      return this.#ending ? undefined : oneLine(messageOf(error))
    } finally {
      guest.lying = false
      if (isTold && !this.#saved && !this.#ending) guest.sayReady()
    }
    this.#again = true
    if (!this.#saved) return undefined
    await this.#endGuest(guest, 'quit')
    await this.#disconnect()
    return undefined
  }

  #isSleepWanted({ desiredState }: MachineRow): boolean {
    return ['asleep', 'paused', ...(this.#isServerGoingDown ? ['running'] : [])].includes(desiredState)
  }

  async #sayAsleep(row: MachineRow): Promise<void> {
    const saved = this.#saved
    const because = row.desiredState === 'running' ? 'its server shut down' : (row.asleepBecause ?? 'told to')
    const bytes = saved ? await memoryBytes(this.#world.store.directoryOf(this.id)) : null
    const lost = this.#lost === undefined ? null : `It has lost its memory and starts from its disk: ${this.#lost}`
    this.#observe({
      observedState: 'asleep',
      observedReason: lost,
      ...offline,
      observedAsleepBecause: because,
      observedAsleepAt: saved ? new Date(saved.at) : new Date(),
      observedSavedBytes: bytes,
    })
    this.#record('asleep', { because, bytes })
  }

  #sleepFailed(problem: string): void {
    const waitMs = Math.min(sleepAgainFirstMs * 2 ** this.#sleepFailures++, sleepAgainMostMs)
    this.#observe({ observedReason: oneLine(`It could not be put to sleep, which is tried again: ${problem}`) })
    this.#sleepAgain = setTimeout(() => {
      this.#sleepAgain = undefined
      void this.poke()
    }, waitMs).unref()
  }

  #forgetSleepFailures(): void {
    if (this.#sleepFailures === 0) return
    clearTimeout(this.#sleepAgain)
    this.#sleepAgain = undefined
    this.#sleepFailures = 0
    this.#observe({ observedReason: null })
  }

  async #wake(row: MachineRow, saved: SavedMemory): Promise<void> {
    const { wakes, store } = this.#world
    const isWanted = (now: MachineRow) => now.desiredState === 'running' && now.desiredBoot === row.desiredBoot
    using room = await this.#room(saved, isWanted)
    if (!room) return
    const slot = await this.#slot(wakes, isWanted)
    if (!slot) return
    this.#observe({
      observedState: 'running',
      observedStage: 'network',
      observedBoot: saved.boot,
      observedReason: null,
      observedReadyAt: null,
      observedStartedAt: null,
    })
    let started: Started | undefined
    try {
      started = await restoreMemory(this.#starting(row), saved)
      // Before it runs, and for good: from here on its disk is not the one that it was saved with.
      await spendMemory(store.directoryOf(this.id))
      this.#saved = undefined
      this.#wakeFailures = 0
      await this.#run(started, { boot: saved.boot, restored: true, slot })
    } catch (error) {
      slot[Symbol.dispose]()
      await started?.hypervisor.kill()
      this.#world.signal.throwIfAborted()
      await this.#notWoken(error, saved.boot)
    }
  }

  /** Takes the checkpoints that are wanted, as far as that can be done now, and removes those that are not. */
  async #tendCheckpoints(row: MachineRow): Promise<void> {
    const { checkpoints, checkpointRows } = this.#world
    for (const wanted of await checkpointRows.workOf(this.id)) {
      if (wanted.desiredState === 'gone') {
        await checkpoints.remove(wanted.id, wanted.token)
        await checkpointRows.report(wanted.id, { observedState: 'gone', observedHeldBytes: null })
      } else if (wanted.id !== row.restore?.keeps) await this.#checkpoint(row, wanted)
    }
  }

  /**
   * Takes a checkpoint; one that fails says why, and leaves the machine as it was.
   * @returns false: it cannot be taken yet
   */
  async #checkpoint(row: MachineRow, wanted: CheckpointRow): Promise<boolean> {
    const { checkpointRows, signal } = this.#world
    const guest = this.#guest
    // Its readiness, or its going on, brings another turn.
    if (guest && (!guest.ready || guest.standsStill)) return false
    const comesUp = row.desiredState === 'running' && row.observedState !== 'failed' && row.restore === null
    if (!guest && !this.#saved && comesUp) return false
    let outcome: CheckpointObservation
    try {
      outcome = await this.#taken(row, wanted)
      if (!wanted.forCopy) this.#record('checkpoint-taken', { checkpoint: wanted.id, stillMs: outcome.observedStillMs })
    } catch (error) {
      signal.throwIfAborted()
      this.#log.warn({ err: error, checkpoint: wanted.id }, 'a checkpoint could not be taken')
      outcome = { observedState: 'failed', observedReason: oneLine(messageOf(error)) }
    }
    await checkpointRows.report(wanted.id, outcome)
    return true
  }

  async #taken(row: MachineRow, wanted: CheckpointRow): Promise<CheckpointObservation> {
    const { checkpoints, store } = this.#world
    const guest = this.#guest
    const files = guest?.files ?? (await ownFiles(store, row))
    if (!files) throw new MachineError('It has no disk yet')
    // By whoever was cut off before it could be reported.
    let kept = await checkpoints.find(wanted.id, wanted.token)
    let stillMs: number | null = null
    if (!kept) {
      const problem = spaceProblem(await store.space())
      if (problem) throw new StorageError('storage.full', problem)
      const draft = await checkpoints.begin(wanted.id)
      try {
        if (guest) ({ stillMs } = await this.#takeRunning(guest, draft, wanted.diskOnly))
        else {
          await draft.takeDisk(files.disk)
          if (this.#saved && !wanted.diskOnly) await draft.copyMemory(files.directory, this.#saved)
        }
        kept = await draft.keep(wanted.token, files)
      } catch (error) {
        await draft.drop()
        throw error
      }
    }
    const { saved } = kept
    return {
      observedState: 'kept',
      observedTakenAt: kept.takenAt,
      observedDiskBytes: kept.diskBytes,
      observedCpus: saved?.cpus ?? null,
      observedMemoryBytes: saved?.memoryBytes ?? null,
      observedSavedBytes: saved ? await memoryBytes(kept.directory) : null,
      // One for a copy is gone before anybody asks, and its copy waits.
      observedHeldBytes: wanted.forCopy ? null : await checkpoints.heldBytes(kept),
      observedStillMs: stillMs,
    }
  }

  async #takeRunning(guest: Guest, draft: Draft, diskOnly: boolean): Promise<Taken> {
    const { sleeps, store, signal } = this.#world
    const { hypervisor, agent, files, boot } = guest
    if (diskOnly) return takeDiskOfRunning({ agent, files, log: this.#log }, draft)
    if (!this.#runsWith)
      throw new MachineError('It was started by an earlier version of Berth: restart it, or take its disk alone')
    using _place = await sleeps.acquire(signal)
    await this.#gettingUp
    guest.lying = true
    try {
      const bed = { hypervisor, agent, files, space: () => store.space(), log: this.#log, signal }
      return await takeWithMemory(bed, draft, { ...this.#runsWith, boot })
    } finally {
      guest.lying = false
    }
  }

  /** @returns whether the turn may go on: nothing was changed that its row does not know yet */
  async #restore(row: MachineRow, wish: RestoreWish): Promise<boolean> {
    const { checkpointRows, outbox, store, signal } = this.#world
    const directory = store.directoryOf(this.id)
    let files: MachineFiles | undefined
    try {
      files = await ownFiles(store, row)
    } catch (error) {
      if (!(error instanceof MachineError)) throw error
      if (row.observedState !== 'failed') this.#fail(error.message, row.desiredBoot)
      return row.observedState === 'failed'
    }
    // It could not be made of the checkpoint, and another try is asked for by its next start.
    if (!files && row.observedState === 'failed' && row.desiredBoot <= row.observedBoot) return true
    // Its guest grows into the rest as soon as it is awake, if it goes on from memory.
    let diskBytes = 0
    if (!(await isRestored(files, wish))) {
      const source = await findSource(row, wish, this.#world)
      if (source === 'waits') return false
      if ('problem' in source) return this.#notRestored(row, wish, source.problem, files)
      try {
        if (files && !(await this.#keepBefore(row, wish))) return false
        // What it was is kept, or was nothing but a disk.
        if (this.#guest) await this.#stop(this.#guest)
        await this.#disconnect()
        await layRestored(row, wish, source, files, this.#world)
        diskBytes = source.diskBytes
      } catch (error) {
        signal.throwIfAborted()
        if (!(error instanceof StorageError || error instanceof MachineError)) throw error
        return this.#notRestored(row, wish, error.message, files)
      }
    }
    const made = await ownFiles(store, row)
    this.#saved = (await findMemory(directory)).saved
    this.#lost = undefined
    this.#forgetSleepFailures()
    this.#observe({
      observedRestore: wish.number,
      observedRestoreProblem: null,
      observedDiskBytes: diskBytes,
      ...offline,
      ...(row.observedState === 'creating'
        ? {}
        : { observedState: this.#saved ? 'asleep' : 'stopped', observedReason: null }),
      ...(made?.record.settings ? { observedWebPort: made.record.settings.webPort } : {}),
    })
    this.#record('restored', { checkpoint: wish.from })
    this.#again = true
    await outbox.flushed(this.id)
    await checkpointRows.endCopies()
    return false
  }

  /**
   * Keeps what it is now as a checkpoint, and ends it where it runs: nothing of it is lost then.
   * @returns false: that was begun, or must wait
   * @throws StorageError or MachineError when it cannot be kept; it is as it was then
   */
  async #keepBefore(row: MachineRow, wish: RestoreWish): Promise<boolean> {
    const { checkpointRows } = this.#world
    const wanted = wish.keeps === null ? undefined : await checkpointRows.one(wish.keeps)
    if (wanted?.observedState === 'failed')
      throw new MachineError(wanted.observedReason ?? 'What it is now could not be kept')
    if (wanted?.observedState !== 'waiting' || wanted.desiredState === 'gone') return true
    const guest = this.#guest
    if (guest?.ready && !guest.standsStill) {
      const problem = await this.#layDown(guest, (now) => now.restore?.number === wish.number)
      if (problem !== undefined) {
        await checkpointRows.report(wanted.id, { observedState: 'failed', observedReason: problem })
        throw new MachineError(problem)
      }
      if (!this.#saved) return false
    } else if (guest) await this.#stop(guest)
    await this.#disconnect()
    this.#again = true
    await this.#checkpoint(row, wanted)
    return false
  }

  /** It stays what it is. One that was to be made of the checkpoint is nothing, and fails. */
  #notRestored(row: MachineRow, wish: RestoreWish, problem: string, files: MachineFiles | undefined): boolean {
    this.#log.warn({ problem }, 'is not restored')
    if (!files) {
      this.#fail(problem, row.desiredBoot)
      return false
    }
    this.#observe({ observedRestore: wish.number, observedRestoreProblem: oneLine(problem) })
    this.#record('not-restored', { reason: oneLine(problem) })
    this.#again = true
    return false
  }

  /** @returns undefined when it is not wanted awake any more, or there is no memory for it and its row says so */
  async #room(saved: SavedMemory, isWanted: (row: MachineRow) => boolean): Promise<Disposable | undefined> {
    const { room, rows, signal } = this.#world
    const stillWanted = async () => {
      const now = signal.aborted ? undefined : await rows.one(this.id).catch(() => this.#row)
      return now !== undefined && isWanted(now)
    }
    const bytes = (saved.usedBytes ?? saved.memoryBytes) + wakeOverheadBytes
    const found = await room(this.id, { bytes, isWanted: stillWanted })
    if (!found) this.#again = true
    return found
  }

  /** What cannot be restored boots from its disk; what may be another time is tried again. */
  async #notWoken(error: unknown, boot: number): Promise<void> {
    const directory = this.#world.store.directoryOf(this.id)
    const memory = await findMemory(directory)
    this.#saved = memory.saved
    this.#again = true
    if (error instanceof MachineError) {
      await this.#disconnect()
      this.#fail(messageOf(error), boot)
      return
    }
    if (memory.saved && !(error instanceof LostMemoryError)) {
      const isFull = messageOf(error).includes('Cannot allocate memory')
      if (!(error instanceof HypervisorError) || isFull) throw error
      // Somebody ended it, and nothing is wrong with what it was restored from.
      if (error.code === 'hypervisor.gone' && this.#crashed() === undefined) return
      if (++this.#wakeFailures < wakesMost) {
        this.#log.warn({ err: error }, 'was not restored, which is tried again')
        return
      }
    }
    this.#wakeFailures = 0
    await forgetMemory(directory)
    this.#saved = undefined
    this.#lose(messageOf(error))
  }

  /** It goes on without what it slept with, because something else was asked for. */
  async #dropMemory(row: MachineRow, because: string): Promise<void> {
    const { store } = this.#world
    if (this.#saved) this.#record('memory-dropped', { because })
    this.#saved = undefined
    if (!(await isTaken(store, row))) await forgetMemory(store.directoryOf(this.id))
  }

  async #start(row: MachineRow): Promise<void> {
    const world = this.#world
    const boot = row.desiredBoot
    // A start of a machine that was there before is `running` that is not ready yet.
    const observedState = row.observedState === 'creating' ? 'creating' : 'running'
    const isWanted = (now: MachineRow) => now.desiredState === 'running' && now.desiredBoot === this.#row.desiredBoot
    const obtained = await this.#image(row, observedState, isWanted)
    if (!obtained) return
    // The wait may be long, and nobody shall take the failure of the start before for this one's.
    if (world.slots.full) this.#observe({ observedState, observedReason: null, ...offline })
    const slot = await this.#slot(world.slots, isWanted)
    if (!slot) return
    try {
      this.#observe({
        observedState,
        observedStage: 'disk',
        observedBoot: boot,
        observedReason: null,
        observedReadyAt: null,
        observedStartedAt: null,
        ...notAsleep,
      })
      // Its disk is about to move on, and nothing may ever be restored beside it.
      await this.#dropMemory(row, 'restart')
      const started = await bootFromDisk(this.#starting(row, obtained.image))
      try {
        await this.#run(started, { boot, restored: false, slot })
      } catch (error) {
        await started.hypervisor.kill()
        throw error
      }
    } catch (error) {
      slot[Symbol.dispose]()
      if (world.signal.aborted) throw error
      this.#log.warn({ err: error }, 'did not start')
      await this.#disconnect().catch((again) => this.#log.warn({ err: again }, 'network'))
      const killed = error instanceof HypervisorError && error.code === 'hypervisor.gone'
      const givenUp = killed ? this.#crashed() : undefined
      if (killed && givenUp === undefined) {
        this.#again = true
        return
      }
      this.#fail(givenUp ?? reasonOf(error), boot)
    }
  }

  /**
   * What its disk is to be made from; no image when it has a disk. It is fetched before the machine takes a place among
   * those that boot: a registry may be slow.
   * @returns undefined when it is not wanted any more, or cannot be had, which was reported
   */
  async #image(
    row: MachineRow,
    observedState: 'creating' | 'running',
    isWanted: (row: MachineRow) => boolean,
  ): Promise<{ image: DiskImage | undefined } | undefined> {
    const world = this.#world
    if (row.hostKey !== null || (await world.store.findMachine(this.id).catch(() => 'damaged')))
      return { image: undefined }
    const observe = (seen: Observation) => this.#observe({ observedState, ...seen })
    try {
      const obtain = async (signal: AbortSignal) => ({ image: await obtainImage(row, world, signal, observe) })
      return await this.#whileWanted(obtain, isWanted, () => {})
    } catch (error) {
      if (world.signal.aborted) throw error
      this.#log.warn({ err: error, image: row.image }, 'its image cannot be had')
      this.#fail(reasonOf(error), row.desiredBoot)
      return undefined
    }
  }

  #starting(row: MachineRow, image?: DiskImage): Starting {
    return {
      row,
      image,
      world: this.#world,
      observe: (seen) => this.#observe(seen),
      connecting: (network) => {
        this.#network = network
      },
    }
  }

  /** A hypervisor was started for it: whatever becomes of that is the guest's from here on. */
  async #run(started: Started, as: { boot: number; restored: boolean; slot: Disposable }): Promise<void> {
    const { hypervisor, files, runsWith, startedAt } = started
    this.#runsWith = runsWith
    this.#attend({ hypervisor, files, ready: false, ...as })
    if (as.restored) await hypervisor.resume().catch((error) => this.#log.warn({ err: error }, 'resume'))
    const { cpus, memoryBytes } = runsWith
    // A guest that boots makes its filesystem as large as its disk.
    const disk = as.restored ? {} : { observedDiskBytes: this.#row.diskBytes }
    this.#observe({ observedStartedAt: startedAt, observedCpus: cpus, observedMemoryBytes: memoryBytes, ...disk })
    this.#log.info({ pid: hypervisor.pid, boot: as.boot }, as.restored ? 'restored' : 'started')
  }

  /**
   * Waits for a place among the machines that come up, or lie down, and keeps its place in the queue whatever news come.
   * @returns undefined when that is not wanted any more
   */
  #slot(slots: Slots, isWanted: (row: MachineRow) => boolean): Promise<Disposable | undefined> {
    const giveBack = (given: Disposable) => given[Symbol.dispose]()
    return this.#whileWanted((signal) => slots.acquire(signal), isWanted, giveBack)
  }

  /**
   * Waits for something, whatever news come, as long as it is wanted.
   * @param giveBack what came when it was not wanted any more
   * @returns undefined when it is not wanted any more
   */
  async #whileWanted<T extends object>(
    begin: (signal: AbortSignal) => Promise<T>,
    isWanted: (row: MachineRow) => boolean,
    giveBack: (given: T) => void,
  ): Promise<T | undefined> {
    const leave = new AbortController()
    const awaited = begin(AbortSignal.any([leave.signal, this.#world.signal]))
    awaited.catch(() => {})
    for (;;) {
      const { signal } = this.#interrupt
      const news = Promise.withResolvers<undefined>()
      const onAbort = () => news.resolve(undefined)
      if (signal.aborted) onAbort()
      else signal.addEventListener('abort', onAbort, { once: true })
      const given = await Promise.race([awaited, news.promise]).finally(() =>
        signal.removeEventListener('abort', onAbort),
      )
      if (given) return given
      this.#interrupt = new AbortController()
      const row = await this.#world.rows.one(this.id).catch(() => this.#row)
      if (row && isWanted(row)) continue
      leave.abort()
      // It may have been given in this very moment.
      awaited.then(giveBack).catch(() => {})
      this.#again = true
      return undefined
    }
  }

  #attend(started: {
    hypervisor: Hypervisor
    files: MachineFiles
    boot: number
    ready: boolean
    restored: boolean
    slot: Disposable | undefined
  }): Guest {
    const machine = this
    const owner: GuestOwner = {
      get row() {
        return machine.#row
      },
      get lost() {
        const lost = machine.#lost
        return lost === undefined ? undefined : `It lost its memory and was started from its disk: ${lost}`
      },
      ready: () => {
        this.#lost = undefined
        if (started.restored) this.#gettingUp = this.#isAwake(started.hypervisor, started.files.directory)
        if (this.#isSleepWanted(this.#row) || this.#row.restore || this.#row.hasCheckpointWork) void this.poke()
      },
      ended: (ending) => {
        this.#ending ??= ending
        void this.poke()
      },
      observe: (seen) => this.#observe(seen),
      record: (kind, detail) => this.#record(kind, detail),
    }
    this.#ending = undefined
    const moved = () => {
      const { address } = this.#row
      const startedWith = this.#runsWith?.commandLine
      if (address === null || startedWith === undefined) return undefined
      return movedTo({ ...this.#row, address }, this.#world.guest, startedWith)
    }
    const guest = new Guest({ ...started, owner, moved, world: this.#world, log: this.#log })
    this.#guest = guest
    return guest
  }

  /**
   * What a wake leaves to do. Whoever woke it is about to sign in, and gets the processors first: a guest that takes its
   * memory back has its hands full, emulated for seconds.
   */
  async #isAwake(hypervisor: Hypervisor, directory: string): Promise<void> {
    const { driver, signal } = this.#world
    this.#isTakingBack = true
    try {
      await sleep(signInMs[driver.accelerator], undefined, { signal, ref: false })
      await hypervisor.setBalloon(0)
      await forgetMemory(directory)
    } catch (error) {
      // What is not done yet, another vmhost does: the memory that was used is still there to tell it.
      if (!signal.aborted) this.#log.warn({ err: error }, 'after it woke')
    } finally {
      this.#isTakingBack = false
    }
  }

  /** The guest or its hypervisor came to an end that nobody here asked for. */
  async #bury(ending: Ending): Promise<void> {
    const guest = this.#guest
    this.#again = true
    if (!guest) {
      this.#ending = undefined
      return
    }
    const { boot, ready, restored, fatal, panic, lastLine } = guest
    await this.#endGuest(guest, 'quit')
    if (this.#isSleepWanted(this.#row)) {
      this.#lose('it ended before it slept')
      return
    }
    // Something else is wanted already: the end came handy.
    if (this.#row.desiredState !== 'running' || this.#row.desiredBoot > boot) return
    if (restored && ending.kind !== 'off') {
      const why = { gone: 'its hypervisor ended while it woke', panicked: 'its kernel panicked while it woke' }
      this.#lose(ending.kind === 'failed' ? ending.reason : why[ending.kind])
      return
    }
    if (ending.kind === 'gone') {
      const tooOften = this.#crashed()
      if (tooOften === undefined) {
        this.#log.warn({ times: this.#crashes.length }, 'the hypervisor is gone; the machine is started again')
        return
      }
      this.#fail(tooOften, boot)
    } else if (fatal !== undefined) this.#fail(fatal, boot)
    else if (ending.kind === 'failed') this.#fail(ending.reason, boot)
    else if (ending.kind === 'panicked') this.#fail(`Its kernel panicked${panic ? `: ${panic}` : ''}`, boot)
    else if (!ready && !restored) this.#fail(`It switched itself off while it booted${saidLast(lastLine)}`, boot)
    else {
      this.#observe({
        observedState: 'stopped',
        observedReason: 'It was switched off from inside',
        switchedOffBoot: boot,
        ...offline,
      })
      this.#record('stopped', { by: 'guest' })
    }
    await this.#disconnect()
  }

  /** Counts a hypervisor that somebody else ended. @returns a reason to give up, when it happens too often */
  #crashed(): string | undefined {
    const now = Date.now()
    this.#crashes = [...this.#crashes.filter((at) => now - at < crashWindowMs), now]
    const times = this.#crashes.length
    this.#record('hypervisor-lost', { times })
    if (times <= crashesMost) return undefined
    this.#crashes = []
    return `Its hypervisor was ended ${times} times within ${crashWindowMs / 60_000} minutes`
  }

  #fail(reason: string, boot: number): void {
    const text = oneLine(reason)
    this.#log.warn({ reason: text }, 'failed')
    this.#observe({ observedState: 'failed', observedReason: text, observedBoot: boot, ...offline })
    this.#record('failed', { reason: text })
  }

  /** Stops the guest in order, with a limit; one that cannot be asked yet, still booting, is simply ended. */
  async #stop(guest: Guest): Promise<void> {
    if (!this.#ending && (await guest.askPowerOff(powerOffLimitMs))) await this.#untilOff(guest)
    await this.#endGuest(guest, 'quit')
  }

  /** Waits for a guest that was asked to go; not when it shall be gone for good: nobody wants what it would sync. */
  async #untilOff(guest: Guest): Promise<void> {
    const deadline = Date.now() + stopLimitMs
    while (Date.now() < deadline) {
      const over = new AbortController()
      const interrupted = AbortSignal.any([this.#interrupt.signal, this.#world.signal, over.signal])
      const waited = sleep(deadline - Date.now(), 'late', { signal: interrupted, ref: false }).catch(
        () => 'interrupted',
      )
      const outcome = await Promise.race([guest.off.then(() => 'off'), waited])
      over.abort()
      if (outcome !== 'interrupted') return
      this.#world.signal.throwIfAborted()
      this.#interrupt = new AbortController()
      const row = await this.#world.rows.one(this.id).catch(() => this.#row)
      if (row && (row.desiredState === 'gone' || !isOwn(guest.files, row))) return
    }
  }

  async #endGuest(guest: Guest, how: 'quit' | 'kill'): Promise<void> {
    await guest.end(how)
    this.#guest = undefined
    this.#ending = undefined
    this.#runsWith = undefined
    this.#refusedDiskBytes = undefined
  }

  async #disconnect(): Promise<void> {
    if (!this.#network) return
    await this.#world.network.removeMachine(this.id)
    this.#network = undefined
  }

  /** Takes everything of the machine away; its name and address only when nothing of it is left. */
  async #vanish(row: MachineRow): Promise<void> {
    const { store, driver, rows, network, checkpoints, checkpointRows } = this.#world
    if (this.#guest) await this.#endGuest(this.#guest, 'kill')
    await driver.destroy(this.id, store.directoryOf(this.id))
    await network.removeMachine(this.id)
    this.#network = undefined
    if (!(await isTaken(store, row))) await store.removeMachine(this.id)
    for (const { id, token } of await checkpointRows.endAllOf(this.id)) {
      await checkpoints.remove(id, token)
      await checkpointRows.report(id, { observedState: 'gone', observedHeldBytes: null })
    }
    await rows.finishGone(this.id)
    if (row.restore) await checkpointRows.endCopies()
    this.#record('gone')
    this.#over = true
  }

  /**
   * Ends what runs of a machine without a row, and keeps its files: an older database may have been restored, or
   * the machine be another server's now. Only a row that says `gone` takes a disk away.
   */
  async #leave(): Promise<void> {
    this.#log.warn('no row is about this machine any more: it is ended, and its files are kept')
    if (this.#guest) await this.#stop(this.#guest)
    await this.#disconnect()
    this.#over = true
  }

  #observe(seen: Observation): void {
    if (seen.observedReason !== undefined) this.#saysTrouble = false
    this.#world.outbox.report(this.id, seen)
  }

  #record(kind: string, detail: Readonly<Record<string, unknown>> = {}): void {
    const { id: machineId, name: machineName, accountId } = this.#row
    this.#world.outbox.record({ machineId, machineName, accountId, kind: `machine.${kind}`, detail })
  }
}

const powerOffLimitMs = 20_000
/** A filesystem of a TiB under emulation. */
const growLimitMs = 120_000
/** What a hypervisor takes that has just been started, beside its guest. */
const wakeOverheadBytes = 64 * 2 ** 20
/** The agent ends what does not stop by itself after its limit; somewhat later nothing comes any more. */
const stopLimitMs = powerOffLimitMs + 8_000
/** A hypervisor that is ended by somebody else is started again this often within the time, then it is a failure. */
const crashesMost = 3
const crashWindowMs = 600_000
/** A memory that could not be restored so often never will be. */
const wakesMost = 2
const signInMs = { kvm: 300, tcg: 3_000 }
const sleepAgainFirstMs = 30_000
const sleepAgainMostMs = 600_000
const retryFirstMs = 500
const retryMostMs = 30_000

const offline = {
  observedStage: 'waiting',
  observedReadyAt: null,
  observedStartedAt: null,
  observedCpus: null,
  observedMemoryBytes: null,
  observedAwakeBecause: null,
  observedIdleSince: null,
  ...notAsleep,
} as const

const noMemory: FoundMemory = { damaged: false, used: false, unfinished: false }
/** What a machine of which nothing runs is when nothing is to be done for it. */
const atRest: Partial<Record<MachineRow['desiredState'], MachineRow['observedState']>> = {
  stopped: 'stopped',
  trashed: 'trashed',
  asleep: 'asleep',
  paused: 'asleep',
}

/** What the owner reads; the chain of causes goes to the log. */
function reasonOf(error: unknown): string {
  const sentences = [MachineError, StorageError, NetworkError, ImageError]
  return sentences.some((kind) => error instanceof kind)
    ? messageOf(error)
    : `It could not be started: ${messageOf(error)}`
}

function messageOf(error: unknown): string {
  if (error instanceof NetworkError && error.cause instanceof Error) return `${error.message}: ${error.cause.message}`
  return error instanceof Error ? error.message : String(error)
}

function oneLine(text: string): string {
  return text.replace(/[\x00-\x1f\x7f]+/g, ' ').slice(0, 500)
}
