/**
 * Customers: one of Stripe's for an account, made when it is needed first. What is paid with is given on pages of
 * Stripe's and never passes through Berth; a row keeps what people know it by.
 */
import type { Stripe } from 'stripe'
import type { Db, Sql } from '../../../migrations/connect.ts'
import type { Party, StripeMethod } from '../../../migrations/schema.ts'
import { readBuyer } from '../parties.ts'
import { failureOf, keyOf, type Mode, type Payments } from './client.ts'
import { Lease, leaseOfAccount } from './lease.ts'

export type Customer = {
  accountId: number
  customer: string | null
  generation: number
  email: string | null
  method: StripeMethod | null
  setupSession: string | null
  links: number
  refreshedAt: Date | null
  /** as Stripe was told */
  details: Details | null
}

type Details = Pick<Party, 'name' | 'address'>

export async function readCustomer(db: Db, accountId: number, livemode: boolean): Promise<Customer | undefined> {
  const [row] = await db<Customer[]>`
    select account_id as "accountId", customer, generation, email, method, setup_session as "setupSession", links,
      refreshed_at as "refreshedAt", details
    from stripe_customers where account_id = ${accountId} and livemode = ${livemode}`
  return row
}

/**
 * The account's customer, made when there is none, and told of a name and an address that Stripe does not have. Stripe keeps an idempotency key for a day; a customer of longer ago
 * that this database does not know, because an older one came back, is found by what it was marked with.
 * @returns its number at Stripe
 * @throws CommandError 'payment.busy'
 */
export async function ensureCustomer(payments: Payments, sql: Sql, mode: Mode, accountId: number): Promise<string> {
  const { stripe, livemode } = payments
  const known = await readCustomer(sql, accountId, livemode)
  if (known?.customer) {
    if (!isNews(await detailsOf(sql, accountId), known.details)) return known.customer
    // It may have been deleted there meanwhile.
    const told = (await refreshCustomer(payments, sql, accountId))?.customer
    if (told) return told
  }
  await using lease = await Lease.take(sql, leaseOfAccount(accountId, livemode))
  await sql`insert into stripe_customers (account_id, livemode) values (${accountId}, ${livemode}) on conflict do nothing`
  const row = await readCustomer(sql, accountId, livemode)
  if (row?.customer) return row.customer
  const metadata = { berth: mode.installation, berth_account: String(accountId) }
  // Nothing but what never changes: Stripe refuses a repeat with other parameters under the same key.
  const key = keyOf(mode, 'account', accountId, 'customer', row?.generation ?? 0)
  try {
    let customer = await findCustomer(stripe, metadata)
    if (!customer) {
      await lease.renew()
      customer = await stripe.customers.create({ metadata }, key)
    }
    const { id } = customer
    const { email, details } = await tellWhoPays(sql, lease, stripe, { accountId, customer, known: null })
    await lease.write(
      (
        tx,
      ) => tx`update stripe_customers set customer = ${id}, email = ${email}, details = ${details && sql.json(details)}
        where account_id = ${accountId} and livemode = ${livemode}`,
    )
    return id
  } catch (error) {
    // Stripe would give the same answer for a day. Nothing was made by then, or it is found.
    if (failureOf(error)?.isKept) {
      await sql`update stripe_customers set generation = generation + 1
        where account_id = ${accountId} and livemode = ${livemode} and customer is null`
    }
    throw error
  }
}

async function findCustomer(stripe: Stripe, metadata: Record<string, string>): Promise<Stripe.Customer | undefined> {
  const query = Object.entries(metadata)
    .map(([key, value]) => `metadata['${key}']:'${value}'`)
    .join(' AND ')
  const { data } = await stripe.customers.search({ query, limit: 10 })
  // The search may still know one that was deleted.
  return data.filter((one) => !('deleted' in one)).sort((a, b) => a.created - b.created)[0]
}

