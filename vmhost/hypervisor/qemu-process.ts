import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { groupName, setWeight, unconfine } from './cgroup.ts'
import {
  type DiskCounters,
  type GuestState,
  type Hypervisor,
  HypervisorError,
  type HypervisorEvent,
  hypervisorUid,
  type MachineSize,
} from './driver.ts'
import { awaitExit, isAlive, killLimitMs, type ProcessIdentity, setNice, signalProcess } from './process.ts'
import { files } from './qemu-command.ts'
import { endWriting, stateFile, stateVersion, writeState } from './qemu-state.ts'
import { asObject, connectQmp, type QmpClient, type QmpEvent } from './qmp.ts'

const quitLimitMs = 10_000
/** How often a process that this vmhost did not start is looked at; its QMP socket closing tells sooner. */
const watchEveryMs = 1_000
const restoredLookMs = 5
/**
 * The least there is: twenty that yield still take a seventh of what two that do not get. @see sched(7), cgroup-v2 "cpu.weight"
 */
const yieldingNice = 19
const yieldingWeight = 1

/** A QEMU that runs, started or adopted: what is asked of it over QMP, and what it tells. */
export class QemuProcess implements Hypervisor {
  readonly machineId: number
  readonly agent: Hypervisor['agent']
  readonly consolePath: string
  readonly #directory: string
  readonly #identity: ProcessIdentity
  readonly #listeners = new Set<(event: HypervisorEvent) => void>()
  readonly #gone = Promise.withResolvers<string>()
  #qmp: QmpClient | undefined
  #watch: NodeJS.Timeout | undefined
  #released = false
  #stateVersion = ''

