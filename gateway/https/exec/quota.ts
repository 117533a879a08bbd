/** Lines that an account may run: programs send them in bursts, an upload as fast as its pieces are answered. */

export type QuotaLimits = {
  /** lines at once after a rest; each comes back after `1 / perSecond` */
  burst: number
  perSecond: number
  /** lines of one account, and of all together, that have not ended */
  runningPerAccount: number
  running: number
}

const QUOTA_LIMITS: QuotaLimits = { burst: 500, perSecond: 100, runningPerAccount: 128, running: 1_000 }

/** A line that was let in. */
export type Place = { end(): void }
export type Refusal = { status: 429 | 503; retryAfterS: number; error: string; code: string }

type Account = { tokens: number; atMs: number; running: number }

const ACCOUNTS_KEPT = 1_000

export class Quota {
  readonly #limits: QuotaLimits
  readonly #accounts = new Map<number, Account>()
  #running = 0

  constructor(limits: Partial<QuotaLimits> = {}) {
    this.#limits = { ...QUOTA_LIMITS, ...limits }
  }

  /** Counts a line. */
  admit(accountId: number, nowMs = performance.now()): Place | Refusal {
    const { burst, perSecond, runningPerAccount, running } = this.#limits
    if (this.#running >= running) {
      return { status: 503, retryAfterS: 5, error: 'too many commands are running here', code: 'busy' }
    }
    const account = this.#account(accountId, nowMs)
    account.tokens = Math.min(burst, account.tokens + ((nowMs - account.atMs) / 1000) * perSecond)
    account.atMs = nowMs
    if (account.running >= runningPerAccount) {
      const error = `${runningPerAccount} commands of this account are running; wait for one to end`
      return { status: 429, retryAfterS: 1, error, code: 'request.too_many' }
    }
    if (account.tokens < 1) {
      const retryAfterS = Math.max(1, Math.ceil((1 - account.tokens) / perSecond))
      return { status: 429, retryAfterS, error: 'too many commands in a short time', code: 'request.too_many' }
    }
    account.tokens--
    account.running++
    this.#running++
    let ended = false
    return {
      end: () => {
        if (ended) return
        ended = true
        account.running--
        this.#running--
      },
    }
  }

  #account(id: number, nowMs: number): Account {
    const known = this.#accounts.get(id)
    if (known) return known
    if (this.#accounts.size >= ACCOUNTS_KEPT) this.#forgetRested(nowMs)
    const account = { tokens: this.#limits.burst, atMs: nowMs, running: 0 }
    this.#accounts.set(id, account)
    return account
  }

  /** One that runs nothing and has had its rest is as good as new. */
  #forgetRested(nowMs: number): void {
    const restMs = (this.#limits.burst / this.#limits.perSecond) * 1000
    for (const [id, { running, atMs }] of this.#accounts) {
      if (running === 0 && nowMs - atMs > restMs) this.#accounts.delete(id)
    }
  }
}
