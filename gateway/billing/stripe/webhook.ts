/**
 * `POST /webhooks/stripe` on the control host. The signature is over the bytes as they came, so nothing is parsed before
 * it was found right; it holds the time too, so that what was recorded cannot be sent again later. Until then an event
 * is anybody's: so many are held at once and no more, of one address and of all.
 * @see https://docs.stripe.com/webhooks/signatures
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import type { App } from '../../app.ts'
import { answerWithin } from '../../fault.ts'
import { discardBody, readBytes } from '../../https/exec/body.ts'
import { addressGroup } from '../../ssh/limits.ts'
import { isLive, paymentsOf } from './client.ts'
import { keepEvent, readEvent } from './events.ts'

export const WEBHOOK_PATH = '/webhooks/stripe'
const BODY_MOST_BYTES = 512 * 1024
const BODY_MS = 10_000
const ANSWER_MS = 10_000
/** Clocks differ, and Stripe signs each attempt anew. */
export const TOLERANCE_S = 300
/** Stripe itself comes again after minutes. */
const RETRY_S = 5

export type WebhookLimits = {
  /** events that are being read, of one address (of IPv6 the /64) and of all: 512 KiB each at most */
  perAddress: number
  all: number
}

export const WEBHOOK_LIMITS: WebhookLimits = { perAddress: 16, all: 64 }

type Answer = { status: number; received?: boolean; error?: string; code?: string }

export class StripeWebhook {
  readonly #app: App
  readonly #limits: WebhookLimits
  readonly #perAddress = new Map<string, number>()
  #reading = 0

  constructor(app: App, limits: WebhookLimits = WEBHOOK_LIMITS) {
    this.#app = app
    this.#limits = limits
  }

  /** @returns false when the request is for something else */
  answer(request: IncomingMessage, response: ServerResponse): boolean {
    if (request.url?.split('?')[0] !== WEBHOOK_PATH) return false
    this.#serve(request)
      .catch((error: unknown): Answer => {
        this.#app.log.warn({ err: error }, 'an event of Stripe’s could not be kept; Stripe sends it again')
        return { status: 503, error: 'not now; send it again in a moment', code: 'busy' }
      })
      .then((answer) => send(request, response, answer))
    return true
  }

  async #serve(request: IncomingMessage): Promise<Answer> {
    const { stripe: configured } = this.#app.settings
    if (!configured || configured.webhookSecrets.length === 0) {
      return { status: 404, error: 'Stripe is not configured here', code: 'payment.off' }
    }
    if (request.method !== 'POST') return { status: 405, error: 'events are sent by POST', code: 'request.method' }
    const signature = request.headers['stripe-signature']
    if (signature === undefined) return UNSIGNED
    const address = addressGroup(request.socket.remoteAddress ?? '')
    const ofAddress = this.#perAddress.get(address) ?? 0
    if (ofAddress >= this.#limits.perAddress || this.#reading >= this.#limits.all) return TOO_MANY
    this.#reading++
    this.#perAddress.set(address, ofAddress + 1)
    try {
      return await this.#keep(request, String(signature), configured)
    } finally {
      this.#reading--
      const left = (this.#perAddress.get(address) ?? 1) - 1
      if (left > 0) this.#perAddress.set(address, left)
      else this.#perAddress.delete(address)
    }
  }

  async #keep(
    request: IncomingMessage,
    signature: string,
    configured: NonNullable<App['settings']['stripe']>,
  ): Promise<Answer> {
    const body = await readBytes(request, { timeoutMs: BODY_MS, limitBytes: BODY_MOST_BYTES })
    if ('problem' in body) return { status: 413, error: 'the event did not come whole', code: 'request.too_long' }
    const { stripe } = await paymentsOf(this.#app.settings)
    for (const secret of configured.webhookSecrets) {
      let event: ReturnType<typeof stripe.webhooks.constructEvent>
      try {
        event = stripe.webhooks.constructEvent(body, signature, secret, TOLERANCE_S)
      } catch {
        continue
      }
      // Of the other mode: the endpoint was set up for both, and this installation is in one.
      const told = event.livemode === isLive(configured) ? readEvent(event) : undefined
      if (told) await answerWithin(ANSWER_MS, keepEvent(this.#app.sql, told))
      return { status: 200, received: true }
    }
    return UNSIGNED
  }
}

const UNSIGNED: Answer = { status: 400, error: 'the signature is not right', code: 'webhook.signature' }
const TOO_MANY: Answer = {
  status: 429,
  error: 'too many events are coming at once; send it again in a moment',
  code: 'request.too_many',
}

async function send(
  request: IncomingMessage,
  response: ServerResponse,
  { status, ...document }: Answer,
): Promise<void> {
  await discardBody(request)
  if (response.destroyed) return
  // What is left of a body would be taken for the next request.
  const isLeft = !request.complete && request.httpVersionMajor === 1
  response.writeHead(status, {
    ...{ 'content-type': 'application/json', 'cache-control': 'no-store' },
    ...(status === 429 || status === 503 ? { 'retry-after': String(RETRY_S) } : {}),
    ...(isLeft ? { connection: 'close' } : {}),
  })
  response.end(`${JSON.stringify(document)}\n`)
}
