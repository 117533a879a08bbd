/**
 * What a fake of Stripe knows and what its calls do to it: customers, final invoices that do not change and are paid once,
 * what is below the least charge and goes to the next invoice, payments that are refused or take their days, refunds and
 * disputes. As Stripe documents it, where it matters here.
 */
import {
  type FakeAnswer,
  type FakeCustomer,
  type FakeDispute,
  type FakeForm,
  type FakeIntent,
  type FakeInvoice,
  type FakeLine,
  type FakeObject,
  FakeRefusal,
  list,
} from './fake-objects.ts'

/** docs.stripe.com/currencies#minimum-and-maximum-charge-amounts */
const LEAST_CENTS = 50

export class FakeBooks {
  readonly customers = new Map<string, FakeCustomer>()
  readonly invoices = new Map<string, FakeInvoice>()
  readonly intents = new Map<string, FakeIntent>()
  readonly disputes = new Map<string, FakeDispute>()
  readonly sessions = new Map<string, FakeObject>()
  /** customer to what it can pay with */
  readonly methods = new Map<string, FakeObject[]>()
  /** cents that were taken from somebody */
  readonly taken: { invoice: string; cents: number }[] = []
  /** why cards are refused; undefined: they are not */
  declines: string | undefined
  /** a payment is neither had nor refused at once, as from an account at a bank */
  takesDays = false
  /** added to each total, as a tax that was set up there would be */
  taxCents = 0
  /** what the search knows; it learns late */
  readonly indexed = new Set<string>()
  #ids = 0

  giveCard(customer: string, last4 = '4242', isDefault = true): string {
    const id = this.id('pm')
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
    Object.assign(session, { status: 'complete', setup_intent: { id: this.id('seti'), payment_method: method } })
  }

  /** Stripe collects by its own schedule. */
  collect(invoiceId: string): void {
    this.#pay(this.#invoice(invoiceId))
  }

  /** @param cents negative: the bank sent it back */
  refund(invoiceId: string, cents: number): FakeIntent {
    const intent = this.#intentOf(invoiceId)
    if (!intent?.latest_charge) throw new Error('nothing was paid')
    intent.latest_charge.amount_refunded += cents
    return intent
  }

  /** Who paid asks the bank for it back. */
  dispute(invoiceId: string): { intent: FakeIntent; dispute: FakeDispute } {
    const intent = this.#intentOf(invoiceId)
    if (!intent?.latest_charge) throw new Error('nothing was paid')
    const { id: charge, amount } = intent.latest_charge
    const dispute = { id: this.id('du'), object: 'dispute', charge, amount, status: 'needs_response' }
    intent.latest_charge.disputed = true
    this.disputes.set(dispute.id, dispute)
    return { intent, dispute }
  }

  deleteCustomer(id: string): void {
    this.#customer(id).deleted = true
    this.methods.delete(id)
  }

  invoiceOf(berthNumber: number): FakeInvoice {
    const found = this.invoicesOf(berthNumber)
    if (found.length !== 1 || !found[0]) throw new Error(`${found.length} invoices of ${berthNumber}`)
    return found[0]
  }

  invoicesOf(berthNumber: number): FakeInvoice[] {
    return [...this.invoices.values()].filter(({ metadata }) => metadata.berth_invoice === String(berthNumber))
  }

  id(prefix: string): string {
    return `${prefix}_fake${++this.#ids}`
  }

  /** Does what is asked for. */
  answer(method: string, path: string, form: FakeForm): FakeAnswer {
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
          ...{ id: this.id('cus'), object: 'customer', created: ++this.#ids, email: null, ...form },
          ...{ balance: 0, invoice_settings: { default_payment_method: null } },
        }
        this.customers.set(customer.id, customer)
        return customer
      }
      case 'GET customers/ID': {
        const customer = this.customers.get(id)
        if (customer?.deleted) return { id, object: 'customer', deleted: true }
        const chosen = this.#customer(id).invoice_settings.default_payment_method
        const method = (this.methods.get(id) ?? []).find((one) => one.id === chosen) ?? null
        return { ...customer, invoice_settings: { default_payment_method: method } }
      }
      case 'POST customers/ID':
        return Object.assign(this.#customer(id), form)
      case 'GET customers/ID/payment_methods':
        return list(this.methods.get(id) ?? [])
      case 'POST checkout/sessions': {
        const session = { object: 'checkout.session', status: 'open', setup_intent: null, ...form, id: this.id('cs') }
        this.sessions.set(session.id, session)
        return { ...session, url: `https://checkout.stripe.example/${session.id}` }
      }
      case 'GET checkout/sessions/ID':
        return this.sessions.get(id)
      case 'POST billing_portal/sessions':
        return {
          ...{ id: this.id('bps'), object: 'billing_portal.session' },
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
      case 'GET disputes':
        return list([...this.disputes.values()].filter(({ charge }) => charge === form.charge))
      default:
        throw new FakeRefusal(404, 'invalid_request_error', `Unrecognized request URL (${route})`)
    }
  }

