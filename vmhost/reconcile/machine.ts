import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { Seat } from '../memory/keeper.ts'
import type { LoadSource } from '../meter/load-sampler.ts'
import type { MachineNetwork } from '../network/types.ts'
import type { Load } from './idleness.ts'
import { Adoption } from './machine/adopt.ts'
import { MachineCheckpoints } from './machine/checkpoints.ts'
import { Life } from './machine/life.ts'
import { messageOf, oneLine } from './machine/reasons.ts'
import { Sleep } from './machine/sleep.ts'
import { standingOf } from './machine/standing.ts'
import { MachineState, offline } from './machine/state.ts'
import { isOwn, isTaken } from './ownership.ts'
import { type MachineRow, notAsleep } from './rows.ts'
import type { World } from './world.ts'

/**
 * One machine on its way from what it is to what is wanted.
 *
 * A turn compares the row (wanted) with the guest (actual) and takes the steps between them; turns never overlap,
 * and whatever happens meanwhile (a row changed, the guest switched itself off, a limit ran out) only asks for
 * another one. A step that is cut off by kill -9 leaves a state that the next vmhost's first turn starts from
 * (machine/adopt.ts).
 *
 *     a hypervisor that does not answer yet: nothing, until it does or its end is asked for   machine/adopt.ts
 *     no guest --wanted running--> guest                                        machine/life.ts
 *     guest --ended by itself--> no guest, or once more                         machine/life.ts
 *     guest --another state or boot wanted--> stopped in order, then whatever is wanted
 *     guest, ready --sleep wanted--> memory --wanted running--> guest           machine/sleep.ts
 *     memory --another boot, stop or trash wanted, or it cannot be restored--> no guest: only its processes are lost
 *     anything, no guest after it --restore wanted--> the files of a checkpoint machine/checkpoints.ts
 *     anything --checkpoint wanted--> as before                                 machine/checkpoints.ts
 *     anything --gone--> nothing left, and only then name and address given back
 *     anything --no row any more--> stopped in order, its files kept
 */
export class Machine {
  readonly id: number
  readonly #state: MachineState
  readonly #life: Life
  readonly #sleep: Sleep
  readonly #checkpoints: MachineCheckpoints
  readonly #adoption: Adoption
  readonly #world: World
  readonly #log: Logger
  #turn: Promise<void> | undefined

  constructor(row: MachineRow, world: World) {
    this.id = row.id
    this.#state = new MachineState(row, world, () => this.poke())
    this.#world = world
    this.#log = this.#state.log
    this.#life = new Life(this.#state)
    this.#sleep = new Sleep(this.#state, this.#life)
    this.#checkpoints = new MachineCheckpoints(this.#state, this.#life, this.#sleep)
    this.#adoption = new Adoption(this.#state, this.#life, this.#sleep)
  }

  get row(): MachineRow {
    return this.#state.row
  }

  /** Nothing is to be done for it here any more: it is gone for good, or no row of this server is about it. */
  get over(): boolean {
    return this.#state.over
  }

  get pid(): number | undefined {
    return this.#state.guest?.hypervisor.pid
  }

  /** What the host's network must have for it now; undefined: nothing. */
  get network(): MachineNetwork | undefined {
    return this.#state.network
  }

  /** Its guest, where memory may be taken from it and given to it. */
  get seat(): Seat | undefined {
    const { guest, runsWith, isTakingBack } = this.#state
    if (!guest?.givesMemory || !runsWith || isTakingBack) return undefined
    const { hypervisor, agent } = guest
    const { memoryBytes } = runsWith
    return { id: this.id, pid: hypervisor.pid, memoryBytes, hypervisor, report: (options) => agent.report(options) }
  }

