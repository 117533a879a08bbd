/**
 * `POST /webhooks/stripe` on the control host. The signature is over the bytes as they came, so nothing is parsed before
 * it was found right; it holds the time too, so that what was recorded cannot be sent again later.
 * @see https://docs.stripe.com/webhooks/signatures
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { App } from '../../app.ts'
import { answerWithin } from '../../fault.ts'
import { readBytes } from '../../https/exec/body.ts'
import { isLive, paymentsOf } from './client.ts'
import { keepEvent, readEvent } from './events.ts'

export const WEBHOOK_PATH = '/webhooks/stripe'
const BODY_MOST_BYTES = 512 * 1024
const BODY_MS = 10_000
const ANSWER_MS = 10_000
/** Clocks differ, and Stripe signs each attempt anew. */
export const TOLERANCE_S = 300

/** @returns false when the request is for something else */
export function answerWebhook(app: App, request: IncomingMessage, response: ServerResponse): boolean {
  if (request.url?.split('?')[0] !== WEBHOOK_PATH) return false
  const answer = (status: number, document: Record<string, unknown>) => {
    if (response.headersSent) return
    response.writeHead(status, { 'content-type': 'application/json', 'cache-control': 'no-store' })
    response.end(`${JSON.stringify(document)}\n`)
  }
  serve(app, request).then(
    ({ status, ...document }) => answer(status, document),
    (error: unknown) => {
      app.log.warn({ err: error }, 'an event of Stripe’s could not be kept; Stripe sends it again')
      answer(503, { error: 'not now', code: 'busy' })
    },
  )
  return true
}

type Answer = { status: number; received?: boolean; error?: string; code?: string }

async function serve(app: App, request: IncomingMessage): Promise<Answer> {
  const configured = app.settings.stripe
  if (!configured || configured.webhookSecrets.length === 0) {
    return { status: 404, error: 'Stripe is not configured here', code: 'payment.off' }
  }
  if (request.method !== 'POST') return { status: 405, error: 'events are sent by POST', code: 'request.method' }
  const body = await readBytes(request, { timeoutMs: BODY_MS, limitBytes: BODY_MOST_BYTES })
  if ('problem' in body) return { status: 413, error: 'the event did not come whole', code: 'request.too_long' }
  const signature = request.headers['stripe-signature']
  const { stripe } = await paymentsOf(app.settings)
  for (const secret of configured.webhookSecrets) {
    let event: ReturnType<typeof stripe.webhooks.constructEvent>
    try {
      event = stripe.webhooks.constructEvent(body, signature ?? '', secret, TOLERANCE_S)
    } catch {
      continue
    }
    // Of the other mode: the endpoint was set up for both, and this installation is in one.
    const told = event.livemode === isLive(configured) ? readEvent(event) : undefined
    if (told) await answerWithin(ANSWER_MS, keepEvent(app.sql, told))
    return { status: 200, received: true }
  }
  return { status: 400, error: 'the signature is not right', code: 'webhook.signature' }
}
