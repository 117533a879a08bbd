import { setTimeout as sleep } from 'node:timers/promises'
import type { Hypervisor } from '../../hypervisor/driver.ts'
import { unlessShort } from '../../storage/errors.ts'
import { type FoundMemory, findMemory, readLoss } from '../../storage/memory.ts'
import type { MachineFiles } from '../../storage/store.ts'
import { isOwn } from '../ownership.ts'
import type { MachineRow } from '../rows.ts'
import { getUp } from '../sleeping.ts'
import { networkOf, type RunsWith, readRunsWith } from '../starting.ts'
import type { Life } from './life.ts'
import type { Sleep } from './sleep.ts'
import type { MachineState } from './state.ts'

/**
 * Takes over what an earlier vmhost, which may have been killed at any step, has left of a machine.
 *
 *     hypervisor, memory/ whole        -> saved, and not ended yet, or restored, and not running yet: asleep
 *     hypervisor, memory.used/         -> it was restored and may not have been let run: goes on
 *     hypervisor, memory.new/          -> it was on its way to sleep: goes on
 *     hypervisor, of a template        -> as long as it is not ready, it may not have been let run: goes on
 *     hypervisor                       -> a guest
 *     no hypervisor, memory/ whole     -> asleep
 *     no hypervisor, any other memory  -> it has lost what it was doing
 *     hypervisor that does not answer  -> left as it is and tried again, until it does, has ended, or its end is asked for
 *
 * The last may be busy with its guest's memory, or stopped, and its guest has lost nothing by that. Nothing else is done
 * for the machine meanwhile: two of them must never have one disk.
 */
export class Adoption {
  readonly #state: MachineState
  readonly #life: Life
  readonly #sleep: Sleep
  readonly #leave = new AbortController()
  #attempts: Promise<void> | undefined
  /** what the attempts came to; its hypervisor, if there is one, answers */
  #found: { readonly hypervisor: Hypervisor | undefined } | undefined
  #hasFailed = false
  #isPending = false

  constructor(state: MachineState, life: Life, sleep: Sleep) {
    this.#state = state
    this.#life = life
    this.#sleep = sleep
  }

