/**
 * A fake of Stripe's API for tests: the few calls that Berth makes, over real HTTP, as Stripe documents them. It is as
 * strict as Stripe where it matters here: the key, the API version, idempotency keys (the answer is kept, errors too; a
 * repeat with other parameters is refused; one that is still under way is a conflict), final invoices that do not
 * change, and an invoice that is paid once. It fails where a test tells it to.
 */
import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'

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
export type FakeCall = { method: string; path: string; key: string | undefined; form: FakeForm }
export type FakeForm = { [name: string]: string | FakeForm }
type FakeObject = { id: string; [name: string]: unknown }
type FakeAnswer = { status: number; document: unknown }

export type FakeInvoice = FakeObject & {
  status: 'draft' | 'open' | 'paid' | 'void'
  customer: string
  total: number
  amount_paid: number
  metadata: Record<string, string>
  lines: { object: 'list'; data: FakeLine[]; has_more: false }
}
type FakeLine = { id: string; amount: number; description: string; metadata: Record<string, string> }
type FakeIntent = FakeObject & { invoice: string; latest_charge: FakeCharge | null }
type FakeCharge = FakeObject & { amount: number; amount_refunded: number; disputed: boolean }

export class FakeStripe {
  readonly apiKey = 'sk_test_fake0000000000000000'
  readonly webhookSecret = 'whsec_fake00000000000000'
  readonly calls: FakeCall[] = []
  readonly customers = new Map<string, FakeObject>()
  readonly invoices = new Map<string, FakeInvoice>()
  readonly intents = new Map<string, FakeIntent>()
  readonly sessions = new Map<string, FakeObject>()
  /** customer to what it can pay with */
  readonly methods = new Map<string, FakeObject[]>()
  /** cents that were taken from somebody */
  readonly taken: { invoice: string; cents: number }[] = []
  /** why cards are refused; undefined: they are not */
  declines: string | undefined
  /** added to each total, as a tax that was set up there would be */
  taxCents = 0
  /** what the search knows; it learns late */
  readonly indexed = new Set<string>()
  /** asked before each call */
  fault: (call: FakeCall) => FakeFault | undefined = () => undefined
  readonly #server = createServer((request, response) => void this.#serve(request, response))
  readonly #kept = new Map<string, { of: string; answer: FakeAnswer | undefined }>()
  #ids = 0
  #port = 0

