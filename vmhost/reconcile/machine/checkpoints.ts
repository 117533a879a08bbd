import type { Logger } from 'pino'
import type { Draft } from '../../storage/checkpoints.ts'
import { StorageError } from '../../storage/errors.ts'
import { findMemory, forgetMemory, memoryBytes } from '../../storage/memory.ts'
import { spaceProblem } from '../../storage/space.ts'
import type { MachineFiles } from '../../storage/store.ts'
import type { CheckpointObservation, CheckpointRow } from '../checkpoint-rows.ts'
import { type Taken, takeDiskOfRunning, takeWithMemory } from '../checkpointing.ts'
import type { Guest } from '../guest.ts'
import { ownFiles } from '../ownership.ts'
import { findSource, isRestored, layRestored } from '../restoring.ts'
import type { MachineRow, RestoreWish } from '../rows.ts'
import { MachineError } from '../specification.ts'
import type { World } from '../world.ts'
import type { Life } from './life.ts'
import { messageOf, oneLine } from './reasons.ts'
import type { Sleep } from './sleep.ts'
import { type MachineState, offline } from './state.ts'

/**
 * A machine's checkpoints, and its becoming what one holds.
 *
 *     anything --checkpoint wanted--> as before (checkpointing.ts)
 *     anything, no guest after it --restore wanted--> the files of a checkpoint (restoring.ts), off or asleep
 */
export class MachineCheckpoints {
  readonly #state: MachineState
  readonly #life: Life
  readonly #sleep: Sleep
  readonly #world: World
  readonly #log: Logger

  constructor(state: MachineState, life: Life, sleep: Sleep) {
    this.#state = state
    this.#life = life
    this.#sleep = sleep
    this.#world = state.world
    this.#log = state.log
  }

