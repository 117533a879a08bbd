import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { type Listening, listenTo } from '../../migrations/listen.ts'
import { hypervisorOverheadBytes } from '../hypervisor/driver.ts'
import { createKeeper, type Figures, type Keeper } from '../memory/keeper.ts'
import { MemoryRows } from '../memory/memory-rows.ts'
import { LoadRows } from '../meter/load-rows.ts'
import { LoadSampler } from '../meter/load-sampler.ts'
import type { PublicPort } from '../network/types.ts'
import { findMemory } from '../storage/memory.ts'
import type { TemplateFiles } from '../storage/templates.ts'
import { coalesce } from './coalesce.ts'
import { parsePublicKeyLine } from './identity.ts'
import { idleness } from './idleness.ts'
import { renewLease } from './lease.ts'
import { Machine } from './machine.ts'
import { makeSpace } from './making-space.ts'
import { isTaken } from './ownership.ts'
import { portsSetting, readOpenPorts } from './public-ports.ts'
import type { MachineRow } from './rows.ts'
import { SpaceGuard } from './space-guard.ts'
import { Templates } from './templates.ts'
import type { World } from './world.ts'

/**
 * Keeps this server's machines what the database wants them to be.
 *
 * News (LISTEN) wake single machines within milliseconds; a rescan of all rows finds what news were lost for, after
 * every reconnection and every now and then. Machines go their ways side by side, each with one turn at a time.
 * While Postgres is away nothing changes: machines run on, and what is seen of them waits in the outbox.
 */
export type Reconciler = {
  /** Adopts what runs, removes what nobody wants, hears the news. Resolves when the first look at all rows is done. */
  start(): Promise<void>
  /** Puts every machine that runs to sleep, as far as that can be had within the time; nothing is started any more. */
  sleepThroughShutdown(limitMs: number): Promise<void>
  /** Lets every machine go; they run on. */
  close(): Promise<void>
  /** Name of the machine with this address, for the metadata service. */
  nameAt(address: string): string | undefined
  /** Machines this vmhost knows of, and how many of them have a hypervisor. */
  counts(): { machines: number; running: number }
  /** What there is of the server's memory, and what its machines do with it. */
  memory(): Promise<Figures>
  /** Ids under which files lie in the store that no row of this server is about: kept, and reported by the doctor. */
  unknownDisks(): Promise<number[]>
}

export type ReconcilerOptions = {
  /** The world of the machines, without what the reconciler itself provides. */
  readonly world: Omit<World, 'gatewayKey' | 'signal' | 'room' | 'couldNotSleep' | 'templates'>
  /** where templates are kept */
  readonly templates: TemplateFiles
  readonly log: Logger
  /** ports of the gateway on this server, of which machines may reach those that it has */
  readonly publicPorts: readonly PublicPort[]
  /** another vmhost has taken over this server */
  readonly onLeaseLost: () => void
  /** a machine lost its row, and left its files behind */
  readonly onUnknownDisk: () => void
}

const rescanEveryMs = 30_000
const heartbeatEveryMs = 10_000
const networkEveryMs = 60_000
const trashEveryMs = 60_000
const idlenessEveryMs = 10_000
/** What a checkpoint holds alone grows as its machine writes. */
const checkpointsEveryMs = 600_000
const templatesEveryMs = 3_600_000
/** A fast disk takes some GiB in this time; what is too late here is made good by what the ballast leaves. */
const spaceEveryMs = 1_000
const trashDays = 7
const sampleLimitMs = 2_000
const retryMs = 1_000

export function createReconciler(options: ReconcilerOptions): Reconciler {
  return new HostReconciler(options)
}

class HostReconciler implements Reconciler {
  readonly #world: World
  readonly #log: Logger
  readonly #onLeaseLost: () => void
  readonly #onUnknownDisk: () => void
  readonly #publicPorts: readonly PublicPort[]
  readonly #machines = new Map<number, Machine>()
  /** tokens of the rows whose files were seen to be theirs, by machine */
  readonly #owned = new Map<number, string>()
  readonly #keeper: Keeper
  readonly #sampler: LoadSampler
  readonly #templates: Templates
  readonly #spaceGuard: SpaceGuard
  readonly #stop = new AbortController()
  readonly #timers: NodeJS.Timeout[] = []
  readonly #background = new Set<Promise<void>>()
  readonly #rescan = coalesce(() => this.#lookAtAll())
  readonly #allKeys = coalesce(() => this.#renewKeys())
  readonly #ports = coalesce(() => this.#openPorts())
  #listening: Listening | undefined
  #gatewayKey: string | undefined
  /** before that, nothing is known of whose files are whose */
  #hasLooked = false

