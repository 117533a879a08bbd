/**
 * Mail leaves through the table `mails`. A mail is
 *
 *   waiting   sent_at null, next_attempt_at in the past: whoever takes it moves next_attempt_at ahead (a lease), so
 *             that of several gateways one sends it, and a gateway that dies leaves it for the next
 *   sent      sent_at set, body emptied: it may have held a code
 *   kept      after the last attempt, or without BERTH_SMTP: for the owner to read
 */
import { createTransport, type Transporter } from 'nodemailer'
import type { Sql } from '../../migrations/connect.ts'
import type { Log } from '../log.ts'
import type { News } from '../news.ts'

const RETRY_SECONDS = [10, 30, 120, 600, 1800, 3600, 6 * 3600, 12 * 3600, 24 * 3600]
/** Longer than any attempt takes. */
const LEASE_SECONDS = 120
const SMTP_TIMEOUT_MS = 30_000
const IDLE_CHECK_MS = 30_000

export type OutboxOptions = {
  sql: Sql
  news: News
  log: Log
  /** smtp:// or smtps:// URL */
  smtp: string
  /** sender, `Berth <berth@example.com>` */
  from: string
  retrySeconds?: readonly number[]
}

/** Sends what waits, now and whenever something comes. */
export class Outbox {
  readonly #options: OutboxOptions
  readonly #transport: Transporter
  readonly #stop: (() => void)[]
  #timer: NodeJS.Timeout | undefined
  #running: Promise<void> | undefined
  #again = false
  #closed = false

  constructor(options: OutboxOptions) {
    this.#options = options
    this.#transport = createTransport({
      url: options.smtp,
      connectionTimeout: SMTP_TIMEOUT_MS,
      greetingTimeout: SMTP_TIMEOUT_MS,
      socketTimeout: SMTP_TIMEOUT_MS,
      disableFileAccess: true,
      disableUrlAccess: true,
    })
    const wake = () => this.#wake()
    this.#stop = [options.news.on('mails', wake), options.news.onRescan(wake)]
    wake()
  }

  async close(): Promise<void> {
    this.#closed = true
    for (const stop of this.#stop) stop()
    clearTimeout(this.#timer)
    await this.#running
    this.#transport.close()
  }

  #wake(): void {
    if (this.#closed) return
    this.#again = true
    this.#running ??= this.#run().finally(() => {
      this.#running = undefined
      if (this.#again) this.#wake()
    })
  }

  async #run(): Promise<void> {
    clearTimeout(this.#timer)
    let nextMs = IDLE_CHECK_MS
    while (this.#again && !this.#closed) {
      this.#again = false
      try {
        while (!this.#closed && (await this.#sendOne())) {}
        nextMs = await this.#untilNext()
      } catch (error) {
        this.#options.log.warn({ err: error }, 'the outbox could not be read')
      }
    }
    if (this.#closed) return
    this.#timer = setTimeout(() => this.#wake(), nextMs)
    this.#timer.unref()
  }

  async #untilNext(): Promise<number> {
    const rows = await this.#options.sql<{ ms: number }[]>`
      select (extract(epoch from min(next_attempt_at) - now()) * 1000)::float8 as ms from mails
      where sent_at is null and attempts <= ${this.#retrySeconds.length}`
    return Math.min(IDLE_CHECK_MS, Math.max(50, rows[0]?.ms ?? IDLE_CHECK_MS))
  }

  get #retrySeconds(): readonly number[] {
    return this.#options.retrySeconds ?? RETRY_SECONDS
  }

  /** @returns whether there was one */
  async #sendOne(): Promise<boolean> {
    const { sql, log, from } = this.#options
    // Index: mails_unsent.
    const taken = await sql<{ id: number; recipient: string; subject: string; body: string; attempts: number }[]>`
      update mails set attempts = attempts + 1, next_attempt_at = now() + ${LEASE_SECONDS} * interval '1 s'
      where id = (
        select id from mails where sent_at is null and next_attempt_at <= now()
          and attempts <= ${this.#retrySeconds.length}
        order by next_attempt_at limit 1 for update skip locked)
      returning id, recipient, subject, body, attempts`
    const mail = taken[0]
    if (!mail) return false
    try {
      await this.#transport.sendMail({
        from,
        to: { name: '', address: mail.recipient },
        subject: mail.subject,
        text: mail.body,
      })
      await sql`update mails set sent_at = now(), body = '', last_error = null where id = ${mail.id}`
    } catch (error) {
      const reason = error instanceof Error ? error.message.slice(0, 500) : 'unknown'
      const waitSeconds = this.#retrySeconds[mail.attempts - 1]
      await sql`
        update mails set last_error = ${reason}, next_attempt_at = now() + ${waitSeconds ?? 0} * interval '1 s'
        where id = ${mail.id}`
      log.warn(
        { mail: mail.id, attempts: mail.attempts, reason },
        waitSeconds ? 'a mail was not sent' : 'a mail was given up',
      )
    }
    return true
  }
}
