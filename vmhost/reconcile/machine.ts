import { createHash } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { type AgentChannel, ChannelError, connectAgent } from '../guest/channel.ts'
import { type AgentEvent, type BootStage, bootStages, type MachineIdentity } from '../guest/messages.ts'
import {
  type Hypervisor,
  type HypervisorDriver,
  HypervisorError,
  type HypervisorEvent,
  hypervisorUid,
} from '../hypervisor/driver.ts'
import { type MachineNetwork, type Network, NetworkError } from '../network/types.ts'
import { StorageError } from '../storage/errors.ts'
import type { MachineFiles, Store } from '../storage/store.ts'
import { ConsoleReader } from './console.ts'
import { authorizedKeyLine, makeHostKey, publicPart } from './identity.ts'
import type { Outbox } from './observed.ts'
import { toStoredReport } from './report.ts'
import type { MachineRow, Rows } from './rows.ts'
import type { Slots } from './slots.ts'
import { checkMachine, commandLine, type GuestNetwork, MachineError } from './specification.ts'

/**
 * One machine on its way from what it is to what is wanted.
 *
 * A turn compares the row (wanted) with the hypervisor (actual) and takes the steps between them; turns never
 * overlap, and whatever happens meanwhile (a row changed, the guest switched itself off, a limit ran out) only asks
 * for another one. A step that is cut off by kill -9 leaves a state that the next vmhost's first turn starts from.
 *
 *     no hypervisor --start--> booting --sshd listens--> up
 *     booting, up --guest off | panic | fatal | process gone | limit--> the hypervisor is ended, then:
 *         off by itself when up     -> desired and observed `stopped`
 *         process gone by itself    -> started again, a few times
 *         anything else             -> `failed` with its reason, until another start is asked for
 *     booting, up --another state or boot wanted--> stopped in order, then whatever is wanted
 *
 * The agent's hello comes again when the guest reboots: identity again, ready again.
 */
export type World = {
  readonly driver: HypervisorDriver
  readonly store: Store
  readonly network: Network
  readonly rows: Rows
  readonly outbox: Outbox
  readonly slots: Slots
  readonly guest: GuestNetwork
  /** what a single machine may have */
  readonly memoryBytes: number
  readonly log: Logger
  /** the gateway's public key as an authorized_keys line; undefined until a gateway has run */
  gatewayKey(): string | undefined
  /** ends all waiting; hypervisors are let go of */
  readonly signal: AbortSignal
}

/** No sign of progress for this long is a failed boot. Emulated machines, twenty on two cores, take most of it. */
const bootLimitMs = { kvm: 60_000, tcg: 240_000 }
const powerOffLimitMs = 20_000
const stopLimitMs = powerOffLimitMs + 8_000
/** How long an agent may be silent after its kernel said that it panicked. */
const panicSilenceMs = 8_000
const reportEveryMs = 15_000
const reportLimitMs = 10_000
/** A hypervisor that is ended by somebody else is started again this often within the time, then it is a failure. */
const crashesMost = 3
const crashWindowMs = 600_000
const fullRetryMs = 5_000
const retryFirstMs = 500
const retryMostMs = 30_000

type Ending = { readonly kind: 'off' | 'panicked' | 'gone' } | { readonly kind: 'failed'; readonly reason: string }

/** A hypervisor with everything that hangs on it. */
type Running = {
  readonly hypervisor: Hypervisor
  readonly channel: AgentChannel
  readonly console: ConsoleReader
  readonly files: MachineFiles
  readonly boot: number
  /** sshd listened in this run of the hypervisor */
  wasReady: boolean
  stage: BootStage | undefined
  fatal: string | undefined
  identity: string | undefined
  slot: Disposable | undefined
  limit: NodeJS.Timeout | undefined
  reports: NodeJS.Timeout | undefined
  fullRetry: NodeJS.Timeout | undefined
}

export class Machine {
  readonly id: number
  readonly #world: World
  readonly #log: Logger
  #row: MachineRow
  #running: Running | undefined
  #ending: Ending | undefined
  #network: MachineNetwork | undefined
  #crashes: number[] = []
  #turn: Promise<void> | undefined
  #again = false
  /** ends a wait for a slot, or for an orderly stop, when the row changed meanwhile */
  #interrupt = new AbortController()
  #gone = false

