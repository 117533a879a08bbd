import type { Command } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { nearest } from './nearest.ts'
import { sayList, shown } from './values.ts'

export type Found = { command: Command; words: readonly string[] }

/**
 * The command that a line's first word, or its first two, names.
 * @param offered those that a refusal may name: whoever asks may not run every command there is
 * @throws CommandError when there is none; the nearest name is suggested
 */
export function findCommand(table: readonly Command[], words: readonly string[], offered = table): Found {
  const [first = '', second = ''] = words
  const both = byName(table, `${first} ${second}`)
  if (both) return { command: both, words: words.slice(2) }
  const one = byName(table, first)
  if (one) return { command: one, words: words.slice(1) }
  const listing = membersOf(table, first).find((member) => ['ls', 'list', 'read'].includes(member))
  if (listing && (!second || second.startsWith('-'))) return findCommand(table, [first, listing, ...words.slice(1)])
  const members = membersOf(offered, first)
  if (members.length) throw unknownMember(first, second, members)
  if (membersOf(table, first).length) throw operatorOnly(first)
  throw unknownCommand(offered, first)
}

/** Of a command that there is, for others. */
export function operatorOnly(name: string): CommandError {
  return new CommandError('not_allowed', 4, `${name} is the operator's`, { wayOn: 'help lists what you can do' })
}

/** `add`, `list`, … of a command that is nothing by itself. */
export function membersOf(table: readonly Command[], first: string): string[] {
  return familyOf(table, first).map(([name]) => name.slice(first.length + 1))
}

/** The commands that begin with one word, each as it is called there: `share port` is `port` as well. */
export function familyOf(table: readonly Command[], first: string): [name: string, command: Command][] {
  return table.flatMap((command): [string, Command][] => {
    const name = [command.name, ...(command.aliases ?? [])].find((one) => one.startsWith(`${first} `))
    return name === undefined ? [] : [[name, command]]
  })
}

/** `share --help`: the first word of several commands, with no second one before the flag; the flag may stand beside `--json`. */
export function asksForFamily(table: readonly Command[], [first = '', ...rest]: readonly string[]): string | undefined {
  const isAsked = rest.some((word) => word === '--help' || word === '-h') && rest.every((word) => word.startsWith('-'))
  return isAsked && !byName(table, first) && membersOf(table, first).length ? first : undefined
}

/** What can be typed first: whole names of one word and first words of two. */
export function firstWords(table: readonly Command[]): string[] {
  return [...new Set(table.map((command) => command.name.split(' ')[0] ?? ''))].sort()
}

function byName(table: readonly Command[], name: string) {
  return table.find((command) => command.name === name || command.aliases?.includes(name))
}

function unknownMember(first: string, second: string, members: string[]) {
  const near = second && nearest(second, members)
  const message = second && !second.startsWith('-') ? `${first} has no ${shown(second)}` : `${first} wants to know what`
  return usageError(
    message,
    near ? `did you mean ${first} ${near}` : `${first} ${sayList(members, members.length, 'or')}`,
  )
}

function unknownCommand(table: readonly Command[], first: string) {
  const others = table.flatMap((command) => command.aliases ?? []).filter((alias) => /^[a-z]/.test(alias))
  const near = nearest(first, [...firstWords(table), ...others])
  return new CommandError('command.unknown', 2, `no command called ${shown(first)}`, {
    wayOn: near ? `did you mean ${near}` : 'help lists the commands',
  })
}