  /** Takes the checkpoints that are wanted, as far as that can be done now, and removes those that are not. */
  async tend(row: MachineRow): Promise<void> {
    const { checkpoints, checkpointRows } = this.#world
    for (const wanted of await checkpointRows.workOf(this.#state.id)) {
      if (wanted.desiredState === 'gone') {
        await checkpoints.remove(wanted.id, wanted.token)
        await checkpointRows.report(wanted.id, { observedState: 'gone', observedHeldBytes: null })
      } else if (wanted.id !== row.restore?.keeps) await this.#checkpoint(row, wanted)
    }
  }

  /** @returns whether the turn may go on: nothing was changed that its row does not know yet */
  async restore(row: MachineRow, wish: RestoreWish): Promise<boolean> {
    const { checkpointRows, outbox, store, signal } = this.#world
    const directory = store.directoryOf(this.#state.id)
    let files: MachineFiles | undefined
    try {
      files = await ownFiles(store, row)
    } catch (error) {
      if (!(error instanceof MachineError)) throw error
      if (row.observedState !== 'failed') this.#state.fail(error.message, row.desiredBoot)
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
        if (this.#state.guest) await this.#life.stop(this.#state.guest)
        await this.#life.disconnect()
        await layRestored(row, wish, source, files, this.#world)
        diskBytes = source.diskBytes
      } catch (error) {
        signal.throwIfAborted()
        if (!(error instanceof StorageError || error instanceof MachineError)) throw error
        return this.#notRestored(row, wish, error.message, files)
      }
    }
    const made = await ownFiles(store, row)
    this.#state.saved = (await findMemory(directory)).saved
    await this.#state.forgetLoss()
    this.#sleep.forgetFailures()
    this.#state.observe({
      observedRestore: wish.number,
      observedRestoreProblem: null,
      observedDiskBytes: diskBytes,
      ...offline,
      ...(row.observedState === 'creating'
        ? {}
        : { observedState: this.#state.saved ? 'asleep' : 'stopped', observedReason: null }),
      ...(made?.record.settings ? { observedWebPort: made.record.settings.webPort } : {}),
    })
    this.#state.record('restored', { checkpoint: wish.from })
    this.#state.again = true
    await outbox.flushed(this.#state.id)
    await checkpointRows.endCopies()
    return false
  }

  /**
   * Takes a checkpoint; one that fails says why, and leaves the machine as it was.
   * @returns false: it cannot be taken yet
   */
  async #checkpoint(row: MachineRow, wanted: CheckpointRow): Promise<boolean> {
    const { checkpointRows, signal } = this.#world
    const guest = this.#state.guest
    // Its readiness, or its going on, brings another turn.
    if (guest && (!guest.ready || guest.standsStill)) return false
    const comesUp = row.desiredState === 'running' && row.observedState !== 'failed' && row.restore === null
    if (!guest && !this.#state.saved && comesUp) return false
    let outcome: CheckpointObservation
    try {
      const { seen, held } = await this.#taken(row, wanted)
      outcome = seen
      if (!wanted.forCopy) this.#state.record('checkpoint-taken', { checkpoint: wanted.id, ...held })
    } catch (error) {
      signal.throwIfAborted()
      this.#log.warn({ err: error, checkpoint: wanted.id }, 'a checkpoint could not be taken')
      outcome = { observedState: 'failed', observedReason: oneLine(messageOf(error)) }
    }
    await checkpointRows.report(wanted.id, outcome)
    return true
  }

  /** @returns what is reported of it, and for how long the machine was held up for it: null where it was not */
  async #taken(row: MachineRow, wanted: CheckpointRow): Promise<{ seen: CheckpointObservation; held: Held }> {
    const { checkpoints, store } = this.#world
    const guest = this.#state.guest
    const files = guest?.files ?? (await ownFiles(store, row))
    if (!files) throw new MachineError('It has no disk yet')
    // By whoever was cut off before it could be reported.
    let kept = await checkpoints.find(wanted.id, wanted.token)
    let held: Held = { stillMs: null, frozenMs: null, savingMs: null }
    if (!kept) {
      const problem = spaceProblem(await store.space())
      if (problem) throw new StorageError('storage.full', problem)
      const draft = await checkpoints.begin(wanted.id)
      try {
        if (guest) {
          const { stillMs, frozenMs, savingMs } = await this.#takeRunning(guest, draft, wanted.diskOnly)
          held = { stillMs, frozenMs, savingMs }
        } else {
          await draft.takeDisk(files.disk)
          if (this.#state.saved && !wanted.diskOnly) await draft.copyMemory(files.directory, this.#state.saved)
        }
        kept = await draft.keep(wanted.token, files)
      } catch (error) {
        await draft.drop()
        throw error
      }
    }
    const { saved } = kept
    const seen: CheckpointObservation = {
      observedState: 'kept',
      observedTakenAt: kept.takenAt,
      observedDiskBytes: kept.diskBytes,
      observedCpus: saved?.cpus ?? null,
      observedMemoryBytes: saved?.memoryBytes ?? null,
      observedSavedBytes: saved ? await memoryBytes(kept.directory) : null,
      // One for a copy is gone before anybody asks, and its copy waits.
      observedHeldBytes: wanted.forCopy ? null : await checkpoints.heldBytes(kept),
      observedStillMs: held.stillMs,
    }
    return { seen, held }
  }

  async #takeRunning(guest: Guest, draft: Draft, diskOnly: boolean): Promise<Taken> {
    const { sleeps, store, signal } = this.#world
    const { hypervisor, agent, files, boot } = guest
    if (diskOnly) return takeDiskOfRunning({ agent, files, log: this.#log }, draft)
    if (!this.#state.runsWith)
      throw new MachineError('It was started by an earlier version of Berth: restart it, or take its disk alone')
    using _place = await sleeps.acquire(signal)
    await this.#state.gettingUp
    guest.lying = true
    try {
      await this.#state.seeSize(hypervisor)
      const bed = { hypervisor, agent, files, space: () => store.space(), log: this.#log, signal }
      return await takeWithMemory(bed, draft, { ...this.#state.runsWith, boot })
    } finally {
      guest.lying = false
      if (!this.#state.ending) await guest.getsUp(() => forgetMemory(files.directory))
    }
  }

  /**
   * Keeps what it is now as a checkpoint, and ends it where it runs: nothing of it is lost then.
   * @returns false: that was begun, or must wait
   * @throws StorageError or MachineError when it cannot be kept; it is as it was then
   */
  async #keepBefore(row: MachineRow, wish: RestoreWish): Promise<boolean> {
    const { checkpointRows, store } = this.#world
    const wanted = wish.keeps === null ? undefined : await checkpointRows.one(wish.keeps)
    if (wanted?.observedState === 'failed')
      throw new MachineError(wanted.observedReason ?? 'What it is now could not be kept')
    if (wanted?.observedState !== 'waiting' || wanted.desiredState === 'gone') return true
    const guest = this.#state.guest
    // It has what it was doing again as soon as it is ready, which brings another turn.
    if (guest?.restored) return false
    if (guest?.standsStill) throw new MachineError(standsStill)
    // Before anything is ended for it.
    const full = spaceProblem(await store.space())
    if (full) throw new StorageError('storage.full', full)
    if (guest?.ready) {
      const problem = await this.#sleep.layDown(guest, (now) => now.restore?.number === wish.number)
      if (problem !== undefined) {
        await checkpointRows.report(wanted.id, { observedState: 'failed', observedReason: problem })
        throw new MachineError(problem)
      }
      if (!this.#state.saved) return false
    } else if (guest) await this.#life.stop(guest)
    await this.#life.disconnect()
    this.#state.again = true
    await this.#checkpoint(row, wanted)
    return false
  }

  /** It stays what it is. One that was to be made of the checkpoint is nothing, and fails. */
  #notRestored(row: MachineRow, wish: RestoreWish, problem: string, files: MachineFiles | undefined): boolean {
    this.#log.warn({ problem }, 'is not restored')
    if (!files) {
      this.#state.fail(problem, row.desiredBoot)
      return false
    }
    this.#state.observe({ observedRestore: wish.number, observedRestoreProblem: oneLine(problem) })
    this.#state.record('not-restored', { reason: oneLine(problem) })
    this.#state.again = true
    return false
  }
}

type Held = { readonly [name in 'stillMs' | 'frozenMs' | 'savingMs']: number | null }

const standsStill =
  'It stands still, as it says itself: restore it when it goes on, or stop it first, which ends all that it was doing'
