import { createHash } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Login } from './credentials.ts'
import { manifestAccept } from './documents.ts'
import { ImageError, printable } from './errors.ts'
import { limits } from './limits.ts'
import { PrivateAddressError, type Reach } from './reach.ts'
import { isLoopback, type Reference } from './reference.ts'

/**
 * One repository of one registry, over the distribution API.
 *
 * A request that is answered 401 is asked again with what the challenge wants: a token of the registry's token service,
 * for anybody or for the operator's account, or name and password themselves. Redirects (layers usually lie elsewhere)
 * are followed without either. What fails for a moment is tried again.
 * @see https://github.com/opencontainers/distribution-spec/blob/main/spec.md
 * @see https://distribution.github.io/distribution/spec/auth/token/
 */
export type Registry = {
  /** @param which a tag or a digest @throws ImageError */
  manifest(which: string): Promise<Document>
  /** A small blob, whole. @throws ImageError */
  small(digest: string, mostBytes: number): Promise<Buffer>
  /**
   * A blob from `offsetBytes` on; from its beginning where the registry cannot give a part.
   * @throws ImageError
   */
  blob(digest: string, offsetBytes: number): Promise<{ body: IncomingMessage; offsetBytes: number }>
}

export type Document = { readonly bytes: Buffer; readonly contentType: string; readonly digest: string }

const redirectsMost = 5
/** Tries of one request, with waits that double between them. */
const triesMost = 4
const waitFirstMs = 500
/** Longer than this nobody waits for a registry that asks to be left alone. */
const retryAfterMostMs = 20_000

export function openRegistry(options: {
  reference: Reference
  login: Login | undefined
  reach: Reach
  signal: AbortSignal
}): Registry {
  return new HttpRegistry(options.reference, options.login, options.reach, options.signal)
}

class HttpRegistry implements Registry {
  readonly #reference: Reference
  readonly #login: Login | undefined
  readonly #reach: Reach
  readonly #signal: AbortSignal
  readonly #base: URL
  #authorization: string | undefined
  #renewing: Promise<void> | undefined

  constructor(reference: Reference, login: Login | undefined, reach: Reach, signal: AbortSignal) {
    this.#reference = reference
    this.#login = login
    this.#reach = reach
    this.#signal = signal
    const scheme = isLoopback(reference.registry) ? 'http' : 'https'
    this.#base = new URL(`${scheme}://${reference.apiHost}/v2/${reference.repository}/`)
  }

  async manifest(which: string): Promise<Document> {
    const what = `the manifest of ${this.#reference.text}`
    const { bytes, headers } = await this.#whole(
      `manifests/${which}`,
      { accept: manifestAccept },
      limits.manifestBytes,
      what,
    )
    if (which.includes(':')) verify(bytes, which, this.#reference.text)
    const contentType = String(headers['content-type'] ?? '')
    return { bytes, contentType, digest: which.includes(':') ? which : digestOf(bytes) }
  }

