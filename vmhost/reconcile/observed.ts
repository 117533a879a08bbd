import { setTimeout as sleep } from 'node:timers/promises'
import type { Logger } from 'pino'
import { LeaseLostError, type MachineEvent, type Observation, type Rows } from './rows.ts'

const retryFirstMs = 100
const retryMostMs = 5_000
/** An audit entry that cannot be written for this long is only in the log: memory has a bound. */
const eventsMost = 10_000

/**
 * What was seen of the machines, on its way into the database. A start never waits for it, reports of one machine
 * arrive in order (later ones replace what has not left yet), and while Postgres is away they wait here.
 */
export class Outbox {
  readonly #rows: Rows
  readonly #log: Pick<Logger, 'warn' | 'error'>
  readonly #onLeaseLost: () => void
  readonly #waiting = new Map<number, Observation>()
  readonly #sending = new Map<number, Promise<void>>()
  readonly #stop = new AbortController()
  readonly #events: MachineEvent[] = []
  #eventsGoing: Promise<void> | undefined

  constructor(rows: Rows, log: Pick<Logger, 'warn' | 'error'>, onLeaseLost: () => void) {
    this.#rows = rows
    this.#log = log
    this.#onLeaseLost = onLeaseLost
  }

  report(machineId: number, seen: Observation): void {
    this.#waiting.set(machineId, { ...this.#waiting.get(machineId), ...seen })
    if (!this.#sending.has(machineId)) {
      const sending = this.#send(machineId).finally(() => this.#sending.delete(machineId))
      this.#sending.set(machineId, sending)
    }
  }

  record(event: MachineEvent): void {
    if (this.#events.length >= eventsMost) {
      this.#log.error({ event }, 'the database is away for too long: an audit entry is only here')
      return
    }
    this.#events.push(event)
    this.#eventsGoing ??= this.#sendEvents().finally(() => {
      this.#eventsGoing = undefined
    })
  }

  /** Waits until everything about this machine has arrived. */
  async flushed(machineId: number): Promise<void> {
    for (let sending = this.#sending.get(machineId); sending; sending = this.#sending.get(machineId)) await sending
  }

  /** Sends what it can within `limitMs` and gives the rest up: the next vmhost sees the machines itself. */
  async close(limitMs: number): Promise<void> {
    const rest = Promise.all([...this.#sending.values(), this.#eventsGoing])
    await Promise.race([rest, sleep(limitMs, undefined, { ref: false })])
    this.#stop.abort()
    await rest
  }

  async #send(machineId: number): Promise<void> {
    for (let seen = this.#waiting.get(machineId); seen; seen = this.#waiting.get(machineId)) {
      const sent = seen
      this.#waiting.delete(machineId)
      const arrived = await this.#insist(`report of machine ${machineId}`, () => this.#rows.report(machineId, sent))
      if (!arrived) return
    }
  }

  async #sendEvents(): Promise<void> {
    for (let event = this.#events[0]; event; event = this.#events[0]) {
      const sent = event
      if (!(await this.#insist('audit entry', () => this.#rows.record(sent)))) return
      this.#events.shift()
    }
  }

  /** @returns false when it was given up: closed, or the lease is lost */
  async #insist(what: string, write: () => Promise<void>): Promise<boolean> {
    for (let waitMs = retryFirstMs; ; waitMs = Math.min(waitMs * 2, retryMostMs)) {
      if (this.#stop.signal.aborted) return false
      try {
        await write()
        return true
      } catch (error) {
        if (error instanceof LeaseLostError) {
          this.#stop.abort()
          this.#onLeaseLost()
          return false
        }
        // What the database refuses for good (SQLSTATE classes 22, 23, 42) is refused next time too.
        const code = (error as { code?: unknown }).code
        if (typeof code === 'string' && /^(22|23|42)/.test(code)) {
          this.#log.error({ err: error }, `the database refuses a ${what}`)
          return true
        }
        this.#log.warn({ err: error }, `the database is away; the ${what} waits`)
        await sleep(waitMs, undefined, { signal: this.#stop.signal, ref: false }).catch(() => {})
      }
    }
  }
}
