/**
 * `POST /exec` on the control host: the body is one line of the lobby, the answer its JSON document. `ssh NAME CMD`
 * streams what the command prints (output.ts). A line goes this way:
 *
 *   refused   by method, by a page of another site, without a good token or, from the dashboard, a signed-in browser's
 *             cookie, over the account's quota, by its body
 *   running   in the lobby, for at most 30 s unless it is `ssh`; the client's leaving, or its token's end, interrupts it
 *   attached  `ssh` has started something: the head is sent, then what it prints
 *   answered  with the document, or the stream's last line
 *
 * At `/exec?follow` a command tells what it is doing (telling.ts), and may take its time.
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import { Readable, Writable } from 'node:stream'
import { type App, EXIT, type Piece, type RunLine } from '../../app.ts'
import { CommandError } from '../../commands/error.ts'
import { findCommand } from '../../commands/lookup.ts'
import { ssh } from '../../commands/ssh.ts'
import { TABLE } from '../../commands/table.ts'
import { splitWords } from '../../commands/words.ts'
import { answerWithin, faultOf } from '../../fault.ts'
import { credentialOf } from '../access/credentials.ts'
import { COOKIE, cookieOf } from '../access/fields.ts'
import { Rate } from '../control/rate.ts'
import type { Finished } from '../proxy/context.ts'
import { BODY_LIMIT_BYTES, readBody } from './body.ts'
import { Exchange, PATH } from './exchange.ts'
import { findHolder, type Holder, holderOfSession } from './holder.ts'
import { LiveRuns } from './live.ts'
import { ProcessOutput } from './output.ts'
import { type Place, Quota, type QuotaLimits } from './quota.ts'
import { Telling } from './telling.ts'

const LINE_MS = 30_000
/** So long a command waits for a machine before it answers that it is still starting. */
const PATIENCE_MS = 20_000
/** A client waits for the head no longer than for a sign of life. */
const HEAD_MS = 25_000
const HEARTBEAT_MS = 30_000
const LOOK_UP_MS = 10_000
const BAD_TOKENS_A_MINUTE = 300
const MINUTE_S = 60

const REVOKED = new CommandError('auth.invalid', 4, 'the token was taken back')
const SIGNED_OUT = new CommandError('auth.invalid', 4, 'this browser was signed out')
const EXPIRED = new CommandError('auth.invalid', 4, 'the token has expired')
/** Node's timers take no more. */
const TIMER_MOST_MS = 2 ** 31 - 1

export type ExecOptions = {
  app: App
  runLine: RunLine
  limits?: Partial<ExecLimits>
  /** hears of each request that is over */
  finished?: (exchange: Finished) => void
}

export type ExecLimits = QuotaLimits & Times
type Times = { lineMs: number; patienceMs: number; headMs: number; heartbeatMs: number }

export class ExecEndpoint {
  readonly #options: ExecOptions
  readonly #limits: Times
  readonly #quota: Quota
  readonly #live: LiveRuns
  readonly #badTokens = new Rate(BAD_TOKENS_A_MINUTE)

  constructor(options: ExecOptions) {
    this.#options = options
    const times = { lineMs: LINE_MS, patienceMs: PATIENCE_MS, headMs: HEAD_MS, heartbeatMs: HEARTBEAT_MS }
    this.#limits = { ...times, ...options.limits }
    this.#quota = new Quota(options.limits)
    this.#live = new LiveRuns(options.app)
  }

  /** @returns false when the request is for something else */
  answer(request: IncomingMessage, response: ServerResponse): boolean {
    if (request.url?.split('?')[0] !== PATH) return false
    const exchange = new Exchange(request, response)
    response.once('close', () => this.#options.finished?.(exchange.finished()))
    this.#serve(exchange).catch((error: unknown) => {
      const { isAway, message, wayOn } = faultOf(error, this.#options.app.log, 'a line of /exec failed')
      exchange.fail(
        new CommandError(isAway ? 'busy' : 'internal', isAway ? EXIT.busy : EXIT.failed, `${message}; ${wayOn}`),
      )
    })
    return true
  }

  close(): void {
    this.#live.close()
  }

