import { generateKeyPairSync } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { describe, expect, it } from 'vitest'
import { AcmeClient } from './client.ts'
import { AcmeError } from './error.ts'
import { accountKey } from './jws.ts'

type Answer = (request: IncomingMessage, response: ServerResponse, body: string) => void

/** A directory that does what a good one never would; paths are `/dir`, `/nonce`, `/account`, `/order`. */
async function directory(answers: Record<string, Answer>) {
  const paths: string[] = []
  let nonce = 0
  const server = createServer(async (request, response) => {
    let body = ''
    for await (const chunk of request) body += chunk
    const path = request.url ?? ''
    paths.push(`${request.method} ${path}`)
    response.setHeader('replay-nonce', `nonce${nonce++}`)
    const answer = answers[path]
    if (answer) answer(request, response, body)
    else if (path === '/dir') {
      response.end(JSON.stringify({ newNonce: `${at}/nonce`, newAccount: `${at}/account`, newOrder: `${at}/order` }))
    } else if (path === '/account') response.writeHead(201, { location: '/account/1' }).end('{}')
    else response.end()
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const at = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const ending = new AbortController()
  return {
    at,
    paths,
    end: () => ending.abort(),
    client: new AcmeClient({ directoryUrl: `${at}/dir`, key: accountKey(privateKey), signal: ending.signal }),
    async [Symbol.asyncDispose]() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
}

const refuse =
  (status: number, document: object, headers: Record<string, string> = {}): Answer =>
  (_request, response) =>
    response.writeHead(status, headers).end(JSON.stringify(document))

const urn = (type: string) => `urn:ietf:params:acme:error:${type}`

async function failure(promise: Promise<unknown>): Promise<AcmeError> {
  const error = await promise.then(
    () => undefined,
    (cause: unknown) => cause,
  )
  if (!(error instanceof AcmeError)) throw new Error('did not fail as it should', { cause: error })
  return error
}

describe('a directory that', () => {
  it('is asked too often says when to come again, in seconds or as a date', async () => {
    const limited = { type: urn('rateLimited'), detail: 'too many orders' }
    await using seconds = await directory({ '/order': refuse(429, limited, { 'retry-after': '3600' }) })
    const first = await failure(seconds.client.newOrder(['a.example']))
    expect(first).toMatchObject({ type: 'rateLimited', status: 429, message: 'too many orders' })
    expect(Number(first.retryAt) - Date.now()).toBeGreaterThan(3_590_000)
    const date = new Date(Date.now() + 7_200_000).toUTCString()
    await using dated = await directory({ '/order': refuse(503, {}, { 'retry-after': date }) })
    const second = await failure(dated.client.newOrder(['a.example']))
    expect(Number(second.retryAt) - Date.now()).toBeGreaterThan(7_190_000)
    expect(second.message).toMatch(/^127\.0\.0\.1:\d+ answered 503$/)
  })

  it('refuses names gives its reasons, one for each', async () => {
    const subproblems = [{ detail: 'b.example is reserved' }, { detail: 'c.example too' }]
    await using refusing = await directory({
      '/order': refuse(400, { type: urn('rejectedIdentifier'), detail: 'some names', subproblems }),
    })
    expect((await failure(refusing.client.newOrder(['b.example']))).message).toBe(
      'some names; b.example is reserved; c.example too',
    )
  })

  it('has forgotten the account is given the key anew, once', async () => {
    let asked = 0
    await using forgetful = await directory({
      '/order': (request, response, body) => {
        asked++
        if (asked === 1) return refuse(400, { type: urn('accountDoesNotExist') })(request, response, body)
        response.writeHead(201, { location: '/order/1' })
        response.end(JSON.stringify({ status: 'pending', authorizations: [], finalize: `${forgetful.at}/finalize` }))
      },
    })
    expect(await forgetful.client.newOrder(['a.example'])).toMatchObject({ url: `${forgetful.at}/order/1` })
    expect(forgetful.paths.filter((path) => path === 'POST /account')).toHaveLength(2)
  })

  it('refuses every nonce is not asked for ever', async () => {
    await using stubborn = await directory({ '/order': refuse(400, { type: urn('badNonce') }) })
    expect((await failure(stubborn.client.newOrder(['a.example']))).type).toBe('badNonce')
    expect(stubborn.paths.filter((path) => path === 'POST /order')).toHaveLength(20)
    // Each answer brought the next nonce along.
    expect(stubborn.paths.filter((path) => path === 'HEAD /nonce')).toHaveLength(0)
  })

  it.each<[string, Answer]>([
    ['sends nonsense', (_request, response) => response.end('<html>')],
    ['leaves out what it must say', (_request, response) => response.end('{"newNonce":"x"}')],
    ['sends without end', (_request, response) => endless(response)],
    ['hangs up', (_request, response) => response.destroy()],
  ])('%s has failed, with a sentence', async (_what, answer) => {
    await using broken = await directory({ '/dir': answer })
    const { message } = await failure(broken.client.newOrder(['a.example']))
    expect(message).toMatch(/^(the directory answered what RFC 8555 does not know|127\.0\.0\.1:\d+ cannot be reached)$/)
  })

  it('does not answer is left as soon as the gateway ends', async () => {
    const { promise: arrived, resolve } = Promise.withResolvers<void>()
    await using silent = await directory({ '/order': () => resolve() })
    const order = silent.client.newOrder(['a.example'])
    await arrived
    silent.end()
    await expect(order).rejects.toThrow(/abort/i)
  })
})

function endless(response: ServerResponse): void {
  const more = (): void => {
    while (!response.destroyed && response.write(Buffer.alloc(65_536, 32)));
    if (!response.destroyed) response.once('drain', more)
  }
  more()
}
