import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { agentVsockPort } from '../guest/channel.ts'
import { groupName, setWeight, unconfine, widen } from './cgroup.ts'
import { asObject, CloudHypervisorApi } from './cloud-hypervisor-api.ts'
import { files, vmConfig, wholeModules } from './cloud-hypervisor-config.ts'
import { type MonitorEvent, MonitorReader } from './cloud-hypervisor-events.ts'
import { endRestore, prepareRestore, stateLimitMs, stateVersion, writeState } from './cloud-hypervisor-state.ts'
import { type Abilities, abilitiesOf, releaseName } from './cloud-hypervisor-version.ts'
import {
  type DiskCounters,
  type GuestState,
  type Hypervisor,
  HypervisorError,
  type HypervisorEvent,
  hypervisorUid,
  type MachineSize,
  type MachineSpec,
} from './driver.ts'
import { readFifo } from './fifo.ts'
import { awaitExit, isAlive, killLimitMs, type ProcessIdentity, setNice, signalProcess } from './process.ts'

/**
 * What of its guest Cloud Hypervisor does not keep, in a file beside it: whether it was ever started (one that has
 * switched itself off looks like one that has not), and that it has panicked, which is told once and then forgotten.
 */
export type GuestNote = 'started' | 'panicked'

const quitLimitMs = 10_000
/** Loading kernel and initramfs, making the devices. */
const bootLimitMs = 60_000
/** How often a process that this vmhost did not start is looked at. */
const watchEveryMs = 1_000
/** One turn of the event loop reads what a process has written last into its FIFOs. */
const lastWordsMs = 20
const wordsMostBytes = 4 * 1024
const earlyMost = 64
/** See qemu-process.ts: as little as there is. */
const yieldingNice = 19
const yieldingWeight = 1

/** A Cloud Hypervisor that runs, started or adopted: what is asked of it over its API, and what it tells. */
export class CloudHypervisorProcess implements Hypervisor {
  readonly machineId: number
  readonly agent: Hypervisor['agent']
  readonly consolePath: string
  readonly #directory: string
  readonly #identity: ProcessIdentity
  readonly #api: CloudHypervisorApi
  readonly #listeners = new Set<(event: HypervisorEvent) => void>()
  /** told before anybody listened: what an adopted one has to say of the time without a vmhost */
  #early: HypervisorEvent[] = []
  readonly #gone = Promise.withResolvers<string>()
  readonly #closers: (() => void)[] = []
  readonly #monitor = new MonitorReader()
  #words = Buffer.alloc(0)
  #watch: NodeJS.Timeout | undefined
  #version = ''
  #abilities: Abilities | undefined
  #panicked = false
  #saidShutdown = false
  #ending = false
  #released = false