  async #serve(exchange: Exchange): Promise<void> {
    const { request } = exchange
    if (request.method !== 'POST') {
      exchange.refuse(405, 'request.method', 'POST a command line', { Allow: 'POST' })
      return
    }
    if (exchange.isForeign()) {
      exchange.refuse(403, 'request.foreign_page', 'another site’s page asked for this')
      return
    }
    const holder = await this.#holder(exchange)
    if (!holder) return
    exchange.user = String(holder.caller.accountId)
    const place = this.#quota.admit(holder.caller.accountId)
    if ('status' in place) {
      const { status, code, error, retryAfterS } = place
      exchange.refuse(status, code, error, { 'Retry-After': String(retryAfterS) })
      return
    }
    const forget = this.#live.add({
      grant: holder.grant,
      revoke: () => exchange.interrupt(holder.isBrowser ? SIGNED_OUT : REVOKED),
    })
    const leftMs = holder.endsAtMs - Date.now()
    const overdue = leftMs > TIMER_MOST_MS ? undefined : setTimeout(() => exchange.interrupt(EXPIRED), leftMs)
    try {
      await this.#run(exchange, holder, place)
    } catch (error) {
      place.end()
      throw error
    } finally {
      clearTimeout(overdue)
      forget()
    }
  }

  /** Who sent the token; undefined when the request was refused. */
  async #holder(exchange: Exchange): Promise<Holder | undefined> {
    const { app } = this.#options
    const { request, address } = exchange
    if (this.#badTokens.isOver(address)) {
      exchange.refuse(429, 'request.too_many', 'too many bad tokens', { 'Retry-After': String(MINUTE_S) })
      return undefined
    }
    const fields = Object.entries(request.headers).flatMap(([name, value]) =>
      [value ?? []].flat().map((one) => ({ name, value: one })),
    )
    const token = credentialOf(fields)?.token
    const cookie = token === undefined ? cookieOf(fields, COOKIE) : undefined
    if (token === undefined && cookie === undefined) {
      exchange.challenge('auth.required', 'send a token, which token new makes')
      return undefined
    }
    if (cookie !== undefined && !exchange.isOwnPage()) {
      exchange.refuse(403, 'request.foreign_page', 'with a cookie this is asked for by Berth’s own pages only')
      return undefined
    }
    const host = app.settings.domain.toLowerCase()
    const found = this.#live.stable(async () =>
      token === undefined
        ? await holderOfSession(app.sql, cookie ?? '', address)
        : await findHolder(app.sql, { token, host, address }),
    )
    const holder = await answerWithin(LOOK_UP_MS, found)
    if (!holder) {
      this.#badTokens.exceeded(address)
      exchange.challenge('auth.invalid', token === undefined ? 'signed out' : 'this token is not good here')
      return undefined
    }
    if (holder.isSuspended) {
      exchange.refuse(403, 'account.suspended', 'this account is suspended')
      return undefined
    }
    return holder
  }

  async #run(exchange: Exchange, holder: Holder, place: Place): Promise<void> {
    const { signal } = exchange
    const line = await lineOf(exchange)
    if (line === undefined || signal.aborted) {
      place.end()
      if ([REVOKED, SIGNED_OUT, EXPIRED].includes(signal.reason))
        exchange.challenge(signal.reason.code, signal.reason.message)
      return
    }
    const { app, runLine } = this.#options
    const { heartbeatMs } = this.#limits
    const output = new ProcessOutput(exchange.response, { isNdjson: exchange.takesNdjson, heartbeatMs })
    exchange.output = output
    const isProcess = startsProcess(line)
    const telling = exchange.follows && !isProcess ? new Telling(exchange.response, heartbeatMs) : undefined
    exchange.telling = telling
    const late = Promise.withResolvers<undefined>()
    const isLong = isProcess || telling !== undefined
    const timer = setTimeout(
      isLong ? () => (telling ?? output).begin() : () => late.resolve(undefined),
      isLong ? this.#limits.headMs : this.#limits.lineMs,
    )
    const stdout = new Collector()
    let processStatus: number | undefined
    let failure: CommandError | undefined
    const running = runLine(app, holder.caller, line, {
      stdin: Readable.from([]),
      stdout,
      stderr: new Collector(),
      signal,
      env: {},
      json: true,
      ...(telling === undefined
        ? { patienceMs: this.#limits.patienceMs }
        : { tell: (piece: Piece) => telling.tell(piece) }),
      onFailure: (error) => {
        failure = error
      },
      async attach(remote) {
        processStatus = await output.carry(remote, signal)
        return processStatus
      },
    }).finally(place.end)
    const exit = await Promise.race([running, late.promise])
    clearTimeout(timer)
    if (exit === undefined) {
      const limit = `${this.#limits.lineMs / 1000} s`
      const overdue = new CommandError('timeout', 1, `the command did not end within ${limit} and was interrupted`)
      exchange.interrupt(overdue)
      exchange.refuse(504, overdue.code, overdue.message)
    } else if (processStatus !== undefined) output.end(processStatus)
    else if (failure !== undefined) exchange.fail(failure)
    else exchange.answer(stdout.text)
  }
}

/** The line in the body; undefined when the request was refused for it. */
async function lineOf(exchange: Exchange): Promise<string | undefined> {
  const body = await readBody(exchange.request)
  if ('line' in body) return body.line
  switch (body.problem) {
    case 'too_long':
      exchange.refuse(413, 'request.too_long', `a command line has at most ${BODY_LIMIT_BYTES / 1024} KiB`)
      break
    case 'too_slow':
      exchange.refuse(408, 'request.too_slow', 'the command line took too long to come')
      break
    case 'not_text':
      exchange.refuse(400, 'usage', 'the body is not text in UTF-8')
      break
    case 'cut':
  }
  return undefined
}

/** Whether a line is `ssh`, which may take as long as it likes. One that cannot be read is not. */
function startsProcess(line: string): boolean {
  try {
    return findCommand(TABLE, splitWords(line)).command === ssh
  } catch {
    return false
  }
}

/** Keeps what is written. A document is whole in memory before it gets here. */
class Collector extends Writable {
  text = ''

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.text += chunk.toString('utf8')
    done()
  }
}