/**
 * Tells Stripe the account's address for mail, and its name and address for invoices where there are such. What people
 * say of themselves at Stripe stays until they say something else here.
 * @param known what Stripe was told before
 * @returns what Stripe writes to, and what it was told now
 */
async function tellWhoPays(
  sql: Sql,
  lease: Lease,
  stripe: Stripe,
  { accountId, customer, known }: { accountId: number; customer: Stripe.Customer; known: Details | null },
): Promise<Pick<Customer, 'email' | 'details'>> {
  const [account] = await sql<{ email: string | null }[]>`select email from accounts where id = ${accountId}`
  const details = await detailsOf(sql, accountId)
  const email = account?.email ?? customer.email
  const { name, address } = details
  const update: Stripe.CustomerUpdateParams = {
    ...(email === null || email === customer.email ? {} : { email }),
    ...(name === undefined || name === known?.name ? {} : { name }),
    ...(address === undefined || address === known?.address ? {} : { address: { line1: address } }),
  }
  if (Object.keys(update).length > 0) {
    await lease.renew()
    await stripe.customers.update(customer.id, update)
  }
  return { email, details: name === undefined && address === undefined ? null : details }
}

async function detailsOf(db: Db, accountId: number): Promise<Details> {
  const { name, address } = await readBuyer(db, accountId)
  return { ...(name === undefined ? {} : { name }), ...(address === undefined ? {} : { address }) }
}

/** Of what an account takes back nobody is told. */
function isNews({ name, address }: Details, known: Details | null): boolean {
  return (name !== undefined && name !== known?.name) || (address !== undefined && address !== known?.address)
}

/**
 * Looks at Stripe what an account pays with. What was given on a page of Stripe's is what is paid with from then on, and
 * what is open is collected from it.
 * @returns undefined where there is no customer
 * @throws CommandError 'payment.busy'
 */
export async function refreshCustomer(
  { stripe, livemode }: Payments,
  sql: Sql,
  accountId: number,
): Promise<Customer | undefined> {
  if (!(await readCustomer(sql, accountId, livemode))?.customer) return undefined
  await using lease = await Lease.take(sql, leaseOfAccount(accountId, livemode))
  const row = await readCustomer(sql, accountId, livemode)
  if (!row?.customer) return undefined
  const found = await existing(stripe, row.customer)
  if (!found) {
    // The next invoice makes another one.
    const none = { customer: null, generation: row.generation + 1, method: null, setup_session: null, details: null }
    await lease.write(
      (tx) => tx`update stripe_customers set ${sql(none)}, refreshed_at = now()
        where account_id = ${accountId} and livemode = ${livemode}`,
    )
    return undefined
  }
  const { given, isOver } = await givenOnPage(stripe, row.setupSession)
  const method = await chosenMethod(stripe, lease, found, given)
  const who = { accountId, customer: found, known: row.details }
  const { email, details } = await tellWhoPays(sql, lease, stripe, who)
  const setupSession = isOver ? null : row.setupSession
  await lease.write(async (tx) => {
    await tx`
      update stripe_customers set method = ${method && sql.json(method)}, email = ${email},
        details = ${details && sql.json(details)}, setup_session = ${setupSession}, refreshed_at = now()
      where account_id = ${accountId} and livemode = ${livemode}`
    if (!method || method.id === row.method?.id) return
    await tx`
      update stripe_invoices set collect = true, wishes = wishes + 1, next_attempt_at = now()
      where livemode = ${livemode} and status = 'open'
        and invoice in (select number from invoices where account_id = ${accountId})`
  })
  return { ...row, method, email, details, setupSession, refreshedAt: new Date() }
}

/** @returns undefined for one that was deleted, and for one that this key of Stripe's never knew */
async function existing(stripe: Stripe, customer: string): Promise<Stripe.Customer | undefined> {
  try {
    const found = await stripe.customers.retrieve(customer, { expand: ['invoice_settings.default_payment_method'] })
    return found.deleted ? undefined : found
  } catch (error) {
    if (failureOf(error)?.code !== 'resource_missing') throw error
    return undefined
  }
}