  constructor(machineId: number, directory: string, identity: ProcessIdentity, exited: Promise<string> | undefined) {
    this.machineId = machineId
    this.#directory = directory
    this.#identity = identity
    const uid = hypervisorUid(machineId)
    this.#api = new CloudHypervisorApi(join(directory, files.api), uid)
    this.agent = { socketPath: join(directory, files.agent), vsockPort: agentVsockPort, uid }
    this.consolePath = join(directory, files.console)
    exited?.then((detail) => this.#ended(detail))
    this.#gone.promise.then((detail) => this.#leave(detail))
  }

  get pid(): number {
    return this.#identity.pid
  }

  get stateVersion(): string {
    return stateVersion(this.#version)
  }

  /** What it has said on its standard error last. */
  get lastWords(): string {
    return this.#words.toString('utf8')
  }

  /**
   * Waits until it is there and answers.
   * @param note of the guest that it has already
   * @throws HypervisorError for a release that is not known
   */
  async attach(timeoutMs: number, note: GuestNote | undefined, signal?: AbortSignal): Promise<void> {
    this.#panicked = note === 'panicked'
    this.#closers.push(
      readFifo(join(this.#directory, files.log), (chunk) => {
        this.#words = Buffer.concat([this.#words, chunk]).subarray(-wordsMostBytes)
      }),
    )
    const { version } = await this.#api.whenThere(timeoutMs, signal)
    this.#version = releaseName(version)
    this.#abilities = abilitiesOf(this.#version)
    this.#closers.push(
      readFifo(join(this.#directory, files.events), (chunk) => {
        for (const event of this.#monitor.push(chunk.toString('utf8'))) this.#onEvent(event)
      }),
    )
    this.#watch = setInterval(() => {
      isAlive(this.#identity).then(
        (alive) => {
          if (!alive) this.#ended('the process is gone')
        },
        () => {}, // It could not be looked at, and is at the next turn.
      )
    }, watchEveryMs)
    this.#watch.unref()
  }

  /** Makes the guest and has it go, or lays a saved one out, which stands still. */
  async begin(spec: MachineSpec, landlock: boolean): Promise<void> {
    const { restoreFrom } = spec
    if (restoreFrom === undefined) {
      await this.#api.put('vm.create', vmConfig(spec, landlock))
      await this.#api.put('vm.boot', undefined, bootLimitMs)
    } else {
      try {
        const body = await prepareRestore({ ...spec, restoreFrom }, landlock)
        await this.#api.put('vm.restore', body, stateLimitMs(spec.memoryBytes))
      } finally {
        await endRestore(this.#directory, hypervisorUid(this.machineId))
      }
    }
    await this.#note('started')
  }

  async state(): Promise<GuestState> {
    const { state } = asObject(await this.#api.get('vm.info'))
    if (this.#panicked) return 'panicked'
    switch (state) {
      case 'Running':
        return 'running'
      // A guest that has switched itself off is taken apart; what is left looks like one that is yet to be started.
      case 'Created':
      case 'Shutdown':
        return 'shutdown'
      default:
        return 'paused'
    }
  }

  on(listener: (event: HypervisorEvent) => void): () => void {
    this.#listeners.add(listener)
    const early = this.#early.splice(0)
    queueMicrotask(() => {
      for (const event of early) if (this.#listeners.has(listener)) listener(event)
    })
    return () => {
      this.#listeners.delete(listener)
    }
  }

  async pause(): Promise<void> {
    await this.#unlessAlready('vm.pause', ['paused', 'shutdown', 'panicked'])
  }

  async resume(): Promise<void> {
    await this.#unlessAlready('vm.resume', ['running', 'shutdown', 'panicked'])
  }

  async save(directory: string, { compact = false } = {}): Promise<void> {
    const memoryBytes = (await this.#memory()).size
    await writeState({
      api: this.#api,
      machineId: this.machineId,
      directory: this.#directory,
      target: directory,
      memoryBytes,
      version: this.#version,
      compact,
    })
  }

  async powerButton(): Promise<void> {
    await this.#api.put('vm.power-button')
  }

  async setBalloon(targetBytes: number): Promise<void> {
    // It takes any size, and a guest that reboots would find all of its memory in the balloon.
    const { size } = await this.#memory()
    await this.#api.put('vm.resize', { desired_balloon: Math.min(targetBytes, size - 2 ** 20) })
  }

  async balloon(): Promise<number> {
    const { size, actual } = await this.#memory()
    return size - actual
  }

  async diskCounters(): Promise<DiskCounters> {
    const { root } = asObject(await this.#api.get('vm.counters'))
    const { read_bytes: read, write_bytes: written } = asObject(root)
    if (typeof read !== 'number' || typeof written !== 'number') {
      throw new HypervisorError('hypervisor.refused', 'Cloud Hypervisor does not tell of the root disk')
    }
    return { readBytes: read, writtenBytes: written }
  }

  async size(): Promise<MachineSize> {
    const { cpus, memoryBytes } = await this.#sizes()
    return { cpus, memoryBytes }
  }

  async resize(wanted: MachineSize): Promise<MachineSize> {
    const { cpus, mostCpus, memoryBytes } = await this.#sizes()
    const moreCpus = this.#abilities?.addsProcessors ? Math.min(wanted.cpus, mostCpus) : cpus
    const moreBytes = wanted.memoryBytes - memoryBytes
    // Never less than it has: nothing would be taken away but what it has when it reboots.
    const asks = [
      ...(moreCpus > cpus ? [{ desired_vcpus: moreCpus }] : []),
      ...(moreBytes > 0 && wholeModules(moreBytes) === moreBytes ? [{ desired_ram: wanted.memoryBytes }] : []),
    ]
    if (asks.length === 0) return { cpus, memoryBytes }
    const group = groupName(this.machineId, this.#directory)
    // Before it has anything that it could use.
    await widen(group, { cpus: Math.max(moreCpus, cpus), memoryBytes: Math.max(wanted.memoryBytes, memoryBytes) })
    for (const ask of asks) {
      await this.#api.put('vm.resize', ask).catch((error: unknown) => {
        // Eight times a guest is given memory, and up to where its devices begin; what is refused waits for its next start.
        if (!(error instanceof HypervisorError) || error.code !== 'hypervisor.refused') throw error
      })
    }
    const now = await this.size()
    await widen(group, now)
    return now
  }

  async diskGrown(sizeBytes: number): Promise<void> {
    await this.#api.put('vm.resize-disk', { id: 'root', desired_size: sizeBytes })
  }

  async yieldToOthers(yields: boolean): Promise<void> {
    await setNice(this.pid, yields ? yieldingNice : 0)
    await setWeight(groupName(this.machineId, this.#directory), yields ? yieldingWeight : 100)
  }

  async quit(limitMs = quitLimitMs): Promise<void> {
    this.#ending = true
    // It may be busy with something that takes longer than there is time for its end.
    await this.#api.putAtOnce('vmm.shutdown', limitMs).catch(() => {})
    if (!(await awaitExit(this.#identity, limitMs))) await signalProcess(this.#identity, 'SIGKILL')
    await this.#awaitGone()
  }

  async kill(): Promise<void> {
    this.#ending = true
    await signalProcess(this.#identity, 'SIGKILL')
    await this.#awaitGone()
  }

  release(): void {
    this.#released = true
    this.#close()
    this.#listeners.clear()
  }

  /** Cloud Hypervisor's configuration of a guest keeps up with what it was given. */
  async #sizes(): Promise<MachineSize & { mostCpus: number }> {
    const config = asObject(asObject(await this.#api.get('vm.info')).config)
    const { boot_vcpus: cpus, max_vcpus: mostCpus } = asObject(config.cpus)
    return { cpus: Number(cpus), mostCpus: Number(mostCpus), memoryBytes: Number(asObject(config.memory).size) }
  }

  async #memory(): Promise<{ size: number; actual: number }> {
    const { config, memory_actual_size: actual } = asObject(await this.#api.get('vm.info'))
    return { size: Number(asObject(asObject(config).memory).size), actual: Number(actual) }
  }

  /** Cloud Hypervisor refuses to bring a guest where it is already; whoever asks only wants it to be there. */
  async #unlessAlready(command: 'vm.pause' | 'vm.resume', there: readonly GuestState[]): Promise<void> {
    if (there.includes(await this.state())) return
    await this.#api.put(command).catch(async (error: unknown) => {
      const state = await this.state().catch(() => undefined)
      if (state === undefined || !there.includes(state)) throw error
    })
  }

  async #awaitGone(): Promise<void> {
    if (!(await awaitExit(this.#identity, killLimitMs))) {
      const words = `Cloud Hypervisor (process ${this.pid}) does not end, even by SIGKILL`
      throw new HypervisorError('hypervisor.timeout', words)
    }
    this.#ended('ended')
    await unconfine(groupName(this.machineId, this.#directory))
  }

  #ended(detail: string): void {
    clearInterval(this.#watch)
    this.#gone.resolve(detail)
  }

  async #leave(detail: string): Promise<void> {
    await sleep(lastWordsMs)
    const words = lastLine(this.lastWords)
    this.#emit({ type: 'exited', detail: words === '' ? detail : `${detail}: ${words}` })
    this.#close()
  }

  #close(): void {
    clearInterval(this.#watch)
    for (const close of this.#closers.splice(0)) close()
  }

  #onEvent({ source, event, properties }: MonitorEvent): void {
    switch (`${source} ${event}`) {
      case 'guest panic':
        // Its own crash kernel comes up (`crash_loaded`), or its driver says what nobody knows: then it goes on.
        if (properties.event === 'panic') void this.#onPanic()
        return
      case 'vm rebooting':
        this.#panicked = false
        void this.#note('started').catch(() => {})
        return
      case 'vm rebooted':
        this.#emit({ type: 'reset', byGuest: true })
        return
      case 'vm resumed':
        this.#emit({ type: 'resumed' })
        return
      case 'vm shutdown':
        void this.#onShutdown()
        return
    }
  }

  /** A guest that panicked spins on all its processors, until somebody looks at it. */
  async #onPanic(): Promise<void> {
    this.#panicked = true
    await this.#note('panicked').catch(() => {})
    await this.#api.put('vm.pause').catch(() => {})
    this.#emit({ type: 'panicked' })
  }

  /**
   * A guest that switched itself off leaves the process behind, so whatever else takes the guest apart (a signal, at
   * the end of the server) shows by its end. Releases that do not outlive their guests cannot be told apart by that.
   */
  async #onShutdown(): Promise<void> {
    if (this.#saidShutdown || this.#ending) return
    this.#saidShutdown = true
    const byGuest =
      !this.#abilities?.outlivesGuest ||
      (await this.#api.get('vm.info').then(
        () => true,
        () => false,
      ))
    if (!this.#ending) this.#emit({ type: 'shutdown', byGuest })
  }

  async #note(note: GuestNote): Promise<void> {
    await writeFile(join(this.#directory, files.note), note, { mode: 0o600 })
  }

  #emit(event: HypervisorEvent): void {
    if (this.#released) return
    if (this.#listeners.size === 0 && this.#early.length < earlyMost) this.#early.push(event)
    for (const listener of [...this.#listeners]) listener(event)
  }
}

/** Without what its logger puts in front, e.g. `cloud-hypervisor:   1.234567s: <vmm> ERROR:vmm/src/lib.rs:1 -- `. */
export function lastLine(words: string): string {
  const lines = words.split(/\r?\n/).filter((line) => line.trim() !== '' && !line.includes('WARN'))
  return (lines.at(-1) ?? '')
    .replace(/^cloud-hypervisor: .*? -- /, '')
    .trim()
    .slice(0, 300)
}