  #createInvoice(form: FakeForm): FakeInvoice {
    const { balance } = this.#customer(String(form.customer))
    const invoice = {
      ...{ object: 'invoice', status: 'draft', currency: 'usd', created: ++this.#ids, hosted_invoice_url: null },
      ...(form as { customer: string; metadata: Record<string, string> }),
      ...{ id: this.id('in'), total: 0, amount_due: 0, amount_paid: 0, lines: list<FakeLine>([]) },
      ...{ starting_balance: balance, ending_balance: null },
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
        ...{ id: this.id('il'), amount: Number(amount), description: String(description) },
        metadata: metadata as Record<string, string>,
      })
    }
    invoice.total = invoice.lines.data.reduce((cents, line) => cents + line.amount, this.taxCents)
    return invoice
  }

  #finalize(invoice: FakeInvoice): FakeInvoice {
    if (invoice.status !== 'draft') throw new FakeRefusal(400, 'invalid_request_error', 'this invoice is final already')
    const customer = this.#customer(invoice.customer)
    const due = invoice.total + customer.balance
    Object.assign(invoice, {
      ...{ starting_balance: customer.balance, amount_due: due < LEAST_CENTS ? 0 : due },
      ...{ status: 'open', hosted_invoice_url: `https://invoice.stripe.example/${invoice.id}` },
    })
    customer.balance = invoice.amount_due === 0 ? due : 0
    invoice.ending_balance = customer.balance
    if (invoice.amount_due === 0) return Object.assign(invoice, { status: 'paid' })
    const intent: FakeIntent = {
      ...{ id: this.id('pi'), object: 'payment_intent', invoice: invoice.id, status: 'requires_payment_method' },
      ...{ last_payment_error: null, latest_charge: null },
    }
    this.intents.set(intent.id, intent)
    return invoice
  }

  #pay(invoice: FakeInvoice): FakeInvoice {
    if (invoice.status !== 'open') throw new FakeRefusal(400, 'invalid_request_error', 'Invoice is already paid')
    if (!this.#customer(invoice.customer).invoice_settings.default_payment_method)
      throw new FakeRefusal(400, 'invalid_request_error', 'there is nothing to pay with')
    const intent = this.#intentOf(invoice.id)
    if (!intent) throw new Error('an open invoice has its payment')
    if (intent.status === 'processing')
      throw new FakeRefusal(400, 'invalid_request_error', 'this invoice has a payment that is processing')
    if (this.declines !== undefined) {
      intent.last_payment_error = { type: 'card_error', code: 'card_declined', message: this.declines }
      throw new FakeRefusal(402, 'card_error', this.declines, 'card_declined')
    }
    intent.last_payment_error = null
    if (this.takesDays) {
      intent.status = 'processing'
      return invoice
    }
    return this.#succeed(invoice, intent)
  }

  #succeed(invoice: FakeInvoice, intent: FakeIntent): FakeInvoice {
    intent.status = 'succeeded'
    intent.latest_charge = {
      ...{ id: this.id('ch'), object: 'charge', amount: invoice.amount_due, amount_refunded: 0, disputed: false },
    }
    this.taken.push({ invoice: invoice.id, cents: invoice.amount_due })
    return Object.assign(invoice, { status: 'paid', amount_paid: invoice.amount_due })
  }

  /** The days are over. */
  arrive(invoiceId: string): void {
    const intent = this.#intentOf(invoiceId)
    if (intent?.status !== 'processing') throw new Error('no payment is under way')
    this.#succeed(this.#invoice(invoiceId), intent)
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

  #intentOf(invoiceId: string): FakeIntent | undefined {
    return [...this.intents.values()].find(({ invoice }) => invoice === invoiceId)
  }

  #customer(id: string): FakeCustomer {
    const found = this.customers.get(id)
    if (!found || found.deleted)
      throw new FakeRefusal(404, 'invalid_request_error', `No such customer: '${id}'`, 'resource_missing')
    return found
  }

  #invoice(id: string): FakeInvoice {
    const found = this.invoices.get(id)
    if (!found) throw new FakeRefusal(404, 'invalid_request_error', `No such invoice: '${id}'`, 'resource_missing')
    return found
  }
}
