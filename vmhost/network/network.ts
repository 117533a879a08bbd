/**
 * One host's network, and the only place that changes it.
 *
 * The state is the kernel's: what this module remembers of it is rebuilt from the taps at start, so a vmhost that was
 * killed goes on where it was and running machines notice nothing. Every change is the same round: read what the kernel has,
 * take away what is not wanted, put the firewall in place in one transaction, then make links. In that order nothing is
 * ever reachable before the rules know it, and a tap that the rules do not know is shut out.
 *
 * Rounds run one after the other. Changes that arrive while a round runs are carried out together in the next: twenty
 * machines cost as many processes as one. A round in which the kernel refuses something is repeated machine by machine, so that
 * the refusal reaches the machine it is about and nobody else.
 *
 * Each machine's bytes are counted from before its tap is up until after it is gone (counters.ts). What the counters
 * read last is handed on and kept before they are removed; a vmhost that is killed between finds them without a tap.
 *
 * Left for later: shaping hangs a queueing discipline on the tap (`tc`, kind tbf) after `configure`; what a
 * machine may reach is chain `egress_policy` in ruleset.ts.
 */

import { randomUUID } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import { type Cidr, gatewayAddress, macFor, parseCidr, tapName } from './address.ts'
import { runCommand } from './command.ts'
import {
  type CountedMachine,
  isWhole,
  readCounters,
  removeCounters,
  renderTapCounting,
  type TransferReadings,
} from './counters.ts'
import { findOpened, findOutwards, readOpened } from './forwarding.ts'
import {
  checkMachineAddress,
  checkOverlap,
  conntrackSize,
  describeForeignDrops,
  findUplinks,
  planHost,
  readChains,
} from './host.ts'
import { isHalfMadeTap, isOurTap, type Kernel, machineOnTap, readKernel, readSysctl, setSysctl } from './kernel.ts'
import { type MetadataService, serveMetadata } from './metadata.ts'
import { FLOWS_PER_MACHINE, METADATA_PORT, renderRuleset, staleChains } from './ruleset.ts'
import { asError, connectTaps, makeBareTap, removeTaps, runIpBatch } from './taps.ts'
import {
  type MachineNetwork,
  type Network,
  type NetworkContext,
  NetworkError,
  type NetworkSettings,
  type PublicPort,
  type ReconcileResult,
} from './types.ts'
import { watchTables } from './watch.ts'

/** @throws RangeError when a network or address of the settings cannot be parsed */
export function createNetwork(settings: NetworkSettings, context: NetworkContext): Network {
  return new HostNetwork(settings, context)
}

/** One machine's change in a round: connect it like this, or (undefined) disconnect it. */
type Changes = Map<number, MachineNetwork | undefined>
/** Why a machine could not be connected. */
type Failures = Map<number, Error>
type Batch = { readonly changes: Changes; readonly failures: Promise<Failures> }

class HostNetwork implements Network {
  readonly #context: NetworkContext
  readonly #network: Cidr
  readonly #gateway: string
  readonly #allow: readonly Cidr[]
  readonly #flowsPerMachine: number
  /** What the firewall lets through. */
  readonly #machines = new Map<number, MachineNetwork>()
  /** Of the counters of each machine, by its id. */
  readonly #series = new Map<number, string>()
  /** Of these, those that the kernel does not have yet. */
  readonly #freshSeries = new Set<string>()
  /** There may be counters that nothing is counted by any more. */
  #hasEndedSeries = true
  /** Repairs that are under way, or wait. */
  #repairs = 0
  /** those with a tap that leads nowhere */
  readonly #bare = new Set<number>()
  readonly #said = new Set<string>()
  #publicPorts: readonly PublicPort[]
  #uplinks: readonly string[] = []
  #opened: readonly string[] = []
  #turn: Promise<unknown> = Promise.resolve()
  #nextBatch: Batch | undefined
  #metadata: MetadataService | undefined
  #watch: { readonly ended: boolean; close(): void } | undefined
  #closed = false

  constructor(settings: NetworkSettings, context: NetworkContext) {
    this.#publicPorts = settings.publicPorts
    this.#context = context
    this.#network = parseCidr(settings.network)
    if (this.#network.prefix < 8 || this.#network.prefix > 29) {
      throw new RangeError(`${settings.network} cannot hold machines: a network from /8 to /29 is expected`)
    }
    this.#gateway = gatewayAddress(this.#network)
    this.#allow = settings.allow.map(parseCidr)
    this.#flowsPerMachine = settings.flowsPerMachine ?? FLOWS_PER_MACHINE
  }

