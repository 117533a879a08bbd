import type { Server as HttpServer } from 'node:http'
import {
  constants,
  createServer as createHttp2Server,
  performServerHandshake,
  type ServerHttp2Session,
} from 'node:http2'
import type { TLSSocket } from 'node:tls'
import type { ClientConnection, ProxyContext } from './context.ts'
import { Stream2 } from './stream2.ts'

const STREAMS = 128
/** What a client may send on one stream before the machine has taken it. */
const STREAM_WINDOW_BYTES = 262_144
const CONNECTION_WINDOW_BYTES = 1_048_576

/**
 * A client that speaks HTTP/2. Floods are bounded by nghttp2 and Node (settings, pings, empty frames, CONTINUATION
 * without end: CVE-2019-9511 to -9518, CVE-2024-27983) and by the limits here; rapid reset (CVE-2023-44487) by
 * `streamResetRate`, each reset costing the machine at most one connection opened and closed.
 */
export class Http2Client implements ClientConnection {
  readonly #context: ProxyContext
  readonly #session: ServerHttp2Session
  readonly #streams = new Set<Stream2>()
  readonly #held = { bytes: 0 }
  readonly #onGone: (client: Http2Client) => void
  #idleSinceMs: number
  #lastBytes = 0

  /** @param control hears requests for the control host, as Node's compatibility API makes them */
  constructor(
    context: ProxyContext,
    socket: TLSSocket,
    remoteAddress: string,
    control: HttpServer,
    onGone: (client: Http2Client) => void,
  ) {
    this.#context = context
    this.#onGone = onGone
    this.#idleSinceMs = context.clock.nowMs
    const session = performServerHandshake(socket, {
      maxSessionMemory: 4,
      // A browser's every cookie is a field of its own. What is more than we take is counted where it can be answered,
      // so more is let through here: beyond these Node resets the stream without a word.
      maxHeaderListPairs: 512,
      maxOutstandingPings: 10,
      maxSendHeaderBlockLength: context.limits.headBytes,
      maxSettings: 32,
      // A machine's fields pass as often as it sent them, as over HTTP/1.1; Node would throw at a second User-Agent.
      strictSingleValueFields: false,
      maxSessionInvalidFrames: 100,
      maxSessionRejectedStreams: 100,
      streamResetBurst: 500,
      streamResetRate: 33,
      settings: {
        enablePush: false,
        maxConcurrentStreams: STREAMS,
        initialWindowSize: STREAM_WINDOW_BYTES,
        maxHeaderListSize: 2 * context.limits.headBytes,
      },
    } as Parameters<typeof performServerHandshake>[1])
    this.#session = session
    session.setLocalWindowSize(CONNECTION_WINDOW_BYTES)
    session.on('stream', (stream, _headers, flags, rawHeaders: string[]) => {
      const taken = new Stream2(context, stream, rawHeaders, {
        remoteAddress,
        held: this.#held,
        complete: (flags & constants.NGHTTP2_FLAG_END_STREAM) !== 0,
        onGone: () => this.#forget(taken),
      })
      if (!taken.isControl) {
        this.#streams.add(taken)
        taken.start()
      } else {
        // As over HTTP/1.1: what waits for a reader does not wait for ever.
        stream.setTimeout(context.limits.stallMs, () => {
          if (stream.writableLength > 0) stream.close(constants.NGHTTP2_CANCEL)
        })
        compatible(control).emit('stream', stream, _headers, flags, rawHeaders)
      }
    })
    // The socket may stay half open, and a client that is gone would be missed as long as nothing can be sent to it.
    socket.once('end', () => session.destroy())
    session.on('error', () => {})
    session.on('close', () => this.#onGone(this))
  }

  tick(nowMs: number): void {
    const { socket } = this.#session
    const bytes = socket ? socket.bytesRead + socket.bytesWritten : 0
    if (bytes !== this.#lastBytes || this.#streams.size === 0) {
      if (bytes !== this.#lastBytes) this.#idleSinceMs = nowMs
      this.#lastBytes = bytes
    }
    for (const stream of this.#streams) stream.tick(nowMs)
    if (this.#streams.size === 0 && nowMs - this.#idleSinceMs > this.#context.limits.idleMs) this.#session.close()
  }

  revoke(isRevoked: (grant: string, machineId: number) => boolean): void {
    for (const stream of this.#streams) stream.revoke(isRevoked)
  }

  drain(): void {
    this.#session.close()
  }

  destroy(): void {
    this.#session.destroy()
  }

  #forget(stream: Stream2): void {
    this.#streams.delete(stream)
    this.#idleSinceMs = this.#context.clock.nowMs
  }
}

type Compatible = ReturnType<typeof createHttp2Server>
const compatibles = new WeakMap<HttpServer, Compatible>()

/** An HTTP/2 server that never listens: it makes requests and responses out of streams that we hand it. */
function compatible(control: HttpServer): Compatible {
  const known = compatibles.get(control)
  if (known) return known
  const made = createHttp2Server({}, (request, response) => {
    // Node's own HTTP/2 requests are made to stand in for these types.
    control.emit('request', request, response)
  })
  compatibles.set(control, made)
  return made
}