  constructor({ world, templates, log, publicPorts, onLeaseLost, onUnknownDisk }: ReconcilerOptions) {
    this.#log = log
    this.#onLeaseLost = onLeaseLost
    this.#onUnknownDisk = onUnknownDisk
    this.#publicPorts = publicPorts
    this.#keeper = createKeeper({
      seats: () => [...this.#machines.values()].map(({ seat }) => seat).filter((seat) => seat !== undefined),
      pids: () => [...this.#machines.values()].map(({ pid }) => pid).filter((pid) => pid !== undefined),
      rows: new MemoryRows(world.rows),
      overheadBytes: hypervisorOverheadBytes,
      log,
    })
    this.#sampler = new LoadSampler({
      sources: () =>
        [...this.#machines.values()]
          .map((machine) => machine.loadSource(this.#keeper.balloonBytes(machine.id)))
          .filter((source) => source !== undefined),
      rows: new LoadRows(world.rows.sql, world.rows.lease),
      log,
      onLeaseLost,
    })
    this.#templates = new Templates({
      ...world,
      files: templates,
      spare: (bytes) => this.#keeper.spare(bytes),
      log,
      signal: this.#stop.signal,
    })
    this.#spaceGuard = new SpaceGuard({
      store: world.store,
      stopsWithoutSpace: world.driver.name === 'qemu',
      standStill: async () => {
        await Promise.allSettled([...this.#machines.values()].map((machine) => machine.standStill()))
      },
      log,
    })
    this.#world = {
      ...world,
      templates: this.#templates,
      gatewayKey: () => this.#gatewayKey,
      room: (machineId, wanted) => this.#keeper.room(machineId, wanted),
      couldNotSleep: (machineId) => this.#keeper.couldNotSleep(machineId),
      signal: this.#stop.signal,
    }
  }

  async unknownDisks(): Promise<number[]> {
    if (!this.#hasLooked) return []
    const { store } = this.#world
    const unknown: number[] = []
    for (const id of await store.listMachines()) {
      const machine = this.#machines.get(id)
      // Looked at once: a thousand sleepers' files, every half minute, would cost more than all the rest.
      if (machine && this.#owned.get(id) === machine.row.token) continue
      if (!machine || (await isTaken(store, machine.row))) unknown.push(id)
      else this.#owned.set(id, machine.row.token)
    }
    return unknown
  }

  memory(): Promise<Figures> {
    return this.#keeper.figures()
  }

  async start(): Promise<void> {
    // A hypervisor that hangs, or is busy with its guest's memory, may take longer to be adopted than the lease lasts.
    this.#every(heartbeatEveryMs, () => this.#heartbeat())
    await this.#readGatewayKey()
    const rows = await this.#world.rows.all()
    for (const row of rows) this.#machines.set(row.id, new Machine(row, this.#world))
    await Promise.all([...this.#machines.values()].map((machine) => machine.adopt()))
    await this.#world.meter.goOn()
    await this.#removeStrays(rows)
    this.#hasLooked = true
    await this.#networkRound()
    await this.#world.checkpoints.sweep()
    await this.#templates.start().catch((error) => this.#log.warn({ err: error }, 'templates'))
    const bootSets = [...this.#machines.values()].map((machine) => machine.bootSet)
    const kept = [...(await this.#world.checkpoints.bootSets()), ...(await this.#unknownBootSets())]
    await this.#world.store.sweep(new Set([...bootSets, ...kept].filter((hash) => hash !== undefined)))
    await this.#listen()
    this.#keeper.start()
    this.#sampler.start()
    this.#world.meter.start()
    for (const machine of this.#machines.values()) this.#run(machine.poke())
    this.#run(this.#emptyTrash())
    this.#run(this.#world.checkpointRows.endCopies())
    this.#every(rescanEveryMs, () => this.#rescan())
    this.#every(networkEveryMs, () => this.#networkRound())
    this.#every(trashEveryMs, () => this.#emptyTrash())
    this.#every(checkpointsEveryMs, () => this.#countCheckpoints())
    this.#every(templatesEveryMs, () => this.#templates.sweep())
    this.#every(idlenessEveryMs, () => this.#watchIdleness())
    this.#every(spaceEveryMs, () => this.#spaceGuard.look())
  }

  async sleepThroughShutdown(limitMs: number): Promise<void> {
    const all = [...this.#machines.values()].map((machine) => machine.sleepThroughShutdown())
    await Promise.race([Promise.allSettled(all), sleep(limitMs, undefined, { ref: false })])
  }

  async close(): Promise<void> {
    this.#stop.abort()
    for (const timer of this.#timers) clearInterval(timer)
    await Promise.all([this.#keeper.close(), this.#sampler.close(sampleLimitMs)])
    await Promise.all([
      this.#listening?.close(),
      this.#templates.close(),
      ...[...this.#machines.values()].map((machine) => machine.release()),
    ])
    await Promise.allSettled(this.#background)
  }

  nameAt(address: string): string | undefined {
    for (const { row, network } of this.#machines.values()) if (network?.address === address) return row.name
    return undefined
  }

  counts(): { machines: number; running: number } {
    const all = [...this.#machines.values()]
    return { machines: all.length, running: all.filter(({ pid }) => pid !== undefined).length }
  }

  async #listen(): Promise<void> {
    // News of the time between are lost, so everything is looked at: now, and after every reconnection.
    const lookAtEverything = () => {
      this.#run(this.#rescan())
      this.#run(this.#allKeys())
      this.#run(this.#ports())
    }
    this.#listening = await listenTo(this.#world.rows.sql, ['machines', 'keys', 'settings'], {
      onNotification: (channel, payload) => {
        if (channel === 'machines') this.#onNews(payload, (id) => this.#lookAt(id))
        else if (channel === 'keys') this.#onNews(payload, (accountId) => this.#keysOf(accountId))
        else this.#run(payload === portsSetting ? this.#ports() : this.#allKeys())
      },
      onListeningAgain: lookAtEverything,
    })
    lookAtEverything()
  }

  #onNews(payload: string, act: (id: number) => Promise<void>): void {
    const id = Number(payload)
    if (Number.isSafeInteger(id) && id > 0 && !this.#stop.signal.aborted) this.#run(act(id))
  }

  async #lookAt(machineId: number): Promise<void> {
    const machine = this.#machines.get(machineId)
    if (machine) await this.#turn(machine)
    else {
      const row = await this.#world.rows.one(machineId)
      if (row && row.observedState !== 'gone') await this.#turn(this.#adopted(row))
    }
  }

  #adopted(row: MachineRow): Machine {
    const known = this.#machines.get(row.id)
    if (known) return known
    const machine = new Machine(row, this.#world)
    this.#machines.set(row.id, machine)
    return machine
  }

  async #turn(machine: Machine): Promise<void> {
    await machine.poke()
    // A turn that another call waited for too has removed it already.
    if (!machine.over || !this.#machines.delete(machine.id)) return
    this.#owned.delete(machine.id)
    if ((await this.unknownDisks()).includes(machine.id)) this.#onUnknownDisk()
  }

  async #lookAtAll(): Promise<void> {
    if (this.#stop.signal.aborted) return
    const rows = await this.#world.rows.all()
    const seen = new Set(rows.map(({ id }) => id))
    for (const row of rows) {
      const machine = this.#adopted(row)
      // A thousand that sleep cost one query, not a thousand and one.
      if (!machine.isAtRest(row)) this.#run(this.#turn(machine))
    }
    // Rows that went away (lost with an older database, or given to another server) end their machines here.
    for (const machine of this.#machines.values()) if (!seen.has(machine.id)) this.#run(this.#turn(machine))
  }

  async #keysOf(accountId: number): Promise<void> {
    const theirs = [...this.#machines.values()].filter(({ row }) => row.accountId === accountId)
    await Promise.all(theirs.map((machine) => machine.keysChanged()))
  }

  async #renewKeys(): Promise<void> {
    await this.#readGatewayKey()
    await Promise.all([...this.#machines.values()].map((machine) => machine.keysChanged()))
  }

  async #readGatewayKey(): Promise<void> {
    const line = await this.#world.rows.setting('gateway_public_key')
    this.#gatewayKey = line === undefined ? undefined : parsePublicKeyLine(line)
    if (line !== undefined && this.#gatewayKey === undefined) {
      this.#log.error('settings.gateway_public_key is no public key: the gateway cannot reach machines')
    }
  }

  async #openPorts(): Promise<void> {
    await this.#world.network.openPorts(await readOpenPorts(this.#world.rows.sql, this.#publicPorts))
  }

  /**
   * What is in the store and belongs to nobody. A disk goes only when its row says that the machine is gone: rows
   * that are missing altogether may be missing because an older database was restored.
   */
  async #removeStrays(rows: readonly MachineRow[]): Promise<void> {
    const wanted = new Set(rows.map(({ id }) => id))
    const others = (await this.#world.store.listMachines()).filter((id) => !wanted.has(id))
    for (const id of others) {
      const ended = await this.#world.driver.destroy(id, this.#world.store.directoryOf(id))
      if (ended > 0) this.#log.warn({ machine: id }, 'ended a hypervisor whose machine is not of this server')
      const row = await this.#world.rows.one(id)
      if (row?.observedState === 'gone' && !(await isTaken(this.#world.store, row))) {
        await this.#world.store.removeMachine(id)
      } else this.#log.warn({ machine: id }, 'a disk without a row is kept')
    }
  }

  /** Those that files sleep with which no row is about: their row may come back with a newer database. */
  async #unknownBootSets(): Promise<(string | undefined)[]> {
    const { store } = this.#world
    const unknown = (await store.listMachines()).filter((id) => !this.#machines.has(id))
    return Promise.all(unknown.map(async (id) => (await findMemory(store.directoryOf(id))).saved?.bootSet))
  }

  async #networkRound(): Promise<void> {
    const wanted = [...this.#machines.values()].map(({ network }) => network).filter((one) => one !== undefined)
    const { removed, failed } = await this.#world.network.reconcile(wanted)
    if (removed.length > 0) this.#log.info({ removed }, 'removed taps that nobody wanted')
    for (const { machineId, error } of failed) this.#log.error({ machine: machineId, err: error }, 'network')
  }

  async #emptyTrash(): Promise<void> {
    const expired = await this.#world.rows.expireTrash(trashDays)
    if (expired.length > 0) this.#log.info({ machines: expired }, 'emptied the trash')
    await makeSpace({ ...this.#world, templates: this.#templates, log: this.#log })
  }

  /** Says of every checkpoint what it holds alone by now, and lets go of those for copies that were cut off. */
  async #countCheckpoints(): Promise<void> {
    const { checkpoints, checkpointRows } = this.#world
    await checkpointRows.endCopies()
    for (const { id, token, heldBytes } of await checkpointRows.kept()) {
      if (this.#stop.signal.aborted) return
      const found = await checkpoints.find(id, token)
      const bytes = found && (await checkpoints.heldBytes(found))
      if (bytes !== undefined && bytes !== heldBytes) await checkpointRows.report(id, { observedHeldBytes: bytes })
    }
  }

  /** Says of every machine that runs what keeps it awake, and puts to sleep what has been idle for long enough. */
  async #watchIdleness(): Promise<void> {
    const { rows, outbox } = this.#world
    if (![...this.#machines.values()].some(({ load }) => load)) return
    const now = new Date()
    for (const watched of await rows.awake()) {
      const load = this.#machines.get(watched.id)?.load
      if (!load) continue
      const { awakeBecause, idleSince, sleepBecause } = idleness(watched, load.lastMinute(), now)
      // Every report is news to all gateways.
      if (awakeBecause !== watched.awakeBecause || idleSince?.getTime() !== watched.idleSince?.getTime()) {
        outbox.report(watched.id, { observedAwakeBecause: awakeBecause, observedIdleSince: idleSince })
      }
      if (sleepBecause !== null && (await rows.putToSleep(watched.id, sleepBecause, watched))) {
        this.#log.info({ machine: watched.id, because: sleepBecause }, 'is put to sleep')
      }
    }
  }

  async #heartbeat(): Promise<void> {
    if (await renewLease(this.#world.rows.sql, this.#world.rows.lease)) return
    this.#log.error('another vmhost has taken over this server')
    this.#onLeaseLost()
  }

  #every(everyMs: number, act: () => Promise<void>): void {
    let busy = false
    this.#timers.push(
      setInterval(() => {
        if (busy) return
        busy = true
        this.#run(
          act().finally(() => {
            busy = false
          }),
        )
      }, everyMs),
    )
  }

  /** Work that nobody waits for: its failure is said, and the next rescan makes up for it. */
  #run(work: Promise<void>): void {
    const tracked = work
      .catch(async (error: unknown) => {
        if (this.#stop.signal.aborted) return
        this.#log.warn({ err: error }, 'put off')
        await sleep(retryMs, undefined, { ref: false })
      })
      .finally(() => this.#background.delete(tracked))
    this.#background.add(tracked)
  }
}
