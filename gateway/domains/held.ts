import type { Sql } from '../../migrations/connect.ts'
import type { Settings } from '../settings.ts'
import { isProved, whereItPoints } from './check.ts'
import { type Lookup, LookupError } from './lookup.ts'
import { proofNames } from './records.ts'

export type HeldDomainsOptions = {
  sql: Sql
  settings: Pick<Settings, 'domain' | 'machineDomain'>
  lookup: Lookup
  /** that the gateways know they have */
  addresses: readonly string[]
}

/** So long what DNS said counts: a domain that changes hands does so in days. */
const HELD_MS = 5 * 60_000
/** Whoever has just mended a record does not wait long, and DNS is not asked with each reload. */
const NOT_HELD_MS = 10_000
const HOSTS_MOST = 1_000
const ASKED_AT_ONCE = 50
/** Of these, for one machine: name servers that say nothing hold up nobody else. */
const ASKED_OF_MACHINE = 5

type Answer = { isHeld: Promise<boolean>; untilMs: number }

/** Whether the domains that lead to machines are still their accounts', as DNS says now or said minutes ago. */
export class HeldDomains {
  readonly #options: HeldDomainsOptions
  readonly #answers = new Map<string, Answer>()
  /** machines that DNS is being asked about, once for each question */
  readonly #asking: number[] = []

  constructor(options: HeldDomainsOptions) {
    this.#options = options
  }

  /**
   * @param host the domain, or a name below its wildcard
   * @returns false also where nobody answers, or too much is asked at once
   */
  isHeld(host: string, machineId: number): Promise<boolean> {
    const key = `${machineId} ${host}`
    const nowMs = performance.now()
    const known = this.#answers.get(key)
    if (known && nowMs < known.untilMs) return known.isHeld
    const ofMachine = this.#asking.filter((id) => id === machineId).length
    if (this.#asking.length >= ASKED_AT_ONCE || ofMachine >= ASKED_OF_MACHINE) return Promise.resolve(false)
    this.#asking.push(machineId)
    const answer: Answer = { isHeld: this.#ask(host, machineId), untilMs: Number.POSITIVE_INFINITY }
    this.#answers.delete(key)
    this.#answers.set(key, answer)
    for (const oldest of this.#answers.keys()) {
      if (this.#answers.size <= HOSTS_MOST) break
      this.#answers.delete(oldest)
    }
    const keep = (ms: number) => {
      this.#asking.splice(this.#asking.indexOf(machineId), 1)
      answer.untilMs = performance.now() + ms
    }
    answer.isHeld.then(
      (isHeld) => keep(isHeld ? HELD_MS : NOT_HELD_MS),
      () => keep(0),
    )
    return answer.isHeld
  }

  async #ask(host: string, machineId: number): Promise<boolean> {
    const { sql, settings, lookup, addresses } = this.#options
    // Index: custom_domains_pkey.
    const [claim] = await sql<{ domain: string; wildcard: boolean; proof: string }[]>`
      select d.domain, d.wildcard, a.domain_proof as proof
      from custom_domains d join machines m on m.id = d.machine_id join accounts a on a.id = m.account_id
      where d.domain in (${host}, ${host.slice(host.indexOf('.') + 1)}) and (d.domain = ${host} or d.wildcard)
        and m.id = ${machineId}
      order by length(d.domain) desc limit 1`
    if (!claim) return false
    const names = proofNames(claim.proof, settings)
    try {
      // Of a wildcard the host itself is looked at, which is where the browser will go.
      const [proved, { isHere }] = await Promise.all([
        isProved(claim, names, lookup),
        whereItPoints({ domain: host, wildcard: false }, names, lookup, addresses),
      ])
      return proved && isHere
    } catch (error) {
      if (error instanceof LookupError) return false
      throw error
    }
  }
}
