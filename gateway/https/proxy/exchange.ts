import type { TLSSocket } from 'node:tls'
import type { ProxyContext } from './context.ts'
import { clientHead, machineHead, passedTrailers, type RequestFacts } from './fields.ts'
import type { Admitted } from './gate.ts'
import type { Field, Framing, RequestHead, ResponseHead } from './head.ts'
import { isRepeatable } from './pool.ts'
import { CutError, type ResponseReader, type Upstream } from './upstream.ts'

/**
 * Where a response's head and the bytes behind it are put together. One for all: the TLS layer has copied what it is
 * given before write() returns, as long as nothing waits before it. A buffer of its own for each large response costs
 * more in page faults than the copy.
 */
const SCRATCH = Buffer.allocUnsafeSlow(393_216)

export type ExchangeOptions = {
  context: ProxyContext
  socket: TLSSocket
  head: RequestHead
  facts: RequestFacts
  framing: Framing
  target: string
  remoteAddress: string
  admitted: Admitted
  /** the connection is to end with this exchange whatever the machine says */
  lastOne: boolean
  onTunnel: () => void
  /** the response is complete */
  onEnded: () => void
  /** no (further) response will come; `answered`: the client has seen a head already */
  onCut: (error: CutError, answered: boolean) => void
  /** the machine takes the request's bytes again */
  onDrained: () => void
}

/**
 * The machine's side of one exchange of an HTTP/1.1 client: sends the request head, and writes what comes back to the
 * client as it comes, coded as it came.
 */
export class Exchange implements ResponseReader {
  readonly method: string
  readonly coded = true
  readonly sparing = false
  status = 0
  sentBytes = 0
  firstByteAtMs: number | undefined
  /** by the proxy's clock: when the machine's body last brought something */
  movedAtMs = 0
  /** the connection to the client ends with this response */
  closes: boolean
  /** the response's body lasts until the connection ends: nothing but a reset shows that it was cut */
  endsByClose = false
  readonly #options: ExchangeOptions
  #upstream: Upstream | undefined
  #text: string
  #retried = false
  #chunked = false
  #over = false
  // What one read brought, written at its end: small responses become one record.
  #pendingHead = ''
  #lent: Buffer | undefined
  #tail = ''

