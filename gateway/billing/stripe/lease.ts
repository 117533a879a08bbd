/**
 * Who asks Stripe about a record holds it by a lease: a row that says who, and until when. No transaction, no lock and no
 * connection of the database is held while Stripe takes its time. A lease is
 *
 *   taken        by one statement, where there is none or the last one has lapsed; until then it is busy for all others
 *   renewed      before each step that changes something at Stripe: whoever was held up for so long that another took it
 *                takes no more steps
 *   written by   what came of it is written in one short transaction that holds the lease's row, so that nobody who lost
 *                the lease overwrites what the next one found
 *   given back   at the end. Of one who was killed it lapses
 *
 * A step that is on its way when its lease lapses does no harm: the next one takes the same step under the same
 * idempotency key (client.ts).
 */
import { randomUUID } from 'node:crypto'
import type { Db, Sql } from '../../../migrations/connect.ts'
import { CommandError } from '../../commands/error.ts'

/** Longer than a step takes with all its repeats, client.ts; so long a record rests after a kill. */
const LEASE = '2 minutes'

export class Lease implements AsyncDisposable {
  readonly #sql: Sql
  readonly #about: string
  readonly #holder = randomUUID()

  private constructor(sql: Sql, about: string) {
    this.#sql = sql
    this.#about = about
  }

  /** @returns undefined while it is somebody else's */
  static async tryTake(sql: Sql, about: string): Promise<Lease | undefined> {
    const lease = new Lease(sql, about)
    const taken = await sql`
      insert into stripe_leases as l (about, holder, until)
      values (${about}, ${lease.#holder}, now() + ${LEASE}::interval)
      on conflict (about) do update set holder = excluded.holder, until = excluded.until where l.until <= now()
      returning about`
    return taken.length > 0 ? lease : undefined
  }

  /** @throws CommandError 'payment.busy' */
  static async take(sql: Sql, about: string): Promise<Lease> {
    const lease = await Lease.tryTake(sql, about)
    if (!lease) throw busy()
    return lease
  }

  /** @returns false when another has taken it */
  async isRenewed(): Promise<boolean> {
    const renewed = await this.#sql`
      update stripe_leases set until = now() + ${LEASE}::interval
      where about = ${this.#about} and holder = ${this.#holder} returning about`
    return renewed.length > 0
  }

  /** @throws CommandError 'payment.busy' when another has taken it */
  async renew(): Promise<void> {
    if (!(await this.isRenewed())) throw busy()
  }

  /**
   * Writes as its holder.
   * @throws CommandError 'payment.busy' when another has taken it: nothing is written
   */
  async write(write: (tx: Db) => Promise<unknown>): Promise<void> {
    await this.#sql.begin(async (tx) => {
      const [held] = await tx`
        select from stripe_leases where about = ${this.#about} and holder = ${this.#holder} for update`
      if (!held) throw busy()
      await write(tx)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Where the database is away it lapses, and the reason why is of more interest.
    await this.#sql`delete from stripe_leases where about = ${this.#about} and holder = ${this.#holder}`.catch(() => {})
  }
}

export function leaseOfAccount(accountId: number, livemode: boolean): string {
  return `account ${accountId} ${modeName(livemode)}`
}

export function leaseOfInvoice(number: number, livemode: boolean): string {
  return `invoice ${number} ${modeName(livemode)}`
}

export function leaseOfRounds(livemode: boolean): string {
  return `rounds ${modeName(livemode)}`
}

function modeName(livemode: boolean): string {
  return livemode ? 'live' : 'test'
}

function busy(): CommandError {
  return new CommandError('payment.busy', 5, 'Stripe is being asked about this already', {
    wayOn: 'try again in a moment',
  })
}

export function isBusy(error: unknown): boolean {
  return error instanceof CommandError && error.code === 'payment.busy'
}
