import { once } from 'node:events'
import { type ClientRequest, createServer, type IncomingMessage, request } from 'node:http'
import type { AddressInfo } from 'node:net'
import { pino } from 'pino'
import { expect, it } from 'vitest'
import type { App } from '../../app.ts'
import { parseSettings } from '../../settings.ts'
import { FakeStripe } from './testing/fake-stripe.ts'
import { StripeWebhook, WEBHOOK_PATH } from './webhook.ts'

it('holds so many events at once and no more: what is too much is told so, and comes in when there is a place', async () => {
  await using fake = await FakeStripe.start()
  const settings = parseSettings({ DATABASE_URL: 'postgres:///berth', ...fake.env })
  const webhook = new StripeWebhook({ settings, log: pino({ level: 'silent' }) } as unknown as App, {
    ...{ perAddress: 3, all: 64 },
  })
  let came = 0
  const arrived = new Map<number, () => void>()
  const server = createServer((incoming, response) => {
    webhook.answer(incoming, response)
    arrived.get(++came)?.()
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  // Of no use here, so that it needs no database.
  const { body, signature } = fake.event('product.created', { id: 'prod_1' })
  const begin = () => {
    const headers = { 'stripe-signature': signature, 'content-length': Buffer.byteLength(body) }
    const sent = request({ host: '127.0.0.1', port, path: WEBHOOK_PATH, method: 'POST', headers, agent: false })
    sent.on('error', () => {})
    return sent
  }
  const end = async (sent: ClientRequest, rest: string) => {
    sent.end(rest)
    const [response] = (await once(sent, 'response')) as [IncomingMessage]
    let text = ''
    for await (const chunk of response) text += chunk
    return { status: response.statusCode, retryAfter: response.headers['retry-after'], document: JSON.parse(text) }
  }
  try {
    const held = [begin(), begin(), begin()]
    await new Promise<void>((resolve) => {
      arrived.set(3, resolve)
      for (const sent of held) sent.write(body.slice(0, 5))
    })
    expect(await end(begin(), body)).toEqual({
      status: 429,
      retryAfter: '5',
      document: { error: 'too many events are coming at once; send it again in a moment', code: 'request.too_many' },
    })
    // One without a signature is not read at all.
    const unsigned = request({ host: '127.0.0.1', port, path: WEBHOOK_PATH, method: 'POST', agent: false })
    expect(await end(unsigned, body)).toMatchObject({ status: 400, document: { code: 'webhook.signature' } })
    expect(held[0] && (await end(held[0], body.slice(5)))).toMatchObject({ status: 200, document: { received: true } })
    expect(await end(begin(), body)).toMatchObject({ status: 200 })
    for (const sent of held.slice(1)) expect(await end(sent, body.slice(5))).toMatchObject({ status: 200 })
  } finally {
    server.closeAllConnections()
    server.close()
  }
})
