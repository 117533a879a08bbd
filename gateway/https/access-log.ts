import type { IncomingMessage, ServerResponse } from 'node:http'
import { destination } from 'pino'
import type { Finished } from './proxy/context.ts'

export type AccessLog = { write(exchange: Finished): void; close(): void }

const BLOCK_BYTES = 32_768
/** Longer paths are cut: a line has a bound as everything has. */
const PATH_CHARACTERS = 2048
const SECRET_PATHS = ['/__berth/link/', '/login/', '/invitation/']

/**
 * One JSON line a request, in the shape of pino's lines and through its destination, but made and gathered here: with
 * a logger call for each request the log cost a fifth of the whole exchange. Blocks are written when full and every
 * second. Queries, cookies and tokens are not in it.
 * @param target file descriptor or path; stdout unless given
 */
export function accessLog(target: number | string = 1): AccessLog {
  const sink = destination({ dest: target, sync: true })
  let lines: string[] = []
  let characters = 0
  const flush = () => {
    if (lines.length === 0) return
    const block = lines.join('')
    lines = []
    characters = 0
    sink.write(block)
  }
  const timer = setInterval(flush, 1000)
  timer.unref()
  return {
    write(exchange) {
      const text = accessLine(exchange, Date.now(), performance.now())
      lines.push(text)
      characters += text.length
      if (characters > BLOCK_BYTES) flush()
    },
    close() {
      clearInterval(timer)
      flush()
      // A destination that is still opening cannot be flushed; it writes by itself once it is open.
      try {
        sink.flushSync()
      } catch {}
    },
  }
}

/** Writes a line for what the control host answers, when it has. */
export function logAnswer(access: AccessLog, request: IncomingMessage, response: ServerResponse): void {
  const { headers, socket, method = '', url = '', httpVersionMajor } = request
  const startedAtMs = performance.now()
  const remoteAddress = (socket.remoteAddress ?? '').replace(/^::ffff:/, '')
  response.once('close', () => {
    access.write({
      protocol: httpVersionMajor === 2 ? 'h2' : 'h1',
      remoteAddress,
      method,
      host: String(headers.host ?? headers[':authority'] ?? ''),
      path: url,
      status: response.writableEnded ? response.statusCode : 499,
      machineId: undefined,
      user: undefined,
      startedAtMs,
      firstByteAtMs: undefined,
      sentBytes: Number(response.getHeader('content-length') ?? 0),
      upgraded: false,
      cut: undefined,
    })
  })
}

/** The line of one exchange, with its newline. @param at Unix milliseconds; nowMs as the exchange's own times */
export function accessLine(exchange: Finished, at: number, nowMs: number): string {
  const { path, firstByteAtMs, startedAtMs, machineId, user, cut } = exchange
  const query = path.indexOf('?')
  const shown = withoutSecret(path.slice(0, Math.min(query < 0 ? path.length : query, PATH_CHARACTERS)))
  let line = `{"level":30,"time":${at},"part":"access","from":"${exchange.remoteAddress}","protocol":"${exchange.protocol}"`
  line += `,"method":"${exchange.method}","host":${quoted(exchange.host)},"path":${quoted(shown)},"status":${exchange.status}`
  if (machineId !== undefined) line += `,"machine":${machineId}`
  if (user !== undefined) line += `,"user":${quoted(user)}`
  line += `,"ms":${rounded(nowMs - startedAtMs)}`
  if (firstByteAtMs !== undefined) line += `,"firstByteMs":${rounded(firstByteAtMs - startedAtMs)}`
  line += `,"sentBytes":${exchange.sentBytes}`
  if (exchange.upgraded) line += ',"upgraded":true'
  if (cut !== undefined) line += `,"cut":"${cut}"`
  return `${line}}\n`
}

/** Links of Berth's own that open something by being known: who reads the log must not be able to follow them. */
function withoutSecret(path: string): string {
  const prefix = SECRET_PATHS.find((one) => path.startsWith(one))
  return prefix === undefined || path.length === prefix.length ? path : `${prefix}…`
}

/** What clients wrote stands in quotes and cannot leave them; most of it needs no escaping. */
function quoted(text: string): string {
  return /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/.test(text) ? `"${text}"` : JSON.stringify(text)
}

function rounded(ms: number): number {
  return Math.round(ms * 100) / 100
}
