import type { Logger } from 'pino'
import { type AgentChannel, ChannelError, connectAgent } from '../guest/channel.ts'
import { type AgentEvent, type BootStage, bootStages, type MachineReport } from '../guest/messages.ts'
import type { Hypervisor, HypervisorEvent } from '../hypervisor/driver.ts'
import { spaceProblem } from '../storage/space.ts'
import type { MachineFiles } from '../storage/store.ts'
import { ConsoleReader } from './console.ts'
import { publicPart } from './identity.ts'
import { Load } from './idleness.ts'
import { Introduction, type IntroductionOptions } from './introduction.ts'
import { toStoredReport } from './report.ts'
import { type MachineRow, notAsleep, type Observation } from './rows.ts'
import { keepPlace, settle } from './settling.ts'
import { thawLimitMs } from './sleeping.ts'
import { Standstill } from './standstill.ts'
import type { World } from './world.ts'

/**
 * A guest that runs: its hypervisor, its agent, its console.
 *
 *     booting --agent's hello--> introduced (it knows who it is) --sshd listens--> ready
 *     booting, introduced, ready --the guest resets, or a hello from one that knows nothing--> booting
 *     gone on from a template --agent's hello--> prepared, then as one that boots
 *     restored --agent's hello--> thawed, introduced, whatever it knew --> ready
 *     booting, introduced, restored --no stage passed within the limit--> ended, failed
 *     any --guest off | panic | hypervisor gone--> ended
 *     any --disk I/O failed on the host, or soon would--> stands still --space again--> as before
 *
 * A ready one may be lying down (sleeping.ts): then only whoever has it lie down makes it stand still or go on.
 *
 * It reports readiness and reasons by itself; that it has ended it tells its owner, once, and what becomes of the
 * machine then is the owner's decision.
 */
export class Guest {
  readonly hypervisor: Hypervisor
  readonly files: MachineFiles
  readonly boot: number
  /** Resolves when the guest is off, or is beyond that: panicked, its process gone. */
  readonly off: Promise<void>
  /** what it did lately */
  readonly load = new Load()
  readonly #owner: GuestOwner
  readonly #world: GuestWorld
  readonly #log: Logger
  readonly #channel: AgentChannel
  readonly #console: ConsoleReader
  readonly #introduction: Introduction
  readonly #standstill: Standstill
  readonly #slot: Disposable | undefined
  readonly #bootLimitMs: number
  readonly #off = Promise.withResolvers<void>()
  #ready: boolean
  #restored: boolean
  /** undefined, too, once it was ready, or booted by itself */
  #prepare: ((agent: AgentChannel) => Promise<void>) | undefined
  #isLying = false
  /** what is to be done before it may go on, where it did not get up */
  #leavesBed: (() => Promise<void>) | undefined
  #stage: BootStage | undefined
  /** it was reported that its sshd is awaited, in this boot */
  #saidSsh = false
  /** index of the furthest stage since it was last ready: only what goes beyond it is progress, however often it boots */
  #furthest = -1
  #fatal: string | undefined
  #limit: NodeJS.Timeout | undefined
  #reports: NodeJS.Timeout | undefined
  #lastReport: { readonly report: MachineReport; readonly atMs: number } | undefined
  #over = false

