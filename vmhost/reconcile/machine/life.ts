import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { type AgentChannel, ChannelError } from '../../guest/channel.ts'
import { type Hypervisor, HypervisorError, type MachineSize } from '../../hypervisor/driver.ts'
import { unlessShort } from '../../storage/errors.ts'
import type { DiskImage, MachineFiles } from '../../storage/store.ts'
import { type Ending, Guest, type GuestOwner, saidLast } from '../guest.ts'
import { obtainImage } from '../image.ts'
import { isOwn } from '../ownership.ts'
import { giveSize } from '../resizing.ts'
import { type MachineRow, notAsleep, type Observation } from '../rows.ts'
import { movedTo } from '../specification.ts'
import { bootFromDisk, goOnFromTemplate, type Started, type Starting } from '../starting.ts'
import type { World } from '../world.ts'
import { oneLine, reasonOf } from './reasons.ts'
import { type MachineState, offline } from './state.ts'

/**
 * How a guest comes up and comes to its end.
 *
 *     no guest --start--> guest, booted from its disk, or gone on from a template where it has no disk yet
 *     guest of a template --not ready, and ended or silent--> no guest, and booted from its disk
 *     guest --ended by itself--> no guest, and then:
 *         switched off when it was ready   -> desired and observed `stopped`
 *         its hypervisor gone              -> started again, a few times
 *         anything else                    -> `failed` with its reason, until another start is asked for
 *     guest --stop--> asked to switch itself off, with a limit --> no guest
 */
export class Life {
  readonly #state: MachineState
  readonly #world: World
  readonly #log: Logger
  #crashes: number[] = []
  /** its guest could not make use of a disk of this size */
  #refusedDiskBytes: number | undefined
  /** its guest was given of this size what can be given while it runs */
  #triedSize: MachineSize | undefined

  constructor(state: MachineState) {
    this.#state = state
    this.#world = state.world
    this.#log = state.log
  }

