import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { commandDescription, commandHelp, familyHelp, overview } from './help-text.ts'
import { findCommand, firstWords, membersOf, operatorOnly } from './lookup.ts'
import { commandsFor, TABLE } from './table.ts'

const commandNames: Completer = ({ caller }) => firstWords(commandsFor(caller))

export const help = defineCommand({
  name: 'help',
  aliases: ['?', '--help', '-h'],
  group: 'lobby',
  onMachines: true,
  summary: 'the commands, or one of them',
  arguments: { command: { label: 'COMMAND', repeated: true, optional: true, complete: commandNames } },
  examples: ['help', 'help new'],
  async run({ caller }, { args }) {
    const [first = '', second] = args.command
    const mine = commandsFor(caller)
    if (!first) return { json: { commands: mine.map(commandDescription) }, text: (view) => overview(mine, view) }
    if (second === undefined && membersOf(mine, first).length) return familyHelp(mine, first)
    const { command } = findCommand(TABLE, args.command, mine)
    if (command.operator && !caller.isOwner) throw operatorOnly(command.name)
    return { json: commandDescription(command), text: (view) => commandHelp(command, view) }
  },
})
