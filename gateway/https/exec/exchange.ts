import type { IncomingMessage, ServerResponse } from 'node:http'
import { CommandError, wayOnOf } from '../../commands/error.ts'
import { type Asker, askerOf, ownOrigin } from '../access/foreign.ts'
import type { Finished } from '../proxy/context.ts'
import { sendDocument, statusOf, textOf } from './answer.ts'
import { discardBody } from './body.ts'
import type { ProcessOutput } from './output.ts'
import type { Telling } from './telling.ts'

export const PATH = '/exec'
/** What clients are told to wait when the fault is not theirs. */
const BUSY_RETRY_S = 5

const GONE = new CommandError('interrupted', 1, 'the client is gone')

/** One request and what is sent in answer. */
export class Exchange {
  readonly request: IncomingMessage
  readonly response: ServerResponse
  /** IP address of the client, IPv4-mapped IPv6 written as IPv4 */
  readonly address: string
  /** the account, for the access log */
  user: string | undefined
  /** what `ssh` prints goes there, once it has begun */
  output: ProcessOutput | undefined
  /** hears of a command while it runs, where the client wants that */
  telling: Telling | undefined
  readonly #interrupted = new AbortController()
  readonly #startedAtMs = performance.now()
  #firstByteAtMs: number | undefined
  #sentBytes = 0

  constructor(request: IncomingMessage, response: ServerResponse) {
    this.request = request
    this.response = response
    this.address = (request.socket.remoteAddress ?? '').replace(/^::ffff:/, '')
    response.once('close', () => this.interrupt(GONE))
  }

  /** Aborted when the client is gone, or its line must end; the reason is a CommandError. */
  get signal(): AbortSignal {
    return this.#interrupted.signal
  }

  interrupt(why: CommandError): void {
    this.#interrupted.abort(why)
  }

  get host(): string {
    const { headers } = this.request
    return String(headers.host ?? headers[':authority'] ?? '').toLowerCase()
  }

  get takesNdjson(): boolean {
    return /\bapplication\/x-ndjson\b/i.test(this.request.headers.accept ?? '')
  }

  /** `/exec?follow`: it wants to hear of a command before that has ended. */
  get follows(): boolean {
    return new URLSearchParams(this.request.url?.split('?')[1]).has('follow')
  }

  /** A browser may remember a token that was typed as a password: pages of others must not use it. */
  isForeign(): boolean {
    return this.#asker === 'foreign'
  }

  /**
   * A page of the control host itself asks. Who is signed in by a cookie must be asked so: browsers send it by themselves.
   * All of them send Origin with a POST.
   */
  isOwnPage(): boolean {
    return this.#asker === 'own' && this.request.headers.origin === ownOrigin(this.request.headers)
  }

  get #asker(): Asker {
    const { method = '', headers } = this.request
    return askerOf(method, headers, ownOrigin(headers))
  }

  /** What a line answered. */
  answer(text: string): void {
    if (this.output?.begun && !this.telling) this.output.fail('the command ended without a word')
    else if (text === '') this.refuse(400, 'usage', 'there is no command in the body')
    else if (this.telling) this.telling.end({ result: JSON.parse(text) })
    else this.#send(200, JSON.parse(text))
  }

  /** Why a line did not end well: as the response, or as the last line of one that has begun. */
  fail(failure: CommandError): void {
    const error = textOf(failure)
    const status = statusOf(failure)
    const document = { ...failure.detail, error, code: failure.code, ...wayOnOf(failure) }
    if (this.telling?.begun) this.telling.end(document)
    else if (this.output?.begun) this.output.fail(error)
    else if (status === 401) this.challenge(failure.code, error)
    else {
      const retry = status === 503 ? { 'Retry-After': String(BUSY_RETRY_S) } : {}
      void this.#refuse(status, document, retry)
    }
  }

  refuse(status: number, code: string, error: string, fields: Record<string, string> = {}): void {
    void this.#refuse(status, { error, code }, fields)
  }

  /** 401. git and curl send a password only when they are asked for one; a page's script would see a dialog. */
  challenge(code: string, error: string): void {
    const isBrowser = this.request.headers['sec-fetch-mode'] !== undefined
    const schemes = ['Bearer realm="berth"', ...(isBrowser ? [] : ['Basic realm="berth", charset="UTF-8"'])]
    void this.#refuse(401, { error, code }, { 'WWW-Authenticate': schemes })
  }

  finished(): Finished {
    const { request, response, address, user, output, telling } = this
    return {
      protocol: request.httpVersionMajor === 2 ? 'h2' : 'h1',
      remoteAddress: address,
      method: request.method ?? '',
      host: this.host,
      path: PATH,
      status: response.writableEnded ? response.statusCode : 499,
      machineId: undefined,
      user,
      startedAtMs: this.#startedAtMs,
      firstByteAtMs: this.#firstByteAtMs,
      sentBytes: this.#sentBytes + (output?.sentBytes ?? 0) + (telling?.sentBytes ?? 0),
      upgraded: false,
      cut: undefined,
    }
  }

  /** Before its body is read a client may not listen yet. */
  async #refuse(status: number, document: unknown, fields: Record<string, string | string[]>): Promise<void> {
    await discardBody(this.request)
    // What is left of a body would be taken for the next request.
    const isLeft = !this.request.complete && this.request.httpVersionMajor === 1
    this.#send(status, document, { ...fields, ...(isLeft ? { Connection: 'close' } : {}) })
  }

  #send(status: number, document: unknown, fields: Record<string, string | string[]> = {}): void {
    if (this.response.headersSent || this.signal.reason === GONE) return
    this.#firstByteAtMs = performance.now()
    this.#sentBytes += sendDocument(this.response, status, document, fields)
  }
}
