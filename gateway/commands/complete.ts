import type { App, Caller } from '../app.ts'
import type { Command, Completer, FlagSpec, FlagSpecs } from './command.ts'
import { findCommand, firstWords, membersOf } from './lookup.ts'
import { COMMON_FLAGS, canonicalName, flagNames } from './parse.ts'
import { quoteWord, scanWords } from './words.ts'

export type Completion = {
  /** where the word to be completed begins, an UTF-16 index */
  start: number
  /** as they would be typed, quoted where needed, with a blank behind a finished word */
  candidates: string[]
}

const LIMIT = 1000

/** What could stand at the end of a line: commands, flags, machine names, values. */
export async function completeLine(
  table: readonly Command[],
  context: { app: App; caller: Caller },
  line: string,
): Promise<Completion> {
  const scanned = scanWords(line, true)
  const last = scanned.at(-1)
  const current = last && (last.end === line.length || last.open) ? last : undefined
  const typed = current?.text ?? ''
  const before = (current ? scanned.slice(0, -1) : scanned).map((word) => word.text)
  const start = current?.start ?? line.length
  const place = placeOf(table, before, typed)
  const values = await Promise.resolve(place.completer(context)).catch(() => [])
  const candidates = values
    .filter((value) => value.startsWith(place.typed))
    .slice(0, LIMIT)
    .sort()
    .map((value) => place.prefix + (value.endsWith('=') ? value : `${quoteWord(value)} `))
  return { start, candidates: [...new Set(candidates)] }
}

type Place = { completer: Completer; typed: string; prefix: string }

function placeOf(table: readonly Command[], before: readonly string[], typed: string): Place {
  const at = (completer: Completer, from = typed, prefix = ''): Place => ({ completer, typed: from, prefix })
  const [first] = before
  if (first === undefined) return at(() => firstWords(table))
  const members = membersOf(table, first)
  const isMember = before[1] !== undefined && members.includes(before[1])
  if (members.length && before.length === 1 && !typed.startsWith('-')) {
    const own = table.find((command) => command.name === first)
    const argument = own && Object.values(own.arguments)[0]?.complete
    return at(async (context) => [...members, ...((await argument?.(context)) ?? [])])
  }
  if (members.length && !isMember && !table.some((command) => command.name === first)) return at(() => [])
  const found = tryFind(table, before)
  if (!found) return at(() => [])
  return placeInCommand(found.command, found.words, typed, at)
}

function placeInCommand(
  command: Command,
  words: readonly string[],
  typed: string,
  at: (completer: Completer, from?: string, prefix?: string) => Place,
): Place {
  const specs: FlagSpecs = { ...command.flags, ...COMMON_FLAGS }
  let count = 0
  let waiting: FlagSpec | undefined
  let ended = false
  for (const word of words) {
    if (waiting) waiting = undefined
    else if (word === '--' && !ended) ended = true
    else if (!ended && word.startsWith('-') && word !== '-') waiting = wantsValue(specs, word)
    else count++
    if (command.passThrough && count > 0) return at(() => [])
  }
  if (waiting) return at(valuesOf(waiting))
  const equals = typed.startsWith('--') ? typed.indexOf('=') : -1
  if (!ended && equals > 0) {
    const name = canonicalName(specs, typed.slice(2, equals))
    const spec = name === undefined ? undefined : specs[name]
    return at(spec ? valuesOf(spec) : () => [], typed.slice(equals + 1), typed.slice(0, equals + 1))
  }
  if (!ended && typed.startsWith('-')) {
    return at(() =>
      flagNames(specs).map((flag) => (wantsValue(specs, flag) && flag.startsWith('--') ? `${flag}=` : flag)),
    )
  }
  const args = Object.values(command.arguments)
  const spec = args[count] ?? (args.at(-1)?.repeated ? args.at(-1) : undefined)
  const completer = spec?.complete
  if (!completer) return at(() => [])
  // A name that is there already is not offered again.
  return at(async (context) => (await completer(context)).filter((value) => !words.includes(value)))
}

function tryFind(table: readonly Command[], words: readonly string[]) {
  try {
    return findCommand(table, words)
  } catch {
    return undefined
  }
}

function wantsValue(specs: FlagSpecs, word: string): FlagSpec | undefined {
  if (word.includes('=')) return undefined
  const typed = word.replace(/^--?/, '')
  const name = word.startsWith('--')
    ? canonicalName(specs, typed)
    : Object.keys(specs).find((key) => specs[key]?.short === typed.at(-1))
  const spec = name === undefined ? undefined : specs[name]
  return spec && spec.type !== 'boolean' ? spec : undefined
}

function valuesOf(spec: FlagSpec): Completer {
  const { choices } = spec
  if (choices) return () => choices
  return spec.complete ?? (() => (spec.never ? ['never'] : []))
}

/** The machines that the caller can reach. */
export const machineNames: Completer = async ({ app, caller }) =>
  (await app.machines.list(caller)).map((machine) => machine.name)
