import { EventEmitter, once } from 'node:events'
import { Slots } from '../reconcile/slots.ts'
import { StorageError } from '../storage/errors.ts'
import { type Space, spaceProblem } from '../storage/space.ts'
import { sayBytes } from './errors.ts'

/**
 * Space for images that are fetched and made side by side. What one was given counts as taken until it gives it back,
 * though some of it is written by then: who does not fit in beside it waits, in the order they came, and is refused only
 * when nobody else has any.
 */
export class Room {
  readonly #space: () => Promise<Space>
  readonly #given = new Set<{ readonly bytes: number }>()
  readonly #asking = new Slots(1)
  readonly #ends = new EventEmitter()
  #ended = 0

  constructor(space: () => Promise<Space>) {
    this.#space = space
  }

  /** Whether there is so much, whoever was given it. */
  async has(bytes: number): Promise<boolean> {
    return leftOf(await this.#space()) >= bytes
  }

  /**
   * @param onWait called when it has to wait for others
   * @returns dispose of it when all of that is written, or nothing of it will be any more
   * @throws StorageError `storage.full`; an AbortError, or the signal's reason
   */
  async take(bytes: number, signal: AbortSignal, onWait: () => void = () => {}): Promise<Disposable> {
    using _turn = await this.#asking.acquire(signal)
    for (;;) {
      const endedBefore = this.#ended
      const space = await this.#space()
      // What was given back meanwhile may have been counted as taken.
      if (this.#ended !== endedBefore) continue
      const givenBytes = [...this.#given].reduce((sum, one) => sum + one.bytes, 0)
      if (leftOf(space) - givenBytes >= bytes) return this.#give(bytes)
      if (this.#given.size === 0) throw noRoom(space, bytes)
      const end = once(this.#ends, 'end', { signal })
      onWait()
      await end
    }
  }

  #give(bytes: number): Disposable {
    const given = { bytes }
    this.#given.add(given)
    return {
      [Symbol.dispose]: () => {
        if (!this.#given.delete(given)) return
        this.#ended++
        this.#ends.emit('end')
      },
    }
  }
}

function leftOf({ freeBytes, reserveBytes }: Space): number {
  return freeBytes - reserveBytes
}

function noRoom(space: Space, bytes: number): StorageError {
  const needs = `The image needs ${sayBytes(bytes)} on the server, and ${sayBytes(Math.max(0, leftOf(space)))} are left`
  return new StorageError('storage.full', spaceProblem(space) ?? needs)
}