  async small(digest: string, mostBytes: number): Promise<Buffer> {
    const what = `the configuration of ${this.#reference.text}`
    const { bytes } = await this.#whole(`blobs/${digest}`, {}, mostBytes, what)
    verify(bytes, digest, this.#reference.text)
    return bytes
  }

  async #whole(path: string, headers: Record<string, string>, mostBytes: number, what: string) {
    for (let attempt = 1; ; attempt++) {
      const response = await this.#get(path, headers)
      try {
        return { bytes: await readAll(response, mostBytes, what), headers: response.headers }
      } catch (error) {
        // Broken off in the middle.
        if (this.#signal.aborted || error instanceof ImageError || attempt === triesMost) throw this.#unreachable(error)
        await this.#pause(attempt)
      }
    }
  }

  async blob(digest: string, offsetBytes: number) {
    if (offsetBytes === 0) return { body: await this.#get(`blobs/${digest}`, {}), offsetBytes }
    const response = await this.#get(`blobs/${digest}`, { range: `bytes=${offsetBytes}-` })
    const start = /^bytes (\d+)-/.exec(String(response.headers['content-range'] ?? ''))?.[1]
    if (response.statusCode === 206 && Number(start) === offsetBytes) return { body: response, offsetBytes }
    if (response.statusCode === 200) return { body: response, offsetBytes: 0 }
    // 416, or another part than was asked for.
    discard(response)
    return { body: await this.#get(`blobs/${digest}`, {}), offsetBytes: 0 }
  }

  /** @returns an answer of class 2 (416 too) whose body the caller reads or destroys */
  async #get(path: string, headers: Record<string, string>): Promise<IncomingMessage> {
    for (let attempt = 1; ; attempt++) {
      let response: IncomingMessage
      const used = this.#authorization
      try {
        response = await this.#follow(new URL(path, this.#base), headers)
      } catch (error) {
        if (this.#signal.aborted || error instanceof ImageError || attempt === triesMost || !isPassing(error))
          throw this.#unreachable(error)
        await this.#pause(attempt)
        continue
      }
      const statusCode = response.statusCode ?? 0
      if (statusCode === 200 || statusCode === 206 || statusCode === 416) return response
      const challenge = response.headers['www-authenticate']
      const said = await errorText(response)
      if (statusCode === 401 && challenge !== undefined && attempt < triesMost) {
        // Several layers are asked for at once: the token that ran out is renewed once.
        if (used === this.#authorization) await this.#renew([challenge].flat(), used !== undefined)
        continue
      }
      if ((statusCode >= 500 || statusCode === 429) && attempt < triesMost) {
        await this.#pause(attempt, String(response.headers['retry-after'] ?? ''))
        continue
      }
      throw this.#refused(statusCode, said)
    }
  }

  async #follow(url: URL, headers: Record<string, string>): Promise<IncomingMessage> {
    const { origin } = this.#base
    for (let target = url, hops = 0; ; hops++) {
      const mayKnow = target.origin === origin && this.#authorization !== undefined
      const response = await this.#request(target, {
        ...headers,
        ...(mayKnow && this.#authorization ? { authorization: this.#authorization } : {}),
      })
      const location = response.headers.location
      if (![301, 302, 303, 307, 308].includes(response.statusCode ?? 0) || typeof location !== 'string') return response
      discard(response)
      if (hops === redirectsMost) throw this.#unreachable(new Error('it redirects without an end'))
      target = new URL(location, target)
    }
  }

  #request(url: URL, headers: Record<string, string>): Promise<IncomingMessage> {
    return this.#reach.get(url, headers, this.#signal)
  }

  #renew(challenges: readonly string[], again: boolean): Promise<void> {
    this.#renewing ??= this.#authorize(challenges, again).finally(() => {
      this.#renewing = undefined
    })
    return this.#renewing
  }

  async #authorize(challenges: readonly string[], again: boolean): Promise<void> {
    const basic = this.#basic()
    const bearer = challenges.map((text) => parseChallenge(text)).find(({ scheme }) => scheme === 'bearer')
    if (!bearer) {
      // Name and password do not become better by being said twice.
      if (basic === undefined || again) throw this.#needsCredentials()
      this.#authorization = basic
      return
    }
    const { realm, service, scope } = bearer.parameters
    const url = URL.canParse(realm ?? '') ? new URL(realm ?? '') : undefined
    if (!url) throw this.#unreachable(new Error('it names no token service'))
    if (service !== undefined) url.searchParams.set('service', service)
    url.searchParams.set('scope', scope ?? `repository:${this.#reference.repository}:pull`)
    const response = await this.#request(url, basic === undefined ? {} : { authorization: basic }).catch((error) => {
      throw this.#unreachable(error, `The token service of ${this.#reference.registry}, ${printable(url.host)},`)
    })
    if (response.statusCode !== 200) {
      const said = await errorText(response)
      if (response.statusCode === 401 || response.statusCode === 403) throw this.#needsCredentials()
      throw this.#refused(response.statusCode ?? 0, said)
    }
    const text = (await readAll(response, limits.tokenBytes, 'the answer of the token service')).toString('utf8')
    const token = tokenOf(text)
    if (token === undefined) throw this.#unreachable(new Error('its token service gives no token'))
    this.#authorization = `Bearer ${token}`
  }

  #basic(): string | undefined {
    const login = this.#login
    if (login?.username === undefined) return undefined
    return `Basic ${Buffer.from(`${login.username}:${login.password}`).toString('base64')}`
  }

  async #pause(attempt: number, retryAfter = ''): Promise<void> {
    const asked = /^\d{1,6}$/.test(retryAfter) ? Number(retryAfter) * 1000 : 0
    const waitMs = Math.max(waitFirstMs * 2 ** (attempt - 1), asked)
    if (waitMs > retryAfterMostMs) {
      const minutes = Math.ceil(waitMs / 60_000)
      throw new ImageError('image.unreachable', `${this.#name} has had too many requests: try again in ${minutes} min`)
    }
    await sleep(waitMs, undefined, { signal: this.#signal })
  }

  get #name(): string {
    return `The registry ${this.#reference.registry}`
  }

  #needsCredentials(): ImageError {
    const { text, registry } = this.#reference
    // Many registries say the same of what is not there, so as not to tell which names are taken.
    return this.#login?.username === undefined
      ? new ImageError(
          'image.credentials',
          `${text} is not there or needs credentials: the operator can put those for ${registry} into registries.json`,
        )
      : new ImageError('image.credentials', `${registry} does not give ${text} to the operator's account there`)
  }

  #refused(statusCode: number, said: string): ImageError {
    const { text } = this.#reference
    const also = said === '' ? '' : ` (${said})`
    if (statusCode === 401) return this.#needsCredentials()
    if (statusCode === 403) return new ImageError('image.credentials', `${this.#name} does not give ${text}${also}`)
    if (statusCode === 404) return new ImageError('image.not_found', `There is no image ${text}${also}`)
    if (statusCode === 429)
      return new ImageError('image.unreachable', `${this.#name} has had too many requests: try again later`)
    return new ImageError('image.unreachable', `${this.#name} answers ${statusCode}${also}`)
  }

  #unreachable(error: unknown, who = this.#name): Error {
    if (error instanceof ImageError || (error as Error).name === 'AbortError') return error as Error
    const why = reasonOf(error)
    return new ImageError('image.unreachable', `${who} cannot be reached: ${why}`, { cause: error })
  }
}

