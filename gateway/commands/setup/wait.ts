import type { Machine } from '../../machines.ts'
import type { Settings } from '../../settings.ts'
import type { Context } from '../command.ts'
import { CommandError } from '../error.ts'
import { sshLine } from '../machine-document.ts'
import { untilSettled } from '../machine-steps.ts'
import { SETUP_LOG_COMMAND } from './hold.ts'

/** A script may install half a distribution; a person who does not want to wait presses Ctrl-C. */
const SETUP_TIMEOUT_MS = 6 * 3_600_000

/** The line that shows what a setup script said. */
export function setupLogLine(settings: Settings, name: string): string {
  return sshLine(settings, name, SETUP_LOG_COMMAND)
}

/** Waits for the end of a setup script, which `startSetups` runs and writes down. */
export async function untilSetupEnded(context: Context, machine: Machine): Promise<Machine> {
  context.progress.show(`${machine.name}: running its setup script`)
  let ended = machine
  await untilSettled(
    context,
    machine,
    (seen) => {
      if (!seen) throw new CommandError('machine.not_found', 3, `${machine.name} was deleted meanwhile`)
      if (seen.observedState === 'failed') {
        throw new CommandError('machine.failed', 1, `${seen.name} failed while its setup script ran`, {
          wayOn: `restart ${seen.name}`,
        })
      }
      refuseWhenOff(seen)
      ended = seen
      return seen.setupState === 'done' || seen.setupState === 'failed'
    },
    SETUP_TIMEOUT_MS,
  )
  return ended
}

/** What is off goes on with no script; a sleeper does, as soon as it wakes. */
function refuseWhenOff({ name, desiredState }: Machine): void {
  if (desiredState === 'stopped') throw overtaken(`${name} was stopped`, `start ${name}`)
  if (desiredState === 'trashed') throw overtaken(`${name} was put into the trash`, `untrash ${name}`)
}

function overtaken(what: string, wayOn: string): CommandError {
  return new CommandError('machine.overtaken', 1, `${what} while its setup script ran`, { wayOn })
}
