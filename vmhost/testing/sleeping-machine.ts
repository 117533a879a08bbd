import { execFile } from 'node:child_process'
import { chmod, chown, copyFile, mkdir, mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import pino from 'pino'
import { testArtifacts } from '../../test/e2e/artifacts.ts'
import type { Sleeping, Slept } from '../../test/e2e/sleeper.ts'
import { type HypervisorDriver, hypervisorUid } from '../hypervisor/driver.ts'
import { openDevices } from '../hypervisor/privileges.ts'
import type { Subject } from '../hypervisor/testing/subjects.ts'
import { macFor } from '../network/address.ts'
import { makeHostKey } from '../reconcile/identity.ts'
import { Machine } from '../reconcile/machine.ts'
import type { MachineRow, Observation } from '../reconcile/rows.ts'
import { Slots } from '../reconcile/slots.ts'
import type { World } from '../reconcile/world.ts'
import type { BootSet, MachineFiles } from '../storage/store.ts'

const run = promisify(execFile)
const MiB = 2 ** 20
const id = 43
const uid = hypervisorUid(id)
const tap = `vm${id}`
const address = '10.42.0.2'
const gateway = '10.42.0.1'
const token = '00000000-0000-4000-8000-000000000000'
const bootHash = '0123456789abcdef'

/**
 * A machine as a vmhost has it, with a real guest: reconcile/ brings it from what it is to what is wanted, over a real
 * driver, a real agent and a tap in this process's network namespace. What is the same under every hypervisor is left
 * out: its row is kept here, and not in Postgres; nftables know nothing of it.
 */
export class SleepingMachine implements Sleeping, AsyncDisposable {
  readonly id = id
  readonly #home: string
  readonly #driver: HypervisorDriver
  readonly #machine: Machine
  readonly #stop = new AbortController()
  #seen: Observation = {}
  #row: MachineRow

  private constructor(home: string, driver: HypervisorDriver, laidOut: LaidOut) {
    this.#home = home
    this.#driver = driver
    this.#row = rowOf(laidOut.files.diskBytes)
    this.#machine = new Machine(this.#row, this.#world(laidOut))
  }

  /**
   * One that boots.
   * @param isEmulated its processor is, and everything takes many times as long as under KVM
   */
  static async make(subject: Subject, isEmulated: boolean): Promise<SleepingMachine> {
    const home = await mkdtemp(join(tmpdir(), 'berth-sleeping-'))
    try {
      await chmod(home, 0o711)
      openDevices()
      const laidOut = await layOut(home)
      const driver = await subject.driver(join(home, 'store'))
      const machine = new SleepingMachine(home, isEmulated ? { ...driver, accelerator: 'tcg' } : driver, laidOut)
      await machine.#machine.adopt()
      void machine.#machine.poke()
      return machine
    } catch (error) {
      await rm(home, { recursive: true })
      throw error
    }
  }

  async want(desiredState: 'asleep' | 'running'): Promise<void> {
    this.#row = { ...this.#row, desiredState }
    void this.#machine.poke()
  }

  async seen(): Promise<Slept> {
    const { observedState, observedReason, isReady, asleepBecause } = this.#row
    return {
      observed_state: observedState,
      observed_reason: observedReason,
      observed_asleep_because: this.#seen.observedAsleepBecause ?? asleepBecause,
      observed_saved_bytes: this.#seen.observedSavedBytes ?? null,
      ready: isReady,
    }
  }

  async ssh(command: string): Promise<{ status: number | null; stdout: string; stderr: string }> {
    const options = ['StrictHostKeyChecking=no', 'UserKnownHostsFile=/dev/null', 'LogLevel=ERROR', 'ConnectTimeout=120']
    const words = options.flatMap((option) => ['-o', option])
    const parameters = ['-F', 'none', '-i', join(this.#home, 'key'), ...words, `root@${address}`, command]
    return new Promise((resolve) => {
      execFile('ssh', parameters, { timeout: 300_000 }, (error, stdout, stderr) => {
        const status = error === null ? 0 : typeof error.code === 'number' ? error.code : null
        resolve({ status, stdout, stderr })
      })
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort()
    await this.#machine.release()
    await this.#driver.destroy(id, join(this.#home, 'store', 'machines', String(id)))
    await disconnect()
    await rm(this.#home, { recursive: true })
  }

  #world({ files, bootSet, gatewayKey }: LaidOut): World {
    const world: Partial<World> = {
      driver: this.#driver,
      store: {
        directoryOf: () => files.directory,
        findMachine: async () => files,
        claimMachine: async () => {},
        currentBoot: async () => bootSet,
        keptBoot: async () => bootSet,
        space: async () => ({
          totalBytes: 2 ** 40,
          freeBytes: 2 ** 40,
          volumeFreeBytes: 2 ** 40,
          underlyingFreeBytes: undefined,
          reserveBytes: 0,
        }),
      } as Partial<World['store']> as World['store'],
      network: { ensureMachine: connect, removeMachine: disconnect } as Partial<World['network']> as World['network'],
      rows: {
        one: async () => this.#row,
        keysOf: async () => [],
        replaceReport: async () => {},
        wasUsed: async () => true,
        nextConsoleSeq: async () => 1,
        appendConsole: async () => {},
      } as Partial<World['rows']> as World['rows'],
      meter: { note: () => {}, goOn: async () => {}, start: () => {} },
      outbox: {
        flushed: async () => {},
        report: (_: number, news: Observation) => this.#report(news),
        record: () => {},
      } as Partial<World['outbox']> as World['outbox'],
      slots: new Slots(1),
      wakes: new Slots(1),
      sleeps: new Slots(1),
      room: async () => ({ [Symbol.dispose]: () => {} }),
      guest: { network: '10.42.0.0/16', resolvers: ['198.51.100.10'], ntp: '' },
      memoryBytes: 2 * 2 ** 30,
      log: pino({ level: process.env.BERTH_LOG ?? 'warn' }, pino.destination({ dest: 2, sync: true })),
      gatewayKey: () => gatewayKey,
      signal: this.#stop.signal,
    }
    return world as World
  }

  /** As the database takes it. */
  #report(news: Observation): void {
    this.#seen = { ...this.#seen, ...news }
    const { observedState, observedBoot, observedReason, observedReadyAt, observedHostKey, observedDiskBytes } =
      this.#seen
    this.#row = {
      ...this.#row,
      observedState: observedState ?? this.#row.observedState,
      observedBoot: observedBoot ?? this.#row.observedBoot,
      observedReason: observedReason ?? null,
      isReady: (observedReadyAt ?? null) !== null,
      hostKey: observedHostKey ?? this.#row.hostKey,
      observedDiskBytes: observedDiskBytes ?? this.#row.observedDiskBytes,
    }
  }
}

function rowOf(diskBytes: number): MachineRow {
  return {
    id,
    accountId: 1,
    name: 'demo',
    image: 'minimal',
    cpus: 1,
    memoryBytes: 512 * MiB,
    diskBytes,
    observedDiskBytes: diskBytes,
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
    address,
    asleepBecause: null,
    restore: null,
    hasCheckpointWork: false,
  }
}

type LaidOut = { readonly files: MachineFiles; readonly bootSet: BootSet; readonly gatewayKey: string }

/** The files of a machine that has not run yet, as the store lays them out. */
async function layOut(home: string): Promise<LaidOut> {
  const artifacts = await testArtifacts()
  const store = join(home, 'store')
  for (const folder of [store, join(store, 'boot'), join(store, 'machines')]) {
    await mkdir(folder)
    await chmod(folder, 0o711)
  }
  const boot = (name: string) => join(store, 'boot', name)
  for (const name of ['vmlinuz', 'initrd', 'tools.erofs']) {
    await copyFile(join(artifacts, 'boot', 'current', name), boot(name))
    await chmod(boot(name), 0o644)
  }
  const directory = join(store, 'machines', String(id))
  await mkdir(directory)
  await chown(directory, 0, uid)
  await chmod(directory, 0o750)
  const disk = join(directory, 'root.raw')
  const image = join(artifacts, 'images', 'minimal', 'root.raw')
  await run('cp', ['--reflink=auto', '--sparse=always', image, disk])
  await chown(disk, uid, uid)
  await chmod(disk, 0o600)
  await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(home, 'key')])
  const record = {
    image: 'minimal',
    imageHash: bootHash,
    loginUser: 'dev',
    init: true,
    systemId: 'f'.repeat(32),
    token,
  }
  return {
    files: { directory, disk, diskBytes: (await stat(disk)).size, record, hostKey: makeHostKey('demo').privateKey },
    bootSet: { hash: bootHash, kernel: boot('vmlinuz'), initrd: boot('initrd'), tools: boot('tools.erofs') },
    gatewayKey: (await readFile(join(home, 'key.pub'), 'utf8')).trim(),
  }
}

/** A tap as network/kernel.ts plans it: one that is made anew has the address that a guest which woke knows. */
async function connect(): Promise<{ tap: string; mac: string }> {
  await disconnect()
  const lines = [
    `tuntap add dev ${tap} mode tap user ${uid} vnet_hdr`,
    `link set dev ${tap} address ${macFor(gateway)}`,
    `address add ${gateway}/32 dev ${tap}`,
    `link set dev ${tap} up`,
    `route add ${address}/32 dev ${tap} src ${gateway}`,
  ]
  for (const line of lines) await run('ip', line.split(' '))
  return { tap, mac: macFor(address) }
}

async function disconnect(): Promise<void> {
  await run('ip', ['link', 'delete', 'dev', tap]).catch(() => {})
}
