import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { type Hypervisor, HypervisorError, hypervisorUid } from '../hypervisor/driver.ts'
import { type MachineNetwork, NetworkError } from '../network/types.ts'
import { StorageError } from '../storage/errors.ts'
import type { MachineFiles } from '../storage/store.ts'
import { type Ending, Guest, type GuestOwner, saidLast } from './guest.ts'
import { makeHostKey, publicPart } from './identity.ts'
import { isOwn, isTaken, ownFiles } from './ownership.ts'
import type { MachineRow, Observation } from './rows.ts'
import { checkMachine, commandLine, MachineError } from './specification.ts'
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
  #bootSet: string | undefined
  #crashes: number[] = []
  #turn: Promise<void> | undefined
  #again = false
  /** its reason is a step that failed, which the next one that does not takes away */
  #saysTrouble = false
  /** ends a wait for a slot, or for an orderly stop, when the row changed meanwhile */
  #interrupt = new AbortController()
  #over = false

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

  /** Hash of the boot set that it runs with. */
  get bootSet(): string | undefined {
    return this.#bootSet
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
    if (!hypervisor) return
    const files = await store.findMachine(this.id).catch(() => undefined)
    const { address, observedBoot, observedState, isReady } = this.#row
    if (!files || address === null || !isOwn(files, this.#row)) {
      await hypervisor.quit()
      return
    }
    this.#network = { machineId: this.id, address, uid: hypervisorUid(this.id) }
    const hash = await readFile(join(directory, 'boot'), 'utf8').catch(() => '')
    this.#bootSet = hash.trim() || undefined
    this.#attend(hypervisor, files, observedBoot, observedState === 'running' && isReady, undefined)
    this.#log.info({ pid: hypervisor.pid }, 'adopted')
    await this.#guest?.catchUp()
  }

  /** Lets go: the machine runs on, whatever waits stops waiting. Once the world's signal has been given. */
  async release(): Promise<void> {
    this.#interrupt.abort()
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
    switch (row.desiredState) {
      case 'running':
        await this.#towardsRunning(row)
        return
      case 'stopped':
      case 'trashed':
        if (this.#guest) await this.#stop(this.#guest)
        await this.#disconnect()
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
      default:
        if (row.observedReason === null) {
          this.#observe({ observedReason: 'This server cannot put machines to sleep yet' })
        }
    }
  }

  async #towardsRunning(row: MachineRow): Promise<void> {
    const guest = this.#guest
    if (!guest) {
      if (row.observedState !== 'failed' || row.desiredBoot > row.observedBoot) await this.#start(row)
      return
    }
    if (row.desiredBoot > guest.boot) {
      await this.#stop(guest)
      this.#again = true
      return
    }
    // Adopted, and reported as something else by a vmhost that was ended half way.
    if (guest.ready && row.observedState !== 'running') guest.sayReady()
    guest.updateIdentity()
  }

  async #start(row: MachineRow): Promise<void> {
    const world = this.#world
    const boot = row.desiredBoot
    // A start of a machine that was there before is `running` that is not ready yet.
    const observedState = row.observedState === 'creating' ? 'creating' : 'running'
    // The wait may be long, and nobody shall take the failure of the start before for this one's.
    if (world.slots.full) this.#observe({ observedState, observedReason: null, ...offline })
    const slot = await this.#slot()
    if (!slot) return
    try {
      this.#observe({
        observedState,
        observedStage: 'disk',
        observedBoot: boot,
        observedReason: null,
        observedReadyAt: null,
        observedStartedAt: null,
      })
      const machine = checkMachine(row, { network: world.guest.network, memoryBytes: world.memoryBytes })
      const there = await ownFiles(world.store, row)
      // A process of this machine's that could not be adopted, or was started a moment before a kill -9.
      await world.driver.destroy(this.id, world.store.directoryOf(this.id))
      this.#network = { machineId: this.id, address: machine.address, uid: hypervisorUid(this.id) }
      const connecting = world.network.ensureMachine(this.#network)
      connecting.catch(() => {})
      const [files, bootSet] = await Promise.all([this.#disk(machine, there), world.store.currentBoot()])
      const observedHostKey = publicPart(files.hostKey)
      this.#observe({ observedStage: 'network', observedHostKey, observedLoginUser: files.record.loginUser })
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
      try {
        this.#attend(hypervisor, files, boot, false, slot)
      } catch (error) {
        await hypervisor.kill()
        throw error
      }
      const { cpus, memoryBytes } = machine
      this.#observe({ observedStartedAt: startedAt, observedCpus: cpus, observedMemoryBytes: memoryBytes })
      this.#log.info({ pid: hypervisor.pid, boot }, 'started')
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
   * Waits for a place among the machines that come up, and keeps its place in the queue whatever news come.
   * @returns undefined when the machine is not wanted running any more
   */
  async #slot(): Promise<Disposable | undefined> {
    const leave = new AbortController()
    const place = this.#world.slots.acquire(AbortSignal.any([leave.signal, this.#world.signal]))
    place.catch(() => {})
    for (;;) {
      const { signal } = this.#interrupt
      const news = Promise.withResolvers<undefined>()
      const onAbort = () => news.resolve(undefined)
      if (signal.aborted) onAbort()
      else signal.addEventListener('abort', onAbort, { once: true })
      const slot = await Promise.race([place, news.promise]).finally(() => signal.removeEventListener('abort', onAbort))
      if (slot) return slot
      this.#interrupt = new AbortController()
      const row = await this.#world.rows.one(this.id).catch(() => this.#row)
      if (row?.desiredState === 'running' && row.desiredBoot === this.#row.desiredBoot) continue
      leave.abort()
      // It may have been given in this very moment.
      place.then((given) => given[Symbol.dispose]()).catch(() => {})
      this.#again = true
      return undefined
    }
  }

  async #disk(machine: MachineRow, there: MachineFiles | undefined): Promise<MachineFiles> {
    const { store } = this.#world
    if (there) {
      if (machine.diskBytes > there.diskBytes) await store.growDisk(this.id, machine.diskBytes)
      return there
    }
    // Never a fresh disk in place of one that was lost: that would look like everything in it had been deleted.
    if (machine.hostKey !== null) throw new MachineError('Its disk is not on this server any more')
    const image = (await store.images()).find(({ name }) => name === machine.image)
    if (!image) throw new MachineError(`There is no image called ${machine.image} on this server`)
    const hostKey = makeHostKey(machine.name).privateKey
    const { diskBytes, token } = machine
    return store.createMachine(this.id, { image, diskBytes, uid: hypervisorUid(this.id), hostKey, token })
  }

  #attend(hypervisor: Hypervisor, files: MachineFiles, boot: number, ready: boolean, slot: Disposable | undefined) {
    const machine = this
    const owner: GuestOwner = {
      get row() {
        return machine.#row
      },
      ended: (ending) => {
        this.#ending ??= ending
        void this.poke()
      },
      observe: (seen) => this.#observe(seen),
      record: (kind, detail) => this.#record(kind, detail),
    }
    this.#ending = undefined
    this.#guest = new Guest({ hypervisor, files, boot, ready, slot, owner, world: this.#world, log: this.#log })
  }

  /** The guest or its hypervisor came to an end that nobody here asked for. */
  async #bury(ending: Ending): Promise<void> {
    const guest = this.#guest
    this.#again = true
    if (!guest) {
      this.#ending = undefined
      return
    }
    const { boot, ready, fatal, panic, lastLine } = guest
    await this.#endGuest(guest, 'quit')
    // Something else is wanted already: the end came handy.
    if (this.#row.desiredState !== 'running' || this.#row.desiredBoot > boot) return
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
    else if (!ready) this.#fail(`It switched itself off while it booted${saidLast(lastLine)}`, boot)
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
    this.#bootSet = undefined
  }

  async #disconnect(): Promise<void> {
    if (!this.#network) return
    await this.#world.network.removeMachine(this.id)
    this.#network = undefined
  }

  /** Takes everything of the machine away; its name and address only when nothing of it is left. */
  async #vanish(row: MachineRow): Promise<void> {
    const { store, driver, rows, network } = this.#world
    if (this.#guest) await this.#endGuest(this.#guest, 'kill')
    await driver.destroy(this.id, store.directoryOf(this.id))
    await network.removeMachine(this.id)
    this.#network = undefined
    if (!(await isTaken(store, row))) await store.removeMachine(this.id)
    await rows.finishGone(this.id)
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
/** The agent ends what does not stop by itself after its limit; somewhat later nothing comes any more. */
const stopLimitMs = powerOffLimitMs + 8_000
/** A hypervisor that is ended by somebody else is started again this often within the time, then it is a failure. */
const crashesMost = 3
const crashWindowMs = 600_000
const retryFirstMs = 500
const retryMostMs = 30_000

const offline = {
  observedStage: 'waiting',
  observedReadyAt: null,
  observedStartedAt: null,
  observedCpus: null,
  observedMemoryBytes: null,
} as const

/** What the owner reads; the chain of causes goes to the log. */
function reasonOf(error: unknown): string {
  const isSentence = error instanceof MachineError || error instanceof StorageError || error instanceof NetworkError
  return isSentence ? messageOf(error) : `It could not be started: ${messageOf(error)}`
}

function messageOf(error: unknown): string {
  if (error instanceof NetworkError && error.cause instanceof Error) return `${error.message}: ${error.cause.message}`
  return error instanceof Error ? error.message : String(error)
}

function oneLine(text: string): string {
  return text.replace(/[\x00-\x1f\x7f]+/g, ' ').slice(0, 500)
}
