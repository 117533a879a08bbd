import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { commandDescription, commandHelp, overview } from './help-text.ts'
import { findCommand, firstWords, membersOf } from './lookup.ts'
import { TABLE } from './table.ts'
import { definitions } from './text.ts'

const commandNames: Completer = ({ caller }) =>
  firstWords(TABLE.filter((command) => caller.isOwner || !command.operator))

export const help = defineCommand({
  name: 'help',
  aliases: ['?'],
  group: 'lobby',
  summary: 'the commands, or one of them',
  arguments: { command: { label: 'COMMAND', repeated: true, optional: true, complete: commandNames } },
  examples: ['help', 'help new'],
  async run({ caller }, { args }) {
    const [first = '', second] = args.command
    const mine = TABLE.filter((command) => caller.isOwner || !command.operator)
    if (!first) return { json: { commands: mine.map(commandDescription) }, text: (view) => overview(mine, view) }
    const members = membersOf(TABLE, first)
    if (members.length && second === undefined) {
      const family = TABLE.filter((command) => command.name.startsWith(`${first} `))
      return {
        json: { commands: family.map(commandDescription) },
        text: (view) =>
          definitions(
            family.map((command) => [command.name, command.summary]),
            view,
            0,
          ),
      }
    }
    const { command } = findCommand(TABLE, args.command)
    return { json: commandDescription(command), text: (view) => commandHelp(command, view) }
  },
})
