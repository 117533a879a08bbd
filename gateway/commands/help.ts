import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { DOCS } from './docs.ts'
import { CommandError } from './error.ts'
import { commandDescription, commandHelp, overview } from './help-text.ts'
import { findCommand, firstWords, membersOf } from './lookup.ts'
import { nearest } from './nearest.ts'
import { TABLE } from './table.ts'
import { definitions, wrap } from './text.ts'
import { sayList, shown } from './values.ts'

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

export const doc = defineCommand({
  name: 'doc',
  group: 'lobby',
  summary: 'short pages on how things work here',
  arguments: { topic: { label: 'TOPIC', optional: true, complete: () => Object.keys(DOCS) } },
  async run({ app }, { args }) {
    const topics = Object.keys(DOCS)
    if (args.topic === undefined) {
      return {
        json: { topics },
        text: (view) =>
          definitions(
            topics.map((topic) => [topic, DOCS[topic]?.title ?? '']),
            view,
            0,
          ),
      }
    }
    const page = Object.hasOwn(DOCS, args.topic) ? DOCS[args.topic] : undefined
    if (!page) {
      const near = nearest(args.topic, topics)
      throw new CommandError('doc.not_found', 3, `no page on ${shown(args.topic)}`, {
        wayOn: near ? `did you mean ${near}` : `pages: ${sayList(topics, 20)}`,
      })
    }
    const text = page.text(app.settings)
    return {
      json: { topic: args.topic, title: page.title, text },
      text: (view) =>
        `${view.style.bold(page.title)}\n\n${text
          .split('\n')
          // Lines that begin with blanks can be typed, so they are left as they are.
          .flatMap((line) => (line.startsWith('  ') ? [line] : wrap(line, Math.min(80, view.columns))))
          .join('\n')}\n`,
    }
  },
})

export const exit = defineCommand({
  name: 'exit',
  aliases: ['logout', 'quit'],
  group: 'lobby',
  summary: 'leave the lobby; Ctrl-D does too',
  run: async () => ({ json: {}, text: '' }),
})
