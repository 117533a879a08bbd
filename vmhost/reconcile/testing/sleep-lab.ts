import { execFileSync } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import pino from 'pino'
import { expect } from 'vitest'
import { cannotRestore } from '../../../migrations/schema.ts'
import { type Hypervisor, type HypervisorDriver, hypervisorUid } from '../../hypervisor/driver.ts'
import { findProcesses } from '../../hypervisor/process.ts'
import { qemuDriver, qemuVersion } from '../../hypervisor/qemu.ts'
import { makeTinyGuest } from '../../hypervisor/tiny-guest.ts'
import type { MachineFiles } from '../../storage/store.ts'
import { Agent } from '../../testing/agent.ts'
import { makeHostKey } from '../identity.ts'
import { Machine } from '../machine.ts'
import type { MachineEvent, MachineRow, Observation } from '../rows.ts'
import { Slots } from '../slots.ts'
import type { World } from '../world.ts'

const MiB = 2 ** 20
const id = 43
export const uid = hypervisorUid(id)
export const bootHash = '0123456789abcdef'
const hostKey = makeHostKey('').privateKey
const token = '00000000-0000-4000-8000-000000000000'

export type Step = 'balloon' | 'pause' | 'save' | 'quit' | 'start' | 'resume'

/**
 * A machine that sleeps and wakes: QEMU is real, with a guest of a few bytes in it; its agent is the test's own.
 *
 * A vmhost that is killed does nothing any more: a step that the test cuts off never returns, and another vmhost finds
 * what is left.
 */
export class SleepLab implements AsyncDisposable {
  readonly home = mkdtempSync(join(tmpdir(), 'berth-sleep-'))
  readonly directory = join(this.home, String(id))
  readonly agent = new Agent(join(this.home, 'agent.sock'))
  row: MachineRow = {
    id,
    accountId: 1,
    name: 'demo',
    image: 'minimal',
    cpus: 1,
    memoryBytes: 128 * MiB,
    diskBytes: 64 * MiB,
    observedDiskBytes: 64 * MiB,
    env: {},
    command: 'auto',
    desiredState: 'running',
    desiredBoot: 1,
    observedState: 'creating',
    observedBoot: 0,
    observedReason: null,
    isReady: false,
    token,
    hostKey: null,
    address: '10.42.0.2',
    asleepBecause: null,
    restore: null,
    hasCheckpointWork: false,
  }
  seen: Observation = {}
  recorded: string[] = []
  freeBytes = 2 ** 40
  balloonBytes = 0
  mostBalloonBytes = 0
  hasRoom = true
  /** of those that are being put to sleep, at the newest vmhost */
  places = new Slots(1)
  /** how often whoever keeps the memory heard that its sleep failed */
  failedSleeps = 0
  /** what the next looks at the machine's files fail with, one each */
  readonly lookFailures: Error[] = []
  /** why the next vmhost cannot restore what was saved */
  obstacle: string | undefined
  /** what comes of starting a hypervisor instead, as often as it is called */
  startFailure: (() => Error) | undefined
  /** of the QEMU that the next vmhost believes to have; undefined: the installed one's */
  version: string | undefined
  keepsBoot = true
  /** of the newest vmhost's driver, for a hypervisor to answer */
  adoptLimitMs = 30_000
  /** called once, within the save */
  whileSaving: (() => void) | undefined
  readonly vmhosts: { machine: Machine; stop: AbortController; killed: boolean; hypervisors: Hypervisor[] }[] = []
  /** a step that never returns: it is begun, or done, and then its vmhost is killed */
  #cut: { step: Step; done: boolean; reached: PromiseWithResolvers<void> } | undefined

  /** A machine that is awake. */
  static async make(): Promise<SleepLab> {
    const lab = new SleepLab()
    try {
      await lab.#begin()
      return lab
    } catch (error) {
      await lab[Symbol.asyncDispose]()
      throw error
    }
  }

