import type { TLSSocket } from 'node:tls'
import { http1Bytes, render } from './answer.ts'
import { RequestBody } from './body.ts'
import type { ClientConnection, ProxyContext } from './context.ts'
import { Exchange } from './exchange.ts'
import { inspectRequest, type RequestFacts } from './fields.ts'
import { type Admitted, admit, direct, isOver, type Outcome, type Refused } from './gate.ts'
import {
  type Framing,
  HeadError,
  parseRequestHead,
  type RequestHead,
  requestFraming,
  requestHeadBytes,
} from './head.ts'
import { busy, malformed, noteFault, upstreamProblem } from './problems.ts'
import type { CutError } from './upstream.ts'

const NOTHING = Buffer.alloc(0)
const LF = 10
const CR = 13

/** What is known of the request at hand. */
type Request = {
  head: RequestHead
  facts: RequestFacts
  framing: Framing
  target: string
  startedAtMs: number
  admitted?: Admitted
  exchange?: Exchange
  /** the whole body was read */
  complete: boolean
  /** the whole response was written */
  answered: boolean
}

/**
 * A client that speaks HTTP/1.1. One exchange at a time; requests sent ahead wait as bytes.
 *
 * - `head`: reading a request head, or waiting for one
 * - `gate`: the request is being decided; its body waits
 * - `body`: the request's body passes to the machine, the response may already be passing back
 * - `wait`: the request is complete, the response is not; what follows waits
 * - `tunnel`: after 101, bytes pass both ways until both sides ended
 * - `linger`: the last answer is written; what still comes is thrown away, so that it can be read (RFC 9112, 9.6)
 * - `gone`: the control host's server has the connection, or it is closed
 */
export class Http1Client implements ClientConnection {
  readonly #context: ProxyContext
  readonly #socket: TLSSocket
  readonly #remoteAddress: string
  readonly #reset: () => void
  readonly #onGone: (client: Http1Client) => void
  #phase: 'head' | 'gate' | 'body' | 'wait' | 'tunnel' | 'linger' | 'gone' = 'head'
  #held: Buffer = NOTHING
  #request: Request | undefined
  #body: RequestBody | undefined
  #deadlineAtMs: number
  #stalledAtMs: number | undefined
  /** since when nothing is read of the client, whose leaving is not seen either */
  #unreadSinceMs: number | undefined
  /** it has not taken its last answer yet: until then no further request of it is begun */
  #isBehind = false
  #abort: AbortController | undefined

