import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import type { MachineReport } from '../guest/messages.ts'
import type { Hypervisor } from '../hypervisor/driver.ts'
import { coalesce } from '../reconcile/coalesce.ts'
import { type HostMemory, heldBytes, readHostMemory } from './host-memory.ts'
import { type AwakeRow, leaving, type MemoryRows, overPromisedBytes, type Promises } from './memory-rows.ts'
import { type Ask, floorBytes, hasRoom, isAtLeast, type Level, levelOf, plan, type Tenant } from './policy.ts'
import { chooseSleepers, type Sleeper } from './sleepers.ts'

/**
 * Keeps a server's memory: looks at it every second, has guests give and get by their balloons as the policy says
 * (policy.ts), puts machines to sleep where that does not do (sleepers.ts), and finds room for those that wake.
 *
 * Balloons are asked of the hypervisor each time and never remembered: a sleep, a wake and an earlier vmhost set them
 * too. As long as there is memory and no balloon is in, a look costs two small files.
 */
export type Keeper = {
  /** Looks every second from now on. */
  start(): void
  /** One look, and what follows from it. */
  look(): Promise<void>
  close(): Promise<void>
  /**
   * Finds room for a machine that wakes: by balloons, and by having those sleep that are idle longest.
   * @param wanted.bytes that it will take of the server's memory
   * @param isWanted asked while it waits
   * @returns what its wake ends: from then on the kernel counts it. undefined: it is not wanted awake any more, or
   *   there is no room; it is left asleep then, and its row says why
   */
  room(machineId: number, wanted: { bytes: number; isWanted: () => Promise<boolean> }): Promise<Disposable | undefined>
  /** Whether there is so much for what can wait: nobody has to give any for it, or waits to be woken. */
  spare(bytes: number): Promise<boolean>
  /** A machine's sleep was tried and failed: it is awake, and nobody waits for its memory any more. */
  couldNotSleep(machineId: number): void
  figures(): Promise<Figures>
  /** What a machine has given back, as far as was seen at the last look. */
  balloonBytes(machineId: number): number
}

export type Figures = {
  readonly host: HostMemory
  readonly level: Level
  /** that all hypervisors hold */
  readonly usedBytes: number
  /** that guests have given back */
  readonly reclaimedBytes: number
}

/** A machine whose guest is ready, neither lies down nor stands still, and so can give memory. */
export type Seat = {
  readonly id: number
  /** of its hypervisor */
  readonly pid: number
  /** that it runs with */
  readonly memoryBytes: number
  readonly hypervisor: Pick<Hypervisor, 'balloon' | 'setBalloon'>
  report(options: { timeoutMs: number }): Promise<Pick<MachineReport, 'memoryAvailableBytes'>>
}

export type KeeperOptions = {
  seats(): Iterable<Seat>
  /** of the hypervisors of all machines */
  pids(): Iterable<number>
  readonly rows: Pick<MemoryRows, 'awake' | 'promises' | 'putToSleep' | 'leaveAsleep'>
  /** what each hypervisor takes beside its guest */
  readonly overheadBytes: number
  readonly log: Pick<Logger, 'info' | 'warn' | 'debug'>
  /** tests: other figures than this server's */
  readonly readHost?: () => Promise<HostMemory>
  readonly readHeld?: (pid: number) => Promise<number>
  readonly now?: () => number
  readonly roomLimitMs?: number
}

const lookEveryMs = 1_000
const reportLimitMs = 5_000
/** A hypervisor that hangs holds up a look for so long, once. Then it is asked in passing, until it answers in time again. */
const answerLimitMs = 6_000
const inPassingMs = 20
/** A guest whose memory is taken is asked how it is: seldom while it has some, often when it has little. */
const askEveryMs = 5_000
const askSoonMs = 1_000
/** What a guest said is believed for so long. */
const silentMs = 30_000
const giveBackEveryMs = 10_000
/** Two sleepers of 8 GiB on a slow disk; nobody who came for a machine should wait for more. */
const roomLimitMs = 30_000
const lookAgainMs = 250
/** What is refused and wanted again at once, by a connection that is held, waits for the next answer at least so long. */
const refuseEveryMs = 30_000
/** A machine that does not fall asleep within this time is not counted on. */
const fallLimitMs = 120_000
/** Nor within this one while the kernel is about to end programs: it would not wait for a guest that says nothing. */
const fallLimitDesperateMs = 10_000
/** One that could not sleep is passed over for so long. It is tried again every ten minutes, and says so each time. */
const passOverMs = 900_000
/** Balloons move in steps of this; less is no difference. */
const grainBytes = 2 ** 20

