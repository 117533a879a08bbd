import { randomBytes } from 'node:crypto'
import { type MachineCommand, type MachineProcess, openOnMachine } from './open-on-machine.ts'
import type { MachinePool } from './pool.ts'
import type { MachineTarget } from './target.ts'

export type RunningCommand = MachineProcess & {
  /** Ends the process and everything it started: TERM, a second later KILL. Never rejects. */
  end(): Promise<void>
}

/** In the environment of a command and of all that it starts, so that they can be found. */
const MARK = 'BERTH_COMMAND'
const MARK_BYTES = 12

/**
 * `openOnMachine`, for a command that must not outlive whoever asked for it.
 * @throws MachineUnreachableError
 */
export async function runOnMachine(
  pool: MachinePool,
  target: MachineTarget,
  what: MachineCommand,
): Promise<RunningCommand> {
  const mark = randomBytes(MARK_BYTES).toString('hex')
  const remote = await openOnMachine(pool, target, { ...what, env: { ...what.env, [MARK]: mark } })
  return {
    ...remote,
    async end() {
      remote.close()
      try {
        const killer = await openOnMachine(pool, target, { command: endCommand(mark) })
        killer.stdin.end()
        killer.stdout.resume()
        killer.stderr.resume()
        await killer.exit
      } catch {
        // The machine is gone, or its image has no shell: then no shell started anything either.
      }
    },
  }
}

/**
 * Ends all that has the mark. sshd lets a process without a terminal live on when its channel closes, and a signal
 * sent over the channel reaches one process group only: what a command started in sessions of its own would stay.
 */
function endCommand(mark: string): string {
  const script = [
    's=TERM',
    'for n in 1 2 3 4 5; do found=',
    `for f in $(grep -ls ${MARK}=${mark} /proc/[0-9]*/environ 2>/dev/null); do f=\${f%/environ}; kill -$s "\${f#/proc/}" 2>/dev/null && found=1; done`,
    '[ "$found" ] || exit 0',
    's=KILL',
    'sleep 1',
    'done',
  ].join('\n')
  return `exec /bin/sh -c '${script}'`
}