  constructor(options: {
    hypervisor: Hypervisor
    files: MachineFiles
    boot: number
    /** adopted, and said to be ready by the vmhost before */
    ready: boolean
    /** it was restored from its memory, and knows neither what time it is nor that it was away */
    restored?: boolean
    /** it goes on from a template, and this is done before it is told who it is */
    prepare?: (agent: AgentChannel) => Promise<void>
    /** tests: the time for each stage of the boot */
    bootLimitMs?: number
    /** its place among the machines that boot; given back when it is ready or over */
    slot: Disposable | undefined
    owner: GuestOwner
    /** see introduction.ts */
    moved?: IntroductionOptions['moved']
    world: GuestWorld
    log: Logger
  }) {
    const { hypervisor, files, boot, world, log } = options
    this.hypervisor = hypervisor
    this.files = files
    this.boot = boot
    this.off = this.#off.promise
    this.#owner = options.owner
    this.#world = world
    this.#log = log
    this.#slot = options.slot
    this.#bootLimitMs = options.bootLimitMs ?? bootLimitMs[world.driver.accelerator]
    this.#ready = options.ready
    this.#restored = options.restored ?? false
    this.#prepare = options.prepare
    this.#console = new ConsoleReader({
      machineId: hypervisor.machineId,
      directory: files.directory,
      fifo: hypervisor.consolePath,
      boot,
      rows: world.rows,
      log,
      onPanic: () => this.#onPanicText(),
    })
    const { socketPath, ...at } = hypervisor.agent
    this.#channel = connectAgent(socketPath, { log, ...at })
    const channel = this.#channel
    const limitMs = this.#bootLimitMs
    const moved = options.moved && { moved: options.moved }
    const isNobody = () => this.isUnproved
    const told = { channel, files, owner: options.owner, ...moved, isNobody, world, log, limitMs }
    this.#introduction = new Introduction(told)
    const goesOn = {
      state: () => hypervisor.state(),
      resume: async () => {
        if (this.#isLying) throw new Error('It lies down, and goes on when it gets up')
        await this.#leavesBed?.()
        await hypervisor.resume()
      },
    }
    this.#standstill = new Standstill(goesOn, world.store, {
      end: () => this.#goOn(),
      stuck: () => {
        if (!this.#over) this.#owner.observe({ observedReason: standsStillFor.good })
      },
    })
    hypervisor.on((event) => this.#onHypervisor(event))
    this.#channel.on((event) => this.#onAgent(event))
    if (this.#ready) this.#reportSoon(firstReportMs)
    else this.#expectProgress()
  }

  /** sshd listens, or has in this run of the hypervisor since the last reset. */
  get ready(): boolean {
    return this.#ready
  }

  /** It goes on from its memory and is not ready yet. */
  get restored(): boolean {
    return this.#restored
  }

  /** It goes on from a template and is not ready yet. */
  get isUnproved(): boolean {
    return this.#prepare !== undefined
  }

  /** And has not said a word. */
  get isSilent(): boolean {
    return this.isUnproved && this.#stage === undefined
  }

  get agent(): AgentChannel {
    return this.#channel
  }

  get standsStill(): boolean {
    return this.#standstill.on
  }

  /** Whether its memory may be taken and given. */
  get givesMemory(): boolean {
    return this.#ready && !this.#isLying && !this.#standstill.on
  }

  /** What it said of itself last; undefined: not lately. */
  get lastReport(): MachineReport | undefined {
    const last = this.#lastReport
    return last && performance.now() - last.atMs < silentMs ? last.report : undefined
  }

  /** Whether it is being put to sleep. */
  set lying(isLying: boolean) {
    this.#isLying = isLying
  }

  /** Why the guest itself could not go on, in its own words. */
  get fatal(): string | undefined {
    return this.#fatal
  }

  /** What its kernel said when it gave up, if it did. */
  get panic(): string | undefined {
    return this.#console.panic()
  }

  get lastLine(): string | undefined {
    return this.#console.lastLines(1)[0]
  }

  /** Looks at what happened to an adopted guest while nobody watched: its state has stayed in the hypervisor. */
  async catchUp(): Promise<void> {
    switch (await this.hypervisor.state().catch(() => 'running' as const)) {
      case 'shutdown':
        this.#end({ kind: 'off' })
        return
      case 'panicked':
        this.#end({ kind: 'panicked' })
        return
      case 'ioError':
      // Only `standStill` makes a guest pause.
      case 'paused':
        this.#standStill(true)
        return
      default:
    }
  }

  /** The account's keys, or the gateway's, have changed. */
  async updateKeys(): Promise<void> {
    await this.#introduction.updateKeys()
  }

  /** Its row may have changed: it hears of it, which may take as long as it likes. */
  updateIdentity(): void {
    void this.#introduction.update()
  }

  /** Says once more that it is ready: an earlier vmhost may have been ended before it could. */
  sayReady(): void {
    this.#owner.observe({
      observedState: 'running',
      observedStage: 'ready',
      observedReadyAt: new Date(),
      observedReason: this.#owner.lost ?? null,
      ...notAsleep,
      observedBoot: this.boot,
      observedHostKey: publicPart(this.files.hostKey),
      observedLoginUser: this.files.record.loginUser,
    })
  }

  /**
   * Asks it to switch itself off: its agent, which has a limit of its own, or, without one, by the power button.
   * @returns false when there is nobody to ask yet, so that waiting is in vain
   */
  async askPowerOff(limitMs: number): Promise<boolean> {
    clearTimeout(this.#limit)
    try {
      await this.#channel.powerOff(limitMs, { timeoutMs: this.#ready ? 3_000 : 500 })
      return true
    } catch (error) {
      this.#log.debug({ err: error }, 'no orderly stop over the agent')
      if (!this.#ready) return false
      await this.hypervisor.powerButton().catch(() => {})
      return true
    }
  }

  /**
   * It was to lie down, and did not come to it: looks whether it goes on. One that does not is tried again until it does,
   * and says then that it is ready.
   * @param leavesBed takes away what was saved of it, which must not be there when it goes on
   */
  async getsUp(leavesBed: () => Promise<void>): Promise<boolean> {
    const state = await this.hypervisor.state().catch(() => 'paused' as const)
    if (this.#over) return true
    if (state !== 'paused') {
      this.tellTime()
      return true
    }
    this.#leavesBed = leavesBed
    if (this.#standstill.begin(false)) this.#owner.observe({ observedReason: standsStillFor.lying })
    return false
  }

  /** It stood still and goes on, and its clock is as far behind. It may take as long as it likes to hear that. */
  tellTime(): void {
    if (!this.#over) void this.#introduction.tellAgain()
  }

  /** Has it stand still before its server's disk is full; there is space again when it goes on by itself. */
  async standStill(): Promise<void> {
    if (this.#over || this.#isLying || this.#standstill.on) return
    await this.hypervisor.pause()
    if (!this.#over) this.#standStill(true)
  }

  /** Ends the hypervisor, in order or not, and everything that hangs on it. */
  async end(how: 'quit' | 'kill'): Promise<void> {
    this.#leave()
    await this.hypervisor[how]()
    await this.#console.close()
  }

  /** Lets go of it: this vmhost ends, the guest runs on. */
  async release(): Promise<void> {
    this.#leave()
    // Until another vmhost comes, nobody would take it back.
    if (this.#world.driver.accelerator === 'tcg') await this.hypervisor.yieldToOthers(false)
    this.hypervisor.release()
    await this.#console.close()
  }

  #leave(): void {
    this.#over = true
    for (const timer of [this.#limit, this.#reports]) clearTimeout(timer)
    this.#standstill.close()
    this.#channel.close()
    this.#slot?.[Symbol.dispose]()
  }

  /** The first reason is the cause; what follows from it (the process gone after a panic) is not. */
  #end(ending: Ending): void {
    this.#off.resolve()
    if (!this.#over) this.#owner.ended(ending)
  }

  #onHypervisor(event: HypervisorEvent): void {
    if (this.#over) return
    this.#log.debug({ event }, 'hypervisor')
    switch (event.type) {
      case 'shutdown':
        if (event.byGuest) this.#end({ kind: 'off' })
        return
      case 'panicked':
        this.#end({ kind: 'panicked' })
        return
      case 'reset':
        // QEMU tells of one reboot several times.
        if (!event.byGuest || (!this.#ready && this.#stage === undefined)) return
        this.#owner.record('rebooted')
        this.#bootsAgain()
        return
      case 'ioError':
        this.#standStill(event.noSpace)
        return
      case 'exited':
        this.#end({ kind: 'gone' })
        return
      case 'resumed':
    }
  }

  #onAgent(event: AgentEvent): void {
    if (this.#over) return
    this.#log.debug({ event }, 'agent')
    switch (event.type) {
      case 'hello':
        // Ready, or restored, when this vmhost took it over, and has rebooted since: its memory knows nothing any more.
        if (!event.hello.identified) {
          this.#restored = false
          if (this.#ready) this.#bootsAgain()
        }
        this.#passed(event.hello.stage)
        if (has(event.hello.stage, 'tools')) this.#introduceOrRetry(event.hello.identified)
        return
      case 'stage':
        // Said again, a stage is no news, and whoever says it hundreds of times a second means harm.
        if (has(this.#stage, event.stage)) return
        this.#passed(event.stage)
        if (event.stage === 'tools') this.#introduceOrRetry(false)
        if (event.stage === 'identity' && !this.#ready && !this.#saidSsh) {
          this.#saidSsh = true
          this.#owner.observe({ observedStage: 'ssh' })
        }
        this.#lookReady()
        return
      case 'fatal':
        this.#fatal = event.reason
        return
      case 'lost':
      case 'poweroff':
    }
  }

  #bootsAgain(): void {
    // What was taken from the guest before, a kernel that boots would have to give again before it has anything else.
    if (this.#ready || this.#restored)
      this.hypervisor.setBalloon(0).catch((error: unknown) => this.#log.debug({ err: error }, 'balloon'))
    this.#introduction.forget()
    this.#restored = false
    this.#prepare = undefined
    this.load.forget()
    this.#lastReport = undefined
    this.#stage = undefined
    this.#saidSsh = false
    clearTimeout(this.#reports)
    this.#owner.observe({ observedReadyAt: null, observedStage: 'boot' })
    if (!this.#ready) return
    this.#ready = false
    this.#furthest = -1
    this.#expectProgress()
  }

  #passed(stage: BootStage): void {
    this.#stage = stage
    const at = bootStages.indexOf(stage)
    if (at <= this.#furthest) return
    this.#furthest = at
    this.#expectProgress()
  }

  /**
   * A guest that comes up is told who it is when its tools are mounted, not with its first hello: what it learns
   * earlier would lie in a folder of the initramfs that the tools' mount then covers.
   */
  #introduceOrRetry(identified: boolean): void {
    this.#introduce(identified).then(
      () => {
        if (!this.#over) this.#lookReady()
      },
      (error: unknown) => this.#onIdentifyError(error),
    )
  }

  async #introduce(identified: boolean): Promise<void> {
    // Its root filesystem was frozen when it was saved, and what it is told may have to be written there. It does what
    // it is asked in that order, and need not have answered before it is told.
    const thawed = this.#restored
      ? this.#channel
          .thaw({ timeoutMs: thawLimitMs })
          .then(() => {})
          .catch((error: unknown) => this.#log.warn({ err: error }, 'it thaws its filesystem by itself'))
      : undefined
    await this.#prepare?.(this.#channel).catch((error: unknown) => {
      // As long as it is so, it is tried again when it is ready.
      this.#log.warn({ err: error }, 'a template’s filesystem keeps its size')
    })
    // Its clock and its randomness are those of the moment when it was saved: it is told anew whatever it knows.
    await this.#introduction.introduce(identified && !this.#restored && !this.isUnproved)
    await thawed
  }

  #onIdentifyError(error: unknown): void {
    if (this.#over) return
    const refused = error instanceof ChannelError && (error.code === 'agent.refused' || error.code === 'agent.invalid')
    if (refused && !this.#ready) {
      this.#end({ kind: 'failed', reason: `The machine did not take its identity: ${error.message}` })
      return
    }
    this.#log.warn({ err: error }, 'identity')
    // Lost: the guest said hello and went away, and the next hello starts over. The database away, or a guest that was
    // too busy to answer: nothing else would.
    const startsOver = error instanceof ChannelError && (error.code === 'agent.lost' || error.code === 'agent.closed')
    if (!refused && !startsOver) {
      setTimeout(() => {
        if (!this.#over && !this.#introduction.made && has(this.#stage, 'tools')) this.#introduceOrRetry(false)
      }, introduceAgainMs).unref()
    }
  }

  #lookReady(): void {
    if (this.#ready || !this.#introduction.made || !has(this.#stage, 'sshd')) return
    this.#ready = true
    clearTimeout(this.#limit)
    const isEmulated = this.#world.driver.accelerator === 'tcg'
    const isOver = () => this.#over
    if (this.#slot && isEmulated && this.isUnproved) {
      const { rows } = this.#world
      void keepPlace(this.#slot, () => rows.wasUsed(this.hypervisor.machineId), isOver)
    } else this.#slot?.[Symbol.dispose]()
    const woke = this.#restored
    this.#restored = false
    this.#prepare = undefined
    this.sayReady()
    this.#owner.record(woke ? 'woke' : 'running', { boot: this.boot })
    this.#owner.ready()
    this.#reportSoon(firstReportMs)
    if (isEmulated) void settle(this.hypervisor, this.#world.slots, isOver)
  }

  #reportSoon(afterMs: number): void {
    this.#reports = setTimeout(async () => {
      try {
        const report = await this.#channel.report({ timeoutMs: reportLimitMs })
        this.load.add(report)
        this.#lastReport = { report, atMs: performance.now() }
        await this.#world.rows.replaceReport(this.hypervisor.machineId, toStoredReport(report))
      } catch (error) {
        this.#log.debug({ err: error }, 'no report')
      }
      // Machines started together do not stay in step.
      if (!this.#over && this.#ready) this.#reportSoon(reportEveryMs * (0.9 + Math.random() * 0.2))
    }, afterMs).unref()
  }

  /** A guest that is booting must get on; each stage it passes for the first time gives it the whole time again. */
  #expectProgress(): void {
    clearTimeout(this.#limit)
    if (this.#ready || this.#over) return
    const { isSilent } = this
    // There is nothing that it could be busy with.
    const limitMs = isSilent ? this.#bootLimitMs / 4 : this.#bootLimitMs
    this.#limit = setTimeout(() => {
      const where =
        isSilent || this.#restored
          ? 'Its agent did not answer'
          : this.#stage
            ? `It stopped booting after the stage ${this.#stage}`
            : "Its kernel did not get as far as Berth's agent"
      const said = this.panic ? `; its kernel panicked: ${this.panic}` : saidLast(this.lastLine)
      this.#end({ kind: 'failed', reason: `${where} within ${limitMs / 1000} s${said}` })
    }, limitMs).unref()
  }

  /**
   * A kernel without the pvpanic driver, or one that has not loaded it yet, only prints that it is at its end, and
   * then spins for good. Anybody in the guest can print that, so it counts only when the agent is silent too.
   */
  #onPanicText(): void {
    this.#channel.ping({ timeoutMs: panicSilenceMs }).catch(() => {
      if (!this.#over) this.#end({ kind: 'panicked' })
    })
  }

  #standStill(noSpace: boolean): void {
    if (!this.#standstill.begin()) return
    this.#owner.observe({ observedReason: noSpace ? standsStillFor.space : standsStillFor.failure })
    this.#owner.record('disk-error', { noSpace })
    clearTimeout(this.#limit)
    if (!noSpace) this.#lookForSpace().catch(() => {})
  }

  /** A volume that finds no space on the filesystem under it fails as a broken disk does. */
  async #lookForSpace(): Promise<void> {
    const problem = spaceProblem(await this.#world.store.space())
    if (problem && this.#standstill.on && !this.#over) this.#owner.observe({ observedReason: standsStillFor.space })
  }

  #goOn(): void {
    const didNotGetUp = this.#leavesBed !== undefined
    this.#leavesBed = undefined
    if (didNotGetUp && this.#ready) this.sayReady()
    else this.#owner.observe({ observedReason: null })
    if (this.#ready) this.tellTime()
    this.#expectProgress()
  }
}

const standsStillFor = {
  lying: 'It stands still: it was not put to sleep, and does not go on, which is tried again',
  space: "It stands still: its server's disk is full. It goes on by itself when there is space",
  failure: "It stands still: its server's disk failed a write or read, which is tried again",
  good: "It stands still: its server's disk lost some of what it wrote. Restart it: it boots from its disk, as after a power cut",
} as const

/** `off`: switched off from inside; `gone`: the hypervisor's process ended by itself or by somebody else. */
export type Ending =
  | { readonly kind: 'off' | 'panicked' | 'gone' }
  | { readonly kind: 'failed'; readonly reason: string }

/** What it needs of all that machines work with. */
export type GuestWorld = Pick<World, 'rows' | 'slots' | 'gatewayKey'> & {
  readonly driver: Pick<World['driver'], 'accelerator'>
  readonly store: Pick<World['store'], 'space'>
}

export type GuestOwner = {
  /** as the database had it last */
  readonly row: MachineRow
  /** what it has lost since it was last ready, said when it is ready again */
  readonly lost?: string | undefined
  /** it has become ready */
  ready(): void
  ended(ending: Ending): void
  observe(seen: Observation): void
  record(kind: string, detail?: Readonly<Record<string, unknown>>): void
}

/** No sign of progress for this long is a failed boot. Emulated machines, twenty on two cores, take most of it. */
const bootLimitMs = { kvm: 60_000, tcg: 240_000 }
/** How long an agent may be silent after its kernel said that it panicked. */
const panicSilenceMs = 8_000
const introduceAgainMs = 2_000
const firstReportMs = 2_000
const reportEveryMs = 15_000
const reportLimitMs = 10_000
const silentMs = 45_000

/** The end of a reason: what the console said last. */
export function saidLast(line: string | undefined): string {
  return line === undefined ? '' : `; the last line on its console: ${line}`
}

function has(stage: BootStage | undefined, passed: BootStage): boolean {
  return stage !== undefined && bootStages.indexOf(stage) >= bootStages.indexOf(passed)
}