export function createKeeper(options: KeeperOptions): Keeper {
  return new MemoryKeeper(options)
}

/** What is known of a seat between two looks. */
type Known = {
  readonly pid: number
  heldBytes: number
  balloonBytes: number
  askedBytes: number
  mostBytes: number
  askedAt: number
  availableBytes: number | undefined
  saidAt: number
  triedAt: number
  relievedAt: number | undefined
}

class MemoryKeeper implements Keeper {
  readonly #options: KeeperOptions
  readonly #now: () => number
  readonly #known = new Map<number, Known>()
  readonly #waiting = new Map<number, number>()
  readonly #admitted = new Map<number, number>()
  readonly #refusedAt = new Map<number, number>()
  readonly #falling = new Map<number, { since: number; heldBytes: number }>()
  /** when the sleep of a machine failed last */
  readonly #failedAt = new Map<number, number>()
  readonly #turns = coalesce(() => this.#turn())
  /** what machines have been asked and have not answered yet */
  readonly #unanswered = new Set<string>()
  readonly #slow = new Set<string>()
  #timer: NodeJS.Timeout | undefined
  #going: Promise<void> | undefined
  #closed = false
  #level: Level = 'enough'
  #levelAt: number
  #ampleSince: number | undefined
  #gaveAt = Number.NEGATIVE_INFINITY
  #awake: readonly AwakeRow[] = []
  /** something was done at the last look that may bring memory, or is still on its way */
  #isUnderWay = false

  constructor(options: KeeperOptions) {
    this.#options = options
    this.#now = options.now ?? (() => performance.now())
    this.#levelAt = this.#now()
  }