  constructor(row: MachineRow, world: World) {
    this.id = row.id
    this.#row = row
    this.#world = world
    this.#log = world.log.child({ machine: row.id })
  }

  get row(): MachineRow {
    return this.#row
  }

  /** The machine is gone for good and nothing of it is left. */
  get gone(): boolean {
    return this.#gone
  }

  get pid(): number | undefined {
    return this.#running?.hypervisor.pid
  }

  /** What the host's network must have for it now; undefined: nothing. */
  get network(): MachineNetwork | undefined {
    return this.#network
  }

  /** Hash of the boot set that it runs with. */
  get bootSet(): string | undefined {
    return this.#bootSet
  }
  #bootSet: string | undefined

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
    const running = this.#running
    if (!running?.channel || running.identity === undefined) return
    try {
      await running.channel.updateKeys(await this.#keys())
    } catch (error) {
      // The next hello brings the keys as they are then.
      this.#log.debug({ err: error }, 'keys wait')
    }
  }

  /** Takes over the hypervisor that an earlier vmhost started, if there is one. Before the first turn. */
  async adopt(): Promise<void> {
    const directory = this.#world.store.directoryOf(this.id)
    let hypervisor: Hypervisor | undefined
    try {
      hypervisor = await this.#world.driver.adopt(this.id, directory)
    } catch (error) {
      // It does not answer and so cannot be trusted with a disk; its guest is started again from what it had synced.
      this.#log.warn({ err: error }, 'the hypervisor does not answer and is ended')
      await this.#world.driver.destroy(this.id, directory)
    }
    if (!hypervisor) return
    const files = await this.#world.store.findMachine(this.id).catch(() => undefined)
    const { address, observedBoot } = this.#row
    if (!files || address === null) {
      await hypervisor.kill()
      return
    }
    this.#network = { machineId: this.id, address, uid: hypervisorUid(this.id) }
    this.#attend(hypervisor, files, observedBoot, undefined)
    const running = this.#running as Running | undefined
    if (running && this.#row.observedState === 'running' && this.#row.isReady) {
      running.wasReady = true
      clearTimeout(running.limit)
      this.#reportSoon(running, 2_000)
    }
    await readFile(join(directory, 'boot'), 'utf8').then(
      (hash) => {
        this.#bootSet = hash.trim()
      },
      () => {},
    )
    this.#log.info({ pid: hypervisor.pid }, 'adopted')
    // What happened while nobody was here left its state in the hypervisor.
    switch (await hypervisor.state().catch(() => 'running' as const)) {
      case 'shutdown':
        this.#ended({ kind: 'off' })
        break
      case 'panicked':
        this.#ended({ kind: 'panicked' })
        break
      case 'ioError':
        this.#onFull(true)
        break
      default:
    }
  }

  /** Lets go: the machine runs on, whatever waits stops waiting. */
  async release(): Promise<void> {
    const running = this.#running
    this.#running = undefined
    this.#interrupt.abort()
    await this.#turn?.catch(() => {})
    if (!running) return
    clearTimers(running)
    running.hypervisor.release()
    running.channel.close()
    await running.console.close()
  }