  constructor(machineId: number, directory: string, identity: ProcessIdentity, exited: Promise<string> | undefined) {
    this.machineId = machineId
    this.#directory = directory
    this.#identity = identity
    this.agent = { socketPath: join(directory, files.agent), uid: hypervisorUid(machineId) }
    this.consolePath = join(directory, `${files.consoleFifo}.out`)
    exited?.then((detail) => this.#ended(detail))
  }

  get pid(): number {
    return this.#identity.pid
  }

  get stateVersion(): string {
    return this.#stateVersion
  }

  /** Connects to QMP; QEMU is there and answers when this returns. */
  async attach(timeoutMs: number, signal?: AbortSignal): Promise<void> {
    const qmp = await connectQmp(join(this.#directory, files.qmp), {
      timeoutMs,
      uid: hypervisorUid(this.machineId),
      onEvent: (event) => this.#onEvent(event),
      ...(signal ? { signal } : {}),
    })
    this.#qmp = qmp
    const type = String(await qmp.execute('qom-get', { path: '/machine', property: 'type' }, timeoutMs))
    const { enabled } = asObject(await qmp.execute('query-kvm', undefined, timeoutMs))
    this.#stateVersion = stateVersion(type.replace(/-machine$/, ''), enabled === true ? 'kvm' : 'tcg')
    const look = () => {
      isAlive(this.#identity).then(
        (alive) => {
          if (!alive) this.#ended('the process is gone')
        },
        () => {}, // It could not be looked at, and is at the next turn.
      )
    }
    qmp.closed.then(async () => {
      if (this.#released) return
      if (await awaitExit(this.#identity, 1_000).catch(() => false)) this.#ended('the process is gone')
    })
    this.#watch = setInterval(look, watchEveryMs)
    this.#watch.unref()
  }

  /** The vmhost before may have been ended while it had this guest written: it goes on only when that is over. */
  async endSaving(): Promise<void> {
    await endWriting((command, args) => this.#execute(command, args))
  }

  /** Waits until a QEMU that was started with a saved guest has read all of it; the guest stands still then. */
  async restored(limitMs: number): Promise<void> {
    const deadline = performance.now() + limitMs
    // It reads in its main loop, which answers nothing meanwhile.
    while (asObject(await this.#execute('query-status', undefined, limitMs)).status === 'inmigrate') {
      if (performance.now() > deadline) {
        throw new HypervisorError('hypervisor.timeout', `QEMU has not read the saved memory in ${limitMs / 1000} s`)
      }
      await sleep(restoredLookMs)
    }
  }

  async state(): Promise<GuestState> {
    const status = asObject(await this.#execute('query-status')).status
    switch (status) {
      case 'shutdown':
        return 'shutdown'
      case 'guest-panicked':
        return 'panicked'
      case 'io-error':
        return 'ioError'
      case 'running':
        return 'running'
      default:
        return 'paused'
    }
  }

  on(listener: (event: HypervisorEvent) => void): () => void {
    this.#listeners.add(listener)
    // One that was gone before anybody listened, too: nobody else would ever tell.
    this.#gone.promise.then((detail) => {
      if (!this.#released && this.#listeners.has(listener)) listener({ type: 'exited', detail })
    })
    return () => {
      this.#listeners.delete(listener)
    }
  }

  async pause(): Promise<void> {
    await this.#execute('stop')
  }

  async resume(): Promise<void> {
    await this.#execute('cont')
  }

  async save(directory: string, { compact = false } = {}): Promise<void> {
    await writeState({
      compact,
      execute: (command, args) => this.#execute(command, args),
      uid: hypervisorUid(this.machineId),
      directory: this.#directory,
      target: join(directory, stateFile),
    })
  }

  async powerButton(): Promise<void> {
    await this.#execute('system_powerdown')
  }

  async setBalloon(targetBytes: number): Promise<void> {
    const { 'base-memory': whole } = asObject(await this.#execute('query-memory-size-summary'))
    // QEMU's `balloon` takes what the guest keeps, not what it gives back.
    await this.#execute('balloon', { value: Math.max(Number(whole) - targetBytes, 2 ** 20) })
  }

  async balloon(): Promise<number> {
    const { 'base-memory': whole } = asObject(await this.#execute('query-memory-size-summary'))
    return Number(whole) - Number(asObject(await this.#execute('query-balloon')).actual)
  }

  async diskCounters(): Promise<DiskCounters> {
    return rootCounters(await this.#execute('query-blockstats'))
  }

  async size(): Promise<MachineSize> {
    const cpus = await this.#execute('query-cpus-fast')
    const { 'base-memory': memoryBytes } = asObject(await this.#execute('query-memory-size-summary'))
    return { cpus: Array.isArray(cpus) ? cpus.length : 0, memoryBytes: Number(memoryBytes) }
  }

  /**
   * Everything is for its next start. A kernel that may be given memory sets 64 MiB of its own aside for that (swiotlb),
   * and the emulated one of Debian 13 was seen to make no room for processors that are to come.
   */
  resize(): Promise<MachineSize> {
    return this.size()
  }

  async diskGrown(sizeBytes: number): Promise<void> {
    await this.#execute('block_resize', { 'node-name': 'root', size: sizeBytes })
  }

  async yieldToOthers(yields: boolean): Promise<void> {
    await setNice(this.pid, yields ? yieldingNice : 0)
    await setWeight(groupName(this.machineId, this.#directory), yields ? yieldingWeight : 100)
  }

  async quit(limitMs = quitLimitMs): Promise<void> {
    await this.#execute('quit', undefined, limitMs).catch(() => {})
    if (!(await awaitExit(this.#identity, limitMs))) await signalProcess(this.#identity, 'SIGKILL')
    await this.#awaitGone()
  }

  async kill(): Promise<void> {
    await signalProcess(this.#identity, 'SIGKILL')
    await this.#awaitGone()
  }

  release(): void {
    this.#released = true
    clearInterval(this.#watch)
    this.#listeners.clear()
    this.#qmp?.close()
  }

  async #awaitGone(): Promise<void> {
    if (!(await awaitExit(this.#identity, killLimitMs))) {
      throw new HypervisorError('hypervisor.timeout', `QEMU (process ${this.pid}) does not end, even by SIGKILL`)
    }
    this.#ended('ended')
    await unconfine(groupName(this.machineId, this.#directory))
  }

  async #execute(command: string, args?: object, timeoutMs?: number): Promise<unknown> {
    if (!this.#qmp) throw new HypervisorError('hypervisor.gone', 'QEMU is not connected')
    return this.#qmp.execute(command, args, timeoutMs)
  }

  #ended(detail: string): void {
    clearInterval(this.#watch)
    this.#qmp?.close()
    this.#gone.resolve(detail)
  }

  #onEvent({ event, data }: QmpEvent): void {
    const byGuest = data.guest === true
    switch (event) {
      case 'GUEST_PANICKED':
        this.#emit({ type: 'panicked' })
        return
      case 'SHUTDOWN':
        // A reset announces itself as SHUTDOWN too when it is taken for one (-no-reboot); not with reboot=reset.
        if (data.reason === 'guest-panic') return
        this.#emit({ type: 'shutdown', byGuest })
        return
      case 'RESET':
        this.#emit({ type: 'reset', byGuest })
        return
      case 'RESUME':
        this.#emit({ type: 'resumed' })
        return
      case 'BLOCK_IO_ERROR':
        if (data.action === 'stop') this.#emit({ type: 'ioError', noSpace: data.nospace === true })
        return
    }
  }

  #emit(event: HypervisorEvent): void {
    if (this.#released) return
    for (const listener of [...this.#listeners]) listener(event)
  }
}

/**
 * What the answer to `query-blockstats` says of the guest's root disk.
 * @throws HypervisorError when it says nothing of it
 */
export function rootCounters(answer: unknown): DiskCounters {
  const disks = Array.isArray(answer) ? answer.map(asObject) : []
  const { rd_bytes: read, wr_bytes: written } = asObject(disks.find((one) => one['node-name'] === 'root')?.stats)
  if (typeof read !== 'number' || typeof written !== 'number') {
    throw new HypervisorError('hypervisor.refused', 'QEMU does not tell of the root disk')
  }
  return { readBytes: read, writtenBytes: written }
}
