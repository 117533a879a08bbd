import type { ServerResponse } from 'node:http'
import { promisify } from 'node:util'
import { gzip } from 'node:zlib'
import { sendDocument } from '../exec/answer.ts'
import type { Feed } from './feed.ts'

/** Below so many bytes it is sent as it is. */
const PACKED_FROM = 1_024
/** The least work: it is a tenth of the size all the same. */
const LEVEL = 1

const pack = promisify(gzip)

/**
 * One answer with all that a stream would begin with, given as soon as it is known: a page asks for it along with its
 * script, which has yet to come when a stream could be opened.
 */
export class Snapshot {
  costs = ''
  readonly #response: ServerResponse
  readonly #feed: Feed
  readonly #isPackable: boolean
  #isOver = false

  /** @param acceptEncoding the field of the request */
  constructor(response: ServerResponse, feed: Feed, acceptEncoding: string) {
    this.#response = response
    this.#feed = feed
    this.#isPackable = /\bgzip\b/i.test(acceptEncoding)
    response.on('error', () => {})
    response.once('close', () => {
      this.#isOver = true
    })
  }

  /** A page that shows what was so says since when; this one has nothing to show yet, and listens instead. */
  set staleSince(since: Date | undefined) {
    if (since === undefined || this.#isOver) return
    this.#isOver = true
    const error = 'the database does not answer; listen at /events'
    sendDocument(this.#response, 503, { error, code: 'database.away' }, {})
  }

  tell(): void {
    if (this.#isOver || !this.#feed.isKnown) return
    this.#isOver = true
    const { set } = this.#feed.since(undefined)
    const documents = set.map(([id, json]) => `"${id}":${json}`).join(',')
    const costs = this.costs === '' ? '' : `,"costs":${this.costs}`
    void this.#send(`{"id":"${this.#feed.idOf(this.#feed.at)}","set":{${documents}}${costs}}`)
  }

  news(): void {}

  beat(): void {}

  end(): void {
    if (this.#isOver) return
    this.#isOver = true
    this.#response.destroy()
  }

  async #send(json: string): Promise<void> {
    const isPacked = this.#isPackable && json.length > PACKED_FROM
    const body = isPacked ? await pack(json, { level: LEVEL }) : json
    this.#response.writeHead(200, {
      'Content-Type': 'application/json',
      ...(isPacked ? { 'Content-Encoding': 'gzip' } : {}),
      Vary: 'Accept-Encoding',
      'Cache-Control': 'no-store',
      'X-Content-Type-Options': 'nosniff',
      'Cross-Origin-Resource-Policy': 'same-origin',
    })
    this.#response.end(body)
  }
}