  async start(row: MachineRow): Promise<void> {
    const world = this.#world
    const boot = row.desiredBoot
    // A start of a machine that was there before is `running` that is not ready yet.
    const observedState = row.observedState === 'creating' ? 'creating' : 'running'
    const isWanted = (now: MachineRow) =>
      now.desiredState === 'running' && now.desiredBoot === this.#state.row.desiredBoot
    const obtained = await this.#image(row, observedState, isWanted)
    if (!obtained) return
    // The wait may be long, and nobody shall take the failure of the start before for this one's.
    if (world.slots.full) this.#state.observe({ observedState, observedReason: null, ...offline })
    const slot = await this.#state.slot(world.slots, isWanted)
    if (!slot) return
    try {
      this.#state.observe({
        observedState,
        observedStage: 'disk',
        observedBoot: boot,
        observedReason: null,
        observedReadyAt: null,
        observedStartedAt: null,
        ...notAsleep,
      })
      // Its disk is about to move on, and nothing may ever be restored beside it.
      await this.#state.dropMemory(row, 'restart')
      const started = await this.#begin(row, obtained.image)
      const { image } = obtained
      // Others may want the same, who need not boot for it.
      const onReady = () => image && !started.template && world.templates?.want(image, row)
      try {
        await this.run(started, { boot, restored: false, slot, onReady })
      } catch (error) {
        await started.hypervisor.kill()
        throw error
      }
    } catch (error) {
      slot[Symbol.dispose]()
      if (world.signal.aborted) throw error
      this.#log.warn({ err: error }, 'did not start')
      await this.disconnect().catch((again) => this.#log.warn({ err: again }, 'network'))
      const killed = error instanceof HypervisorError && error.code === 'hypervisor.gone'
      const givenUp = killed ? this.crashed() : undefined
      if (killed && givenUp === undefined) {
        this.#state.again = true
        return
      }
      this.#state.fail(givenUp ?? reasonOf(error), boot)
    }
  }

  /** It boots from its disk, or, where it has none yet, goes on from a template of what that is made from. */
  async #begin(row: MachineRow, image: DiskImage | undefined): Promise<Started> {
    const { templates, signal } = this.#world
    const template = image && (await templates?.find(image, row))
    if (template) {
      try {
        return await goOnFromTemplate(this.starting(row), image, template)
      } catch (error) {
        signal.throwIfAborted()
        // What is wrong with the machine and not with its template is said when it does not boot either.
        this.#log.warn({ err: error, template: template.id }, 'does not go on from its template, and boots')
        const distrusted = ['hypervisor.start', 'hypervisor.unreadable']
        if (error instanceof HypervisorError && distrusted.includes(error.code)) await templates?.distrust(template)
      }
    }
    return bootFromDisk(this.starting(row, image))
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
    if (row.hostKey !== null || (await world.store.findMachine(this.#state.id).catch(unlessShort(() => 'damaged'))))
      return { image: undefined }
    const observe = (seen: Observation) => this.#state.observe({ observedState, ...seen })
    try {
      const obtain = async (signal: AbortSignal) => ({ image: await obtainImage(row, world, signal, observe) })
      return await this.#state.whileWanted(obtain, isWanted, () => {})
    } catch (error) {
      if (world.signal.aborted) throw error
      this.#log.warn({ err: error, image: row.image }, 'its image cannot be had')
      this.#state.fail(reasonOf(error), row.desiredBoot)
      return undefined
    }
  }

  starting(row: MachineRow, image?: DiskImage): Starting {
    return {
      row,
      image,
      world: this.#world,
      observe: (seen) => this.#state.observe(seen),
      connecting: (network) => {
        this.#state.network = network
      },
    }
  }

  /** A hypervisor was started for it: whatever becomes of that is the guest's from here on. */
  async run(started: Started, as: Pick<Attended, 'boot' | 'restored' | 'slot' | 'onReady'>): Promise<void> {
    const { hypervisor, files, runsWith, startedAt, template } = started
    this.#state.runsWith = runsWith
    this.attend({ hypervisor, files, ready: false, ...as })
    if (as.restored || template) await hypervisor.resume().catch((error) => this.#log.warn({ err: error }, 'resume'))
    const { cpus, memoryBytes } = runsWith
    // A guest that boots makes its filesystem as large as its disk.
    const disk = as.restored ? {} : { observedDiskBytes: template?.diskBytes ?? this.#state.row.diskBytes }
    this.#state.observe({ observedStartedAt: startedAt, observedCpus: cpus, observedMemoryBytes: memoryBytes, ...disk })
    const how = as.restored ? 'restored' : template ? 'went on from a template' : 'started'
    this.#log.info({ pid: hypervisor.pid, boot: as.boot }, how)
  }

  /** Looks after a guest from here on. */
  attend({ onReady, ...started }: Attended): Guest {
    const state = this.#state
    const owner: GuestOwner = {
      get row() {
        return state.row
      },
      get lost() {
        const { lost } = state
        return lost === undefined ? undefined : `It lost its memory and was started from its disk: ${lost}`
      },
      ready: () => {
        void state.forgetLoss().catch((error: unknown) => this.#log.warn({ err: error }, 'what it had lost'))
        onReady?.()
        const { restore, hasCheckpointWork } = state.row
        if (state.isSleepWanted(state.row) || restore || hasCheckpointWork) void state.poke()
      },
      ended: (ending) => {
        state.ending ??= ending
        state.tellMeter()
        void state.poke()
      },
      observe: (seen) => state.observe(seen),
      record: (kind, detail) => state.record(kind, detail),
    }
    state.ending = undefined
    const moved = () => {
      const { address } = state.row
      const startedWith = state.runsWith?.commandLine
      if (address === null || startedWith === undefined) return undefined
      return movedTo({ ...state.row, address }, this.#world.guest, startedWith)
    }
    const { hypervisor, files, ready } = started
    const isFromTemplate = !ready && state.runsWith?.template !== undefined
    const prepare = (agent: AgentChannel) => this.#fillDisk(hypervisor, agent, files.diskBytes)
    const goesOn = isFromTemplate ? { prepare } : {}
    const guest = new Guest({ ...started, ...goesOn, owner, moved, world: this.#world, log: this.#log })
    state.guest = guest
    state.tellMeter()
    return guest
  }

  /** A guest of a template has that one's filesystem, and gets its own size before anybody sees it. */
  async #fillDisk(hypervisor: Hypervisor, agent: AgentChannel, diskBytes: number): Promise<void> {
    await hypervisor.diskGrown(diskBytes)
    // Its kernel hears of the new size some time after it goes on.
    for (const deadline = performance.now() + hearsOfDiskMs; ; await sleep(lookAgainMs)) {
      const { sizeBytes } = await agent.grow({ timeoutMs: growLimitMs })
      if (diskBytes - sizeBytes < roundedBytes) break
      if (performance.now() > deadline) throw new Error(`its filesystem has ${sizeBytes} of ${diskBytes} bytes`)
    }
    this.#state.observe({ observedDiskBytes: diskBytes })
  }

  /** While it runs: its disk, then what its guest knows of it, then its filesystem. Each may have been done before. */
  async growDisk(row: MachineRow, guest: Guest): Promise<void> {
    if (this.#refusedDiskBytes === row.diskBytes) return
    const diskBytes = await this.#world.store.growDisk(this.#state.id, row.diskBytes)
    await guest.hypervisor.diskGrown(diskBytes)
    try {
      await guest.agent.grow({ timeoutMs: growLimitMs })
    } catch (error) {
      if (!(error instanceof ChannelError) || error.code !== 'agent.refused') throw error
      this.#refusedDiskBytes = row.diskBytes
      this.#state.observe({
        observedReason: oneLine(`Its disk has grown, and its filesystem has not: ${error.message}`),
      })
      return
    }
    this.#state.observe({ observedDiskBytes: diskBytes, observedReason: null })
    this.#log.info({ diskBytes }, 'its disk has grown')
  }

  /** What can be given while it runs; the rest waits for its next start. What came of it is told, whatever it was. */
  async resize({ cpus, memoryBytes }: MachineRow, { hypervisor, agent, files }: Guest): Promise<void> {
    const had = this.#state.runsWith
    const isWanted = (size: MachineSize | undefined) => size?.cpus === cpus && size.memoryBytes === memoryBytes
    if (!had || isWanted(this.#triedSize)) return
    // What it was given before, its kernel may not have heard of: the vmhost that gave it was cut off.
    if (isWanted(had) && had.startedCpus === undefined) return
    const limitMs = onlineLimitMs[this.#world.driver.accelerator]
    const resizing = { hypervisor, agent, directory: files.directory, limitMs, log: this.#log }
    const has = await giveSize(resizing, had, { cpus, memoryBytes })
    this.#state.runsWith = has
    this.#triedSize = { cpus, memoryBytes }
    this.#state.observe({
      observedCpus: has.cpus,
      observedMemoryBytes: has.memoryBytes,
      observedResizeCpus: cpus,
      observedResizeMemoryBytes: memoryBytes,
    })
  }

  /** The guest or its hypervisor came to an end that nobody here asked for. */
  async bury(ending: Ending): Promise<void> {
    const guest = this.#state.guest
    this.#state.again = true
    if (!guest) {
      this.#state.ending = undefined
      return
    }
    const { boot, ready, restored, fatal, panic, lastLine, isUnproved, isSilent } = guest
    const { template } = this.#state.runsWith ?? {}
    await this.endGuest(guest, 'quit')
    if (this.#state.isSleepWanted(this.#state.row)) {
      await this.#state.lose('it ended before it slept')
      return
    }
    // Something else is wanted already: the end came handy.
    if (this.#state.row.desiredState !== 'running' || this.#state.row.desiredBoot > boot) return
    if (restored && ending.kind !== 'off') {
      const why = { gone: 'its hypervisor ended while it woke', panicked: 'its kernel panicked while it woke' }
      await this.#state.lose(ending.kind === 'failed' ? ending.reason : why[ending.kind])
      return
    }
    if (isUnproved && template !== undefined && ending.kind !== 'gone') {
      this.#log.warn({ template, ending, fatal, panic }, 'did not come up from its template, and boots from its disk')
      // What comes to its end later may have its own reasons, which it will have again.
      if (isSilent || ending.kind === 'panicked') await this.#world.templates?.distrust({ id: template })
      return
    }
    if (ending.kind === 'gone') {
      const tooOften = this.crashed()
      if (tooOften === undefined) {
        this.#log.warn({ times: this.#crashes.length }, 'the hypervisor is gone; the machine is started again')
        return
      }
      this.#state.fail(tooOften, boot)
    } else if (fatal !== undefined) this.#state.fail(fatal, boot)
    else if (ending.kind === 'failed') this.#state.fail(ending.reason, boot)
    else if (ending.kind === 'panicked') this.#state.fail(`Its kernel panicked${panic ? `: ${panic}` : ''}`, boot)
    else if (!ready && !restored) this.#state.fail(`It switched itself off while it booted${saidLast(lastLine)}`, boot)
    else {
      this.#state.observe({
        observedState: 'stopped',
        observedReason: 'It was switched off from inside',
        switchedOffBoot: boot,
        ...offline,
      })
      this.#state.record('stopped', { by: 'guest' })
    }
    await this.disconnect()
  }

  /** Counts a hypervisor that somebody else ended. @returns a reason to give up, when it happens too often */
  crashed(): string | undefined {
    const now = Date.now()
    this.#crashes = [...this.#crashes.filter((at) => now - at < crashWindowMs), now]
    const times = this.#crashes.length
    this.#state.record('hypervisor-lost', { times })
    if (times <= crashesMost) return undefined
    this.#crashes = []
    return `Its hypervisor was ended ${times} times within ${crashWindowMs / 60_000} minutes`
  }

  /** Stops the guest in order, with a limit; one that cannot be asked yet, still booting, is simply ended. */
  async stop(guest: Guest): Promise<void> {
    if (!this.#state.ending && (await guest.askPowerOff(powerOffLimitMs))) await this.#untilOff(guest)
    await this.endGuest(guest, 'quit')
  }

  /** Waits for a guest that was asked to go; not when it shall be gone for good: nobody wants what it would sync. */
  async #untilOff(guest: Guest): Promise<void> {
    const deadline = Date.now() + stopLimitMs
    while (Date.now() < deadline) {
      const over = new AbortController()
      const interrupted = AbortSignal.any([this.#state.interrupt.signal, this.#world.signal, over.signal])
      const waited = sleep(deadline - Date.now(), 'late', { signal: interrupted, ref: false }).catch(
        () => 'interrupted',
      )
      const outcome = await Promise.race([guest.off.then(() => 'off'), waited])
      over.abort()
      if (outcome !== 'interrupted') return
      this.#world.signal.throwIfAborted()
      this.#state.interrupt = new AbortController()
      const row = await this.#world.rows.one(this.#state.id).catch(() => this.#state.row)
      if (row && (row.desiredState === 'gone' || !isOwn(guest.files, row))) return
    }
  }

  async endGuest(guest: Guest, how: 'quit' | 'kill'): Promise<void> {
    await guest.end(how)
    this.#state.guest = undefined
    this.#state.ending = undefined
    this.#state.runsWith = undefined
    this.#state.tellMeter()
    this.#refusedDiskBytes = undefined
    this.#triedSize = undefined
  }

  async disconnect(): Promise<void> {
    if (!this.#state.network) return
    await this.#world.network.removeMachine(this.#state.id)
    this.#state.network = undefined
  }
}

type Attended = {
  readonly hypervisor: Hypervisor
  readonly files: MachineFiles
  readonly boot: number
  /** adopted, and said to be ready by the vmhost before */
  readonly ready: boolean
  /** it goes on from its memory */
  readonly restored: boolean
  /** its place among the machines that come up */
  readonly slot: Disposable | undefined
  readonly onReady?: () => unknown
}

const powerOffLimitMs = 20_000
/** The agent ends what does not stop by itself after its limit; somewhat later nothing comes any more. */
const stopLimitMs = powerOffLimitMs + 8_000
/** A filesystem of a TiB under emulation. */
const growLimitMs = 120_000
/** Until a kernel has seen its new processors, and has started them. */
const onlineLimitMs = { kvm: 10_000, tcg: 60_000 }
const hearsOfDiskMs = 5_000
const lookAgainMs = 20
/** The largest block that ext4 has. */
const roundedBytes = 65_536
/** A hypervisor that is ended by somebody else is started again this often within the time, then it is a failure. */
const crashesMost = 3
const crashWindowMs = 600_000
