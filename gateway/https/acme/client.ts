/**
 * An ACME client (RFC 8555): the account, orders, authorizations, certificates. Ours, because the package that there is
 * waits minutes inside a request that was told to come again later, cannot be given up, brings an HTTP client and a
 * cryptography library along, and has not moved for long.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { type Dispatcher, request } from 'undici'
import { z } from 'zod'
import { AcmeError, problem, problemShape, readProblem } from './error.ts'
import { type AccountKey, type Protected, signed } from './jws.ts'

export type AcmeClientOptions = {
  directoryUrl: string
  key: AccountKey
  /** ends whatever is under way */
  signal: AbortSignal
  /** with other roots than the system's; tests */
  dispatcher?: Dispatcher
}

export type AcmeChallenge = { type: string; url: string; token: string; status: string }
export type Authorization = {
  /** without `*.` */
  name: string
  status: string
  challenges: AcmeChallenge[]
}
export type Order = { url: string; status: string; authorizations: string[]; finalize: string; certificate?: string }

const USER_AGENT = 'Berth/0.1'
const REQUEST_MS = 30_000
const BODY_BYTES = 1 << 20
/** A nonce may have been used up, or be of a server that was replaced; each refusal brings a new one. */
const NONCE_TRIES = 20
/** A validation takes seconds; what takes longer than this has failed. */
const POLL_MS = 180_000
const POLL_FIRST_MS = 500
const POLL_LONGEST_MS = 15_000

const directoryShape = z.object({ newNonce: z.url(), newAccount: z.url(), newOrder: z.url() })
const orderShape = z.object({
  status: z.string(),
  authorizations: z.array(z.url()).max(100),
  finalize: z.url(),
  certificate: z.url().optional(),
  error: problemShape.optional(),
})
const challengeShape = z.object({
  type: z.string(),
  url: z.url(),
  status: z.string(),
  token: z.string().default(''),
  error: problemShape.optional(),
})
const authorizationShape = z.object({
  status: z.string(),
  identifier: z.object({ value: z.string() }),
  challenges: z.array(challengeShape),
})

type Answer = { status: number; text: string; location: string; retryAfterMs: number | undefined }

export class AcmeClient {
  readonly #options: AcmeClientOptions
  #directory: Promise<z.infer<typeof directoryShape>> | undefined
  #account: Promise<string> | undefined
  /** unused nonces that answers brought */
  readonly #nonces: string[] = []

  constructor(options: AcmeClientOptions) {
    this.#options = options
  }

  /** @param names DNS names, a wildcard as `*.` and a name */
  async newOrder(names: readonly string[]): Promise<Order> {
    const { newOrder } = await this.#urls()
    const identifiers = names.map((value) => ({ type: 'dns', value }))
    const answer = await this.#post(newOrder, { identifiers })
    return orderOf(answer.location, answer.text)
  }

  async authorization(url: string): Promise<Authorization> {
    return authorizationOf((await this.#post(url, undefined)).text)
  }

  /** Says that a challenge can be looked at now. */
  async ready({ url }: AcmeChallenge): Promise<void> {
    await this.#post(url, {})
  }

  /** Waits until an authorization is decided. @throws AcmeError with the reason when it is refused */
  async untilValid(url: string): Promise<void> {
    await this.#poll(url, ({ text }) => {
      const { status, challenges } = read(authorizationShape, text)
      if (status === 'pending' || status === 'processing') return undefined
      if (status === 'valid') return true
      const failed = challenges.find((challenge) => challenge.error)
      throw problem(failed?.error, 403, `the authorization is ${status}`)
    })
  }

