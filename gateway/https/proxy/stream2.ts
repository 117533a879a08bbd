import { constants, type OutgoingHttpHeaders, type ServerHttp2Stream } from 'node:http2'
import { type Rendered, render } from './answer.ts'
import type { Finished, ProxyContext } from './context.ts'
import {
  field,
  inspectRequest,
  machineHead,
  passedResponseFields,
  passedTrailers,
  type RequestFacts,
} from './fields.ts'
import { type Admitted, admit, direct, isOver, type Outcome, type Refused } from './gate.ts'
import { type Field, type Framing, HeadError, type RequestHead, type ResponseHead } from './head.ts'
import { addField, framingOf, headersOf, readHeaders, refuseTooLarge } from './head2.ts'
import { isRepeatable } from './pool.ts'
import { busy, malformed, noteFault, upstreamProblem } from './problems.ts'
import { CutError, type ResponseReader, type Upstream } from './upstream.ts'

type Options = {
  remoteAddress: string
  /** what is held of responses for all streams of the connection; each adds and takes its own */
  held: { bytes: number }
  /** the request has no body */
  complete: boolean
  onGone: () => void
}

/** One exchange of an HTTP/2 client, spoken to the machine as HTTP/1.1. */
export class Stream2 implements ResponseReader {
  readonly method: string
  readonly coded = false
  readonly #context: ProxyContext
  readonly #stream: ServerHttp2Stream
  readonly #options: Options
  readonly #startedAtMs = performance.now()
  readonly #abort = new AbortController()
  #error: HeadError | undefined
  #head: RequestHead | undefined
  #facts: RequestFacts | undefined
  #directed: ReturnType<typeof direct> | undefined
  #framing: Framing = { kind: 'none' }
  #admitted: Admitted | undefined
  #upstream: Upstream | undefined
  #sent: 'nothing' | 'bodyToCome' | 'complete' = 'complete'
  #receivedBytes = 0
  #requestTrailers: readonly Field[] = []
  #text = ''
  #retried = false
  #status = 0
  #firstByteAtMs: number | undefined
  #sentBytes = 0
  #trailers: readonly Field[] | undefined
  /** of the response, not taken by the client yet */
  #heldBytes = 0
  #paused = false
  #isBodyDropped = false
  #responded = false
  #cutCode: CutError['code'] | undefined
  #stalledAtMs: number | undefined
  #resetByUs = false

  /** @param rawHeaders names and values in turn, as they came */
  constructor(context: ProxyContext, stream: ServerHttp2Stream, rawHeaders: readonly string[], options: Options) {
    this.#context = context
    this.#stream = stream
    this.#options = options
    try {
      const { method, path, fields } = readHeaders(rawHeaders)
      const head: RequestHead = { method, target: path, minor: 1, fields }
      this.#head = head
      refuseTooLarge(head.fields, rawHeaders, context.limits.headBytes)
      this.#facts = inspectRequest(head)
      this.#directed = direct(method, path, this.#facts.host, context)
      this.#framing = framingOf(head, options.complete)
    } catch (error) {
      if (!(error instanceof HeadError)) throw error
      this.#error = error
    }
    this.method = this.#head?.method ?? 'GET'
  }

  /** While the connection holds as much as it may, a stream reads on only when all it had was taken, and little. */
  get sparing(): boolean {
    return this.#options.held.bytes >= this.#context.limits.crowdedBytes
  }