  /** @param reset closes the TCP connection so that the client sees an error (RST) */
  constructor(
    context: ProxyContext,
    socket: TLSSocket,
    remoteAddress: string,
    reset: () => void,
    onGone: (client: Http1Client) => void,
  ) {
    this.#context = context
    this.#reset = reset
    this.#socket = socket
    this.#remoteAddress = remoteAddress
    this.#onGone = onGone
    this.#deadlineAtMs = context.clock.nowMs + context.limits.headMs
    socket
      .on('data', this.#onData)
      .on('end', this.#onEnd)
      .on('drain', this.#onDrain)
      .on('close', this.#onClose)
      .on('error', ignore)
  }

  tick(nowMs: number): void {
    if (isOver(this.#request?.admitted)) {
      this.destroy()
      return
    }
    if (!this.#socket.writableNeedDrain) this.#stalledAtMs = undefined
    else if (this.#stalledAtMs === undefined) this.#stalledAtMs = nowMs
    else if (nowMs - this.#stalledAtMs > this.#context.limits.stallMs) {
      this.destroy()
      return
    }
    if (this.#unreadSinceMs !== undefined && nowMs - this.#unreadSinceMs > this.#context.limits.stallMs) {
      this.destroy()
      return
    }
    if (nowMs < this.#deadlineAtMs) return
    if (this.#phase === 'body') {
      // Of an exchange that goes both ways at once one side may be silent for as long as the other is not.
      this.#deadlineAtMs = (this.#request?.exchange?.movedAtMs ?? 0) + this.#context.limits.stallMs
      if (nowMs < this.#deadlineAtMs) return
    }
    if (this.#phase !== 'head') this.destroy()
    else if (this.#held.length > 0) this.#refuseHead(new HeadError('the request took too long', 408))
    else this.#linger()
  }

  revoke(isRevoked: (grant: string, machineId: number) => boolean): void {
    const { admitted } = this.#request ?? {}
    if (admitted?.access.grant !== undefined && isRevoked(admitted.access.grant, admitted.route.machineId))
      this.destroy()
  }

  drain(): void {
    if (this.#phase === 'head' && this.#held.length === 0) this.#linger()
  }

  destroy(): void {
    this.#socket.destroy()
  }

  // Reading ------------------------------------------------------------------------------------------------------

  readonly #onData = (chunk: Buffer): void => {
    switch (this.#phase) {
      case 'head':
        this.#readHeads(chunk)
        return
      case 'body':
        this.#readBody(chunk)
        return
      case 'tunnel':
        if (this.#request?.exchange?.write(chunk) === false) this.#stopReading()
        return
      case 'gate':
      case 'wait':
        this.#hold(chunk)
    }
  }

  #readHeads(chunk: Buffer): void {
    try {
      this.#takeHeads(chunk)
    } catch (error) {
      if (!(error instanceof HeadError)) throw error
      this.#refuseHead(error)
    }
  }

  #takeHeads(chunk: Buffer): void {
    let scanned = this.#held.length
    let buffer = scanned > 0 ? Buffer.concat([this.#held, chunk]) : chunk
    this.#held = NOTHING
    while (buffer.length > 0) {
      // A client that sent CRLF behind its last body is forgiven once (RFC 9112, 2.2).
      if (scanned < 2 && buffer[0] === CR && buffer[1] === LF) {
        buffer = buffer.subarray(2)
        scanned = 0
      }
      const headBytes = requestHeadBytes(buffer, scanned, this.#context.limits.headBytes)
      if (headBytes === undefined) {
        if (scanned === 0) this.#deadlineAtMs = this.#context.clock.nowMs + this.#context.limits.headMs
        this.#held = buffer
        return
      }
      scanned = 0
      const whole = buffer
      buffer = buffer.subarray(headBytes)
      if (!this.#begin(whole, headBytes)) return
      if (this.#phase !== 'head') {
        if (this.#phase === 'body') this.#readBody(buffer)
        else if (buffer.length > 0 && (this.#phase === 'gate' || this.#phase === 'wait')) this.#hold(buffer)
        return
      }
      if (this.#isBehind) {
        this.#held = buffer
        return
      }
    }
  }

  /**
   * @returns false when nothing behind this head is ours to read
   * @throws HeadError
   */
  #begin(buffer: Buffer, headBytes: number): boolean {
    const head = parseRequestHead(buffer.toString('latin1', 0, headBytes))
    const facts = inspectRequest(head)
    const framing = requestFraming(head)
    const { site, authority, target } = direct(head.method, head.target, facts.host, this.#context)
    if (site.kind === 'control') {
      this.#handOver(buffer)
      return false
    }
    const request: Request = {
      head,
      facts,
      framing,
      target,
      startedAtMs: performance.now(),
      complete: false,
      answered: false,
    }
    this.#request = request
    const arrival = {
      site,
      authority,
      method: head.method,
      target,
      fields: head.fields,
      remoteAddress: this.#remoteAddress,
      upgrade: facts.upgrade,
    }
    const outcome = admit(arrival, this.#context, this.#signal)
    if (outcome instanceof Promise) {
      this.#phase = 'gate'
      this.#deadlineAtMs = Number.POSITIVE_INFINITY
      outcome.then((decided) => {
        if (this.#phase === 'gate') this.#decided(request, decided, true)
      })
      return true
    }
    this.#decided(request, outcome, false)
    return true
  }

  readonly #signal = (): AbortSignal => {
    this.#abort ??= new AbortController()
    return this.#abort.signal
  }

  #decided(request: Request, outcome: Outcome, later: boolean): void {
    if (!('route' in outcome)) {
      this.#answer(request, outcome)
      return
    }
    request.admitted = outcome
    const { head, facts, framing, target } = request
    let exchange: Exchange
    try {
      exchange = new Exchange({
        context: this.#context,
        socket: this.#socket,
        head,
        facts,
        framing,
        target,
        remoteAddress: this.#remoteAddress,
        admitted: outcome,
        lastOne: this.#context.draining,
        onTunnel: () => this.#tunnel(),
        onEnded: () => this.#responseEnded(request),
        onCut: (error, answered) => this.#cut(request, error, answered),
        onDrained: this.#onUpstreamDrained,
      })
    } catch (error) {
      if (!(error instanceof HeadError)) throw error
      this.#refuseHead(error)
      return
    }
    request.exchange = exchange
    this.#deadlineAtMs = Number.POSITIVE_INFINITY
    if (framing.kind === 'none') {
      request.complete = true
      this.#phase = 'wait'
    } else {
      this.#phase = 'body'
      this.#deadlineAtMs = this.#context.clock.nowMs + this.#context.limits.stallMs
      this.#body = new RequestBody(framing)
    }
    if (!exchange.start()) {
      this.#answer(request, { problem: busy(outcome.route) })
      return
    }
    if (later) {
      const held = this.#held
      this.#held = NOTHING
      this.#readOn()
      if (this.#phase === 'body') this.#readBody(held)
      else this.#held = held
    }
  }

  #readBody(chunk: Buffer): void {
    const request = this.#request
    const exchange = request?.exchange
    const body = this.#body
    if (!exchange || !body || chunk.length === 0) return
    this.#deadlineAtMs = this.#context.clock.nowMs + this.#context.limits.stallMs
    let read: ReturnType<RequestBody['read']>
    try {
      read = body.read(chunk, (bytes) => exchange.write(bytes))
    } catch (error) {
      if (!(error instanceof HeadError)) throw error
      // The machine must not take what it has for the whole, and the client is past being understood.
      exchange.abort()
      if (exchange.status !== 0) this.destroy()
      else this.#refuseHead(error)
      return
    }
    if (!body.isComplete) {
      if (!read.more) this.#stopReading()
      return
    }
    this.#body = undefined
    request.complete = true
    this.#phase = 'wait'
    this.#deadlineAtMs = Number.POSITIVE_INFINITY
    if (read.next < chunk.length) this.#hold(chunk.subarray(read.next))
    if (request.answered) this.#exchangeEnded(request)
  }

  /** Keeps what came ahead of its time, and stops reading when it is much. */
  #hold(chunk: Buffer): void {
    this.#held = this.#held.length > 0 ? Buffer.concat([this.#held, chunk]) : chunk
    if (this.#held.length > this.#context.limits.heldBytes) this.#stopReading()
  }

  #stopReading(): void {
    this.#unreadSinceMs ??= this.#context.clock.nowMs
    this.#socket.pause()
  }

  #readOn(): void {
    this.#unreadSinceMs = undefined
    this.#socket.resume()
  }

  // Answering ----------------------------------------------------------------------------------------------------

  #tunnel(): void {
    this.#phase = 'tunnel'
    this.#context.tunnels.opened()
    this.#deadlineAtMs = Number.POSITIVE_INFINITY
    const { exchange } = this.#request ?? {}
    const held = this.#held
    this.#held = NOTHING
    // Bytes that came along with the upgrade are the first of the tunnel.
    if (held.length > 0 && exchange?.write(held) === false) this.#stopReading()
    else this.#readOn()
  }

  #responseEnded(request: Request): void {
    request.answered = true
    if (this.#phase === 'tunnel') {
      this.#socket.end()
      this.#deadlineAtMs = this.#context.clock.nowMs + this.#context.limits.halfClosedMs
      return
    }
    if (request.complete) this.#exchangeEnded(request)
    else if (request.exchange?.closes) this.#finishAndLinger(request)
  }

  /** Request and response are complete: the next request, or the end of the connection. */
  #exchangeEnded(request: Request): void {
    if (request.exchange?.closes || this.#context.draining) {
      this.#finishAndLinger(request)
      return
    }
    request.exchange?.release()
    this.#finish(request)
    this.#next()
  }

  #finishAndLinger(request: Request): void {
    request.exchange?.release()
    this.#finish(request)
    this.#linger()
  }

  #next(): void {
    this.#phase = 'head'
    if (this.#socket.writableNeedDrain) {
      // Whoever sends requests ahead and takes no answer would have all answers kept here.
      this.#isBehind = true
      this.#deadlineAtMs = Number.POSITIVE_INFINITY
      this.#stopReading()
      return
    }
    this.#deadlineAtMs = this.#context.clock.nowMs + this.#context.limits.idleMs
    if (this.#held.length === 0) return
    // Not from within the callback that ended the last exchange: a thousand requests sent ahead would nest as deep.
    setImmediate(() => this.#readHeld())
    // Until then new bytes must not overtake these.
    this.#stopReading()
  }

  #readHeld(): void {
    if (this.#phase !== 'head') return
    const held = this.#held
    this.#held = NOTHING
    this.#readOn()
    if (held.length > 0) this.#readHeads(held)
  }

  #cut(request: Request, error: CutError, answered: boolean): void {
    if (this.#phase === 'gone') return
    if (request.answered && this.#phase !== 'tunnel') {
      // The machine closed after its response, while the request still came in.
      this.#finishAndLinger(request)
      return
    }
    if (answered) {
      noteFault(error, this.#context)
      // The client must see a cut: no last chunk, no close_notify. Many clients take an end without close_notify for
      // an end, so a body that nothing else delimits needs the reset, though it may cost bytes still under way.
      if (request.exchange?.endsByClose) this.#reset()
      this.#finish(request, error.code)
      this.destroy()
      return
    }
    const route = request.admitted?.route
    if (!route) {
      this.destroy()
      return
    }
    this.#phase = 'gate'
    upstreamProblem(error, route, request.admitted?.port ?? 0, this.#context).then((problem) => {
      if (this.#phase === 'gate') this.#answer(request, { problem }, error.code)
    })
  }

  /** Says something in the machine's stead. The connection goes on only when nothing of the request is left to come. */
  #answer(request: Request, refused: Refused, cut?: CutError['code']): void {
    if ('problem' in refused && refused.problem.status >= 500) this.#context.failed(refused.problem)
    const { head, facts, framing } = request
    const keep =
      facts.keepAlive && framing.kind === 'none' && facts.upgrade === undefined && !this.#context.draining && !cut
    const rendered = render(refused, head.fields, this.#context.seams.page)
    this.#socket.write(http1Bytes(rendered, !keep, head.method !== 'HEAD'))
    this.#finish(request, cut, rendered)
    if (keep) this.#next()
    else this.#linger()
  }

  #refuseHead(error: HeadError): void {
    const request = this.#request
    const rendered = render({ problem: malformed(error) }, request?.head.fields ?? [], this.#context.seams.page)
    this.#socket.write(http1Bytes(rendered, true, true))
    if (request) this.#finish(request, undefined, rendered)
    else this.#context.finished(this.#entry(undefined, { status: error.status, sentBytes: rendered.body.length }))
    this.#linger()
  }

  #linger(): void {
    this.#phase = 'linger'
    this.#held = NOTHING
    const { clock, limits } = this.#context
    // What was written may have a slow reader: a cut before it is out would be a clean end to many.
    this.#deadlineAtMs = clock.nowMs + limits.stallMs
    this.#socket.end(() => {
      this.#deadlineAtMs = clock.nowMs + limits.lingerMs
    })
    this.#readOn()
  }

  #handOver(buffer: Buffer): void {
    this.#phase = 'gone'
    this.#socket
      .off('data', this.#onData)
      .off('end', this.#onEnd)
      .off('drain', this.#onDrain)
      .off('close', this.#onClose)
    this.#onGone(this)
    this.#context.toControl(this.#socket, buffer)
  }

  // The connection -----------------------------------------------------------------------------------------------

  readonly #onDrain = (): void => {
    this.#stalledAtMs = undefined
    this.#request?.exchange?.resume()
    if (!this.#isBehind || this.#phase !== 'head') return
    this.#isBehind = false
    this.#deadlineAtMs = this.#context.clock.nowMs + this.#context.limits.idleMs
    this.#readHeld()
  }

  readonly #onUpstreamDrained = (): void => {
    if (this.#phase === 'body' || this.#phase === 'tunnel') this.#readOn()
  }

  readonly #onEnd = (): void => {
    if (this.#phase === 'tunnel') {
      this.#request?.exchange?.endTunnel()
      this.#deadlineAtMs = this.#context.clock.nowMs + this.#context.limits.halfClosedMs
      if (this.#request?.answered) this.#socket.destroy()
    } else if (this.#phase === 'head' || this.#phase === 'linger') this.#socket.end()
    // A client that ends its side in the middle of an exchange has gone away.
    else this.#socket.destroy()
  }

  readonly #onClose = (): void => {
    const request = this.#request
    const tunnel = this.#phase === 'tunnel'
    this.#phase = 'gone'
    this.#held = NOTHING
    this.#abort?.abort()
    if (request) {
      request.exchange?.abort()
      this.#finish(request)
    }
    if (tunnel) this.#context.tunnels.closed()
    this.#onGone(this)
  }

  #finish(request: Request, cut?: CutError['code'], rendered?: { status: number; body: Buffer }): void {
    if (this.#request !== request) return
    this.#request = undefined
    this.#abort = undefined
    const { exchange } = request
    if (rendered) exchange?.abort()
    this.#context.finished(
      this.#entry(
        request,
        rendered
          ? { status: rendered.status, sentBytes: rendered.body.length, cut }
          : { status: exchange?.status || 499, sentBytes: exchange?.sentBytes ?? 0, cut },
      ),
    )
  }

  #entry(
    request: Request | undefined,
    result: { status: number; sentBytes: number; cut?: CutError['code'] | undefined },
  ) {
    const { head, facts, admitted, exchange } = request ?? {}
    return {
      protocol: 'h1' as const,
      remoteAddress: this.#remoteAddress,
      method: head?.method ?? '',
      host: facts?.host ?? '',
      path: request?.target ?? '',
      status: result.status,
      machineId: admitted?.route.machineId,
      user: admitted?.access.identity?.user,
      startedAtMs: request?.startedAtMs ?? performance.now(),
      firstByteAtMs: exchange?.firstByteAtMs,
      sentBytes: result.sentBytes,
      upgraded: exchange?.status === 101,
      cut: result.cut,
    }
  }
}

function ignore(): void {}