/** What is worth another try: not a name that is not there, nor a place that is refused. */
function isPassing(error: unknown): boolean {
  if (error instanceof PrivateAddressError) return false
  const { code } = error as { code?: string }
  return code !== 'ENOTFOUND' && !/^(ERR_TLS|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO_)/.test(code ?? '')
}

function reasonOf(error: unknown): string {
  if (error instanceof PrivateAddressError) return 'it is in a private network, and the operator has not listed it'
  const { code, message } = error as { code?: string; message?: string }
  const words: Record<string, string> = {
    ENOTFOUND: 'no such host',
    EAI_AGAIN: 'its name cannot be looked up now',
    ECONNREFUSED: 'it refuses connections',
    ECONNRESET: 'it closes connections',
    ETIMEDOUT: 'it does not answer',
    ENETUNREACH: 'there is no way to its network',
    EHOSTUNREACH: 'there is no way to it',
  }
  return words[code ?? ''] ?? printable(message ?? code ?? 'for no known reason', 160)
}

/** `Bearer realm="…",service="…"`. @see RFC 9110, 11.6.1 */
function parseChallenge(text: string): { scheme: string; parameters: Record<string, string> } {
  const scheme = /^\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)/.exec(text)?.[1]?.toLowerCase() ?? ''
  const parameters: Record<string, string> = {}
  for (const [, name, quoted, plain] of text.matchAll(/([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))/g))
    if (name !== undefined) parameters[name.toLowerCase()] = quoted?.replace(/\\(.)/g, '$1') ?? plain ?? ''
  return { scheme, parameters }
}

function tokenOf(text: string): string | undefined {
  try {
    const { token, access_token: other } = JSON.parse(text) as Record<string, unknown>
    const found = typeof token === 'string' && token !== '' ? token : other
    return typeof found === 'string' && /^[\x21-\x7e]+$/.test(found) ? found : undefined
  } catch {
    return undefined
  }
}

/** The first of the errors that a registry lists, for people. @see distribution-spec, "Error Codes" */
async function errorText(response: IncomingMessage): Promise<string> {
  let text: string
  try {
    text = (await readAll(response, 65_536, 'an error')).toString('utf8')
    const [first] = (JSON.parse(text) as { errors?: { message?: unknown }[] }).errors ?? []
    return typeof first?.message === 'string' ? printable(first.message) : ''
  } catch {
    discard(response)
    return ''
  }
}

async function readAll(response: IncomingMessage, mostBytes: number, what: string): Promise<Buffer> {
  const chunks: Buffer[] = []
  let bytes = 0
  for await (const chunk of response) {
    bytes += (chunk as Buffer).length
    if (bytes > mostBytes) throw new ImageError('image.too_large', `${what} is larger than ${mostBytes >> 10} KiB`)
    chunks.push(chunk as Buffer)
  }
  return Buffer.concat(chunks)
}

/** Its connection with it: what would follow may be a whole layer. */
function discard(response: IncomingMessage): void {
  response.on('error', () => {}).destroy()
}

function digestOf(bytes: Buffer): string {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`
}

function verify(bytes: Buffer, digest: string, name: string): void {
  const [algorithm = ''] = digest.split(':')
  if (`${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}` !== digest)
    throw new ImageError('image.digest', `What the registry gives for ${name} is not what it was asked for`)
}
