/** Where a session goes: one machine, seen by one account as one guest user. */
export type MachineTarget = {
  machineId: number
  /** The machine's name, used in messages to people. */
  name: string
  /** IPv4 address of the machine on its tap. */
  address: string
  /** TCP port of the platform's own sshd; 22. */
  port: number
  /** The machine's public host key in SSH wire format (RFC 4253, 6.6): `string type, …`. */
  hostKey: Buffer
  /** Login user inside the machine. */
  user: string
  /** Whose session it is. Connections are never shared between accounts. */
  accountId: number
}

/** Raised when a machine cannot be reached. `message` is one sentence for the person at the other end. */
export class MachineUnreachableError extends Error {
  override readonly name = 'MachineUnreachableError'
  readonly code: 'machine.unreachable' | 'machine.host_key_mismatch' | 'machine.authentication_failed' | 'pool.closed'

  constructor(code: MachineUnreachableError['code'], message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}
