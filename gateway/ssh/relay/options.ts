import type { MachinePool } from '../pool/pool.ts'
import type { MachineTarget } from '../pool/target.ts'
import type { Log } from '../transport/log.ts'

/** What `relayConnection` needs to know about one signed-in connection. */
export type RelayOptions = {
  /**
   * Says which machine the connection goes to. Called when a channel or forward asks for the machine, once for all that
   * come within 2 s, so it may take as long as waking a machine takes: the client waits meanwhile. A rejection's message is
   * shown to the person (stderr of the session) and ends it with status 255. Aborted when the client goes away.
   * `say` shows a sentence meanwhile, on the stderr of the sessions that wait.
   */
  resolve: (signal: AbortSignal, say: (sentence: string) => void) => Promise<MachineTarget>
  pool: MachinePool
  log: Log
  /** Called at most once a second while channels carry something (keepalives do not count). */
  onActivity?: () => void
  /** Called once, when the connection is gone. */
  onClose?: () => void
  /** Channels open at once on this connection; more are refused with a message. Default 512. */
  maxChannels?: number
}