  async #begin(): Promise<void> {
    chmodSync(this.home, 0o711)
    mkdirSync(this.directory, { mode: 0o750 })
    chownSync(this.directory, 0, uid)
    this.makeDisk()
    await makeTinyGuest(join(this.home, 'vmlinuz'), 'idle')
    for (const name of ['initrd', 'tools']) writeFileSync(join(this.home, name), Buffer.alloc(4096), { mode: 0o644 })
    this.agent.stage = 'init'
    this.agent.memory = { totalBytes: 60 * MiB, availableBytes: 50 * MiB }
    await this.vmhost()
    await this.awake()
  }

  makeDisk(): void {
    const disk = join(this.directory, 'root.raw')
    writeFileSync(disk, '', { mode: 0o600 })
    truncateSync(disk, 64 * MiB)
    chownSync(disk, uid, uid)
  }

  /** A vmhost that starts: it has what lies on the disk, what the database says, and nothing else. */
  async vmhost(): Promise<void> {
    const { adoptLimitMs } = this
    const version = this.version ?? (await qemuVersion())
    const real = qemuDriver({ accelerator: 'tcg', version, cgroups: false, adoptLimitMs })
    const stop = new AbortController()
    this.places = new Slots(1)
    const hypervisors: Hypervisor[] = []
    const wrap = (hypervisor: Hypervisor) => {
      hypervisors.push(hypervisor)
      return this.#wrapped(hypervisor)
    }
    const driver: HypervisorDriver = {
      ...real,
      obstacle: async (state) => this.obstacle ?? real.obstacle(state),
      start: ({ network: _, ...spec }) => {
        // What was told to a guest is in its memory, and goes with that.
        if (spec.restoreFrom === undefined) {
          this.agent.hostname = undefined
          this.agent.frozen = false
        }
        return this.#step('start', async () => {
          if (this.startFailure) throw this.startFailure()
          return wrap(await real.start(spec))
        })
      },
      adopt: async (...of) => {
        const found = await real.adopt(...of)
        return found && wrap(found)
      },
    }
    const files: MachineFiles = {
      directory: this.directory,
      disk: join(this.directory, 'root.raw'),
      diskBytes: 64 * MiB,
      record: { image: 'minimal', imageHash: bootHash, loginUser: 'dev', init: true, systemId: 'f'.repeat(32), token },
      hostKey,
    }
    const bootSet = {
      hash: bootHash,
      kernel: join(this.home, 'vmlinuz'),
      initrd: join(this.home, 'initrd'),
      tools: join(this.home, 'tools'),
    }
    const world: Partial<World> = {
      driver,
      store: {
        directoryOf: () => this.directory,
        findMachine: async () => {
          const failure = this.lookFailures.shift()
          if (failure) throw failure
          return files
        },
        claimMachine: async () => {},
        growDisk: async (_: number, diskBytes: number) => {
          truncateSync(files.disk, diskBytes)
          return diskBytes
        },
        currentBoot: async () => bootSet,
        keptBoot: async (hash: string) => (this.keepsBoot && hash === bootHash ? bootSet : undefined),
        space: async () => ({
          totalBytes: 2 ** 40,
          freeBytes: this.freeBytes,
          volumeFreeBytes: this.freeBytes,
          underlyingFreeBytes: undefined,
          reserveBytes: 2 ** 30,
        }),
      } as Partial<World['store']> as World['store'],
      network: {
        ensureMachine: async () => ({ tap: 'none', mac: 'none' }),
        removeMachine: async () => {},
      } as Partial<World['network']> as World['network'],
      rows: {
        one: async () => this.row,
        keysOf: async () => [],
        replaceReport: async () => {},
        wasUsed: async () => true,
        nextConsoleSeq: async () => 1,
        appendConsole: async () => {},
        leaveAsleep: async (_: number, boot: number, because: string) => {
          if (this.row.desiredBoot !== boot) return
          const left = { observedReason: because, observedAsleepBecause: cannotRestore }
          this.seen = { ...this.seen, ...left }
          this.row = { ...this.row, desiredState: 'asleep', observedReason: because, asleepBecause: cannotRestore }
        },
        wakeLeftAsleep: async () => {
          this.row = { ...this.row, desiredState: 'running' }
        },
      } as Partial<World['rows']> as World['rows'],
      meter: { note: () => {}, goOn: async () => {}, start: () => {} },
      outbox: {
        flushed: async () => {},
        report: (_: number, news: Observation) => this.#report(stop.signal, news),
        record: ({ kind }: MachineEvent) => this.recorded.push(kind),
      } as Partial<World['outbox']> as World['outbox'],
      slots: new Slots(1),
      wakes: new Slots(1),
      sleeps: this.places,
      couldNotSleep: () => {
        this.failedSleeps++
      },
      room: async () => {
        if (this.hasRoom) return { [Symbol.dispose]: () => {} }
        this.row = { ...this.row, desiredState: 'asleep' }
        return undefined
      },
      guest: { network: '10.42.0.0/16', resolvers: [], ntp: '' },
      memoryBytes: 2 ** 40,
      log: pino({ level: process.env.BERTH_LOG ?? 'silent' }),
      gatewayKey: () => undefined,
      signal: stop.signal,
    }
    const machine = new Machine(this.row, world as World)
    this.vmhosts.push({ machine, stop, killed: false, hypervisors })
    await machine.adopt()
    void machine.poke()
  }

  /** As the database takes it. */
  #report(signal: AbortSignal, news: Observation): void {
    if (signal.aborted) return
    this.seen = { ...this.seen, ...news }
    this.row = {
      ...this.row,
      observedState: this.seen.observedState ?? this.row.observedState,
      observedBoot: this.seen.observedBoot ?? this.row.observedBoot,
      observedReason: this.seen.observedReason ?? null,
      isReady: (this.seen.observedReadyAt ?? null) !== null,
      asleepBecause: this.seen.observedAsleepBecause ?? null,
      observedDiskBytes: this.seen.observedDiskBytes ?? this.row.observedDiskBytes,
    }
  }

  async #step<T>(name: Step, act: () => Promise<T>): Promise<T> {
    const mine = this.#cut?.step === name ? this.#cut : undefined
    if (mine?.done) await act()
    if (!mine) return act()
    mine.reached.resolve()
    return new Promise<never>(() => {})
  }

  #wrapped(hypervisor: Hypervisor): Hypervisor {
    const own: Partial<Hypervisor> = {
      agent: { socketPath: join(this.home, 'agent.sock') },
      setBalloon: (bytes) =>
        this.#step('balloon', async () => {
          await hypervisor.setBalloon(bytes)
          this.balloonBytes = bytes
          this.mostBalloonBytes = Math.max(this.mostBalloonBytes, bytes)
        }),
      // A guest without a driver gives nothing back.
      balloon: async () => this.balloonBytes,
      pause: () => this.#step('pause', () => hypervisor.pause()),
      resume: () => this.#step('resume', () => hypervisor.resume()),
      quit: (limitMs) => this.#step('quit', () => hypervisor.quit(limitMs)),
      save: (...to) =>
        this.#step('save', async () => {
          await hypervisor.save(...to)
          this.whileSaving?.()
        }),
    }
    return new Proxy(hypervisor, {
      get: (target, name) => {
        if (name in own) return own[name as keyof Hypervisor]
        const value = Reflect.get(target, name, target)
        return typeof value === 'function' ? value.bind(target) : value
      },
    })
  }

  /** Has the next vmhost that comes to this step never come back from it. */
  cutOff(name: Step, done: boolean): Promise<void> {
    this.#cut = { step: name, done, reached: Promise.withResolvers() }
    return this.#cut.reached.promise
  }

  /** kill -9: nothing of it is heard any more. */
  killVmhost(): void {
    this.#cut = undefined
    const killed = this.vmhosts.at(-1)
    if (!killed) return
    killed.killed = true
    killed.stop.abort()
    for (const hypervisor of killed.hypervisors) hypervisor.release()
  }

  want(changes: Partial<MachineRow>): void {
    this.row = { ...this.row, ...changes }
    void this.vmhosts.at(-1)?.machine.poke()
  }

  async pids(): Promise<number[]> {
    return (await findProcesses(uid, this.directory)).map(({ pid }) => pid)
  }

  async killHypervisor(): Promise<void> {
    for (const pid of await this.pids()) process.kill(pid, 'SIGKILL')
    await expect.poll(() => this.pids(), { timeout: 10_000 }).toEqual([])
  }
  memory(): string[] {
    return readdirSync(this.directory).filter((name) => name.startsWith('memory'))
  }

  async awake(): Promise<void> {
    await expect
      .poll(() => [this.seen.observedState, this.row.isReady, this.agent.frozen, this.memory()], { timeout: 20_000 })
      .toEqual(['running', true, false, []])
  }

  async asleep(): Promise<void> {
    await expect.poll(() => this.seen.observedState, { timeout: 20_000 }).toBe('asleep')
    expect(await this.pids()).toEqual([])
    expect(this.memory()).toEqual(['memory'])
  }

  async sleeps(): Promise<void> {
    this.want({ desiredState: 'asleep' })
    await this.asleep()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#cut = undefined
    for (const { machine, stop, killed } of this.vmhosts.splice(0)) {
      stop.abort()
      if (!killed) await machine.release()
    }
    const driver = qemuDriver({ accelerator: 'tcg', version: await qemuVersion(), cgroups: false })
    await driver.destroy(id, this.directory)
    this.agent.close()
    // Most tests mount nothing. Where one has, a hypervisor that was just killed holds it for a moment.
    for (let tries = 0; tries < 100 && isMounted(this.directory); tries++) {
      try {
        execFileSync('umount', [this.directory], { stdio: 'ignore' })
      } catch {
        await sleep(100)
      }
    }
    rmSync(this.home, { recursive: true })
  }
}

function isMounted(path: string): boolean {
  return readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${path} `)
}
