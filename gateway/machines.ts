import type { machines } from '../migrations/schema.ts'
import type { MachineTarget } from './ssh/pool/target.ts'

/** A machine's row and the address it has; `address` is null once the machine is gone. */
export type Machine = typeof machines.$inferSelect & { address: string | null }

/** The account is all that decides access; a Caller will do. */
export type Seeker = { accountId: number }

/** Which machines an account may see and reach. Trashed machines have no name and are found by neither function. */
export type MachineAccess = {
  /** @returns undefined when there is none of that name that this account may reach: the two cases look the same */
  find(name: string, seeker: Seeker): Promise<Machine | undefined>
  /** all machines an account sees, by name */
  list(seeker: Seeker): Promise<Machine[]>
  /** @returns undefined when the account does not see it or it is gone */
  byId(machineId: number, seeker: Seeker): Promise<Machine | undefined>
  /**
   * Waits until SSH to the machine can be tried. A machine that is starting is waited for.
   * @param onStage hears where the start is, when it changes
   * @throws MachineNotReadyError when it is off, failed, trashed or `timeoutMs` has passed
   */
  whenReady(
    machineId: number,
    seeker: Seeker,
    options: { signal: AbortSignal; timeoutMs?: number; onStage?: (machine: Machine) => void },
  ): Promise<Machine>
  /**
   * Where a session to a ready machine goes.
   * @param user guest user; the image's login user unless given
   */
  target(machine: Machine, seeker: Seeker, user?: string): MachineTarget
}

/** `message` is for the person: what is wrong and what to type. */
export class MachineNotReadyError extends Error {
  override readonly name = 'MachineNotReadyError'
  readonly code: 'machine.not_found' | 'machine.off' | 'machine.failed' | 'machine.timeout'

  constructor(code: MachineNotReadyError['code'], message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}
