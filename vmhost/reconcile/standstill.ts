import type { Hypervisor } from '../hypervisor/driver.ts'
import type { World } from './world.ts'

const retryMs = 5_000

/**
 * A guest that its hypervisor has stopped because its disk could not be written or read, or soon could not.
 *
 *     goes --begin--> stands still --space again, and the hypervisor takes it--> goes
 *
 * How often it is tried has no end: the guest loses nothing by standing still, and the operator makes space some day.
 */
export class Standstill {
  readonly #hypervisor: Pick<Hypervisor, 'resume' | 'state'>
  readonly #store: Pick<World['store'], 'space'>
  readonly #onEnd: () => void
  #retry: NodeJS.Timeout | undefined
  #closed = false

  /** @param onEnd the guest goes on */
  constructor(
    hypervisor: Pick<Hypervisor, 'resume' | 'state'>,
    store: Pick<World['store'], 'space'>,
    onEnd: () => void,
  ) {
    this.#hypervisor = hypervisor
    this.#store = store
    this.#onEnd = onEnd
  }

  get on(): boolean {
    return this.#retry !== undefined
  }

  /** @returns false when it stands still already */
  begin(): boolean {
    if (this.#retry) return false
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
      const goesOn = await this.#tryToGoOn().catch(() => false)
      if (this.#closed) return
      if (!goesOn) {
        this.#tryLater()
        return
      }
      this.#retry = undefined
      this.#onEnd()
    }, retryMs).unref()
  }

  async #tryToGoOn(): Promise<boolean> {
    const space = await this.#store.space()
    if (space.freeBytes <= space.reserveBytes / 2) return false
    await this.#hypervisor.resume()
    return (await this.#hypervisor.state()) !== 'ioError'
  }
}
