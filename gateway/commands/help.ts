import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { commandDescription, commandHelp, familyHelp, overview } from './help-text.ts'
import { findCommand, firstWords, membersOf } from './lookup.ts'
import { TABLE } from './table.ts'

const commandNames: Completer = ({ caller }) =>
  firstWords(TABLE.filter((command) => caller.isOwner || !command.operator))

export const help = defineCommand({
  name: 'help',
  aliases: ['?'],
  group: 'lobby',
  onMachines: true,
  summary: 'the commands, or one of them',
  arguments: { command: { label: 'COMMAND', repeated: true, optional: true, complete: commandNames } },
  examples: ['help', 'help new'],
  async run({ caller }, { args }) {
    const [first = '', second] = args.command
    const mine = TABLE.filter((command) => caller.isOwner || !command.operator)
    if (!first) return { json: { commands: mine.map(commandDescription) }, text: (view) => overview(mine, view) }
    if (second === undefined && membersOf(TABLE, first).length) return familyHelp(TABLE, first)
    const { command } = findCommand(TABLE, args.command)
    return { json: commandDescription(command), text: (view) => commandHelp(command, view) }
  },
})