  /**
   * Hands in the certificate request and waits for the certificate.
   * @param request PKCS #10, DER
   * @returns PEM, the leaf first
   */
  async certificate(order: Order, request: Buffer): Promise<string> {
    const answer = await this.#post(order.finalize, { csr: request.toString('base64url') })
    const first = orderOf(order.url, answer.text)
    const url =
      first.certificate ??
      (await this.#poll(order.url, ({ text }) => {
        const { status, certificate, error } = read(orderShape, text)
        if (status === 'invalid') throw problem(error, 403, 'the order is invalid')
        return certificate
      }))
    return (await this.#post(url, undefined)).text
  }

  async #poll<T>(url: string, decided: (answer: Answer) => T | undefined): Promise<T> {
    const untilMs = performance.now() + POLL_MS
    for (let waitMs = POLL_FIRST_MS; ; waitMs = Math.min(waitMs * 2, POLL_LONGEST_MS)) {
      const answer = await this.#post(url, undefined)
      const value = decided(answer)
      if (value !== undefined) return value
      const pauseMs = Math.min(Math.max(answer.retryAfterMs ?? waitMs, POLL_FIRST_MS), POLL_LONGEST_MS)
      if (performance.now() + pauseMs > untilMs) throw new AcmeError('the directory came to no decision')
      await sleep(pauseMs, undefined, { signal: this.#options.signal })
    }
  }

  async #urls() {
    this.#directory ??= this.#get(this.#options.directoryUrl)
      .then(({ text }) => read(directoryShape, text))
      .catch((error: unknown) => {
        this.#directory = undefined
        throw error
      })
    return await this.#directory
  }

  /** The account's URL; the directory finds it by the key, or makes it. */
  async #kid(): Promise<string> {
    this.#account ??= this.#newAccount().catch((error: unknown) => {
      this.#account = undefined
      throw error
    })
    return await this.#account
  }

  async #newAccount(): Promise<string> {
    const { newAccount } = await this.#urls()
    const answer = await this.#send(newAccount, { termsOfServiceAgreed: true }, { jwk: this.#options.key.jwk })
    if (answer.location === '') throw new AcmeError('the directory named no account')
    return answer.location
  }

  async #post(url: string, payload: object | undefined): Promise<Answer> {
    const kid = await this.#kid()
    try {
      return await this.#send(url, payload, { kid })
    } catch (error) {
      if (!(error instanceof AcmeError) || error.type !== 'accountDoesNotExist') throw error
      // A directory that was set up anew knows the key no more.
      this.#account = undefined
      return await this.#send(url, payload, { kid: await this.#kid() })
    }
  }

  async #send(
    url: string,
    payload: object | undefined,
    who: { kid: string } | { jwk: AccountKey['jwk'] },
  ): Promise<Answer> {
    for (let tries = 1; ; tries++) {
      const header: Protected = { ...who, url, nonce: await this.#nonce() }
      try {
        return await this.#request(url, 'POST', signed(this.#options.key, header, payload))
      } catch (error) {
        if (!(error instanceof AcmeError) || error.type !== 'badNonce' || tries === NONCE_TRIES) throw error
      }
    }
  }

  async #nonce(): Promise<string> {
    const kept = this.#nonces.pop()
    if (kept !== undefined) return kept
    const { newNonce } = await this.#urls()
    await this.#request(newNonce, 'HEAD')
    const fresh = this.#nonces.pop()
    if (fresh === undefined) throw new AcmeError('the directory gave no nonce')
    return fresh
  }

  #get(url: string): Promise<Answer> {
    return this.#request(url, 'GET')
  }

  async #request(url: string, method: 'GET' | 'HEAD' | 'POST', body?: string): Promise<Answer> {
    const { dispatcher, signal } = this.#options
    let status: number
    let headers: Record<string, string | string[] | undefined>
    let text: string
    try {
      const response = await request(url, {
        method,
        headers: {
          'user-agent': USER_AGENT,
          'accept-language': 'en',
          ...(body === undefined ? {} : { 'content-type': 'application/jose+json' }),
        },
        ...(body === undefined ? {} : { body }),
        ...(dispatcher ? { dispatcher } : {}),
        signal: AbortSignal.any([signal, AbortSignal.timeout(REQUEST_MS)]),
      })
      status = response.statusCode
      headers = response.headers
      text = await limited(response.body)
    } catch (cause) {
      signal.throwIfAborted()
      throw new AcmeError(`${new URL(url).host} cannot be reached`, { cause })
    }
    const nonce = headers['replay-nonce']
    if (typeof nonce === 'string' && /^[A-Za-z0-9_-]{1,512}$/.test(nonce)) this.#nonces.splice(0, Infinity, nonce)
    const retryAfterMs = retryAfter(headers['retry-after'])
    if (status < 200 || status > 299) {
      const retryAt = retryAfterMs === undefined ? undefined : new Date(Date.now() + retryAfterMs)
      throw problem(readProblem(text), status, `${new URL(url).host} answered ${status}`, retryAt)
    }
    const { location } = headers
    return { status, text, location: typeof location === 'string' ? new URL(location, url).href : '', retryAfterMs }
  }
}

async function limited(body: AsyncIterable<Uint8Array>): Promise<string> {
  const chunks: Uint8Array[] = []
  let bytes = 0
  for await (const chunk of body) {
    bytes += chunk.length
    if (bytes > BODY_BYTES) throw new Error(`more than ${BODY_BYTES} bytes`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString('utf8')
}

function orderOf(url: string, text: string): Order {
  const { status, authorizations, finalize, certificate } = read(orderShape, text)
  return { url, status, authorizations, finalize, ...(certificate === undefined ? {} : { certificate }) }
}

function authorizationOf(text: string): Authorization {
  const { status, identifier, challenges } = read(authorizationShape, text)
  return { name: identifier.value.toLowerCase(), status, challenges }
}

function read<T>(shape: z.ZodType<T>, text: string): T {
  try {
    return shape.parse(JSON.parse(text))
  } catch (cause) {
    throw new AcmeError('the directory answered what RFC 8555 does not know', { cause })
  }
}

/** Seconds, or a date (RFC 9110, 10.2.3). */
function retryAfter(value: string | string[] | undefined): number | undefined {
  if (typeof value !== 'string') return undefined
  const ms = /^\d{1,9}$/.test(value) ? Number(value) * 1000 : Date.parse(value) - Date.now()
  return Number.isFinite(ms) ? Math.max(0, ms) : undefined
}
