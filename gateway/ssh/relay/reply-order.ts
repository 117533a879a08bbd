import type { ChannelEnd } from '../transport/channel-end.ts'

type Expected = 'other' | 'swallowed' | boolean

// A peer that asks more than this without an answer does so on purpose
const mostOutstanding = 10_000

/**
 * Replies to channel requests carry no number: they must go out in the order of the requests (RFC 4254, 5.4), even
 * when one is answered here and the one before it by the machine.
 */
export class ReplyOrder {
  readonly #end: ChannelEnd
  readonly #expected: Expected[] = []
  /** Answers that the other side has given so far. */
  answeredByOtherCount = 0

  /** @param end where the requests come from */
  constructor(end: ChannelEnd) {
    this.#end = end
  }

  /** A request was passed on to the other side, which will answer it. */
  expectFromOther(): void {
    this.#push('other')
  }

  /** A request was repeated to the other side; `end` has its answer already. */
  expectSwallowed(): void {
    this.#push('swallowed')
  }

  /** A request is answered here. */
  answer(success: boolean): void {
    if (this.#expected.length === 0) this.#end.sendReply(success)
    else this.#push(success)
  }

  /** The other side answered the oldest request passed on to it. */
  answeredByOther(success: boolean): void {
    const expected = this.#expected.shift()
    if (expected === undefined) return
    this.answeredByOtherCount++
    if (expected === 'other') this.#end.sendReply(success)
    for (let next = this.#expected[0]; typeof next === 'boolean'; next = this.#expected[0]) {
      this.#expected.shift()
      this.#end.sendReply(next)
    }
  }

  #push(expected: Expected): void {
    if (this.#expected.length >= mostOutstanding) this.#end.link.destroy()
    else this.#expected.push(expected)
  }
}