/** @returns what was given on a page to set it up, and whether that page is over */
async function givenOnPage(
  stripe: Stripe,
  session: string | null,
): Promise<{ given?: string | undefined; isOver: boolean }> {
  if (session === null) return { isOver: true }
  const { status, setup_intent: intent } = await stripe.checkout.sessions.retrieve(session, {
    expand: ['setup_intent'],
  })
  const method = typeof intent === 'object' ? intent?.payment_method : undefined
  return { given: typeof method === 'object' ? method?.id : method, isOver: status !== 'open' }
}

/** What invoices are paid with; where nothing is, what was given last. */
async function chosenMethod(
  stripe: Stripe,
  lease: Lease,
  { id, invoice_settings: { default_payment_method: chosen } }: Stripe.Customer,
  given: string | undefined,
): Promise<StripeMethod | null> {
  if (typeof chosen === 'object' && chosen !== null && (given === undefined || chosen.id === given))
    return describe(chosen)
  const { data } = await stripe.customers.listPaymentMethods(id, { limit: 100 })
  const next = data.find((method) => method.id === given) ?? data[0]
  if (!next) return null
  await lease.renew()
  await stripe.customers.update(id, { invoice_settings: { default_payment_method: next.id } })
  return describe(next)
}

function describe(method: Stripe.PaymentMethod): StripeMethod {
  const { id, type: kind, card, sepa_debit: debit, us_bank_account: account } = method
  const expires = card ? `${card.exp_year}-${String(card.exp_month).padStart(2, '0')}` : null
  const brand = card?.display_brand ?? card?.brand ?? account?.bank_name ?? null
  return { id, kind, brand, last4: card?.last4 ?? debit?.last4 ?? account?.last4 ?? null, expires }
}

export type Page = 'setup' | 'portal'

/**
 * A page of Stripe's, good for one visit: one to give something to pay with, or the account's own with what it paid.
 * Asked for again after it was made and before it was written down, it is the same one.
 * @param back where it leads when it is done
 * @throws CommandError 'payment.busy'
 */
export async function openPage(
  payments: Payments,
  sql: Sql,
  mode: Mode,
  { accountId, page, back }: { accountId: number; page: Page; back: string },
): Promise<string> {
  const customer = await ensureCustomer(payments, sql, mode, accountId)
  const { livemode } = payments
  await using lease = await Lease.take(sql, leaseOfAccount(accountId, livemode))
  const row = await readCustomer(sql, accountId, livemode)
  const key = keyOf(mode, 'account', accountId, page, row?.links ?? 0)
  const next = async (session?: string) =>
    await lease.write(
      (
        tx,
      ) => tx`update stripe_customers set links = links + 1, setup_session = coalesce(${session ?? null}, setup_session)
        where account_id = ${accountId} and livemode = ${livemode}`,
    )
  try {
    const { url, session } = await makePage(payments.stripe, page, { customer, back, key })
    await next(session)
    return url
  } catch (error) {
    // Stripe would give the same answer for a day. Of the page that it may have made nobody has the address.
    if (failureOf(error)?.isKept) await next()
    throw error
  }
}

async function makePage(
  stripe: Stripe,
  page: Page,
  { customer, back, key }: { customer: string; back: string; key: Stripe.RequestOptions },
): Promise<{ url: string; session?: string }> {
  if (page === 'portal') {
    const { url } = await stripe.billingPortal.sessions.create({ customer, return_url: back }, key)
    return { url }
  }
  const { id, url } = await stripe.checkout.sessions.create(
    { mode: 'setup', currency: 'usd', customer, success_url: back, cancel_url: back },
    key,
  )
  if (!url) throw new Error('Stripe made a page without an address')
  return { url, session: id }
}
