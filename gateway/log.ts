import { pino } from 'pino'

/** pino's own type under one name; ssh/transport/log.ts is the part of it that the transport needs. */
export type Log = ReturnType<typeof createLog>

/** JSON lines on stdout, or, on a terminal, lines for people. Never hand it a secret: it hides none. */
export function createLog(level: string) {
  return pino(
    { level, base: { part: 'gateway' } },
    process.stdout.isTTY
      ? pino.transport({
          target: 'pino-pretty',
          options: { ignore: 'pid,hostname,part', translateTime: 'SYS:HH:MM:ss' },
        })
      : undefined,
  )
}