  /** Nothing more can be said: Node throws at a response to a stream that is closed, which comes before destroyed. */
  get #isOver(): boolean {
    return this.#stream.closed || this.#stream.destroyed
  }

  get isControl(): boolean {
    return this.#directed?.site.kind === 'control'
  }

  start(): void {
    const stream = this.#stream
    stream.on('error', () => {})
    // Node leaves a stream that its client reset without an error until all its bytes are read and written: never.
    stream.on('aborted', () => {
      this.#abandon()
      if (!this.#resetByUs) process.nextTick(() => stream.destroy())
    })
    stream.on('close', () => this.#closed())
    // Told once, perhaps before the request is let in.
    if (!this.#options.complete) stream.on('trailers', (_headers, _flags, raw) => this.#keepTrailers(raw))
    const site = this.#directed?.site
    if (this.#error || !this.#head || !this.#facts || !site || site.kind === 'control') {
      this.#answer({ problem: malformed(this.#error ?? new HeadError('malformed request')) })
      return
    }
    const outcome = admit(
      {
        site,
        authority: this.#directed?.authority ?? { host: '', port: undefined },
        method: this.method,
        target: this.#directed?.target ?? '/',
        fields: this.#head.fields,
        remoteAddress: this.#options.remoteAddress,
        upgrade: undefined,
      },
      this.#context,
      () => this.#abort.signal,
    )
    if (outcome instanceof Promise) outcome.then((decided) => this.#isOver || this.#decided(decided))
    else this.#decided(outcome)
  }

  tick(nowMs: number): void {
    const { stallMs, crowdedStallMs } = this.#context.limits
    if (isOver(this.#admitted)) {
      this.#reset(constants.NGHTTP2_CANCEL)
      return
    }
    if (this.#heldBytes === 0) this.#stalledAtMs = undefined
    else if (this.#stalledAtMs === undefined) this.#stalledAtMs = nowMs
    else if (nowMs - this.#stalledAtMs > (this.sparing ? crowdedStallMs : stallMs)) {
      this.#reset(constants.NGHTTP2_CANCEL)
    }
  }

  revoke(isRevoked: (grant: string, machineId: number) => boolean): void {
    const { access, route } = this.#admitted ?? {}
    if (access?.grant !== undefined && route && isRevoked(access.grant, route.machineId)) {
      this.#reset(constants.NGHTTP2_CANCEL)
    }
  }

  #decided(outcome: Outcome): void {
    if (!('route' in outcome)) {
      this.#answer(outcome)
      return
    }
    this.#admitted = outcome
    const { access } = outcome
    try {
      if (!this.#head || !this.#facts) return
      this.#text = machineHead(this.#head, {
        facts: this.#facts,
        framing: this.#framing,
        target: this.#directed?.target ?? '/',
        remoteAddress: this.#options.remoteAddress,
        identity: access.identity,
        stripAuthorization: access.stripAuthorization === true,
      })
    } catch (error) {
      if (!(error instanceof HeadError)) throw error
      this.#answer({ problem: malformed(error) })
      return
    }
    if (!this.#connect()) {
      this.#answer({ problem: busy(outcome.route) })
      return
    }
    if (this.#framing.kind !== 'none') this.#sendBody()
    else if (!this.#options.complete) this.#stream.resume()
  }

  #connect(): boolean {
    if (!this.#admitted) return false
    const { route, port } = this.#admitted
    const repeatable = isRepeatable(this.method, this.#framing)
    const { watch } = route
    this.#upstream = this.#context.pool.acquire(route.address, port, { repeatable, fresh: this.#retried, watch })
    this.#carried()
    this.#upstream?.begin(this, this.#text)
    if (!repeatable) this.#text = ''
    return this.#upstream !== undefined
  }

  #keepTrailers(rawHeaders: readonly string[] = []): void {
    const fields: Field[] = []
    for (let at = 0; at + 1 < rawHeaders.length; at += 2) {
      const name = rawHeaders[at] ?? ''
      if (!name.startsWith(':')) fields.push(field(name, rawHeaders[at + 1] ?? ''))
    }
    this.#requestTrailers = passedTrailers(fields)
  }

  #sendBody(): void {
    const stream = this.#stream
    const chunked = this.#framing.kind === 'chunked'
    this.#sent = 'bodyToCome'
    stream.on('data', (bytes: Buffer) => {
      if (!this.#upstream || bytes.length === 0) return
      this.#receivedBytes += bytes.length
      this.#carried()
      if (chunked) this.#upstream.write(`${bytes.length.toString(16)}\r\n`)
      let more = this.#upstream.write(bytes)
      if (chunked) more = this.#upstream.write('\r\n')
      if (!more) stream.pause()
    })
    stream.on('end', () => {
      // Node says 'end' for a stream that was reset, too: the machine must not take that for the whole.
      if (stream.aborted || stream.rstCode || this.#sent !== 'bodyToCome') return
      if (chunked) this.#upstream?.write(`0\r\n${this.#requestTrailers.map(({ line }) => line).join('')}\r\n`)
      this.#sent = 'complete'
      if (!this.#responded) return
      // After a whole response a reset without an error looks like an end: of a declared length it may be short, and
      // the machine would take the next visitor's request for the rest.
      if (this.#framing.kind === 'length' && this.#receivedBytes !== this.#framing.bytes) this.#abandon()
      else this.#release()
    })
  }

  // What the machine sends ---------------------------------------------------------------------------------------

  interim(head: ResponseHead): void {
    if (this.#isOver || this.#stream.headersSent) return
    const headers = headersOf(head, passedResponseFields(head))
    try {
      this.#stream.additionalHeaders(headers)
    } catch (error) {
      throw unspeakable(error)
    }
  }

  head(head: ResponseHead, framing: Framing): void {
    if (head.status === 101) {
      this.#upstream?.destroy()
      this.cut(new CutError('malformed', 'the machine changed to a protocol nobody asked for'))
      return
    }
    const stream = this.#stream
    if (this.#isOver) {
      this.#abandon()
      return
    }
    const headers = headersOf(head, passedResponseFields(head))
    // Node ends the stream behind this head, whatever the machine says of a body (RFC 9110, 15.3.6: there is none).
    this.#isBodyDropped = head.status === constants.HTTP_STATUS_RESET_CONTENT
    if (this.#isBodyDropped) delete headers['content-length']
    const withBody = framing.kind !== 'none' && !this.#isBodyDropped
    try {
      // Waiting for trailers, whether or not there will be any, leaves END_STREAM to us: Node's close() ends the
      // writable side before it resets, and a cut body would look whole.
      stream.respond(headers, { endStream: !withBody, waitForTrailers: withBody })
    } catch (error) {
      throw unspeakable(error)
    }
    this.#status = head.status
    this.#firstByteAtMs = performance.now()
    this.#text = ''
    if (withBody) stream.on('wantTrailers', () => this.#sendTrailers())
  }

  bytes(bytes: Buffer): void {
    if (this.#isOver || this.#isBodyDropped) return
    this.#carried()
    this.#sentBytes += bytes.length
    this.#heldBytes += bytes.length
    this.#options.held.bytes += bytes.length
    if (!this.#stream.write(Buffer.from(bytes), this.#onTaken)) this.#paused = true
  }

  flush(): boolean {
    if (this.sparing && this.#heldBytes > 0) this.#paused = true
    return !this.#paused
  }

  /** The client has taken something: it does not stall. Once it has all, there is more, whatever other streams hold. */
  readonly #onTaken = (): void => {
    this.#settle(this.#stream.destroyed ? 0 : this.#stream.writableLength)
    this.#stalledAtMs = undefined
    if (this.#heldBytes > 0 || !this.#paused) return
    this.#paused = false
    this.#upstream?.resume()
  }

  #settle(heldBytes: number): void {
    this.#options.held.bytes += heldBytes - this.#heldBytes
    this.#heldBytes = heldBytes
  }

  ended(trailers: readonly Field[] | undefined): void {
    this.#trailers = trailers
    this.#responded = true
    if (!this.#isOver && !this.#stream.writableEnded) this.#stream.end()
    if (this.#sent === 'complete') this.#release()
  }

  cut(error: CutError): void {
    this.#upstream = undefined
    if (this.#responded) {
      // Nobody takes the rest of the request; the response was complete (RFC 9113, 8.1).
      if (!this.#isOver) this.#reset(constants.NGHTTP2_NO_ERROR)
      return
    }
    if (error.stale && this.#text !== '' && !this.#retried && this.#status === 0) {
      this.#retried = true
      if (this.#connect()) return
    }
    this.#cutCode = error.code
    // After a head there is no other way to say that the body is not whole.
    if (this.#status !== 0 || !this.#admitted) {
      noteFault(error, this.#context)
      this.#reset(constants.NGHTTP2_INTERNAL_ERROR)
      return
    }
    const { route, port } = this.#admitted
    upstreamProblem(error, route, port, this.#context)
      .then((problem) => this.#answer({ problem }))
      .catch(() => this.#reset(constants.NGHTTP2_INTERNAL_ERROR))
  }

  drained(): void {
    this.#stream.resume()
  }

  #sendTrailers(): void {
    if (!this.#responded) return
    const trailers: OutgoingHttpHeaders = Object.create(null)
    for (const { name, value } of passedTrailers(this.#trailers ?? [])) addField(trailers, name, value)
    try {
      if (!this.#isOver) this.#stream.sendTrailers(trailers)
    } catch {
      this.#cutCode = 'malformed'
      // nghttp2 is calling us: it must have returned before the stream is reset.
      setImmediate(() => this.#reset(constants.NGHTTP2_INTERNAL_ERROR))
    }
  }

  // The end ------------------------------------------------------------------------------------------------------

  #answer(refused: Refused): void {
    const stream = this.#stream
    if (this.#isOver || stream.headersSent) return
    if ('problem' in refused && refused.problem.status >= 500) this.#context.failed(refused.problem)
    const { status, fields, body }: Rendered = render(refused, this.#head?.fields ?? [], this.#context.seams.page)
    const headers: OutgoingHttpHeaders = Object.create(null)
    headers[':status'] = status
    headers['content-length'] = body.length
    for (const [name, value] of fields) addField(headers, name.toLowerCase(), value)
    this.#status = status
    this.#sentBytes = body.length
    this.#upstream?.destroy()
    this.#upstream = undefined
    this.#responded = true
    const withBody = this.method !== 'HEAD' && body.length > 0
    stream.respond(headers, { endStream: !withBody })
    if (withBody) {
      this.#settle(body.length)
      stream.end(body, this.#onTaken)
    }
    // What is left of the request is read and thrown away, within the stream's window.
    stream.resume()
  }

  #carried(): void {
    const watch = this.#admitted?.route.watch
    if (watch) watch.httpsAtMs = this.#context.clock.nowMs
  }

  #release(): void {
    const upstream = this.#upstream
    this.#upstream = undefined
    if (upstream && this.#admitted) this.#context.pool.give(this.#admitted.route.address, this.#admitted.port, upstream)
  }

  #reset(code: number): void {
    this.#resetByUs = true
    this.#abandon()
    this.#stream.close(code)
  }

  /** Nothing of the machine is wanted any more, and what is left of the request is thrown away. */
  #abandon(): void {
    this.#upstream?.destroy()
    this.#upstream = undefined
    this.#stream.resume()
  }

  #closed(): void {
    this.#abort.abort()
    this.#settle(0)
    this.#upstream?.destroy()
    this.#upstream = undefined
    this.#options.onGone()
    const entry: Finished = {
      protocol: 'h2',
      remoteAddress: this.#options.remoteAddress,
      method: this.method,
      host: this.#facts?.host ?? '',
      path: this.#directed?.target ?? '',
      status: this.#status || 499,
      machineId: this.#admitted?.route.machineId,
      user: this.#admitted?.access.identity?.user,
      startedAtMs: this.#startedAtMs,
      firstByteAtMs: this.#firstByteAtMs,
      sentBytes: this.#sentBytes,
      upgraded: false,
      cut: this.#cutCode,
    }
    this.#context.finished(entry)
  }
}

/** Node will not say this in HTTP/2: as malformed as what we do not read ourselves. */
function unspeakable(error: unknown): HeadError {
  return new HeadError(error instanceof Error ? error.message : String(error))
}
