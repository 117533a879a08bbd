/** A client of `POST /exec` that shows all of an answer, over HTTP/1.1 or HTTP/2. */
import { connect } from 'node:http2'
import { Agent, request as requestTls } from 'node:https'
import type { World } from '../../../commands/testing/world.ts'

export type Asking = {
  token?: string
  accept?: string
  /** of the path */
  query?: string
  method?: string
  headers?: Record<string, string>
  /** instead of the line */
  body?: Buffer
  /** no Content-Length is sent */
  chunked?: boolean
  /** the answer's body is not read */
  isPaused?: boolean
}

export type Answer = {
  status: number
  headers: Record<string, unknown>
  trailers: Record<string, unknown>
  text: string
}

/** What is under way: its lines as they come, and a way to leave. */
export type Stream = {
  status: Promise<number>
  /** what came so far */
  text(): string
  /** waits until what came has it in it */
  until(text: string): Promise<void>
  leave(): void
  ended: Promise<Answer>
}

export class Client {
  readonly #ca: string
  readonly #port: number
  readonly protocol: 'h1' | 'h2'
  readonly #agent = new Agent({ keepAlive: true })

  static async of(world: World, protocol: 'h1' | 'h2'): Promise<Client> {
    const { gateway } = world
    const [setting] = await gateway.sql<{ value: string }[]>`select value from settings where key = 'ca_certificate'`
    return new Client(setting?.value ?? '', gateway.https?.server.addresses[0]?.port ?? 0, protocol)
  }

  constructor(ca: string, port: number, protocol: 'h1' | 'h2') {
    this.#ca = ca
    this.#port = port
    this.protocol = protocol
  }

  get origin(): string {
    return `https://localhost:${this.#port}`
  }

  close(): void {
    this.#agent.destroy()
  }

  /** The whole answer. */
  post(line: string, asking: Asking = {}): Promise<Answer> {
    return this.start(line, asking).ended
  }

  /** The answer's JSON document with its status. */
  async json(line: string, asking: Asking = {}): Promise<{ status: number; document: Record<string, unknown> }> {
    const { status, text } = await this.post(line, asking)
    return { status, document: JSON.parse(text) as Record<string, unknown> }
  }

  start(line: string, asking: Asking = {}): Stream {
    return this.protocol === 'h1' ? this.#startHttp1(line, asking) : this.#startHttp2(line, asking)
  }

  #fields({ token, accept, headers }: Asking): Record<string, string> {
    return {
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      ...(accept === undefined ? {} : { accept }),
      ...headers,
    }
  }

  #startHttp1(line: string, asking: Asking): Stream {
    const body = asking.body ?? Buffer.from(line)
    const request = requestTls(`${this.origin}/exec${asking.query ?? ''}`, {
      method: asking.method ?? 'POST',
      ca: this.#ca,
      agent: this.#agent,
      headers: {
        ...this.#fields(asking),
        ...(asking.chunked ? { 'transfer-encoding': 'chunked' } : { 'content-length': String(body.length) }),
      },
    })
    const stream = new Reading()
    request.once('error', (error) => stream.fail(error))
    request.once('response', (response) => {
      stream.begin(response.statusCode ?? 0, response.headers)
      if (!asking.isPaused) response.on('data', (chunk: Buffer) => stream.take(chunk))
      response.once('error', (error) => stream.fail(error))
      response.once('end', () => stream.end(response.trailers))
    })
    request.end(body)
    return stream.as(() => request.destroy())
  }

  #startHttp2(line: string, asking: Asking): Stream {
    const session = connect(this.origin, { ca: this.#ca })
    const stream = new Reading()
    session.once('error', (error) => stream.fail(error))
    const fields = {
      ':method': asking.method ?? 'POST',
      ':path': `/exec${asking.query ?? ''}`,
      ...this.#fields(asking),
    }
    const request = session.request(fields, { endStream: false })
    let trailers: Record<string, unknown> = {}
    request.once('response', (headers) => stream.begin(headers[':status'] ?? 0, headers))
    request.on('trailers', (fields) => {
      trailers = fields
    })
    if (!asking.isPaused) request.on('data', (chunk: Buffer) => stream.take(chunk))
    request.once('error', (error) => stream.fail(error))
    request.once('end', () => stream.end(trailers))
    request.once('close', () => session.close())
    request.end(asking.body ?? Buffer.from(line))
    return stream.as(() => request.close())
  }
}

class Reading {
  readonly #status = Promise.withResolvers<number>()
  readonly #ended = Promise.withResolvers<Answer>()
  #waiting: { text: string; resolve: () => void }[] = []
  #answer: Omit<Answer, 'trailers'> = { status: 0, headers: {}, text: '' }

  begin(status: number, headers: Record<string, unknown>): void {
    this.#answer = { status, headers, text: '' }
    this.#status.resolve(status)
  }

  take(chunk: Buffer): void {
    this.#answer.text += chunk.toString('latin1')
    this.#waiting = this.#waiting.filter(({ text, resolve }) => {
      if (!this.#answer.text.includes(text)) return true
      resolve()
      return false
    })
  }

  end(trailers: Record<string, unknown>): void {
    this.#ended.resolve({ ...this.#answer, trailers })
  }

  fail(error: Error): void {
    this.#status.reject(error)
    this.#ended.reject(error)
  }

  as(leave: () => void): Stream {
    this.#status.promise.catch(() => {})
    this.#ended.promise.catch(() => {})
    return {
      status: this.#status.promise,
      text: () => this.#answer.text,
      until: (text) =>
        new Promise((resolve) => {
          if (this.#answer.text.includes(text)) resolve()
          else this.#waiting.push({ text, resolve })
        }),
      leave,
      ended: this.#ended.promise,
    }
  }
}

/** The lines of NDJSON put together as a client has them. */
export function decoded(text: string) {
  const lines = text.split('\n').filter((line) => line !== '')
  const documents = lines.map((line) => JSON.parse(line) as Record<string, unknown>)
  const joined = (name: string) =>
    Buffer.concat(documents.flatMap((one) => (name in one ? [Buffer.from(String(one[name]), 'base64')] : [])))
  const last = documents.at(-1) ?? {}
  return { stdout: joined('stdout'), stderr: joined('stderr'), exit: last.exit_code, error: last.error, documents }
}
