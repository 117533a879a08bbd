import type { Command, Result } from './command.ts'
import { familyOf } from './lookup.ts'
import { COMMON_FLAGS, flagUsage, usageLine } from './parse.ts'
import { definitions, type View, wrap } from './text.ts'

/** `--help` of one command. */
export function commandHelp(command: Command, view: View): string {
  const { style } = view
  const flags = Object.entries({ ...command.flags, ...COMMON_FLAGS })
    .filter(([, spec]) => !('hidden' in spec && spec.hidden))
    .map(([name, spec]) => [flagUsage(name, spec), spec.summary] as const)
  const parts = [
    `${style.bold(usageLine(command))}\n${wrap(`  ${command.summary}`, view.columns).join('\n')}\n`,
    ...(command.description ? [`${wrap(command.description, Math.min(view.columns, 80)).join('\n')}\n`] : []),
    definitions(flags, view),
    ...(command.examples?.length
      ? [`${style.dim('for example')}\n${command.examples.map((e) => `  ${e}\n`).join('')}`]
      : []),
  ]
  return parts.join('\n')
}

/** The document that `--help --json` gives: the command as declared. */
export function commandDescription(command: Command) {
  return {
    name: command.name,
    usage: usageLine(command),
    summary: command.summary,
    arguments: Object.values(command.arguments).map(({ label, optional, repeated }) => ({
      name: label,
      required: !optional,
      repeated: repeated === true,
    })),
    flags: Object.entries(command.flags)
      .filter(([, spec]) => !spec.hidden)
      .map(([name, spec]) => ({
        name: `--${name}`,
        type: spec.type,
        summary: spec.summary,
        repeated: spec.repeated === true,
        ...(spec.choices ? { choices: spec.choices } : {}),
      })),
    examples: command.examples ?? [],
  }
}

/** `help share`, `share --help`: the commands that begin with one word. */
export function familyHelp(table: readonly Command[], first: string): Result {
  const family = familyOf(table, first)
  const lines = family.map(([name, command]) => [name, command.summary] as const)
  return {
    json: { commands: family.map(([, command]) => commandDescription(command)) },
    text: (view) => `${definitions(lines, view, 0)}\n${view.style.dim('each of them takes --help')}\n`,
  }
}

const GROUPS = [
  ['machines', 'machines'],
  ['web', 'their pages, over HTTPS'],
  ['you', 'you'],
  ['operator', 'this installation'],
  ['lobby', 'the lobby'],
] as const

/** The commands one may use, by group. Two-word commands of one family share a line. */
export function overview(commands: readonly Command[], view: View): string {
  const widest = commands.reduce((width, command) => Math.max(width, (command.name.split(' ')[0] ?? '').length), 0)
  const sections = GROUPS.flatMap(([group, title]) => {
    const pairs = families(commands.filter((command) => command.group === group))
    return pairs.length ? [`${view.style.dim(title)}\n${definitions(pairs, view, 2, widest)}`] : []
  })
  const tail = wrap('NAME --help tells more of a command; every command takes --json.', view.columns).join('\n')
  return `${sections.join('\n')}\n${view.style.dim(tail)}\n`
}

function families(commands: readonly Command[]): (readonly [string, string])[] {
  const byFirst = Map.groupBy(commands, (command) => command.name.split(' ')[0] ?? '')
  return [...byFirst].map(([first, members]) => {
    const [only] = members
    if (members.length === 1 && only) return [only.name, only.summary] as const
    const itself = members.find((member) => member.name === first)
    const others = members.filter((member) => member !== itself).map((member) => member.name.slice(first.length + 1))
    return [first, itself ? `${itself.summary}; also ${others.join(', ')}` : others.join(', ')] as const
  })
}