  /** Before the first turn. What does not answer by the time this returns is taken over in a turn. */
  async begin(): Promise<void> {
    const state = this.#state
    const { world, log } = state
    const seen = await this.#look()
    if (!seen) return
    const { runsWith, isOurs, memory } = seen
    this.#isPending = true
    // Its row may have become less, which is for its next start.
    this.#attempts = this.#untilFound(Math.max(state.row.memoryBytes, runsWith?.memoryBytes ?? 0))
    const over = new AbortController()
    const patience = sleep(patienceMs, undefined, { signal: over.signal, ref: false }).catch(() => {})
    await Promise.race([this.#attempts, patience])
    over.abort()
    if (world.signal.aborted) return
    if (this.#found) {
      await this.#takeOver(this.#found.hypervisor)
      return
    }
    const { address } = state.row
    if (isWorthless(isOurs, memory) || address === null) {
      // It would be ended as soon as it answers.
      await this.#end()
      return
    }
    log.warn('its hypervisor does not answer, which is tried again')
    state.isUnanswered = true
    // What it runs on is kept for it meanwhile.
    state.runsWith = runsWith
    state.network = networkOf({ id: state.id, address }, runsWith?.commandLine)
    state.observe({ observedReason: unanswered })
    void this.#attempts.then(() => state.poke())
  }

  /**
   * Within a turn.
   * @param row undefined: there is none any more
   * @returns whether it is known what there is of the machine; before that nothing may be done for it
   */
  async isOver(row: MachineRow | undefined): Promise<boolean> {
    if (!this.#isPending) return true
    if (row) this.#state.row = row
    if (this.#found) await this.#takeOver(this.#found.hypervisor)
    else if (await this.#isEndWanted(row)) await this.#end()
    return !this.#isPending
  }

  /** Lets go of it, whatever it is at. Once the world's signal has been given. */
  async close(): Promise<void> {
    await this.#attempts
    if (this.#isPending) this.#found?.hypervisor?.release()
  }

  async #untilFound(memoryBytes: number): Promise<void> {
    const state = this.#state
    const { driver, store } = state.world
    const directory = store.directoryOf(state.id)
    const signal = AbortSignal.any([this.#leave.signal, state.world.signal])
    for (let waitMs = againFirstMs; !signal.aborted; waitMs = Math.min(2 * waitMs, againMostMs)) {
      try {
        this.#found = { hypervisor: await driver.adopt(state.id, directory, memoryBytes, signal) }
        return
      } catch (error) {
        if (signal.aborted) return
        state.log.warn({ err: error }, 'the hypervisor cannot be adopted, which is tried again')
        this.#hasFailed = true
        // Somebody may have asked for its end, which it was given this time to answer.
        if (state.isUnanswered) void state.poke()
        await sleep(waitMs, undefined, { signal, ref: false }).catch(() => {})
      }
    }
  }

  /** Whoever asks for its end accepts that it ends as by a power cut, once it had the driver's time to answer. */
  async #isEndWanted(row: MachineRow | undefined): Promise<boolean> {
    if (row?.desiredState === 'gone' || row?.observedState === 'gone') return true
    if (!this.#hasFailed) return false
    if (!row || row.desiredState === 'stopped' || row.desiredState === 'trashed') return true
    if (row.desiredState === 'running' && row.desiredBoot > row.observedBoot) return true
    return (await this.#look())?.isOurs === false
  }

  async #end(): Promise<void> {
    const { world, id, log } = this.#state
    this.#leave.abort()
    await this.#attempts
    // It may have answered in this very moment.
    if (!this.#found) {
      log.warn('its hypervisor does not answer and is ended')
      await world.driver.destroy(id, world.store.directoryOf(id))
    }
    await this.#takeOver(this.#found?.hypervisor)
  }

  /**
   * Looks until it is known: a guest whose files cannot be looked at would be taken for one that has none, and ended.
   * @returns undefined when this vmhost ends
   */
  async #look(): Promise<Left | undefined> {
    const { world, log } = this.#state
    for (let waitMs = againFirstMs; !world.signal.aborted; waitMs = Math.min(2 * waitMs, againMostMs)) {
      try {
        return await this.#read()
      } catch (error) {
        log.warn({ err: error }, 'its files cannot be looked at, which is tried again')
        await sleep(waitMs, undefined, { signal: world.signal, ref: false }).catch(() => {})
      }
    }
    return undefined
  }

  async #read(): Promise<Left> {
    const { store } = this.#state.world
    const { id, row } = this.#state
    const directory = store.directoryOf(id)
    const runsWith = await readRunsWith(directory)
    const files = await store.findMachine(id).catch(unlessShort(() => undefined))
    if (!files || !isOwn(files, row)) return { runsWith, files, isOurs: false, memory: noMemory, lost: undefined }
    return { runsWith, files, isOurs: true, memory: await findMemory(directory), lost: await readLoss(directory) }
  }

  async #takeOver(hypervisor: Hypervisor | undefined): Promise<void> {
    const state = this.#state
    const { log } = state
    const seen = await this.#look()
    if (!seen) return
    const { runsWith, files, isOurs, memory, lost } = seen
    this.#isPending = false
    state.isUnanswered = false
    state.runsWith = undefined
    // Of a vmhost that was killed before it was told.
    if (isOurs) state.lost = lost
    // This one's, or that of a vmhost before.
    if (state.row.observedReason === unanswered) state.observe({ observedReason: null })
    const { address, observedBoot, observedState, isReady } = state.row
    if (!hypervisor) {
      await this.#sleep.findAsleep(memory)
      await this.#sleep.wantAgain().catch((error) => log.warn({ err: error }, 'whether it can wake again'))
      return
    }
    if (!files || address === null || isWorthless(isOurs, memory)) {
      // Saved, and not ended yet, or restored, and not running yet: the memory is the machine.
      await hypervisor.quit()
      await this.#sleep.findAsleep(memory)
      return
    }
    state.runsWith = runsWith
    await state.seeSize(hypervisor).catch((error) => log.warn({ err: error }, 'its size'))
    state.network = networkOf({ id: state.id, address }, state.runsWith?.commandLine)
    const ready = observedState === 'running' && isReady && !memory.used
    const guest = this.#life.attend({
      hypervisor,
      files,
      boot: observedBoot,
      ready,
      restored: memory.used,
      slot: undefined,
      ...(memory.used ? { onReady: () => this.#sleep.isAwake(hypervisor, files.directory) } : {}),
    })
    log.info({ pid: hypervisor.pid }, 'adopted')
    if (ready) await state.forgetLoss()
    const wasRestored = memory.used || (!ready && state.runsWith?.template !== undefined)
    if (wasRestored) await hypervisor.resume().catch((error) => log.warn({ err: error }, 'resume'))
    else if (memory.unfinished) {
      // It was on its way to sleep, and may stand still for no other reason.
      guest.lying = true
      await hypervisor.resume().catch((error) => log.warn({ err: error }, 'resume'))
      state.gettingUp = getUp({ hypervisor, agent: guest.agent, files, log })
        .catch((error) => log.warn({ err: error }, 'a guest that was found lying down'))
        .finally(() => {
          guest.lying = false
          guest.tellTime()
        })
    }
    await guest.catchUp()
  }
}

/** Whether a hypervisor has nothing that anybody could want: what it has, its machine goes on from without it. */
function isWorthless(isOurs: boolean, { saved, damaged }: FoundMemory): boolean {
  return !isOurs || saved !== undefined || damaged
}

/** What is there of a machine, beside its hypervisor. */
type Left = {
  readonly runsWith: RunsWith | undefined
  readonly files: MachineFiles | undefined
  readonly isOurs: boolean
  readonly memory: FoundMemory
  /** why it has lost what it was doing, if nobody was told yet */
  readonly lost: string | undefined
}

const noMemory: FoundMemory = { damaged: false, used: false, unfinished: false }
/** A vmhost that starts waits no longer for each of its machines. */
const patienceMs = 5_000
const againFirstMs = 250
const againMostMs = 10_000
const unanswered =
  'Its hypervisor does not answer, which is tried again: it may be busy. If it stays so, restart it: it boots from its disk, as after a power cut'