  start(): void {
    this.#timer = setInterval(() => {
      this.#going ??= this.look()
        .catch((error: unknown) => this.#options.log.warn({ err: error }, 'memory is looked at again later'))
        .finally(() => {
          this.#going = undefined
        })
    }, lookEveryMs)
  }

  look(): Promise<void> {
    return this.#turns()
  }

  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#timer)
    await this.#going
  }

  async figures(): Promise<Figures> {
    const { pids, readHeld = heldBytes } = this.#options
    const [host, held] = await Promise.all([this.#readHost(), Promise.all([...pids()].map((pid) => readHeld(pid)))])
    const sum = (bytes: number[]) => bytes.reduce((all, one) => all + one, 0)
    const balloons = [...this.#known.values()].map(({ balloonBytes }) => balloonBytes)
    return { host, level: this.#level, usedBytes: sum(held), reclaimedBytes: sum(balloons) }
  }

  balloonBytes(machineId: number): number {
    return this.#known.get(machineId)?.balloonBytes ?? 0
  }

  async room(
    machineId: number,
    { bytes, isWanted }: { bytes: number; isWanted: () => Promise<boolean> },
  ): Promise<Disposable | undefined> {
    const deadline = this.#now() + (this.#options.roomLimitMs ?? roomLimitMs)
    this.#waiting.set(machineId, bytes)
    try {
      for (let looks = 0; ; looks++) {
        const found = await this.#admit(machineId, bytes)
        if (typeof found !== 'string') return found
        if (looks > 0 && !(await isWanted())) return undefined
        if (this.#closed) return undefined
        // The first look after it came has seen all that there is to give.
        const isHopeless = looks > 0 && !this.#isUnderWay
        if (this.#now() > deadline || (isHopeless && this.#mayRefuse(machineId))) {
          await this.#refuse(machineId, found)
          return undefined
        }
        await this.look()
        await sleep(lookAgainMs, undefined, { ref: false })
      }
    } finally {
      this.#waiting.delete(machineId)
    }
  }

  async spare(bytes: number): Promise<boolean> {
    const { rows, overheadBytes } = this.#options
    const [host, { capacityBytes, machines }] = await Promise.all([this.#readHost(), rows.promises()])
    if (this.#waiting.size > 0 || isAtLeast(levelOf(host, this.#level), 'short')) return false
    const left = { capacityBytes: capacityBytes - bytes, machines }
    if (overPromisedBytes(left, new Set(this.#admitted.keys()), overheadBytes) > 0) return false
    const onTheirWay = [...this.#admitted.values()].reduce((all, one) => all + one, 0)
    return hasRoom(host, onTheirWay + bytes)
  }

  couldNotSleep(machineId: number): void {
    this.#failedAt.set(machineId, this.#now())
  }

  #mayRefuse(machineId: number): boolean {
    return this.#now() - (this.#refusedAt.get(machineId) ?? Number.NEGATIVE_INFINITY) >= refuseEveryMs
  }

  async #refuse(machineId: number, because: string): Promise<void> {
    for (const [id, at] of this.#refusedAt) if (this.#now() - at >= refuseEveryMs) this.#refusedAt.delete(id)
    this.#refusedAt.set(machineId, this.#now())
    this.#options.log.warn({ machine: machineId, because }, 'is left asleep')
    await this.#options.rows.leaveAsleep(machineId, because)
  }

  /** @returns why it cannot come now, or what its wake ends. Nothing else runs once it has read: two never get one room. */
  async #admit(machineId: number, bytes: number): Promise<Disposable | string> {
    const { rows, overheadBytes } = this.#options
    const [host, promises] = await Promise.all([this.#readHost(), rows.promises()])
    const others = new Set([...this.#admitted.keys(), machineId])
    if (overPromisedBytes(promises, others, overheadBytes) > 0)
      return 'Its server has promised all its memory to machines that are in use'
    const onTheirWay = [...this.#admitted.values()].reduce((all, one) => all + one, 0)
    if (!hasRoom(host, onTheirWay + bytes)) return 'Its server has no memory left for it: all of it is in use'
    this.#admitted.set(machineId, bytes)
    return { [Symbol.dispose]: () => void this.#admitted.delete(machineId) }
  }

  async #turn(): Promise<void> {
    if (this.#closed) return
    const host = await this.#readHost()
    this.#setLevel(levelOf(host, this.#level))
    const seats = new Map<number, Seat>()
    for (const seat of this.#options.seats()) seats.set(seat.id, seat)
    for (const [id, { pid }] of this.#known) {
      if (seats.get(id)?.pid === pid) continue
      this.#known.delete(id)
      for (const what of ['measure', 'ask']) this.#slow.delete(`${what} ${pid}`)
    }
    const wantedBytes = [...this.#waiting.values()].reduce((all, one) => all + one, 0)
    const isWatchful = isAtLeast(this.#level, 'short') || wantedBytes > 0
    await this.#measure(seats, isWatchful)
    const isOut = [...this.#known.values()].some(({ balloonBytes, askedBytes }) => balloonBytes + askedBytes > 0)
    if (!isWatchful && !isOut) {
      this.#isUnderWay = false
      return
    }
    await this.#seeAwake()
    const tenants = [...seats.values()].map((seat) => this.#tenant(seat)).filter((tenant) => tenant !== undefined)
    const ampleForMs = this.#ampleSince === undefined ? 0 : this.#now() - this.#ampleSince
    // What was given a moment ago may not have been taken by its guest yet.
    const isSettled = this.#now() - this.#gaveAt >= giveBackEveryMs
    const need = { host, level: this.#level, ampleForMs: isSettled ? ampleForMs : 0, wantedBytes }
    const { asks, missingBytes, pendingBytes } = plan(need, tenants)
    const done = await Promise.all(
      asks.map((ask) => {
        const seat = seats.get(ask.id)
        return this.#heard(`ask ${seat?.pid}`, () => this.#ask(seat, ask))
      }),
    )
    this.#isUnderWay = pendingBytes > 0 || done.includes(true)
    if (isWatchful) await this.#putToSleep(seats, missingBytes, wantedBytes > 0)
  }

  #setLevel(level: Level): void {
    if (level === 'ample') this.#ampleSince ??= this.#now()
    else this.#ampleSince = undefined
    if (level === this.#level) return
    const told = isAtLeast(level, 'short') || isAtLeast(this.#level, 'short')
    this.#options.log[told ? 'warn' : 'debug']({ level, before: this.#level }, 'how much memory this server has left')
    this.#level = level
    this.#levelAt = this.#now()
  }

  /** Asks hypervisors how large balloons are, and guests how much they have left. */
  async #measure(seats: ReadonlyMap<number, Seat>, isWatchful: boolean): Promise<void> {
    const measure = (seat: Seat) => this.#heard(`measure ${seat.pid}`, () => this.#measureOne(seat, isWatchful))
    await Promise.all([...seats.values()].map(measure))
  }

  /** @returns undefined where there is no answer yet, to this or to what was asked before it */
  async #heard<T>(what: string, ask: () => Promise<T>): Promise<T | undefined> {
    if (this.#unanswered.has(what)) return undefined
    this.#unanswered.add(what)
    const askedAt = performance.now()
    const answer = ask().finally(() => {
      this.#unanswered.delete(what)
      if (performance.now() - askedAt < answerLimitMs) this.#slow.delete(what)
    })
    const late = Promise.withResolvers<undefined>()
    const onLate = () => {
      this.#slow.add(what)
      late.resolve(undefined)
    }
    const timer = setTimeout(onLate, this.#slow.has(what) ? inPassingMs : answerLimitMs)
    return Promise.race([answer, late.promise]).finally(() => clearTimeout(timer))
  }

  async #measureOne(seat: Seat, isWatchful: boolean): Promise<void> {
    let known = this.#known.get(seat.id)
    try {
      if (!known) {
        // An earlier vmhost may have asked for what it has given.
        const bytes = await seat.hypervisor.balloon()
        const never = { askedAt: Number.NEGATIVE_INFINITY, saidAt: Number.NEGATIVE_INFINITY, relievedAt: undefined }
        known = {
          ...never,
          pid: seat.pid,
          heldBytes: 0,
          balloonBytes: bytes,
          askedBytes: bytes,
          mostBytes: bytes,
          availableBytes: undefined,
          triedAt: Number.NEGATIVE_INFINITY,
        }
        this.#known.set(seat.id, known)
      }
      const isOut = known.balloonBytes + known.askedBytes > 0
      if (!isOut && !isWatchful) return
      known.heldBytes = await (this.#options.readHeld ?? heldBytes)(seat.pid)
      known.balloonBytes = await seat.hypervisor.balloon()
      known.mostBytes = Math.min(Math.max(known.mostBytes, known.balloonBytes), Math.max(known.askedBytes, 0))
      await this.#hear(seat, known)
    } catch (error) {
      this.#options.log.debug({ err: error, machine: seat.id }, 'its balloon does not answer')
    }
  }

  async #hear(seat: Seat, known: Known): Promise<void> {
    const hasLittle = known.availableBytes !== undefined && known.availableBytes < 2 * floorBytes(seat)
    const everyMs = hasLittle || known.availableBytes === undefined ? askSoonMs : askEveryMs
    if (this.#now() - Math.max(known.saidAt, known.triedAt) >= everyMs) {
      known.triedAt = this.#now()
      const said = await seat.report({ timeoutMs: reportLimitMs }).catch(() => undefined)
      if (said) {
        known.availableBytes = said.memoryAvailableBytes
        known.saidAt = this.#now()
      }
    }
    if (this.#now() - known.saidAt > silentMs) known.availableBytes = undefined
  }

  #tenant({ id, memoryBytes }: Seat): Tenant | undefined {
    const known = this.#known.get(id)
    if (!known) return undefined
    const { heldBytes, balloonBytes, askedBytes, mostBytes, askedAt, availableBytes, relievedAt } = known
    const row = this.#awake.find((one) => one.id === id)
    return {
      id,
      memoryBytes,
      heldBytes,
      balloonBytes,
      askedBytes,
      mostBytes,
      askedAgoMs: this.#now() - askedAt,
      availableBytes,
      relievedAgoMs: relievedAt === undefined ? undefined : this.#now() - relievedAt,
      idleSince: row?.idleSince ?? null,
    }
  }

  /** While the database is away, those that were idle last are believed to be. */
  async #seeAwake(): Promise<void> {
    try {
      this.#awake = await this.#options.rows.awake()
    } catch (error) {
      this.#options.log.debug({ err: error }, 'who is idle is not known now')
    }
  }

  /** @returns whether memory comes of it */
  async #ask(seat: Seat | undefined, { id, bytes, relieves }: Ask): Promise<boolean> {
    const known = this.#known.get(id)
    if (!seat || !known) return false
    const isSame = Math.abs(bytes - known.askedBytes) < grainBytes && Math.abs(bytes - known.balloonBytes) < grainBytes
    if (isSame) return false
    const gives = bytes < known.balloonBytes
    try {
      await seat.hypervisor.setBalloon(bytes)
    } catch (error) {
      this.#options.log.debug({ err: error, machine: id }, 'its balloon does not answer')
      return false
    }
    Object.assign(known, { askedBytes: bytes, mostBytes: Math.min(known.balloonBytes, bytes), askedAt: this.#now() })
    if (relieves) known.relievedAt = this.#now()
    else if (gives) this.#gaveAt = this.#now()
    this.#options.log.info({ machine: id, bytes, before: known.balloonBytes, relieves }, 'its balloon is set')
    return !gives
  }

  async #putToSleep(seats: ReadonlyMap<number, Seat>, missingBytes: number, isForWake: boolean): Promise<void> {
    const { rows, overheadBytes, log } = this.#options
    const waiting = new Set([...this.#admitted.keys(), ...this.#waiting.keys()])
    const promises = await rows.promises()
    const overPromised = isForWake ? overPromisedBytes(promises, waiting, overheadBytes) : 0
    const falling = this.#seeFalling(promises, overheadBytes)
    if (falling.count > 0) this.#isUnderWay = true
    if (missingBytes <= 0 && overPromised <= 0) return
    const sleepers = this.#awake.map((row): Sleeper => {
      const held = this.#known.get(row.id)?.heldBytes ?? 0
      const couldNotSleep = this.#failedAt.has(row.id)
      return { ...row, heldBytes: held, promisedBytes: row.memoryBytes + overheadBytes, couldNotSleep }
    })
    const able = sleepers.filter(({ id }) => seats.has(id) && !waiting.has(id) && !this.#falling.has(id))
    const need = {
      level: this.#level,
      levelForMs: this.#now() - this.#levelAt,
      missingBytes,
      isForWake,
      overPromisedBytes: overPromised,
      falling,
    }
    for (const one of chooseSleepers(need, able, new Date())) {
      const since = this.#now()
      if (!(await rows.putToSleep(one))) continue
      this.#isUnderWay = true
      this.#falling.set(one.id, { since, heldBytes: one.heldBytes })
      log.warn({ machine: one.id, level: this.#level, missingBytes, isForWake }, 'is put to sleep: memory is short')
    }
  }

  /** Who is on the way to sleep, or to be off; one that does not get there is not counted on, but not tried again either. */
  #seeFalling(promises: Promises, overheadBytes: number) {
    const now = this.#now()
    const limitMs = this.#level === 'desperate' ? fallLimitDesperateMs : fallLimitMs
    const rows = leaving(promises)
    for (const [id, at] of this.#failedAt) if (now - at >= passOverMs) this.#failedAt.delete(id)
    // One that others put to sleep may have failed long before it is seen here.
    const sinceOf = (id: number) => this.#failedAt.get(id) ?? now
    for (const { id } of rows) if (!this.#falling.has(id)) this.#falling.set(id, { since: sinceOf(id), heldBytes: 0 })
    for (const id of this.#falling.keys()) if (!rows.some((row) => row.id === id)) this.#falling.delete(id)
    const counted = rows.filter(({ id }) => {
      const since = this.#falling.get(id)?.since ?? now
      return now - since < limitMs && (this.#failedAt.get(id) ?? Number.NEGATIVE_INFINITY) < since
    })
    return {
      count: counted.length,
      heldBytes: counted.reduce((all, { id }) => all + (this.#falling.get(id)?.heldBytes ?? 0), 0),
      promisedBytes: counted.reduce((all, { memoryBytes }) => all + memoryBytes + overheadBytes, 0),
    }
  }

  #readHost(): Promise<HostMemory> {
    return (this.#options.readHost ?? readHostMemory)()
  }
}
