/** Objects of a fake of Stripe, as far as Berth reads them, and its refusals. */

export type FakeForm = { [name: string]: string | FakeForm }
export type FakeObject = { id: string; [name: string]: unknown }
export type FakeAnswer = { status: number; document: unknown }

export type FakeInvoice = FakeObject & {
  status: 'draft' | 'open' | 'paid' | 'void'
  customer: string
  total: number
  amount_due: number
  amount_paid: number
  starting_balance: number
  ending_balance: number | null
  metadata: Record<string, string>
  lines: { object: 'list'; data: FakeLine[]; has_more: false }
}
export type FakeLine = { id: string; amount: number; description: string; metadata: Record<string, string> }
export type FakeIntent = FakeObject & { invoice: string; latest_charge: FakeCharge | null }
export type FakeCharge = FakeObject & { amount: number; amount_refunded: number; disputed: boolean }
export type FakeDispute = FakeObject & { charge: string; amount: number; status: string }
export type FakeCustomer = FakeObject & { balance: number; invoice_settings: { default_payment_method: string | null } }

export class FakeRefusal extends Error {
  readonly answer: FakeAnswer
  constructor(status: number, type: string, message: string, code?: string) {
    super(message)
    this.answer = problem(status, type, message, code)
  }
}

export function problem(status: number, type: string, message: string, code?: string): FakeAnswer {
  return { status, document: { error: { type, message, ...(code === undefined ? {} : { code }) } } }
}

export function list<T>(data: T[]): { object: 'list'; data: T[]; has_more: false } {
  return { object: 'list', data, has_more: false }
}
