/**
 * Keeps the wanted certificates had and renewed: takes what is due, sees that DNS still says that the name is claimed
 * and points here, and places the order. It runs in every gateway; the rows' leases share the work out.
 */
import type { Sql } from '../../../migrations/connect.ts'
import { isDelegated, isProved, whereItPoints } from '../../domains/check.ts'
import { type Lookup, LookupError } from '../../domains/lookup.ts'
import { proofNames } from '../../domains/records.ts'
import { holderOf } from '../../domains/rows.ts'
import type { Log } from '../../log.ts'
import type { News } from '../../news.ts'
import { seal } from '../../secrets.ts'
import type { Settings } from '../../settings.ts'
import type { AcmeClient } from './client.ts'
import { AcmeError } from './error.ts'
import type { AccountKey } from './jws.ts'
import { type Method, type Obtained, obtain } from './order.ts'
import {
  type Job,
  keepObtained,
  msUntilDue,
  noteFailure,
  type OwnNames,
  releaseJob,
  takeJob,
  wantCertificates,
} from './store.ts'

export type WorkerOptions = {
  sql: Sql
  news: News
  log: Log
  secretKey: Buffer
  settings: Pick<Settings, 'domain' | 'machineDomain'>
  directoryUrl: string
  client: AcmeClient
  key: AccountKey
  lookup: Lookup
  /** where the gateways are reached */
  addresses: readonly string[]
  own: readonly OwnNames[]
  /** ways that lead here, the likeliest first; DNS-01 among them when the name server runs */
  methods: readonly Method[]
  signal: AbortSignal
}

/** Orders that one gateway has open at once. */
const JOBS_AT_ONCE = 3
/** Looked again at least so often, should news have been lost. */
const ROUND_MS = 60_000
const SOONEST_MS = 1_000

/** Why there is no order for a domain; `message` is for whoever looks after it. */
class NotReadyError extends Error {
  override readonly name = 'NotReadyError'
}

export class CertificateWorker {
  readonly #options: WorkerOptions
  readonly #stop: (() => void)[]
  readonly #running = new Set<Promise<void>>()
  #timer: NodeJS.Timeout | undefined
  #looking: Promise<void> | undefined
  #again = false

