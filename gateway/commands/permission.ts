import type { TokenScope } from '../app.ts'
import type { Command } from './command.ts'
import { CommandError } from './error.ts'

/**
 * What a token may run: the commands it names, or any but those that sign a person in. One for some machines
 * alone runs only what finds its machines where that limit is kept.
 * @throws CommandError 'token.not_allowed' (4)
 */
export function refuseBeyondScope(scope: TokenScope | undefined, command: Command): void {
  if (!scope) return
  const { commands, machineId, tag } = scope
  if (commands ? !isNamed(commands, command) : command.signsIn) {
    throw notAllowed(`this token may not run ${command.name}`, `token new --cmds '${command.name}'`)
  }
  if ((machineId !== undefined || tag !== undefined) && !command.onMachines) {
    throw notAllowed(
      `this token is for some machines alone, and ${command.name} is about more than those`,
      `token new --cmds '${command.name}', without --machine or --tag`,
    )
  }
}

/** Whether a list has the command by its name, one of its other names, or the first word of it. */
export function isNamed(commands: readonly string[], { name, aliases = [] }: Pick<Command, 'name' | 'aliases'>) {
  return [name, ...aliases].some((one) => commands.includes(one) || commands.includes(one.split(' ')[0] ?? one))
}

/** Of a command that makes machines. */
export function oneMachineOnly(): CommandError {
  return notAllowed('this token is for one machine and makes no others', 'token new --tag TAG, for one that makes some')
}

function notAllowed(message: string, wayOn?: string): CommandError {
  return new CommandError('token.not_allowed', 4, message, wayOn === undefined ? {} : { wayOn })
}