  static async start(): Promise<FakeStripe> {
    const fake = new FakeStripe()
    fake.#server.listen(0, '127.0.0.1')
    await once(fake.#server, 'listening')
    fake.#port = (fake.#server.address() as AddressInfo).port
    return fake
  }

  async [Symbol.asyncDispose](): Promise<void> {
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

  giveCard(customer: string, last4 = '4242', isDefault = true): string {
    const id = this.#id('pm')
    const card = { brand: 'visa', display_brand: 'visa', last4, exp_year: 2030, exp_month: 3 }
    this.methods.set(customer, [
      { id, object: 'payment_method', type: 'card', card },
      ...(this.methods.get(customer) ?? []),
    ])
    const there = this.customers.get(customer)
    if (isDefault && there) there.invoice_settings = { default_payment_method: id }
    return id
  }

  /** The person has been on the page. */
  completeSession(id: string, last4: string): void {
    const session = this.sessions.get(id)
    if (!session) throw new Error(`no session ${id}`)
    const method = this.giveCard(String(session.customer), last4, false)
    Object.assign(session, { status: 'complete', setup_intent: { id: this.#id('seti'), payment_method: method } })
  }

  /** Stripe collects by its own schedule. */
  collect(invoiceId: string): void {
    this.#pay(this.#invoice(invoiceId))
  }

  refund(invoiceId: string, cents: number): FakeIntent {
    const intent = [...this.intents.values()].find(({ invoice }) => invoice === invoiceId)
    if (!intent?.latest_charge) throw new Error('nothing was paid')
    intent.latest_charge.amount_refunded += cents
    return intent
  }

  invoiceOf(berthNumber: number): FakeInvoice {
    const found = this.invoicesOf(berthNumber)
    if (found.length !== 1 || !found[0]) throw new Error(`${found.length} invoices of ${berthNumber}`)
    return found[0]
  }

  invoicesOf(berthNumber: number): FakeInvoice[] {
    return [...this.invoices.values()].filter(({ metadata }) => metadata.berth_invoice === String(berthNumber))
  }

  /** An event's bytes and its signature, as Stripe posts them (docs.stripe.com/webhooks/signatures). */
  event(
    type: string,
    object: Record<string, unknown>,
    { id = this.#id('evt'), at = new Date(), secret = this.webhookSecret, livemode = false } = {},
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
    const fault = this.fault(call)
    const send = ({ status, document }: FakeAnswer, fields: Record<string, string> = {}) => {
      response.writeHead(status, { 'content-type': 'application/json', 'request-id': this.#id('req'), ...fields })
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
        : this.#answer(method, url.pathname, form))
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

  #answer(method: string, path: string, form: FakeForm): FakeAnswer {
    const parts = path.split('/').slice(2)
    const id = parts.find((part) => /^(cus|in|cs|pi)_/.test(part)) ?? ''
    const route = `${method} ${parts.map((part) => (part === id ? 'ID' : part)).join('/')}`
    try {
      return { status: 200, document: this.#run(route, id, form) }
    } catch (error) {
      if (error instanceof FakeRefusal) return error.answer
      throw error
    }
  }

  #run(route: string, id: string, form: FakeForm): unknown {
    switch (route) {
      case 'GET customers/search':
        return list(
          [...this.customers.values()].filter(
            (one) =>
              this.indexed.has(one.id) &&
              Object.entries(one.metadata as object).every(([name, value]) =>
                String(form.query).includes(`metadata['${name}']:'${value}'`),
              ),
          ),
        )
      case 'POST customers': {
        const customer = {
          id: this.#id('cus'),
          object: 'customer',
          created: ++this.#ids,
          email: null,
          ...form,
          invoice_settings: { default_payment_method: null },
        }
        this.customers.set(customer.id, customer)
        return customer
      }
      case 'GET customers/ID': {
        const customer = this.#customer(id)
        const chosen = (customer.invoice_settings as { default_payment_method: string | null } | undefined)
          ?.default_payment_method
        const method = (this.methods.get(id) ?? []).find((one) => one.id === chosen) ?? null
        return { ...customer, invoice_settings: { default_payment_method: method } }
      }
      case 'POST customers/ID':
        return Object.assign(this.#customer(id), form)
      case 'GET customers/ID/payment_methods':
        return list(this.methods.get(id) ?? [])
      case 'POST checkout/sessions': {
        const session = { object: 'checkout.session', status: 'open', setup_intent: null, ...form, id: this.#id('cs') }
        this.sessions.set(session.id, session)
        return { ...session, url: `https://checkout.stripe.example/${session.id}` }
      }
      case 'GET checkout/sessions/ID':
        return this.sessions.get(id)
      case 'POST billing_portal/sessions':
        return {
          id: this.#id('bps'),
          object: 'billing_portal.session',
          url: `https://billing.stripe.example/${this.#ids}`,
        }
      case 'GET invoices':
        return list([...this.invoices.values()].filter(({ customer }) => customer === form.customer).toReversed())
      case 'POST invoices':
        return this.#createInvoice(form)
      case 'GET invoices/ID':
        return this.#invoice(id)
      case 'POST invoices/ID/add_lines':
        return this.#addLines(this.#invoice(id), form)
      case 'POST invoices/ID/finalize':
        return this.#finalize(this.#invoice(id))
      case 'POST invoices/ID/pay':
        return this.#pay(this.#invoice(id))
      case 'GET invoice_payments':
        return list(this.#payments(form))
      case 'GET payment_intents/ID':
        return this.intents.get(id)
      default:
        throw new FakeRefusal(404, 'invalid_request_error', `Unrecognized request URL (${route})`)
    }
  }

  #createInvoice(form: FakeForm): FakeInvoice {
    this.#customer(String(form.customer))
    const invoice = {
      ...{
        object: 'invoice',
        status: 'draft',
        currency: 'usd',
        created: ++this.#ids,
        amount_paid: 0,
        hosted_invoice_url: null,
      },
      ...(form as { customer: string; metadata: Record<string, string> }),
      ...{ id: this.#id('in'), total: 0, lines: list<FakeLine>([]) },
    } satisfies FakeObject as unknown as FakeInvoice
    this.invoices.set(invoice.id, invoice)
    return invoice
  }

  #addLines(invoice: FakeInvoice, form: FakeForm): FakeInvoice {
    if (invoice.status !== 'draft') throw new FakeRefusal(400, 'invalid_request_error', 'this invoice is final')
    for (const line of Object.values(form.lines as { [index: string]: FakeForm })) {
      const { amount, description, metadata } = line
      if (!/^-?\d+$/.test(String(amount)))
        throw new FakeRefusal(400, 'invalid_request_error', `Invalid integer: ${amount}`)
      invoice.lines.data.push({
        ...{ id: this.#id('il'), amount: Number(amount), description: String(description) },
        metadata: metadata as Record<string, string>,
      })
    }
    invoice.total = invoice.lines.data.reduce((cents, line) => cents + line.amount, this.taxCents)
    return invoice
  }

  #finalize(invoice: FakeInvoice): FakeInvoice {
    if (invoice.status !== 'draft') throw new FakeRefusal(400, 'invalid_request_error', 'this invoice is final already')
    const intent: FakeIntent = {
      id: this.#id('pi'),
      object: 'payment_intent',
      invoice: invoice.id,
      last_payment_error: null,
      latest_charge: null,
    }
    this.intents.set(intent.id, intent)
    return Object.assign(invoice, {
      status: 'open',
      hosted_invoice_url: `https://invoice.stripe.example/${invoice.id}`,
    })
  }

  #pay(invoice: FakeInvoice): FakeInvoice {
    if (invoice.status !== 'open') throw new FakeRefusal(400, 'invalid_request_error', 'Invoice is already paid')
    const { invoice_settings: chosen } = this.#customer(invoice.customer) as {
      invoice_settings?: { default_payment_method?: string | null }
    } & FakeObject
    if (!chosen?.default_payment_method)
      throw new FakeRefusal(400, 'invalid_request_error', 'there is nothing to pay with')
    const intent = [...this.intents.values()].find((one) => one.invoice === invoice.id)
    if (!intent) throw new Error('an open invoice has its payment')
    if (this.declines !== undefined) {
      intent.last_payment_error = { type: 'card_error', code: 'card_declined', message: this.declines }
      throw new FakeRefusal(402, 'card_error', this.declines, 'card_declined')
    }
    intent.last_payment_error = null
    intent.latest_charge = {
      id: this.#id('ch'),
      object: 'charge',
      amount: invoice.total,
      amount_refunded: 0,
      disputed: false,
    }
    this.taken.push({ invoice: invoice.id, cents: invoice.total })
    return Object.assign(invoice, { status: 'paid', amount_paid: invoice.total })
  }

  #payments(form: FakeForm): FakeObject[] {
    const asked = typeof form.payment === 'object' ? form.payment.payment_intent : undefined
    return [...this.intents.values()]
      .filter(({ id, invoice }) => (asked === undefined ? invoice === form.invoice : id === asked))
      .map(({ id, invoice }) => ({
        ...{ id: `inpay_${id}`, object: 'invoice_payment', invoice },
        payment: { type: 'payment_intent', payment_intent: id },
      }))
  }

  #customer(id: string): FakeObject {
    const found = this.customers.get(id)
    if (!found) throw new FakeRefusal(404, 'invalid_request_error', `No such customer: '${id}'`, 'resource_missing')
    return found
  }

  #invoice(id: string): FakeInvoice {
    const found = this.invoices.get(id)
    if (!found) throw new FakeRefusal(404, 'invalid_request_error', `No such invoice: '${id}'`, 'resource_missing')
    return found
  }

  #id(prefix: string): string {
    return `${prefix}_fake${++this.#ids}`
  }
}

class FakeRefusal extends Error {
  readonly answer: FakeAnswer
  constructor(status: number, type: string, message: string, code?: string) {
    super(message)
    this.answer = problem(status, type, message, code)
  }
}

function problem(status: number, type: string, message: string, code?: string): FakeAnswer {
  return { status, document: { error: { type, message, ...(code === undefined ? {} : { code }) } } }
}

function list<T>(data: T[]): { object: 'list'; data: T[]; has_more: false } {
  return { object: 'list', data, has_more: false }
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
