/**
 * Invoices as pages that print, without a script:
 *
 *     GET /invoices              the account's own, newest first
 *     GET /invoices/12           one; JSON for programs
 *     GET /invoices/12.csv       by machine, for a spreadsheet
 *     GET /invoices/12.json      with its facts
 *
 * Whoever may not see one is told the same as where there is none. The operator answers for all, and sees them all.
 */
import {
  type InvoiceView,
  invoiceCsv,
  invoiceDocument,
  invoiceHead,
  paymentsOfInvoices,
  readInvoiceView,
} from '../../billing/invoice-document.ts'
import { readInvoices } from '../../billing/invoices.ts'
import { pageFields } from '../pages/page.ts'
import type { Control, ControlContext } from './control.ts'
import { INVOICE_SHEET, invoicePage, invoicesPage } from './invoice-pages.ts'
import { nameOf } from './pages.ts'
import { wantsHtml } from './request.ts'

type Person = { accountId: number; isOwner: boolean }

export function addInvoices({ app, gateway, sql, installation, show, refuse, signInFirst }: Control): void {
  const { stripe } = gateway.settings
  const person = (context: ControlContext): Person | Response => {
    const session = context.get('session')
    if (!session) return signInFirst(context)
    const { accountId, isOwner } = session
    if (accountId !== null) return { accountId, isOwner }
    const detail = `${nameOf(session)} has no account here, and so no invoice.`
    return refuse(context, { status: 403, code: 'account.required', title: 'Not for guests', detail })
  }
  const invoiceOf = async (context: ControlContext, number: string): Promise<InvoiceView | Response> => {
    const who = person(context)
    if (who instanceof Response) return who
    const view = await readInvoiceView(sql, stripe, Number(number))
    if (view && (who.isOwner || view.invoice.accountId === who.accountId)) return view
    const detail = `You have no invoice ${number}.`
    return refuse(context, { status: 404, code: 'invoice.not_found', title: 'No such invoice', detail })
  }
  const showSheet = (context: ControlContext, text: string): Response => {
    const response = show(context, 200, text)
    for (const [name, value] of pageFields(INVOICE_SHEET)) response.headers.set(name, value)
    return response
  }
  const download = (context: ControlContext, type: string, name: string, text: string): Response =>
    context.body(text, 200, {
      'Content-Type': type,
      'Content-Disposition': `attachment; filename="${name}"`,
      'Content-Security-Policy': "default-src 'none'",
      'X-Content-Type-Options': 'nosniff',
      'Cache-Control': 'no-store',
    })

  app.get('/invoices', async (context) => {
    const who = person(context)
    if (who instanceof Response) return who
    const invoices = await readInvoices(sql, who.accountId)
    const payments = await paymentsOfInvoices(sql, stripe, who.accountId)
    if (wantsHtml(context))
      return showSheet(context, invoicesPage(installation, context.get('session'), invoices, payments))
    context.header('Cache-Control', 'no-store')
    return context.json({
      currency: 'USD',
      invoices: invoices.map((one) => invoiceHead(one, payments.get(one.number))),
    })
  })

  app.get('/invoices/:file{[0-9]{1,9}(\\.csv|\\.json)?}', async (context) => {
    const [number = '', form] = context.req.param('file').split('.')
    const view = await invoiceOf(context, number)
    if (view instanceof Response) return view
    const name = `invoice-${number}-${view.invoice.month}`
    if (form === 'csv') return download(context, 'text/csv; charset=utf-8', `${name}.csv`, invoiceCsv(view))
    const text = () => `${JSON.stringify(invoiceDocument(view), undefined, 2)}\n`
    if (form === 'json') return download(context, 'application/json', `${name}.json`, text())
    if (wantsHtml(context)) return showSheet(context, invoicePage(installation, context.get('session'), view))
    context.header('Cache-Control', 'no-store')
    return context.json(invoiceDocument(view))
  })
}
