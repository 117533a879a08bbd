import { once } from 'node:events'
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  type OutgoingHttpHeaders,
  type Settings,
} from 'node:http2'
import type { World } from './world.ts'

/** An HTTP/2 client of the machine `demo`. */
export function session(proxy: World, settings: Settings = {}): ClientHttp2Session & Disposable {
  const opened = connect('https://demo.example.test', {
    ca: proxy.certificate,
    lookup: (_host, options, callback) =>
      options.all ? callback(null, [{ address: '127.0.0.1', family: 4 }]) : callback(null, '127.0.0.1', 4),
    port: proxy.port,
    servername: 'demo.example.test',
    maxSendHeaderBlockLength: 262_144,
    settings: { enablePush: false, ...settings },
  } as Parameters<typeof connect>[1])
  opened.on('error', () => {})
  return Object.assign(opened, { [Symbol.dispose]: () => opened.destroy() })
}

export type Answer = {
  status: number
  headers: Record<string, unknown>
  body: string
  trailers: Record<string, unknown>
  interims: number[]
  code: number
}

/** All that comes of a stream until it closes; never throws. */
export async function read(stream: ClientHttp2Stream): Promise<Answer> {
  const answer: Answer = { status: 0, headers: {}, body: '', trailers: {}, interims: [], code: 0 }
  stream.on('headers', (headers) => answer.interims.push(Number(headers[':status'])))
  stream.on('response', (headers) => {
    answer.status = Number(headers[':status'])
    answer.headers = headers
  })
  stream.on('trailers', (headers) => {
    answer.trailers = headers
  })
  stream.on('data', (bytes) => {
    answer.body += bytes
  })
  stream.on('error', () => {})
  if (!stream.closed) await once(stream, 'close').catch(() => {})
  answer.code = stream.rstCode ?? 0
  return answer
}

/** A request of `demo`, a GET unless told otherwise. */
export const ask = (client: ClientHttp2Session, headers: OutgoingHttpHeaders = {}, body?: string) => {
  const stream = client.request(
    { ':path': '/', ':authority': 'demo.example.test', ...headers },
    { endStream: body === undefined },
  )
  if (body !== undefined) stream.end(body)
  return read(stream)
}
