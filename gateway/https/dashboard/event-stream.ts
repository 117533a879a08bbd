import type { ServerResponse } from 'node:http'
import type { Feed } from './feed.ts'

/** What else is worth another look; servers, accounts and rates for operators alone. `day`: another one has begun, in UTC. */
export const TOPICS = ['keys', 'shares', 'audit', 'notices', 'day', 'hosts', 'accounts', 'rates'] as const
export type Topic = (typeof TOPICS)[number]

/**
 * One browser that listens. What is to be told is kept as what it has heard, not as a queue: while it does not read,
 * nothing is written for it, and then the sum of what happened.
 * @see https://html.spec.whatwg.org/multipage/server-sent-events.html
 */
export class EventStream {
  readonly #response: ServerResponse
  readonly #feed: Feed
  #heard: number | undefined
  #hasHeard = false
  #costs = ''
  #saidCosts = ''
  readonly #topics = new Set<Topic>()
  #staleSince: Date | undefined
  #saysStale = false
  #isBlocked = false
  #isOver = false

  /** @param heard the position in the feed that the browser says it has heard */
  constructor(response: ServerResponse, feed: Feed, heard: number | undefined) {
    this.#response = response
    this.#feed = feed
    this.#heard = heard
    response.on('drain', () => {
      this.#isBlocked = false
      this.tell()
    })
    response.once('close', () => {
      this.#isOver = true
    })
    response.on('error', () => {})
    response.writeHead(200, {
      'Content-Type': 'text/event-stream',
      'Cache-Control': 'no-store',
      'X-Content-Type-Options': 'nosniff',
      'Cross-Origin-Resource-Policy': 'same-origin',
    })
    // After a cut the browser comes back by itself, after so long.
    this.#write('retry: 1000\n\n')
  }

  /** @param costs the JSON of what each machine has cost */
  set costs(costs: string) {
    this.#costs = costs
    this.tell()
  }

  /** Something else is worth another look. */
  news(topic: Topic): void {
    this.#topics.add(topic)
    this.tell()
  }

  /** What is told is as it was then; undefined: it is as it is. */
  set staleSince(since: Date | undefined) {
    this.#staleSince = since
    this.tell()
  }

  /** A sign of life. */
  beat(): void {
    if (this.#isBlocked || this.#staleSince) return
    this.#event('alive', '{}')
  }

  /** Tells what has not been told. */
  tell(): void {
    if (this.#isBlocked || this.#isOver) return
    if (this.#feed.isKnown && (!this.#hasHeard || this.#feed.at !== this.#heard)) this.#tellMachines()
    if (this.#costs !== this.#saidCosts) {
      this.#saidCosts = this.#costs
      this.#event('costs', this.#costs)
    }
    for (const topic of this.#topics) this.#event('news', JSON.stringify({ what: topic }))
    this.#topics.clear()
    if (this.#staleSince && !this.#saysStale) {
      this.#event('stale', JSON.stringify({ since: this.#staleSince.toISOString() }))
    } else if (!this.#staleSince && this.#saysStale) this.#event('alive', '{}')
    this.#saysStale = this.#staleSince !== undefined
  }

  /** @param isSignedOut the browser is not to come back before its person has signed in */
  end(isSignedOut: boolean): void {
    if (this.#isOver) return
    if (isSignedOut) this.#event('end', JSON.stringify({ why: 'signed out' }))
    this.#isOver = true
    this.#response.end()
  }

  #tellMachines(): void {
    const { full, set, gone } = this.#feed.since(this.#heard)
    const { at } = this.#feed
    // The documents are JSON already; one with a line break in it is none.
    const documents = set.map(([id, json]) => `"${id}":${json}`).join(',')
    this.#event('machines', `{${full ? '"full":true,' : ''}"set":{${documents}},"gone":[${gone}]}`, this.#feed.idOf(at))
    this.#heard = at
    this.#hasHeard = true
  }

  #event(name: string, line: string, id?: string): void {
    this.#write(`${id === undefined ? '' : `id: ${id}\n`}event: ${name}\ndata: ${line}\n\n`)
  }

  #write(text: string): void {
    if (this.#isOver) return
    if (!this.#response.write(text)) this.#isBlocked = true
  }
}