  constructor(options: WorkerOptions) {
    this.#options = options
    const { news } = options
    this.#stop = [
      news.on('domains', () => this.look()),
      news.on('certificates', () => this.look()),
      news.onRescan(() => this.look()),
    ]
  }

  /** Sees what is due, now or as soon as the look under way has ended. */
  look(): void {
    this.#again = true
    this.#looking ??= this.#lookWhileAsked().finally(() => {
      this.#looking = undefined
    })
  }

  /** Resolves when nothing runs any more; the options' signal ends it early. */
  async close(): Promise<void> {
    for (const stop of this.#stop) stop()
    await this.#looking
    clearTimeout(this.#timer)
    await Promise.all(this.#running)
  }

  async #lookWhileAsked(): Promise<void> {
    const { signal, log } = this.#options
    while (this.#again && !signal.aborted) {
      this.#again = false
      try {
        await this.#round()
      } catch (error) {
        if (signal.aborted) return
        log.warn({ err: error }, 'could not see which certificates are due')
        this.#lookIn(ROUND_MS)
      }
    }
  }

  async #round(): Promise<void> {
    const { sql, own, directoryUrl } = this.#options
    await wantCertificates(sql, own, directoryUrl)
    while (this.#running.size < JOBS_AT_ONCE) {
      const job = await takeJob(sql)
      if (!job) break
      const run: Promise<void> = this.#work(job).finally(() => {
        this.#running.delete(run)
        this.look()
      })
      this.#running.add(run)
    }
    const dueMs = (await msUntilDue(sql)) ?? ROUND_MS
    this.#lookIn(Math.min(Math.max(dueMs, SOONEST_MS), ROUND_MS))
  }

  #lookIn(ms: number): void {
    clearTimeout(this.#timer)
    if (this.#options.signal.aborted) return
    this.#timer = setTimeout(() => this.look(), ms)
    this.#timer.unref()
  }

  /** Never rejects. */
  async #work(job: Job): Promise<void> {
    const { sql, log, secretKey, directoryUrl, signal } = this.#options
    try {
      const { chain, key, notBefore, notAfter } = await this.#obtain(job)
      const sealedKey = seal(secretKey, sealName(job.name), Buffer.from(key))
      const held = { directory: directoryUrl, chain, sealedKey, notBefore, notAfter }
      if (await keepObtained(sql, job, held)) log.info({ names: job.names, notAfter }, 'a certificate was issued')
    } catch (error) {
      // Given up by an orderly end: nobody's failure, and another gateway may begin at once.
      if (signal.aborted) {
        await releaseJob(sql, job).catch(() => {})
        return
      }
      const failure = {
        problem: sentence(error),
        wasOrdered: !(error instanceof NotReadyError || error instanceof LookupError),
        retryAt: error instanceof AcmeError ? error.retryAt : undefined,
      }
      log.warn({ err: error, names: job.names, failures: job.failures + 1 }, 'a certificate could not be had')
      await noteFailure(sql, job, failure).catch((cause) => {
        log.error({ err: cause, names: job.names }, 'a failure could not be noted')
      })
    }
  }

  async #obtain(job: Job): Promise<Obtained> {
    const { client, key, sql } = this.#options
    const method = this.#method(job)
    const recordNames = new Map<string, readonly string[]>()
    if (job.domain !== null) {
      const { challengeTarget } = await this.#claimed(job.domain, job.names.length > 1)
      // The same record under both names: one is found by CNAME, the other by NS.
      recordNames.set(job.domain, [challengeTarget, `_acme-challenge.${job.domain}`])
    }
    return await obtain({
      client,
      key,
      sql,
      names: job.names,
      method,
      recordNames: (name) => recordNames.get(name) ?? [`_acme-challenge.${name}`],
    })
  }

  /**
   * Asked before each order and each renewal: an order for a name that does not lead here would fail, and would be
   * for a name that is somebody else's by now.
   */
  async #claimed(domain: string, wildcard: boolean) {
    const { sql, settings, lookup, addresses } = this.#options
    const holder = await holderOf(sql, domain)
    if (!holder) throw new NotReadyError('its machine is in the trash')
    const names = proofNames(holder.proof, settings)
    const claim = { domain, wildcard }
    if (!(await isProved(claim, names, lookup))) {
      throw new NotReadyError('DNS does not show that it is yours')
    }
    if (wildcard && !(await isDelegated(claim, names, lookup))) {
      throw new NotReadyError(`_acme-challenge.${domain} is no CNAME to ${names.challengeTarget}`)
    }
    const { isHere, elsewhere } = await whereItPoints(claim, names, lookup, addresses)
    if (!isHere) {
      throw new NotReadyError(
        elsewhere.length ? `it points at ${elsewhere.slice(0, 3).join(', ')}` : 'it points nowhere',
      )
    }
    return names
  }

  /** A wildcard is proved by DNS alone (RFC 8555, 7.1.3); for others the ways take turns until one works. */
  #method(job: Job): Method {
    const { methods } = this.#options
    const isWildcard = job.names.some((name) => name.startsWith('*.'))
    if (methods.includes('dns-01') && (job.domain === null || isWildcard)) return 'dns-01'
    if (isWildcard) throw new NotReadyError('a wildcard needs BERTH_DNS')
    const others = methods.filter((method) => method !== 'dns-01')
    const method = others[job.failures % others.length]
    if (method === undefined) throw new NotReadyError('neither BERTH_HTTP nor BERTH_HTTPS is served')
    return method
  }
}

export function sealName(name: string): string {
  return `acme:${name}`
}

function sentence(error: unknown): string {
  if (error instanceof AcmeError || error instanceof NotReadyError || error instanceof LookupError) return error.message
  return 'it could not be asked for; the gateway’s log says why'
}