  async #turns(): Promise<void> {
    for (let waitMs = retryFirstMs; this.#again && !this.#gone && !this.#world.signal.aborted; ) {
      this.#again = false
      this.#interrupt = new AbortController()
      try {
        await this.#step()
        waitMs = retryFirstMs
      } catch (error) {
        if (this.#world.signal.aborted) return
        if (this.#interrupt.signal.aborted && (error as Error).name === 'AbortError') continue
        this.#log.error({ err: error }, 'a step failed and is tried again')
        this.#again = true
        await sleep(waitMs, undefined, { signal: this.#world.signal, ref: false }).catch(() => {})
        waitMs = Math.min(waitMs * 2, retryMostMs)
      }
    }
  }

  async #step(): Promise<void> {
    // The row must not be older than what was reported: a failure that is still on its way would be started again.
    await this.#world.outbox.flushed(this.id)
    const row = await this.#world.rows.one(this.id)
    if (!row || row.observedState === 'gone') {
      await this.#vanish()
      return
    }
    this.#row = row
    if (this.#ending) {
      await this.#bury(this.#ending)
      return
    }
    switch (row.desiredState) {
      case 'running':
        await this.#towardsRunning(row)
        return
      case 'stopped':
      case 'trashed':
        if (this.#running) await this.#stop()
        await this.#disconnect()
        if (row.observedState !== row.desiredState) {
          this.#observe({ observedState: row.desiredState, observedReason: null, ...offline })
          this.#record(row.desiredState)
        }
        return
      case 'gone':
        await this.#vanish()
        return
      default:
        if (row.observedReason === null) {
          this.#observe({ observedReason: 'This server cannot put machines to sleep yet' })
        }
    }
  }

  async #towardsRunning(row: MachineRow): Promise<void> {
    const running = this.#running
    if (running) {
      if (row.desiredBoot > running.boot) {
        await this.#stop()
        this.#again = true
        return
      }
      // Adopted, and reported as something else by a vmhost that was ended half way.
      if (running.wasReady && row.observedState !== 'running') this.#sayReady(running)
      await this.#identifyAgain(running)
      return
    }
    if (row.observedState === 'failed' && row.desiredBoot <= row.observedBoot) return
    await this.#start(row)
  }

  async #start(row: MachineRow): Promise<void> {
    const world = this.#world
    const boot = row.desiredBoot
    const slot = await world.slots.acquire(AbortSignal.any([this.#interrupt.signal, world.signal]))
    try {
      const first = row.observedState === 'creating'
      this.#observe({
        // A start of a machine that was there before is `running` that is not ready yet.
        observedState: first ? 'creating' : 'running',
        observedStage: 'disk',
        observedBoot: boot,
        observedReason: null,
        observedReadyAt: null,
        observedStartedAt: null,
      })
      const machine = checkMachine(row, { network: world.guest.network, memoryBytes: world.memoryBytes })
      // A process of this machine's that could not be adopted, or was started a moment before a kill -9.
      await world.driver.destroy(this.id, world.store.directoryOf(this.id))
      this.#network = { machineId: this.id, address: machine.address, uid: hypervisorUid(this.id) }
      const connecting = world.network.ensureMachine(this.#network)
      connecting.catch(() => {})
      const [files, bootSet] = await Promise.all([this.#disk(machine), world.store.currentBoot()])
      const hostKey = publicPart(files.hostKey)
      this.#observe({ observedStage: 'network', observedHostKey: hostKey, observedLoginUser: files.record.loginUser })
      const card = await connecting
      await writeFile(join(files.directory, 'boot'), bootSet.hash, { mode: 0o600 })
      this.#bootSet = bootSet.hash
      this.#observe({ observedStage: 'boot' })
      const startedAt = new Date()
      const hypervisor = await world.driver.start({
        machineId: this.id,
        directory: files.directory,
        cpus: machine.cpus,
        memoryBytes: machine.memoryBytes,
        kernel: bootSet.kernel,
        initrd: bootSet.initrd,
        commandLine: commandLine(machine, world.guest, world.driver.accelerator === 'tcg'),
        disk: files.disk,
        tools: bootSet.tools,
        network: card,
      })
      this.#attend(hypervisor, files, boot, slot)
      this.#observe({
        observedStartedAt: startedAt,
        observedCpus: machine.cpus,
        observedMemoryBytes: machine.memoryBytes,
      })
      this.#log.info({ pid: hypervisor.pid, boot }, 'started')
    } catch (error) {
      slot[Symbol.dispose]()
      if (world.signal.aborted) throw error
      this.#log.warn({ err: error }, 'did not start')
      await this.#disconnect().catch((again) => this.#log.warn({ err: again }, 'network'))
      if (error instanceof HypervisorError && error.code === 'hypervisor.gone' && this.#crashed() === undefined) {
        this.#again = true
        return
      }
      this.#fail(reasonOf(error), boot)
    }
  }

  async #disk(machine: MachineRow): Promise<MachineFiles> {
    const { store } = this.#world
    const there = await store.findMachine(this.id)
    if (!there) {
      // Never a fresh disk in place of one that was lost: that would look like everything in it had been deleted.
      if (machine.hadDisk) throw new MachineError('Its disk is not on this server any more')
      const image = (await store.images()).find(({ name }) => name === machine.image)
      if (!image) throw new MachineError(`There is no image called ${machine.image} on this server`)
      const hostKey = makeHostKey(machine.name).privateKey
      return store.createMachine(this.id, { image, diskBytes: machine.diskBytes, uid: hypervisorUid(this.id), hostKey })
    }
    if (machine.diskBytes > there.diskBytes) await store.growDisk(this.id, machine.diskBytes)
    return there
  }

  #attend(hypervisor: Hypervisor, files: MachineFiles, boot: number, slot: Disposable | undefined): void {
    const console = new ConsoleReader({
      machineId: this.id,
      directory: files.directory,
      fifo: hypervisor.consolePath,
      boot,
      rows: this.#world.rows,
      log: this.#log,
      onPanic: () => this.#onPanicText(),
    })
    const { socketPath, vsockPort } = hypervisor.agent
    const channel = connectAgent(socketPath, { log: this.#log, ...(vsockPort === undefined ? {} : { vsockPort }) })
    const running: Running = {
      hypervisor,
      channel,
      console,
      files,
      boot,
      wasReady: false,
      stage: undefined,
      fatal: undefined,
      identity: undefined,
      slot,
      limit: undefined,
      reports: undefined,
      fullRetry: undefined,
    }
    this.#running = running
    this.#ending = undefined
    hypervisor.on((event) => {
      if (this.#running === running) this.#onHypervisor(running, event)
    })
    channel.on((event) => {
      if (this.#running === running) this.#onAgent(running, event)
    })
    this.#expectProgress(running)
  }

  /**
   * A kernel without the pvpanic driver, or one that has not loaded it yet, only prints that it is at its end, and
   * then spins for good. Anybody in the guest can print that, so it counts only when the agent is silent too.
   */
  #onPanicText(): void {
    const running = this.#running
    if (!running) return
    running.channel.ping({ timeoutMs: panicSilenceMs }).catch(() => {
      if (this.#running === running) this.#ended({ kind: 'panicked' })
    })
  }

  #onHypervisor(running: Running, event: HypervisorEvent): void {
    this.#log.debug({ event }, 'hypervisor')
    switch (event.type) {
      case 'shutdown':
        // Asked for over the agent or not: the guest is off. A `quit` of ours is no shutdown by the guest.
        if (event.byGuest) this.#ended({ kind: 'off' })
        return
      case 'panicked':
        this.#ended({ kind: 'panicked' })
        return
      case 'reset':
        if (!event.byGuest) return
        this.#record('rebooted')
        running.stage = undefined
        this.#bootsAgain(running)
        return
      case 'ioError':
        this.#onFull(event.noSpace)
        return
      case 'resumed':
        return
      case 'exited':
        this.#ended({ kind: 'gone' })
    }
  }

  #bootsAgain(running: Running): void {
    running.identity = undefined
    running.wasReady = false
    clearTimeout(running.reports)
    this.#observe({ observedReadyAt: null, observedStage: 'boot' })
    this.#expectProgress(running)
  }

  #onAgent(running: Running, event: AgentEvent): void {
    this.#log.debug({ event }, 'agent')
    switch (event.type) {
      case 'hello':
        running.stage = event.hello.stage
        // It was ready when this vmhost took it over, and has rebooted since: its memory knows nothing any more.
        if (running.wasReady && !event.hello.identified) this.#bootsAgain(running)
        this.#expectProgress(running)
        this.#introduce(running, event.hello.identified).catch((error: unknown) =>
          this.#onIdentifyError(running, error),
        )
        return
      case 'stage':
        running.stage = event.stage
        this.#expectProgress(running)
        if (event.stage === 'identity') this.#observe({ observedStage: 'ssh' })
        this.#lookReady(running)
        return
      case 'fatal':
        running.fatal = event.reason
        return
      case 'lost':
      case 'poweroff':
        return
    }
  }

  /** Tells a guest that has just said hello who it is, or, when it knows already, which keys are good now. */
  async #introduce(running: Running, identified: boolean): Promise<void> {
    const identity = await this.#identity(running)
    const fingerprint = hashOf(identity)
    const path = join(running.files.directory, 'identity')
    const told = identified ? await readFile(path, 'utf8').catch(() => undefined) : undefined
    if (told === fingerprint) await running.channel.updateKeys(identity.authorizedKeys)
    else {
      await running.channel.identify(identity, { timeoutMs: this.#bootLimitMs() })
      await writeFile(path, fingerprint, { mode: 0o600 })
    }
    if (this.#running !== running) return
    running.identity = fingerprint
    this.#lookReady(running)
  }

  /** A machine that was renamed, or given other variables, hears of it while it runs. */
  async #identifyAgain(running: Running): Promise<void> {
    if (running.identity === undefined) return
    const identity = await this.#identity(running)
    if (hashOf(identity) === running.identity) return
    running.identity = undefined
    await this.#introduce(running, true).catch((error: unknown) => this.#onIdentifyError(running, error))
  }

  #onIdentifyError(running: Running, error: unknown): void {
    if (this.#running !== running) return
    // `lost`: the guest said hello to somebody and went away; the next hello starts over.
    if (error instanceof ChannelError && error.code !== 'agent.refused' && error.code !== 'agent.invalid') {
      this.#log.debug({ err: error }, 'identity waits for the next hello')
      return
    }
    this.#log.warn({ err: error }, 'identity')
    if (error instanceof ChannelError && !running.wasReady) {
      this.#ended({ kind: 'failed', reason: `The machine did not take its identity: ${error.message}` })
    }
  }

  async #identity(running: Running): Promise<MachineIdentity> {
    const { record, hostKey } = running.files
    return {
      hostname: this.#row.name,
      loginUser: record.loginUser,
      authorizedKeys: await this.#keys(),
      environment: this.#row.env,
      hostKey,
      machineId: record.systemId,
    }
  }

  async #keys(): Promise<string[]> {
    const wires = await this.#world.rows.keysOf(this.#row.accountId)
    const gateway = this.#world.gatewayKey()
    return [gateway, ...wires.map(authorizedKeyLine)].filter((line) => line !== undefined)
  }