  async prepareHost(): Promise<void> {
    await this.#inTurn(async () => {
      const kernel = await readKernel()
      checkOverlap(this.#network, kernel)
      this.#adopt(kernel)
      for (const reading of (await readCounters()).readings)
        if (isWhole(reading)) this.#series.set(reading.machineId, reading.series)
      this.#opened = await readOpened()
      await this.#prepare(kernel)
    })
  }

  async openPorts(ports: readonly PublicPort[]): Promise<void> {
    await this.#inTurn(async () => {
      if (isDeepStrictEqual(ports, this.#publicPorts)) return
      this.#publicPorts = ports
      await this.#applyRules([])
    })
  }

  async ensureMachine(machine: MachineNetwork): Promise<{ tap: string; mac: string }> {
    const tap = tapName(machine.machineId)
    checkMachineAddress(this.#network, machine.address)
    const failure = (await this.#change(machine.machineId, machine)).get(machine.machineId)
    if (failure !== undefined) {
      throw new NetworkError(`Machine ${machine.machineId} could not be connected to the network`, { cause: failure })
    }
    return { tap, mac: machine.mac ?? macFor(machine.address) }
  }

  async ensureBareTap(machineId: number, uid: number): Promise<{ tap: string }> {
    return await this.#inTurn(async () => {
      this.#bare.add(machineId)
      return { tap: await makeBareTap(machineId, uid, this.#gateway) }
    })
  }

  async removeMachine(machineId: number): Promise<void> {
    tapName(machineId)
    this.#bare.delete(machineId)
    const failure = (await this.#change(machineId, undefined)).get(machineId)
    if (failure !== undefined)
      throw new NetworkError(`Machine ${machineId} could not be disconnected`, { cause: failure })
  }

  async reconcile(wanted: readonly MachineNetwork[]): Promise<ReconcileResult> {
    // Changes asked for from here on are newer than `wanted`: they must come after it, not with a round already waiting.
    this.#nextBatch = undefined
    return await this.#inTurn(async () => {
      const kernel = await readKernel()
      await this.#prepare(kernel)
      const strays = [...kernel.links.values()].filter((link) => isOurTap(link) || isHalfMadeTap(link))
      const ids = new Set([...strays.map(({ ifname }) => Number(ifname.slice(2))), ...this.#machines.keys()])
      for (const machineId of this.#bare) ids.delete(machineId)
      const changes: Changes = new Map([...ids].map((machineId) => [machineId, undefined]))
      const failures: Failures = new Map()
      for (const machine of wanted) {
        try {
          checkMachineAddress(this.#network, machine.address)
          changes.set(machine.machineId, machine)
        } catch (error) {
          failures.set(machine.machineId, asError(error))
        }
      }
      const round = await this.#round(changes)
      for (const [machineId, error] of round.failures) failures.set(machineId, error)
      return {
        ensured: round.ensured,
        removed: round.removed,
        failed: [...failures].map(([machineId, error]) => ({ machineId, error })),
      }
    })
  }

  async readTransfer(): Promise<TransferReadings> {
    return await readCounters()
  }

  async startMetadata(lookup: (sourceIp: string) => Promise<string | undefined>): Promise<void> {
    if (this.#metadata !== undefined) throw new NetworkError('The metadata service runs already')
    this.#metadata = await serveMetadata({
      ...this.#context,
      address: this.#gateway,
      port: METADATA_PORT,
      isMachine: (address) => [...this.#machines.values()].some((machine) => machine.address === address),
      lookup,
    })
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#watch?.close()
    await this.#metadata?.close()
    this.#metadata = undefined
    await this.#turn
  }

  /** Runs `work` when everything asked for before it is done. */
  #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#turn.then(work)
    this.#turn = result.catch(() => {})
    return result
  }

  /** Adds one machine's change to the round that waits, or begins one. @returns the failures of that whole round */
  #change(machineId: number, machine: MachineNetwork | undefined): Promise<Failures> {
    const waiting = this.#nextBatch
    // Two changes of one machine keep their order: the second waits for a round of its own.
    if (waiting !== undefined && !waiting.changes.has(machineId)) {
      waiting.changes.set(machineId, machine)
      return waiting.failures
    }
    const changes: Changes = new Map([[machineId, machine]])
    const failures = this.#inTurn(async () => {
      if (this.#nextBatch?.changes === changes) this.#nextBatch = undefined
      return (await this.#round(changes)).failures
    })
    this.#nextBatch = { changes, failures }
    return failures
  }

  /** Remembers the machines that the kernel's taps are for, so that the first update of the rules does not cut them off. */
  #adopt(kernel: Kernel): void {
    for (const link of kernel.links.values()) {
      const machine = isOurTap(link) ? machineOnTap(link, kernel) : undefined
      if (machine !== undefined) this.#machines.set(machine.machineId, machine)
    }
  }

  /** All of the host that is not about one machine. Repeated by every reconcile: default routes move, firewalls are reloaded. */
  async #prepare(kernel: Kernel): Promise<void> {
    this.#uplinks = findUplinks(kernel)
    const outwards = findOutwards(this.#allow, kernel)
    this.#opened = await findOpened(outwards, this.#opened)
    if (this.#uplinks.length === 0) this.#sayOnce('This host has no default route: machines will have no internet')
    const chains = await readChains()
    for (const sentence of describeForeignDrops(chains)) this.#sayOnce(sentence)
    await this.#applyRules(staleChains(chains.filter(({ family, table }) => family === 'inet' && table === 'berth')))
    await runIpBatch(planHost(this.#network, this.#gateway, kernel))
    // After the rules: from here on packets pass.
    for (const device of outwards) await setSysctl(`ipv4/conf/${device}/forwarding`, '1')
    if (!this.#closed && this.#watch?.ended !== false) this.#watch = watchTables(() => this.#repair(), this.#context)
  }

  /** Somebody deleted our tables: puts the rules back at once. */
  #repair(): void {
    // Whoever flushes everything deletes several tables: what comes after the first finds its counters made anew.
    const others = this.#repairs++
    this.#inTurn(async () => {
      if (this.#closed) return
      this.#context.log.warn('The firewall was flushed by somebody else; the rules of machines are put back')
      // Counters went with their table, and the rules must not wait until that has been found out.
      if (others === 0) {
        this.#series.clear()
        this.#freshSeries.clear()
        this.#hasEndedSeries = true
      }
      await this.#applyRules([])
      await this.#count([...this.#machines.keys()], new Set())
      await this.#removeEndedSeries()
    })
      .catch((err: unknown) => this.#context.log.error({ err }, 'the firewall of machines could not be put back'))
      .finally(() => this.#repairs--)
  }

  async #applyRules(stale: readonly string[]): Promise<void> {
    await this.#withCounters(() => runCommand('nft', ['-f', '-'], this.#render(stale)))
    this.#freshSeries.clear()
  }

  #render(stale: readonly string[]): string {
    const ruleset = {
      network: this.#network,
      allow: this.#allow,
      publicPorts: this.#publicPorts,
      uplinks: this.#uplinks,
      opened: this.#opened,
      flowsPerMachine: this.#flowsPerMachine,
      machines: [...this.#machines.values()].map((machine) => ({ ...machine, ...this.#counted(machine.machineId) })),
    }
    return renderRuleset(ruleset, stale)
  }

  #counted(machineId: number): CountedMachine {
    const known = this.#series.get(machineId)
    const series = known ?? randomUUID()
    if (known === undefined) {
      this.#series.set(machineId, series)
      this.#freshSeries.add(series)
    }
    return { machineId, series, isFresh: this.#freshSeries.has(series) }
  }

  /**
   * Has what these machines send counted; their taps exist.
   * @param down machines whose taps carry nothing yet
   */
  async #count(machineIds: readonly number[], down: ReadonlySet<number>): Promise<void> {
    if (machineIds.length === 0) return
    const state = (anew: ReadonlySet<number>) => {
      const machines = machineIds.map((id) => this.#counted(id))
      return runCommand('nft', ['-f', '-'], renderTapCounting(machines, anew))
    }
    // A chain on another hook, of another version or somebody else's, cannot be kept.
    const count = () => state(down).catch(() => state(new Set(machineIds)))
    await this.#withCounters(count, () => this.#applyRules([]))
  }

  /**
   * Does what fails where a counter of a machine is missing, because somebody removed it. Such a machine begins another
   * series: under its old name a counter would begin at zero again, and nobody could tell that from one that goes on.
   * @param prepare makes the counters of fresh series, where `work` does not
   */
  async #withCounters(work: () => Promise<unknown>, prepare?: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (error) {
      if (!(await this.#forgetBrokenSeries())) throw error
      await prepare?.()
      await work()
    }
  }

  /** @returns whether there were any */
  async #forgetBrokenSeries(): Promise<boolean> {
    const whole = new Set((await readCounters()).readings.filter(isWhole).map(({ series }) => series))
    const broken = [...this.#series].filter(([, series]) => !whole.has(series) && !this.#freshSeries.has(series))
    for (const [machineId] of broken) this.#series.delete(machineId)
    if (broken.length > 0) this.#hasEndedSeries = true
    return broken.length > 0
  }

  /** Hands on what counters read last that count nothing any more, and removes them. What fails is done another time. */
  async #removeEndedSeries(): Promise<void> {
    for (const [machineId, series] of this.#series) {
      if (this.#machines.has(machineId)) continue
      this.#series.delete(machineId)
      this.#freshSeries.delete(series)
      this.#hasEndedSeries = true
    }
    if (!this.#hasEndedSeries) return
    try {
      const { sequence, readings } = await readCounters()
      const current = new Set(this.#series.values())
      const ended = readings.filter(({ series }) => !current.has(series))
      if (ended.length > 0) {
        await this.#context.keepTransfer?.({ sequence, readings: ended })
        await removeCounters(ended, this.#machines)
      }
      this.#hasEndedSeries = false
    } catch (err) {
      this.#context.log.error({ err }, 'what machines have sent last is not kept yet; their counters stay')
    }
  }

  async #round(changes: Changes): Promise<{ ensured: string[]; removed: string[]; failures: Failures }> {
    const failures: Failures = new Map()
    const before = new Map(this.#machines)
    const unwanted = [...changes].filter(([, machine]) => machine === undefined).map(([machineId]) => machineId)
    const removed = await removeTaps(unwanted, (machineId, error) => failures.set(machineId, error))
    for (const machineId of unwanted) if (!failures.has(machineId)) this.#machines.delete(machineId)
    const connect = this.#claimAddresses(changes, failures)
    await this.#applyRules([])
    await this.#reserveFlows()
    const ensured = await connectTaps(
      connect,
      this.#gateway,
      (machineIds, down) => this.#count(machineIds, down),
      (machineId, error) => failures.set(machineId, error),
    )
    for (const machineId of failures.keys()) if (!before.has(machineId)) this.#machines.delete(machineId)
    await this.#removeEndedSeries()
    return { ensured, removed, failures }
  }

  /** Two machines with one address would be let through as one another: the second is refused. */
  #claimAddresses(changes: Changes, failures: Failures): MachineNetwork[] {
    const wanted = [...changes.values()].filter((machine) => machine !== undefined)
    // Old addresses are given up first: two machines of one round may exchange theirs.
    for (const { machineId } of wanted) this.#machines.delete(machineId)
    const holders = new Map([...this.#machines.values()].map(({ address, machineId }) => [address, machineId]))
    return wanted.filter((machine) => {
      const holder = holders.get(machine.address)
      if (holder !== undefined) {
        failures.set(machine.machineId, new NetworkError(`${machine.address} is the address of machine ${holder}`))
        return false
      }
      holders.set(machine.address, machine.machineId)
      this.#machines.set(machine.machineId, machine)
      return true
    })
  }

  /** Makes the table of connections large enough that machines at their limits leave the host its own. It is never made smaller. */
  async #reserveFlows(): Promise<void> {
    const path = 'netfilter/nf_conntrack_max'
    const wanted = conntrackSize(this.#machines.size, this.#flowsPerMachine)
    if (Number(await readSysctl(path)) >= wanted) return
    await setSysctl(path, String(wanted)).catch((err: unknown) => {
      this.#sayOnce(`net.netfilter.nf_conntrack_max cannot be raised to ${wanted}: ${asError(err).message}`)
    })
  }

  #sayOnce(sentence: string): void {
    if (this.#said.has(sentence)) return
    this.#said.add(sentence)
    this.#context.log.warn(sentence)
  }
}
