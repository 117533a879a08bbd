import { pino } from 'pino'
import pretty from 'pino-pretty'

/** pino's own type under one name; ssh/transport/log.ts is the part of it that the transport needs. */
export type Log = ReturnType<typeof createLog>

/**
 * JSON lines on standard output, or, on a terminal, lines for people. Never hand it a secret: it hides none.
 * In this thread: pino's worker would load its files after privileges are dropped, when they may be out of reach.
 */
export function createLog(level: string) {
  return pino(
    { level, base: { part: 'gateway' } },
    process.stdout.isTTY
      ? pretty({ ignore: 'pid,hostname,part', translateTime: 'SYS:HH:MM:ss', sync: true })
      : toFile(),
  )
}

/** A disk that is full costs lines, and nobody's connection. */
function toFile() {
  const destination = pino.destination({ fd: 1, sync: false, maxLength: 2 ** 20 })
  destination.on('error', () => {})
  return destination
}
