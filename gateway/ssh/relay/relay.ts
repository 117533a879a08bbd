import type { Connection } from 'ssh2'
import type { RelayOptions } from './options.ts'

/** One client connection being relayed. */
export type Relay = {
  readonly channelCount: number
  /** Ends the connection; `sentence` is shown on the stderr of its open sessions. */
  close(sentence?: string): void
}

/**
 * Hands an authenticated connection over to a machine. Call it from the connection's 'ready' event, in the same tick:
 * from then on ssh2's own channel events ('session', 'tcpip', 'request', …) are not emitted for it.
 */
export function relayConnection(_client: Connection, _options: RelayOptions): Relay {
  throw new Error('not here yet')
}
