/**
 * A fake of Stripe's API for tests: the few calls that Berth makes, over real HTTP, as Stripe documents them. This is its
 * edge, as strict as Stripe where it matters here: the key, the API version, idempotency keys (the answer is kept, errors
 * too; a repeat with other parameters is refused; one that is still under way is a conflict). It fails where a test tells
 * it to. What the calls do is in fake-books.ts.
 */
import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { FakeBooks } from './fake-books.ts'
import { type FakeAnswer, type FakeForm, problem } from './fake-objects.ts'

/**
 * before    the connection breaks and nothing was done
 * after     it was done, and the connection breaks before the answer
 * hang      it was done, and no answer comes
 * held      nothing is done and no answer comes
 * fails     nothing is done, and the answer is an error that is kept under the key
 * away      an error of Stripe's edge, kept nowhere
 * many      too many calls
 */
export type FakeFault = 'before' | 'after' | 'hang' | 'held' | 'fails' | 'away' | 'many'
type Fault = FakeFault | undefined
export type FakeCall = { method: string; path: string; key: string | undefined; form: FakeForm }

export class FakeStripe extends FakeBooks {
  readonly apiKey = 'sk_test_fake0000000000000000'
  readonly webhookSecret = 'whsec_fake00000000000000'
  readonly calls: FakeCall[] = []
  /** asked before each call, which waits for what it says */
  fault: (call: FakeCall) => Fault | Promise<Fault> = () => undefined
  readonly #server = createServer((request, response) => void this.#serve(request, response))
  readonly #kept = new Map<string, { of: string; answer: FakeAnswer | undefined }>()
  #port = 0

  static async start(): Promise<FakeStripe> {
    const fake = new FakeStripe()
    fake.#server.listen(0, '127.0.0.1')
    await once(fake.#server, 'listening')
    fake.#port = (fake.#server.address() as AddressInfo).port
    return fake
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#server.listening) return
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }

  get port(): number {
    return this.#port
  }

  /** BERTH_… variables of a gateway that pays here. */
  get env(): Record<string, string> {
    return {
      BERTH_STRIPE_KEY: this.apiKey,
      BERTH_STRIPE_HOST: `http://127.0.0.1:${this.#port}`,
      BERTH_STRIPE_WEBHOOK: this.webhookSecret,
    }
  }

  /** A day has passed: Stripe forgets keys, and its search knows everything. */
  nextDay(): void {
    this.#kept.clear()
    for (const id of this.customers.keys()) this.indexed.add(id)
  }

  /** An event's bytes and its signature, as Stripe posts them (docs.stripe.com/webhooks/signatures). */
  event(
    type: string,
    object: Record<string, unknown>,
    { id = this.id('evt'), at = new Date(), secret = this.webhookSecret, livemode = false } = {},
  ): { id: string; body: string; signature: string } {
    const created = Math.floor(at.getTime() / 1000)
    const body = JSON.stringify({ id, object: 'event', type, created, livemode, data: { object } }, null, 2)
    const signature = createHmac('sha256', secret).update(`${created}.${body}`).digest('hex')
    return { id, body, signature: `t=${created},v1=${signature}` }
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    let body = ''
    for await (const chunk of request) body += chunk
    const url = new URL(request.url ?? '', 'http://fake')
    const method = request.method ?? ''
    const form = parseForm(method === 'GET' ? url.search.slice(1) : body)
    const key = request.headers['idempotency-key']?.toString()
    const call: FakeCall = { method, path: url.pathname, key, form }
    this.calls.push(call)
    const fault = await this.fault(call)
    const send = ({ status, document }: FakeAnswer, fields: Record<string, string> = {}) => {
      response.writeHead(status, { 'content-type': 'application/json', 'request-id': this.id('req'), ...fields })
      response.end(JSON.stringify(document))
    }
    if (fault === 'before') return void request.socket.destroy()
    if (fault === 'held') return
    if (fault === 'away')
      return send(problem(503, 'api_error', 'Stripe is not itself today'), { 'stripe-should-retry': 'false' })
    if (fault === 'many') return send(problem(429, 'rate_limit_error', 'Too many requests'))
    const refusal = this.#refusal(request, call)
    if (refusal) return send(refusal)
    const of = `${method} ${url.pathname} ${body}`
    const kept = method === 'POST' && key !== undefined ? this.#kept.get(key) : undefined
    if (kept && kept.of !== of) {
      return send(
        problem(400, 'idempotency_error', 'Keys for idempotent requests can only be used with the same parameters'),
      )
    }
    if (kept && !kept.answer)
      return send(problem(409, 'idempotency_error', 'another request with this key is under way'))
    const answer =
      kept?.answer ??
      (fault === 'fails'
        ? problem(500, 'api_error', 'something failed at Stripe')
        : this.answer(method, url.pathname, form))
    if (method === 'POST' && key !== undefined) this.#kept.set(key, { of, answer })
    if (fault === 'after') return void request.socket.destroy()
    if (fault === 'hang') return
    send(answer, kept ? { 'idempotent-replayed': 'true' } : {})
  }

  #refusal(request: IncomingMessage, { method, key }: FakeCall): FakeAnswer | undefined {
    if (request.headers.authorization !== `Bearer ${this.apiKey}`) {
      return problem(401, 'invalid_request_error', `Invalid API Key provided: ${this.apiKey.slice(0, 8)}*******0000`)
    }
    if (request.headers['stripe-version'] !== '2026-10-28.endive') {
      return problem(400, 'invalid_request_error', `Invalid Stripe API version: ${request.headers['stripe-version']}`)
    }
    if (method === 'POST' && !key) return problem(400, 'invalid_request_error', 'this fake wants an idempotency key')
    return undefined
  }
}

/** `lines[0][amount]=5` and so on, as Stripe reads them. */
function parseForm(text: string): FakeForm {
  const form: FakeForm = {}
  for (const [name, value] of new URLSearchParams(text)) {
    const path = name.split(/[[\]]+/).filter(Boolean)
    let at = form
    for (const part of path.slice(0, -1)) {
      const next = at[part]
      const inner = typeof next === 'object' ? next : {}
      at[part] = inner
      at = inner
    }
    at[path.at(-1) ?? ''] = value
  }
  return form
}
