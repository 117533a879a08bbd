import { destination, pino } from 'pino'
import type { Finished } from './proxy/context.ts'

export type AccessLog = { write(exchange: Finished): void; close(): void }

/**
 * One JSON line a request. Written in blocks, at least every second: a system call for each line would cost a tenth of
 * the request. Queries, cookies and tokens are not in it.
 * @param fd where to; stdout unless given
 */
export function accessLog(fd: number | string = 1): AccessLog {
  const sink = destination({ dest: fd, sync: true, minLength: 32_768, maxWrite: 65_536 })
  const log = pino({ base: { part: 'access' } }, sink)
  const timer = setInterval(() => sink.flush(), 1000)
  timer.unref()
  return {
    write(exchange) {
      const query = exchange.path.indexOf('?')
      log.info({
        from: exchange.remoteAddress,
        protocol: exchange.protocol,
        method: exchange.method,
        host: exchange.host,
        path: query < 0 ? exchange.path : exchange.path.slice(0, query),
        status: exchange.status,
        machine: exchange.machineId,
        user: exchange.user,
        ms: rounded(performance.now() - exchange.startedAtMs),
        firstByteMs:
          exchange.firstByteAtMs === undefined ? undefined : rounded(exchange.firstByteAtMs - exchange.startedAtMs),
        sentBytes: exchange.sentBytes,
        upgraded: exchange.upgraded || undefined,
        cut: exchange.cut,
      })
    },
    close() {
      clearInterval(timer)
      // A destination that is still opening cannot be flushed; nothing was written to it then.
      try {
        sink.flushSync()
      } catch {}
    },
  }
}

function rounded(ms: number): number {
  return Math.round(ms * 100) / 100
}