  /** What its plots are made of. @param balloonBytes that it has given back */
  loadSource(balloonBytes: number): LoadSource | undefined {
    const standing = standingOf(this.#state)
    if (!standing) return undefined
    const { state, cpus, memoryBytes, pid } = standing
    const { guest } = this.#state
    if (pid === undefined || !guest) {
      return { id: this.id, state: state === 'between' || state === 'creating' ? undefined : state }
    }
    const { lastReport: said, hypervisor } = guest
    const figures = said && {
      memoryUsedBytes: Math.max(0, said.memoryTotalBytes - said.memoryAvailableBytes - balloonBytes),
      filesystemUsedBytes: Math.max(0, said.diskTotalBytes - said.diskFreeBytes),
      filesystemBytes: said.diskTotalBytes,
    }
    return { id: this.id, state: 'running', runs: { pid, cpus, memoryBytes, guest: figures, hypervisor } }
  }

  /** Hash of the boot set that it runs, or sleeps, with. */
  get bootSet(): string | undefined {
    return (this.#state.runsWith ?? this.#state.saved)?.bootSet
  }

  /** What its guest did lately; undefined while none is ready. */
  get load(): Load | undefined {
    return this.#state.guest?.ready ? this.#state.guest.load : undefined
  }

  /** Nothing is to be done for it that its row, as it is now, did not ask for at its last turn. */
  isAtRest(row: MachineRow): boolean {
    if (this.#state.guest || this.#turn || this.#state.network || row.restore || row.hasCheckpointWork) return false
    const { desiredState, desiredBoot, observedState } = this.#state.row
    const isSame =
      row.desiredState === desiredState && row.desiredBoot === desiredBoot && row.observedState === observedState
    return isSame && row.token === this.#state.row.token && atRest[row.desiredState] === row.observedState
  }

  /** Looks again: the row may have changed. @returns when there is nothing left to do for now */
  poke(): Promise<void> {
    this.#state.again = true
    this.#state.interrupt.abort()
    this.#turn ??= this.#turns().finally(() => {
      this.#turn = undefined
    })
    return this.#turn
  }

  /** The account's keys, or the gateway's, have changed. */
  async keysChanged(): Promise<void> {
    await this.#state.guest?.updateKeys()
  }

  /** The server's disk is nearly full. */
  async standStill(): Promise<void> {
    await this.#state.guest?.standStill()
  }

  /**
   * The server goes down: whatever runs sleeps, and wakes with the next vmhost, since it is wanted running all the while.
   * Resolves when it sleeps, or cannot.
   */
  async sleepThroughShutdown(): Promise<void> {
    this.#state.isServerGoingDown = true
    await this.poke()
  }

  /**
   * Takes over the hypervisor that an earlier vmhost started, if there is one: before the first turn, or, when it does
   * not answer soon, in the turn after it has.
   */
  async adopt(): Promise<void> {
    await this.#adoption.begin()
    this.#state.tellMeter()
  }

  /** Lets go: the machine runs on, whatever waits stops waiting. Once the world's signal has been given. */
  async release(): Promise<void> {
    this.#state.interrupt.abort()
    this.#sleep.close()
    await this.#turn?.catch(() => {})
    await this.#adoption.close()
    await this.#state.guest?.release()
  }

  async #turns(): Promise<void> {
    const state = this.#state
    for (let waitMs = retryFirstMs; state.again && !state.over && !this.#world.signal.aborted; ) {
      state.again = false
      state.interrupt = new AbortController()
      let row: MachineRow | undefined
      try {
        // The row must not be older than what was reported: a failure that is still on its way would be started again.
        await this.#world.outbox.flushed(this.id)
        row = await this.#world.rows.one(this.id)
        await this.#step(row)
        waitMs = retryFirstMs
        if (state.saysTrouble) state.observe({ observedReason: null })
      } catch (error) {
        if (this.#world.signal.aborted) return
        if (state.interrupt.signal.aborted && (error as Error).name === 'AbortError') continue
        this.#log.error({ err: error }, 'a step failed and is tried again')
        state.again = true
        // Without a row the database is away, which is nothing of this machine's; and one that has failed has its reason.
        if (row && row.observedState !== 'failed') {
          state.observe({
            observedReason: oneLine(`What is to be done with it fails and is tried again: ${messageOf(error)}`),
          })
          state.saysTrouble = true
        }
        await sleep(waitMs, undefined, { signal: this.#world.signal, ref: false }).catch(() => {})
        waitMs = Math.min(waitMs * 2, retryMostMs)
      }
    }
  }

  async #step(row: MachineRow | undefined): Promise<void> {
    const state = this.#state
    if (!(await this.#adoption.isOver(row))) return
    if (!row) {
      await this.#leave()
      return
    }
    if (state.guest && !isOwn(state.guest.files, row)) {
      // An older database came back, and another machine has its number: nothing of this one may be told under it.
      this.#log.warn('its row is another machine by now: it is ended, and its files are kept')
      await this.#life.endGuest(state.guest, 'quit')
      await this.#life.disconnect()
    }
    state.row = row
    state.tellMeter()
    if (row.observedState === 'gone') {
      await this.#vanish(row)
      return
    }
    if (state.ending) {
      await this.#life.bury(state.ending)
      return
    }
    if (row.hasCheckpointWork) await this.#checkpoints.tend(row)
    const { restore, desiredState } = row
    const isLeaving = state.isServerGoingDown || desiredState === 'trashed' || desiredState === 'gone'
    if (restore && !isLeaving && !(await this.#checkpoints.restore(row, restore))) return
    switch (row.desiredState) {
      case 'running':
        if (state.isServerGoingDown) {
          if (state.guest) await this.#sleep.towardsAsleep(row)
        } else await this.#towardsRunning(row)
        return
      case 'asleep':
      case 'paused':
        await this.#sleep.towardsAsleep(row)
        return
      case 'stopped':
      case 'trashed':
        if (state.guest) await this.#life.stop(state.guest)
        await this.#life.disconnect()
        await state.dropMemory(row, row.desiredState)
        await state.forgetLoss()
        if (row.observedState !== row.desiredState) {
          // It took its time to stop, and may be wanted back by now: then it was never in the trash.
          if ((await this.#world.rows.one(this.id))?.desiredState !== row.desiredState) {
            state.observe(offline)
            state.again = true
            return
          }
          state.observe({ observedState: row.desiredState, observedReason: null, ...offline })
          state.record(row.desiredState)
        }
        return
      case 'gone':
        // A copy of it was promised already, and is there in a moment; its own news bring another turn.
        if (!state.guest?.standsStill && (await this.#world.checkpointRows.areAwaited(this.id))) return
        await this.#vanish(row)
        return
    }
  }

  async #towardsRunning(row: MachineRow): Promise<void> {
    const { guest, saved } = this.#state
    this.#sleep.forgetFailures()
    if (!guest) {
      if (row.observedState === 'failed' && row.desiredBoot <= row.observedBoot) return
      if (saved && row.desiredBoot <= saved.boot) await this.#sleep.wake(row, saved)
      else await this.#life.start(row)
      return
    }
    if (row.desiredBoot > guest.boot) {
      await this.#life.stop(guest)
      this.#state.again = true
      return
    }
    // Adopted, and reported as something else by a vmhost that was ended half way.
    if (guest.ready && row.observedState !== 'running') guest.sayReady()
    // It was to be put to sleep, and is wanted after all.
    else if (guest.ready && row.asleepBecause !== null) this.#state.observe(notAsleep)
    guest.updateIdentity()
    if (guest.givesMemory && row.diskBytes > (row.observedDiskBytes ?? 0)) await this.#life.growDisk(row, guest)
    if (guest.givesMemory) await this.#life.resize(row, guest)
  }

  /** Takes everything of the machine away; its name and address only when nothing of it is left. */
  async #vanish(row: MachineRow): Promise<void> {
    const { store, driver, rows, network, checkpoints, checkpointRows } = this.#world
    if (this.#state.guest) await this.#life.endGuest(this.#state.guest, 'kill')
    await driver.destroy(this.#state.id, store.directoryOf(this.id))
    await network.removeMachine(this.id)
    this.#state.network = undefined
    if (!(await isTaken(store, row))) await store.removeMachine(this.id)
    for (const { id, token } of await checkpointRows.endAllOf(this.id)) {
      await checkpoints.remove(id, token)
      await checkpointRows.report(id, { observedState: 'gone', observedHeldBytes: null })
    }
    await rows.finishGone(this.id)
    if (row.restore) await checkpointRows.endCopies()
    this.#state.record('gone')
    this.#state.over = true
    this.#state.tellMeter()
  }

  /**
   * Ends what runs of a machine without a row, and keeps its files: an older database may have been restored, or
   * the machine be another server's now. Only a row that says `gone` takes a disk away.
   */
  async #leave(): Promise<void> {
    this.#log.warn('no row is about this machine any more: it is ended, and its files are kept')
    if (this.#state.guest) await this.#life.stop(this.#state.guest)
    await this.#life.disconnect()
    this.#state.over = true
    this.#state.tellMeter()
  }
}

const retryFirstMs = 500
const retryMostMs = 30_000

/** What a machine of which nothing runs is when nothing is to be done for it. */
const atRest: Partial<Record<MachineRow['desiredState'], MachineRow['observedState']>> = {
  stopped: 'stopped',
  trashed: 'trashed',
  asleep: 'asleep',
  paused: 'asleep',
}
