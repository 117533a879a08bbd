import type { Socket } from 'node:net'
import { goesOn, type LifeRow, lifeOf, type Run, runOf } from './life.ts'
import { Tie, type TieOptions } from './tie.ts'

/** Nobody waits longer for a machine to be back. */
const BACK_TIMEOUT_MS = 300_000
/** A server that has no memory for it puts it back to sleep; between tries it may find some. */
const AGAIN_FIRST_MS = 5_000
const AGAIN_MOST_MS = 60_000

export type WatchOwner = {
  /** milliseconds of `performance.now()` as of the last second */
  readonly nowMs: number
  /** Wants the machine awake; one that is paused, or whose account is suspended, stays asleep. */
  wake(machineId: number, because: string): Promise<boolean>
  /** Its row should be read: nothing is known of it. */
  look(machineId: number): void
}

/** The machine did not come back: it was stopped, or failed, or is asleep still. */
export class NotBackError extends Error {
  override readonly name = 'NotBackError'
}

/**
 * What this gateway knows of one machine that it is connected to, or was: when something was last carried to or from it,
 * and whether anything may be sent.
 *
 *     up --asleep or paused is wanted, or seen--> held --it is ready again, of the same start--> up
 *     up, held --it stopped, failed, runs anew or went back to a checkpoint--> over: its connections are ended, and the next
 *                run may begin
 *
 * While it is `held` every connection to it lives on. What its users send waits in the gateway, and wakes it; what is
 * the gateway's own (windows, keepalives, ends) waits as well, and does not.
 */
export class MachineWatch {
  readonly machineId: number
  /** When something was last carried, in milliseconds of `performance.now()`, to the second; 0 for never. */
  sshAtMs = 0
  httpsAtMs = 0
  websocketAtMs = 0
  /** Grows with each piece of news: a row that was read before may be older than what is known. */
  generation = 0
  readonly #owner: WatchOwner
  readonly #ties = new Set<Tie>()
  #isHeld = false
  #run: Run | undefined
  /** Something that its users sent waits. */
  #wantedBy: string | undefined
  /** how often it was put back to sleep while something waited */
  #refusals = 0
  #again: NodeJS.Timeout | undefined
  #back: PromiseWithResolvers<void> | undefined

  constructor(machineId: number, owner: WatchOwner) {
    this.machineId = machineId
    this.#owner = owner
  }

  /** Nothing may be sent: it sleeps, is about to, or is not back yet. */
  get isHeld(): boolean {
    return this.#isHeld
  }

  /** To be called for whatever passes over SSH, keepalives and the like left out; as cheap as it can be. */
  carriedOverSsh(): void {
    this.sshAtMs = this.#owner.nowMs
  }

  /** Lets a connection to the machine, which may still be on its way, live through its sleep. */
  attach(socket: Socket, options: TieOptions): Tie {
    const tie = new Tie(this, socket, options)
    this.#ties.add(tie)
    socket.once('close', () => this.#ties.delete(tie))
    if (this.#isHeld) {
      tie.hold()
      this.want('a connection')
    } else if (this.#run === undefined) this.#owner.look(this.machineId)
    return tie
  }

  /** Something came that it must be awake for. Nothing happens when it is, or when it is on its way already. */
  want(because: string): void {
    if (!this.#isHeld || this.#wantedBy !== undefined) return
    this.#wantedBy = because
    void this.#wake()
  }

  /**
   * Wakes it, and waits until it is back.
   * @throws NotBackError
   */
  async back(because: string): Promise<void> {
    if (!this.#isHeld) return
    this.#back ??= Promise.withResolvers()
    const { promise } = this.#back
    promise.catch(() => {})
    this.want(because)
    const late = Promise.withResolvers<never>()
    const timer = setTimeout(() => late.reject(new NotBackError('it did not wake in time')), BACK_TIMEOUT_MS)
    try {
      await Promise.race([promise, late.promise])
    } finally {
      clearTimeout(timer)
    }
  }

  /** Takes note of its row, read after the last news of it; undefined: it has none any more. */
  see(row: LifeRow | undefined): void {
    const wasHeld = this.#isHeld
    const life = row === undefined ? 'over' : lifeOf(row, wasHeld)
    if (row === undefined || life === 'over') {
      this.#end()
      return
    }
    const run = runOf(row)
    const before = this.#run
    if (before !== undefined && !goesOn(before, run)) this.#end()
    this.#run = run
    if (life === 'up') {
      // It slept, and that was over before its row was read: its connections are probed as after any sleep.
      if (before !== undefined && before.readyAtMs !== run.readyAtMs) this.#hold()
      this.#release()
    } else {
      this.#hold()
      if (row.desiredState === 'asleep' && this.#wantedBy !== undefined) this.#wakeAgain()
    }
  }

  /** It was put back to sleep: at once for who did not know that something waits, then after longer and longer. */
  #wakeAgain(): void {
    if (this.#again !== undefined) return
    const afterMs = this.#refusals === 0 ? 0 : Math.min(AGAIN_FIRST_MS * 2 ** (this.#refusals - 1), AGAIN_MOST_MS)
    this.#again = setTimeout(() => {
      this.#again = undefined
      this.#refusals++
      void this.#wake()
    }, afterMs)
    this.#again.unref()
  }

  /** Nothing waits any more. */
  #settle(): void {
    this.#isHeld = false
    this.#wantedBy = undefined
    this.#refusals = 0
    clearTimeout(this.#again)
    this.#again = undefined
  }

  async #wake(): Promise<void> {
    // Whoever owns this looks at the machine again after a failure, and then it is tried again.
    if (this.#wantedBy !== undefined) await this.#owner.wake(this.machineId, this.#wantedBy).catch(() => {})
  }

  #hold(): void {
    if (this.#isHeld) return
    this.#isHeld = true
    for (const tie of [...this.#ties]) tie.hold()
  }

  #release(): void {
    if (!this.#isHeld) return
    this.#settle()
    for (const tie of [...this.#ties]) tie.release()
    this.#back?.resolve()
    this.#back = undefined
  }

  #end(): void {
    this.#run = undefined
    this.#settle()
    for (const tie of [...this.#ties]) tie.ended()
    this.#back?.reject(new NotBackError('it does not run any more'))
    this.#back = undefined
  }
}
