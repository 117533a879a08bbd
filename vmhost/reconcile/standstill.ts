import { setTimeout as sleep } from 'node:timers/promises'
import type { Hypervisor } from '../hypervisor/driver.ts'
import type { World } from './world.ts'

const retryMs = 5_000
/** What failed is tried again as soon as the guest goes on, and fails at once where that is for good. */
const provedMs = 1_000
/** Times in a row, with space enough, after which nothing is to be hoped for. */
const triesMost = 3

/**
 * A guest that its hypervisor has stopped because its disk could not be written or read, or soon could not.
 *
 *     goes --begin--> stands still --space again, and the hypervisor takes it--> goes
 *
 * How often it is tried has no end: the guest loses nothing by standing still, and the operator makes space some day.
 * But a hypervisor may have been told by the kernel that something is lost which it had handed over; QEMU never goes on
 * from that, and only a boot from what is on the disk does. Whose machine it is hears of it.
 */
export class Standstill {
  readonly #hypervisor: Pick<Hypervisor, 'resume' | 'state'>
  readonly #store: Pick<World['store'], 'space'>
  readonly #onEnd: () => void
  readonly #onStuck: () => void
  #needsSpace = true
  #inVain = 0
  /** it was stopped once more while it was tried */
  #stoppedAgain = false
  #retry: NodeJS.Timeout | undefined
  #closed = false

  /**
   * @param on.end the guest goes on
   * @param on.stuck there is space enough, and it does not go on
   */
  constructor(
    hypervisor: Pick<Hypervisor, 'resume' | 'state'>,
    store: Pick<World['store'], 'space'>,
    on: { end: () => void; stuck: () => void },
  ) {
    this.#hypervisor = hypervisor
    this.#store = store
    this.#onEnd = on.end
    this.#onStuck = on.stuck
  }

  get on(): boolean {
    return this.#retry !== undefined
  }

  /**
   * @param needsSpace it goes on only when there is some
   * @returns false when it stands still already
   */
  begin(needsSpace = true): boolean {
    this.#stoppedAgain = true
    if (this.#retry) return false
    this.#needsSpace = needsSpace
    this.#inVain = 0
    this.#tryLater()
    return true
  }

  /** Tries no more; the guest stays as it is. */
  close(): void {
    this.#closed = true
    clearTimeout(this.#retry)
  }

  #tryLater(): void {
    this.#retry = setTimeout(async () => {
      this.#stoppedAgain = false
      const goesOn = await this.#tryToGoOn().catch(() => false)
      if (this.#closed) return
      if (!goesOn || this.#stoppedAgain) {
        this.#tryLater()
        return
      }
      this.#retry = undefined
      this.#onEnd()
    }, retryMs).unref()
  }

  async #tryToGoOn(): Promise<boolean> {
    const space = await this.#store.space()
    if (this.#needsSpace && space.freeBytes <= space.reserveBytes / 2) return false
    await this.#hypervisor.resume()
    await sleep(provedMs, undefined, { ref: false })
    if ((await this.#hypervisor.state()) !== 'ioError') return true
    if (++this.#inVain === triesMost) this.#onStuck()
    return false
  }
}
