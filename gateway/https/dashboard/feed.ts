/**
 * What an account's machines look like to its browsers, kept as long as one of them listens and a while longer. Each
 * document has the number of the change that made it so: a browser that says how far it has heard is told what is newer,
 * and one that does not read is told the sum of what it missed when it does. Nothing is queued for anybody.
 */
import { randomBytes } from 'node:crypto'

/** A machine's document as JSON, by the machine's number. */
export type Documents = ReadonlyMap<number, string>

/** What a browser has not heard of. */
export type News = { full: boolean; set: [id: number, json: string][]; gone: number[] }

/** So many machines that are gone are remembered; whoever missed more is told everything. */
const GONE_KEPT = 1_000

export class Feed {
  /** another one's numbers mean nothing here */
  readonly epoch = randomBytes(6).toString('base64url')
  readonly #documents = new Map<number, { json: string; at: number }>()
  readonly #gone = new Map<number, number>()
  /** what was gone before is forgotten */
  #floor = 0
  #at = 0
  #isKnown = false

  /** it was read once */
  get isKnown(): boolean {
    return this.#isKnown
  }

  /** the number of the last change */
  get at(): number {
    return this.#at
  }

  has(id: number): boolean {
    return this.#documents.has(id)
  }

  /** All machines as they are now; what is not among them is gone. @returns whether anything is other than before */
  replace(documents: Documents): boolean {
    this.#isKnown = true
    const missing = [...this.#documents.keys()].filter((id) => !documents.has(id))
    return this.update(documents, missing)
  }

  /** Some machines as they are now. @returns whether anything is other than before */
  update(documents: Documents, gone: readonly number[]): boolean {
    const at = this.#at + 1
    let isOther = false
    for (const [id, json] of documents) {
      if (this.#documents.get(id)?.json === json) continue
      this.#documents.set(id, { json, at })
      this.#gone.delete(id)
      isOther = true
    }
    for (const id of gone) {
      if (!this.#documents.delete(id)) continue
      this.#gone.set(id, at)
      isOther = true
    }
    for (const [id, goneAt] of this.#gone) {
      if (this.#gone.size <= GONE_KEPT) break
      this.#gone.delete(id)
      this.#floor = goneAt
    }
    if (isOther) this.#at = at
    return isOther
  }

  /** What changed after `at`; everything for whoever has heard nothing, or too long ago. */
  since(at: number | undefined): News {
    const full = at === undefined || at < this.#floor || at > this.#at
    const after = full ? -1 : at
    const set: News['set'] = []
    for (const [id, document] of this.#documents) if (document.at > after) set.push([id, document.json])
    const gone = full ? [] : [...this.#gone].flatMap(([id, goneAt]) => (goneAt > after ? [id] : []))
    return { full, set, gone }
  }

  /** How far a browser is that heard the event of this id; undefined when it was another feed's. */
  positionOf(eventId: string | undefined): number | undefined {
    const [epoch, at] = eventId?.split('.') ?? []
    return epoch === this.epoch && at !== undefined && /^\d{1,15}$/.test(at) ? Number(at) : undefined
  }

  idOf(at: number): string {
    return `${this.epoch}.${at}`
  }
}