  constructor(options: ExchangeOptions) {
    this.#options = options
    this.method = options.head.method
    this.closes = options.lastOne || !options.facts.keepAlive
    this.#text = machineHead(options.head, {
      facts: options.facts,
      framing: options.framing,
      target: options.target,
      remoteAddress: options.remoteAddress,
      identity: options.admitted.access.identity,
      stripAuthorization: options.admitted.access.stripAuthorization === true,
    })
  }

  get #repeatable(): boolean {
    return isRepeatable(this.method, this.#options.framing) && !this.#options.facts.upgrade
  }

  /** @returns false when the machine has as many connections as it may have */
  start(): boolean {
    const { admitted, facts, head, context } = this.#options
    const upstream = context.pool.acquire(admitted.route.address, admitted.port, {
      repeatable: this.#repeatable,
      fresh: this.#retried || facts.upgrade !== undefined || head.minor === 0,
      watch: admitted.route.watch,
    })
    if (!upstream) return false
    this.#carried()
    this.#upstream = upstream
    upstream.begin(this, this.#text)
    if (!this.#repeatable) this.#text = ''
    return true
  }

  /** @returns false when the machine is slow and `onDrained` will say when to go on */
  write(bytes: Buffer | string): boolean {
    this.#carried()
    return this.#upstream?.write(bytes) ?? true
  }

  /** The client of a tunnel has ended its side. */
  endTunnel(): void {
    this.#upstream?.end()
  }

  resume(): void {
    this.#upstream?.resume()
  }

  /** Both sides are complete: the connection to the machine may serve again. */
  release(): void {
    const upstream = this.#upstream
    this.#upstream = undefined
    const { admitted, context } = this.#options
    if (upstream) context.pool.give(admitted.route.address, admitted.port, upstream)
  }

  abort(): void {
    this.#over = true
    this.#upstream?.destroy()
    this.#upstream = undefined
  }

  interim(head: ResponseHead): void {
    if (this.#options.head.minor === 0) return
    this.#options.socket.write(clientHead(head, { kind: 'none' }, false), 'latin1')
  }

  head(head: ResponseHead, framing: Framing): void {
    const { facts, socket } = this.#options
    const upgraded = head.status === 101
    if (upgraded && !agrees(head, facts)) {
      this.#refuse('the machine changed to a protocol nobody asked for')
      return
    }
    if (this.#options.head.minor === 0 && framing.kind === 'chunked') {
      this.#refuse('the machine answered HTTP/1.0 with chunks')
      return
    }
    this.status = head.status
    this.firstByteAtMs = performance.now()
    this.#text = ''
    this.#chunked = framing.kind === 'chunked'
    this.endsByClose = framing.kind === 'close'
    // A refused upgrade closes: what the client sends next was meant for a tunnel, not for us to read as a request.
    if (framing.kind === 'close' || (facts.upgrade !== undefined && !upgraded)) this.closes = true
    if (upgraded) {
      socket.write(clientHead(head, framing, false), 'latin1')
      this.#options.onTunnel()
    } else {
      this.#pendingHead = clientHead(head, framing, this.closes)
    }
  }

  bytes(bytes: Buffer): void {
    this.#carried()
    this.movedAtMs = this.#options.context.clock.nowMs
    this.#lent = bytes
  }

  flush(): boolean {
    const { socket } = this.#options
    const head = this.#pendingHead
    const tail = this.#tail
    const lent = this.#lent
    if (head === '' && tail === '') {
      if (!lent) return true
      this.#lent = undefined
      this.sentBytes += lent.length
      // The bytes are lent until we return. With nothing waiting, write() hands them straight to the TLS layer, which
      // encrypts (copies) before it returns; behind something waiting they would stay, so then they are copied here.
      return socket.write(socket.writableLength === 0 ? lent : Buffer.from(lent))
    }
    this.#pendingHead = ''
    this.#tail = ''
    this.#lent = undefined
    if (!lent) return socket.write(head + tail, 'latin1')
    this.sentBytes += lent.length
    const length = head.length + lent.length + tail.length
    const joined =
      socket.writableLength === 0 && length <= SCRATCH.length ? SCRATCH.subarray(0, length) : Buffer.allocUnsafe(length)
    joined.write(head, 0, 'latin1')
    lent.copy(joined, head.length)
    if (tail !== '') joined.write(tail, head.length + lent.length, 'latin1')
    return socket.write(joined)
  }

  ended(trailers: readonly Field[] | undefined): void {
    if (this.#chunked) {
      let text = ''
      if (trailers && trailers.length > 0) for (const { line } of passedTrailers(trailers)) text += line
      this.#tail = `${text}\r\n`
    }
    this.flush()
    this.#over = true
    this.#options.onEnded()
  }

  cut(error: CutError): void {
    if (this.#over) {
      // The response was complete, the rest of the request has nowhere to go.
      this.#upstream = undefined
      this.#options.onCut(error, true)
      return
    }
    this.#upstream = undefined
    if (error.stale && this.#repeatable && !this.#retried && this.status === 0) {
      this.#retried = true
      if (this.start()) return
    }
    this.#over = true
    const answered = this.status !== 0 && this.#pendingHead === ''
    this.#lent = undefined
    if (!answered) this.status = 0
    this.#options.onCut(error, answered)
  }

  drained(): void {
    this.#options.onDrained()
  }

  #carried(): void {
    const { admitted, context } = this.#options
    const { watch } = admitted.route
    if (!watch) return
    if (this.status === 101) watch.websocketAtMs = context.clock.nowMs
    else watch.httpsAtMs = context.clock.nowMs
  }

  #refuse(message: string): void {
    this.#upstream?.destroy()
    this.cut(new CutError('malformed', message))
  }
}

function agrees(head: ResponseHead, facts: RequestFacts): boolean {
  const chosen = head.fields.find(({ name }) => name === 'upgrade')?.value
  return facts.upgrade !== undefined && chosen?.toLowerCase() === facts.upgrade.toLowerCase()
}
