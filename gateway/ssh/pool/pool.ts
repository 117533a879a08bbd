import type { Log } from '../transport/log.ts'
import type { MachineTarget } from './target.ts'

export type MachinePoolOptions = {
  /** The gateway's private key (OpenSSH or PEM format), which every machine's sshd accepts. */
  privateKey: Buffer | string
  log: Log
  /** A connection without channels is closed after this long. Default 10 minutes. */
  idleTimeoutMs?: number
  /** TCP, key exchange and sign-in together. Default 20 s. */
  connectTimeoutMs?: number
  /** Channels on one connection before another is opened. Default 100. */
  maxChannelsPerConnection?: number
  /** A machine that is silent this long is asked whether it lives; three unanswered questions end the connection. Default 15 s. */
  keepaliveIntervalMs?: number
}

/** The gateway's connections to machines. */
export class MachinePool {
  readonly options: MachinePoolOptions

  constructor(options: MachinePoolOptions) {
    this.options = options
  }

  /** Connects and signs in, so that the next session starts at once. Resolves when the machine's sshd let us in. */
  async warm(_target: MachineTarget): Promise<void> {}

  /** Closes every connection to a machine: it stopped, restarted or is gone. */
  forget(_machineId: number): void {}

  /** Closes all connections; nothing can be opened afterwards. */
  close(): void {}
}
