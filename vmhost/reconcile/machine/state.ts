import type { Logger } from 'pino'
import type { Hypervisor } from '../../hypervisor/driver.ts'
import type { MachineNetwork } from '../../network/types.ts'
import { forgetLoss, forgetMemory, noteLoss, type SavedMemory } from '../../storage/memory.ts'
import type { Ending, Guest } from '../guest.ts'
import { isTaken } from '../ownership.ts'
import { type MachineRow, notAsleep, type Observation } from '../rows.ts'
import type { Slots } from '../slots.ts'
import { grownTo, type RunsWith } from '../starting.ts'
import type { World } from '../world.ts'
import { oneLine } from './reasons.ts'
import { standingOf } from './standing.ts'

/**
 * One machine as this vmhost has it: what its row wants, what there is of it, and what is told of it. Its turns are
 * machine.ts's; what is done in them, life.ts, sleep.ts and checkpoints.ts do, one at a time, and this is what they share.
 */
export class MachineState {
  readonly id: number
  readonly world: World
  readonly log: Logger
  /** Asks for another turn. */
  readonly poke: () => Promise<void>
  row: MachineRow
  /** its state as it was reported last */
  said: MachineRow['observedState']
  guest: Guest | undefined
  /** its guest came to an end that nobody here asked for */
  ending: Ending | undefined
  network: MachineNetwork | undefined
  /** what its guest runs with, where it is known */
  runsWith: RunsWith | undefined
  /** its hypervisor is there, and has not answered this vmhost yet */
  isUnanswered = false
  /** it sleeps, and this is what it goes on from */
  saved: SavedMemory | undefined
  /** why it has lost what it was doing; said when it is ready, or asleep */
  lost: string | undefined
  /** the last of a wake, or of a sleep that was cut off: the next sleep waits for it */
  gettingUp: Promise<void> | undefined
  /** it has just woken, and has not got back yet what it gave before it slept */
  isTakingBack = false
  isServerGoingDown = false
  /** another turn is wanted */
  again = false
  /** ends a wait for a slot, or for an orderly stop, when the row changed meanwhile */
  interrupt = new AbortController()
  /** its reason is a step that failed, which the next one that does not takes away */
  saysTrouble = false
  over = false

  constructor(row: MachineRow, world: World, poke: () => Promise<void>) {
    this.id = row.id
    this.row = row
    this.said = row.observedState
    this.world = world
    this.log = world.log.child({ machine: row.id })
    this.poke = poke
  }

  /** Brings what its guest runs with up to what its hypervisor says: whoever gave it more may not have noted it. */
  async seeSize(hypervisor: Pick<Hypervisor, 'size'>): Promise<void> {
    if (this.runsWith) this.runsWith = grownTo(this.runsWith, await hypervisor.size())
  }

  isSleepWanted({ desiredState }: MachineRow): boolean {
    return ['asleep', 'paused', ...(this.isServerGoingDown ? ['running'] : [])].includes(desiredState)
  }

  /**
   * Waits for a place among the machines that come up, or lie down, and keeps its place in the queue whatever news come.
   * @returns undefined when that is not wanted any more
   */
  slot(slots: Slots, isWanted: (row: MachineRow) => boolean): Promise<Disposable | undefined> {
    const giveBack = (given: Disposable) => given[Symbol.dispose]()
    return this.whileWanted((signal) => slots.acquire(signal), isWanted, giveBack)
  }

  /**
   * Waits for something, whatever news come, as long as it is wanted.
   * @param giveBack what came when it was not wanted any more
   * @returns undefined when it is not wanted any more
   */
  async whileWanted<T extends object>(
    begin: (signal: AbortSignal) => Promise<T>,
    isWanted: (row: MachineRow) => boolean,
    giveBack: (given: T) => void,
  ): Promise<T | undefined> {
    const leave = new AbortController()
    const awaited = begin(AbortSignal.any([leave.signal, this.world.signal]))
    awaited.catch(() => {})
    for (;;) {
      const { signal } = this.interrupt
      const news = Promise.withResolvers<undefined>()
      const onAbort = () => news.resolve(undefined)
      if (signal.aborted) onAbort()
      else signal.addEventListener('abort', onAbort, { once: true })
      const given = await Promise.race([awaited, news.promise]).finally(() =>
        signal.removeEventListener('abort', onAbort),
      )
      if (given) return given
      this.interrupt = new AbortController()
      const row = await this.world.rows.one(this.id).catch(() => this.row)
      if (row && isWanted(row)) continue
      leave.abort()
      // It may have been given in this very moment.
      awaited.then(giveBack).catch(() => {})
      this.again = true
      return undefined
    }
  }

  /** It goes on without what it slept with, because something else was asked for. */
  async dropMemory(row: MachineRow, because: string): Promise<void> {
    const { store } = this.world
    if (this.saved) this.record('memory-dropped', { because })
    this.saved = undefined
    if (!(await isTaken(store, row))) await forgetMemory(store.directoryOf(this.id))
  }

  /** It has lost what it was doing, which is noted until it was told: this vmhost may not live to do that. */
  async lose(why: string): Promise<void> {
    this.lost = oneLine(why)
    this.log.warn({ why }, 'its memory is lost')
    this.record('memory-lost', { reason: oneLine(why) })
    await noteLoss(this.world.store.directoryOf(this.id), oneLine(why)).catch((error: unknown) =>
      this.log.warn({ err: error }, 'what it lost cannot be noted'),
    )
  }

  /** Whoever it concerns was told, or is interested in something else. */
  async forgetLoss(): Promise<void> {
    if (this.lost === undefined) return
    this.lost = undefined
    await this.world.outbox.flushed(this.id)
    await forgetLoss(this.world.store.directoryOf(this.id))
  }

  fail(reason: string, boot: number): void {
    const text = oneLine(reason)
    this.log.warn({ reason: text }, 'failed')
    this.observe({ observedState: 'failed', observedReason: text, observedBoot: boot, ...offline })
    this.record('failed', { reason: text })
  }

  observe(seen: Observation): void {
    if (seen.observedReason !== undefined) this.saysTrouble = false
    this.world.outbox.report(this.id, seen)
    this.said = seen.observedState ?? this.said
    this.tellMeter()
  }

  /** How it stands may have changed: to the meter it makes no difference how often it hears the same. */
  tellMeter(): void {
    this.world.meter.note(this.id, standingOf(this))
  }

  record(kind: string, detail: Readonly<Record<string, unknown>> = {}): void {
    const { id: machineId, name: machineName, accountId } = this.row
    this.world.outbox.record({ machineId, machineName, accountId, kind: `machine.${kind}`, detail })
  }
}

/** What is reported of a machine of which nothing runs. */
export const offline = {
  observedStage: 'waiting',
  observedReadyAt: null,
  observedStartedAt: null,
  observedCpus: null,
  observedMemoryBytes: null,
  observedResizeCpus: null,
  observedResizeMemoryBytes: null,
  observedAwakeBecause: null,
  observedIdleSince: null,
  ...notAsleep,
} as const
