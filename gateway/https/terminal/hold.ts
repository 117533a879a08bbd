/** The session holder in the machine (init/hold.c), as the web terminal uses it. */
import { SESSION_NAME } from '../../../web/terminal/protocol.ts'
import type { App } from '../../app.ts'
import { HOLD } from '../../commands/setup/hold.ts'
import type { Machine, Seeker } from '../../machines.ts'
import { openOnMachine } from '../../ssh/pool/open-on-machine.ts'

export type HeldSession = {
  name: string
  /** how many see it now */
  attached: number
}

/** A login shell is started when there is no such session. @param session checked: it goes through a shell */
export function attachCommand(session: string): string {
  return `exec ${HOLD} attach ${session}`
}

const LIST_LIMIT_BYTES = 256 * 1024
const LIST_LIMIT_MS = 5_000

/**
 * The terminals that are held in a machine for its login user.
 * @returns nothing when what the machine answers is not understood
 * @throws MachineNotReadyError, MachineUnreachableError
 */
export async function heldSessions(app: App, machine: Machine, seeker: Seeker): Promise<HeldSession[]> {
  const target = app.machines.target(machine, seeker)
  const remote = await openOnMachine(app.pool, target, { command: `exec ${HOLD} ls --json` })
  const timer = setTimeout(() => remote.close(), LIST_LIMIT_MS)
  try {
    remote.stdin.end()
    remote.stderr.resume()
    const pieces: Buffer[] = []
    let bytes = 0
    for await (const piece of remote.stdout) {
      bytes += (piece as Buffer).length
      if (bytes > LIST_LIMIT_BYTES) return []
      pieces.push(piece as Buffer)
    }
    return readSessions(Buffer.concat(pieces).toString('utf8'))
  } catch {
    return []
  } finally {
    clearTimeout(timer)
    remote.close()
  }
}

/** What comes from a machine is whatever its users want. */
function readSessions(text: string): HeldSession[] {
  type Told = { name?: unknown; kind?: unknown; state?: unknown; attached?: unknown }
  const { sessions } = JSON.parse(text) as { sessions?: Told[] }
  if (!Array.isArray(sessions)) return []
  return sessions.flatMap(({ name, kind, state, attached }) =>
    typeof name === 'string' && SESSION_NAME.test(name) && kind === 'terminal' && state === 'running'
      ? [{ name, attached: Number(attached) || 0 }]
      : [],
  )
}