  #lookReady(running: Running): void {
    if (running.wasReady || running.identity === undefined || running.stage === undefined) return
    if (bootStages.indexOf(running.stage) < bootStages.indexOf('sshd')) return
    running.wasReady = true
    clearTimeout(running.limit)
    running.slot?.[Symbol.dispose]()
    this.#sayReady(running)
    this.#record('running', { boot: running.boot })
    this.#reportSoon(running, 2_000)
  }

  #sayReady(running: Running): void {
    this.#observe({
      observedState: 'running',
      observedStage: 'ready',
      observedReadyAt: new Date(),
      observedReason: null,
      observedBoot: running.boot,
      observedHostKey: publicPart(running.files.hostKey),
      observedLoginUser: running.files.record.loginUser,
    })
  }

  #reportSoon(running: Running, afterMs: number): void {
    running.reports = setTimeout(async () => {
      try {
        const report = await running.channel.report({ timeoutMs: reportLimitMs })
        await this.#world.rows.replaceReport(this.id, toStoredReport(report))
      } catch (error) {
        this.#log.debug({ err: error }, 'no report')
      }
      // Machines started together do not stay in step.
      if (this.#running === running) this.#reportSoon(running, reportEveryMs * (0.9 + Math.random() * 0.2))
    }, afterMs).unref()
  }

  /** A guest that is booting must get on; each stage it passes gives it the whole time again. */
  #expectProgress(running: Running): void {
    clearTimeout(running.limit)
    if (running.wasReady) return
    const limitMs = this.#bootLimitMs()
    running.limit = setTimeout(() => {
      const seconds = limitMs / 1000
      const [last] = running.console.lastLines(1)
      const where = running.stage
        ? `It stopped booting after the stage ${running.stage}`
        : "Its kernel did not get as far as Berth's agent"
      const panic = running.console.panic()
      const said = panic ? `; its kernel panicked: ${panic}` : last ? `; the last line on its console: ${last}` : ''
      this.#ended({ kind: 'failed', reason: `${where} within ${seconds} s${said}` })
    }, limitMs).unref()
  }

  #bootLimitMs(): number {
    return bootLimitMs[this.#world.driver.accelerator]
  }

  /** The guest stands still because of its disk; it goes on when the store has space again. */
  #onFull(noSpace: boolean): void {
    const running = this.#running
    if (!running || running.fullRetry) return
    const why = noSpace
      ? "It stands still: its server's disk is full. It goes on by itself when there is space"
      : "It stands still: its server's disk failed a write or read, which is tried again"
    this.#observe({ observedReason: why })
    this.#record('disk-error', { noSpace })
    clearTimeout(running.limit)
    const look = async () => {
      running.fullRetry = undefined
      if (this.#running !== running) return
      const space = await this.#world.store.space()
      if (space.freeBytes > space.reserveBytes / 2) await running.hypervisor.resume().catch(() => {})
      const state = await running.hypervisor.state().catch(() => 'running' as const)
      if (state === 'ioError' || space.freeBytes <= space.reserveBytes / 2) {
        running.fullRetry = setTimeout(look, fullRetryMs).unref()
      } else {
        this.#observe({ observedReason: null })
        this.#expectProgress(running)
      }
    }
    running.fullRetry = setTimeout(look, fullRetryMs).unref()
  }

  #ended(ending: Ending): void {
    // The first reason is the cause; what follows from it (the process gone after a panic) is not.
    if (this.#ending) return
    this.#ending = ending
    void this.poke()
  }

  /** The guest or its hypervisor came to an end that nobody here asked for. */
  async #bury(ending: Ending): Promise<void> {
    const running = this.#running
    if (!running) {
      this.#ending = undefined
      return
    }
    const lines = running.console.lastLines(1)
    const panic = running.console.panic()
    await this.#letGo(running)
    const row = this.#row
    this.#again = true
    // Something else is wanted already: the end came handy.
    if (row.desiredState !== 'running' || row.desiredBoot > running.boot) return
    if (running.fatal !== undefined) return this.#failOff(running.fatal, running.boot)
    switch (ending.kind) {
      case 'failed':
        return this.#failOff(ending.reason, running.boot)
      case 'panicked':
        return this.#failOff(`Its kernel panicked${panic ? `: ${panic}` : ''}`, running.boot)
      case 'off': {
        if (!running.wasReady) {
          const said = lines[0] ? `; the last line on its console: ${lines[0]}` : ''
          return this.#failOff(`It switched itself off while it booted${said}`, running.boot)
        }
        this.#observe({
          observedState: 'stopped',
          observedReason: 'It was switched off from inside',
          switchedOffBoot: running.boot,
          ...offline,
        })
        this.#record('stopped', { by: 'guest' })
        await this.#disconnect()
        return
      }
      case 'gone': {
        const tooOften = this.#crashed()
        if (tooOften !== undefined) return this.#failOff(tooOften, running.boot)
        this.#log.warn({ times: this.#crashes.length }, 'the hypervisor is gone; the machine is started again')
        return
      }
    }
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

  async #failOff(reason: string, boot: number): Promise<void> {
    this.#fail(reason, boot)
    await this.#disconnect()
  }

  #fail(reason: string, boot: number): void {
    this.#log.warn({ reason }, 'failed')
    this.#observe({ observedState: 'failed', observedReason: sentence(reason), observedBoot: boot, ...offline })
    this.#record('failed', { reason: sentence(reason) })
  }

  /**
   * Stops the guest in order: its agent ends services and syncs, with a limit; a guest without an agent, still
   * booting, is simply ended. `gone` does not wait: nobody wants what would be synced.
   */
  async #stop(): Promise<void> {
    const running = this.#running
    if (!running) return
    clearTimeout(running.limit)
    const off = Promise.withResolvers<void>()
    const unsubscribe = running.hypervisor.on((event) => {
      if (event.type === 'shutdown' || event.type === 'exited' || event.type === 'panicked') off.resolve()
    })
    try {
      if (this.#ending) off.resolve()
      await running.channel.powerOff(powerOffLimitMs, { timeoutMs: running.wasReady ? 3_000 : 500 })
      await this.#untilOff(off.promise)
    } catch (error) {
      // No agent to ask. systemd and every other init that listens for it takes the power button for an answer.
      this.#log.debug({ err: error }, 'no orderly stop over the agent')
      if (running.wasReady) {
        await running.hypervisor.powerButton().catch(() => {})
        await this.#untilOff(off.promise)
      }
    } finally {
      unsubscribe()
    }
    await this.#letGo(running)
    this.#ending = undefined
  }

  async #untilOff(off: Promise<void>): Promise<void> {
    const deadline = Date.now() + stopLimitMs
    while (Date.now() < deadline) {
      const { signal } = this.#interrupt
      const interrupted = new Promise<void>((resolve) =>
        signal.addEventListener('abort', () => resolve(), { once: true }),
      )
      const wait = new AbortController()
      const out = await Promise.race([
        off.then(() => 'off' as const),
        interrupted.then(() => 'interrupted' as const),
        sleep(deadline - Date.now(), 'late' as const, { signal: wait.signal, ref: false }).catch(() => 'late' as const),
      ])
      wait.abort()
      if (out !== 'interrupted') return
      if (this.#world.signal.aborted) throw new MachineError('This vmhost ends')
      const row = await this.#world.rows.one(this.id).catch(() => undefined)
      if (!row || row.desiredState === 'gone') return
      this.#interrupt = new AbortController()
    }
  }

  async #letGo(running: Running): Promise<void> {
    this.#running = undefined
    this.#ending = undefined
    clearTimers(running)
    running.channel.close()
    await running.hypervisor.quit()
    await running.console.close()
    running.slot?.[Symbol.dispose]()
    this.#bootSet = undefined
  }

  async #disconnect(): Promise<void> {
    if (!this.#network) return
    await this.#world.network.removeMachine(this.id)
    this.#network = undefined
  }

  /** Takes everything of the machine away; its name and address only when nothing of it is left. */
  async #vanish(): Promise<void> {
    const { store, driver, rows, network } = this.#world
    const running = this.#running
    if (running) {
      this.#running = undefined
      clearTimers(running)
      running.channel.close()
      await running.hypervisor.kill()
      await running.console.close()
      running.slot?.[Symbol.dispose]()
    }
    await driver.destroy(this.id, store.directoryOf(this.id))
    await network.removeMachine(this.id)
    this.#network = undefined
    await store.removeMachine(this.id)
    await rows.finishGone(this.id)
    this.#record('gone')
    this.#gone = true
  }

  #observe(seen: Parameters<Outbox['report']>[1]): void {
    this.#world.outbox.report(this.id, seen)
  }

  #record(kind: string, detail: Record<string, unknown> = {}): void {
    const { id: machineId, name: machineName, accountId } = this.#row
    this.#world.outbox.record({ machineId, machineName, accountId, kind: `machine.${kind}`, detail })
  }
}

const offline = {
  observedStage: 'waiting',
  observedReadyAt: null,
  observedStartedAt: null,
  observedCpus: null,
  observedMemoryBytes: null,
} as const

function clearTimers(running: Running): void {
  clearTimeout(running.limit)
  clearTimeout(running.reports)
  clearTimeout(running.fullRetry)
}

/** What the owner reads; the chain of causes goes to the log. */
function reasonOf(error: unknown): string {
  if (error instanceof NetworkError && error.cause instanceof Error) return `${error.message}: ${error.cause.message}`
  if (error instanceof MachineError || error instanceof StorageError || error instanceof NetworkError)
    return error.message
  return error instanceof Error ? `It could not be started: ${error.message}` : 'It could not be started'
}

function sentence(text: string): string {
  return text.replace(/[\x00-\x1f\x7f]+/g, ' ').slice(0, 500)
}

function hashOf(identity: MachineIdentity): string {
  // Keys go their own way, and none of the secrets is kept twice.
  const { hostname, loginUser, environment, machineId } = identity
  return createHash('sha256')
    .update(JSON.stringify([hostname, loginUser, environment, machineId]))
    .digest('hex')
}
