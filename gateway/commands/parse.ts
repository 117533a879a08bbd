import { type ParseArgsConfig, parseArgs } from 'node:util'
import type { ArgumentSpecs, Command, FlagSpec, FlagSpecs, ParsedInput } from './command.ts'
import { type CommandError, usageError } from './error.ts'
import { nearest } from './nearest.ts'
import { parseDuration, parseSize, sayList, shown } from './values.ts'

/** Flags that every command takes. */
export const COMMON_FLAGS = {
  json: { type: 'boolean', summary: 'one JSON document instead of text' },
  help: { type: 'boolean', short: 'h', summary: 'what the command does and takes' },
} as const satisfies FlagSpecs

/** What JSON, and a bigint of Postgres, have room for with some to spare. */
const INTEGER_MOST = 999_999_999_999

/** Each letter of such a word is a flag to parseArgs, which ends with an error of its own at some hundred thousand. */
const SHORT_FLAGS_MOST = 4096

export type Parsed = ParsedInput & { json: boolean; help: boolean }

/**
 * Reads a command's words by its declarations. `--help` wins over every mistake.
 * @throws CommandError (usage)
 */
export function parseCommand(command: Command, words: readonly string[]): Parsed {
  const specs: FlagSpecs = { ...command.flags, ...COMMON_FLAGS }
  const { flags, positionals, mistake } = readFlags(command, specs, words)
  const json = flags.json === true
  if (flags.help === true) return { flags, args: {}, json, help: true }
  if (mistake) throw mistake
  return { flags, args: readArguments(command, positionals), json, help: false }
}

function readFlags(command: Command, specs: FlagSpecs, words: readonly string[]) {
  const many = words.find((word) => word.length > SHORT_FLAGS_MOST && /^-[^-]/.test(word))
  if (many && !command.passThrough) throw unknownFlag(command, specs, many)
  const own = command.passThrough ? beforeArguments(specs, words) : words
  const tokens = tokensOf(specs, own)
  const flags: Record<string, unknown> = {}
  for (const [name, spec] of Object.entries(specs)) flags[name] = spec.repeated ? [] : undefined
  const positionals: string[] = []
  let mistake: CommandError | undefined
  for (const token of tokens) {
    if (token.kind === 'positional') positionals.push(token.value)
    if (token.kind !== 'option') continue
    // After a mistake only --help counts, and one word may be thousands of short flags.
    if (mistake && canonicalName(specs, token.name) !== 'help') continue
    try {
      readFlag(command, specs, flags, token)
    } catch (error) {
      mistake ??= error as CommandError
    }
  }
  return { flags, positionals: [...positionals, ...words.slice(own.length)], mistake }
}

type OptionToken = { name: string; rawName: string; value?: string | undefined }

function readFlag(command: Command, specs: FlagSpecs, flags: Record<string, unknown>, token: OptionToken) {
  const name = canonicalName(specs, token.name)
  const spec = name === undefined ? undefined : specs[name]
  if (name === undefined || !spec) throw unknownFlag(command, specs, token.rawName)
  const value = flagValue(spec, token)
  if (spec.repeated) (flags[name] as unknown[]).push(value)
  else if (flags[name] !== undefined && flags[name] !== value) throw usageError(`${token.rawName} is given twice`)
  else flags[name] = value
}

function flagValue(spec: FlagSpec, { rawName, value }: OptionToken): unknown {
  if (spec.type === 'boolean') {
    if (value === undefined || value === 'true') return true
    if (value === 'false') return false
    throw usageError(`${rawName} is a switch and takes no value`)
  }
  if (value === undefined) throw usageError(`${rawName} wants a value`, `${rawName}=${spec.value ?? exampleOf(spec)}`)
  const checked = spec.type === 'string' ? choiceOf(spec, rawName, value) : measure(spec, rawName, value)
  return checked
}

function choiceOf(spec: FlagSpec, rawName: string, value: string): string {
  if (!spec.choices || spec.choices.includes(value)) return value
  const near = nearest(value, spec.choices)
  throw usageError(
    `${rawName} is one of ${sayList(spec.choices, 12, 'or')}, not ${shown(value)}`,
    near && `${rawName}=${near}`,
  )
}

function measure(spec: FlagSpec, rawName: string, value: string): number | 'never' {
  if (spec.never && value === 'never') return 'never'
  if (spec.type === 'duration') return parseDuration(value, rawName, spec.never && 'never')
  if (spec.type === 'size') return parseSize(value, rawName, spec)
  const number = parseInteger(value, rawName)
  const { min = 0, max } = spec
  if (number >= min && number <= (max ?? INTEGER_MOST)) return number
  const range =
    max !== undefined ? `between ${min} and ${max}` : number < min ? `at least ${min}` : `at most ${INTEGER_MOST}`
  throw usageError(`${rawName} is ${range}, not ${shown(value)}`)
}

function parseInteger(text: string, what: string): number {
  if (!/^\d+$/.test(text)) throw usageError(`${what} wants a whole number, not ${shown(text)}`)
  return Number(text)
}

function readArguments(command: Command, positionals: readonly string[]): Record<string, unknown> {
  const specs: ArgumentSpecs = command.arguments
  const args: Record<string, unknown> = {}
  let next = 0
  for (const [name, spec] of Object.entries(specs)) {
    if (spec.repeated) {
      args[name] = positionals.slice(next)
      if (!spec.optional && positionals.length <= next) throw missing(command, spec.label)
      next = positionals.length
    } else {
      args[name] = positionals[next]
      if (args[name] === undefined && !spec.optional) throw missing(command, spec.label)
      next++
    }
  }
  const extra = positionals[next]
  if (extra !== undefined) {
    throw usageError(`${command.name} does not know what to do with ${shown(extra)}`, usageLine(command))
  }
  return args
}

function missing(command: Command, label: string) {
  return usageError(`${command.name} wants ${label}`, usageLine(command))
}

function unknownFlag(command: Command, specs: FlagSpecs, rawName: string) {
  const known = flagNames(specs)
  // One letter is as near to any other, and a number below nothing to none.
  const near = rawName.length > 2 ? nearest(rawName, known) : undefined
  return usageError(
    `${command.name} has no flag ${shown(rawName)}`,
    near ? `did you mean ${near}` : `${command.name} --help lists its flags`,
  )
}

/** `--image`, `-l`, …: everything that may be typed, hidden ones left out. */
export function flagNames(specs: FlagSpecs): string[] {
  return Object.entries(specs)
    .filter(([, spec]) => !spec.hidden)
    .flatMap(([name, spec]) => [`--${name}`, ...(spec.short ? [`-${spec.short}`] : [])])
}

export function canonicalName(specs: FlagSpecs, typed: string): string | undefined {
  if (Object.hasOwn(specs, typed)) return typed
  return Object.keys(specs).find((name) => specs[name]?.aliases?.includes(typed))
}

/** A command's words one by one, to the first argument of one that passes the rest on. */
export function optionTokens(command: Command, words: readonly string[]) {
  const specs: FlagSpecs = { ...command.flags, ...COMMON_FLAGS }
  return tokensOf(specs, command.passThrough ? beforeArguments(specs, words) : words)
}

function tokensOf(specs: FlagSpecs, words: readonly string[]) {
  const options = parseArgsOptions(specs)
  return parseArgs({ args: [...words], options, strict: false, allowPositionals: true, tokens: true }).tokens
}

function parseArgsOptions(specs: FlagSpecs): NonNullable<ParseArgsConfig['options']> {
  const options: NonNullable<ParseArgsConfig['options']> = {}
  for (const [name, spec] of Object.entries(specs)) {
    const type = spec.type === 'boolean' ? 'boolean' : 'string'
    options[name] = { type, multiple: true, ...(spec.short ? { short: spec.short } : {}) }
    for (const alias of spec.aliases ?? []) options[alias] = { type, multiple: true }
  }
  return options
}

/** The words up to and without the first argument's successor: what follows belongs to another program. */
function beforeArguments(specs: FlagSpecs, words: readonly string[]): readonly string[] {
  const first = tokensOf(specs, words).find((token) => token.kind === 'positional')
  return first ? words.slice(0, first.index + 1) : words
}

/** `new [NAME] [--image REF] …`, without the flags that every command has. */
export function usageLine(command: Command): string {
  const args = Object.values(command.arguments).map(({ label, optional, repeated }) => {
    const shownLabel = repeated ? `${label}..` : label
    return optional ? `[${shownLabel}]` : shownLabel
  })
  const flags = Object.values(command.flags).some((spec) => !spec.hidden) ? ['[flags]'] : []
  const parts = command.passThrough ? [...flags, ...args] : [...args, ...flags]
  return [command.name, ...parts].join(' ')
}

/** `--cpu N`, as help shows a flag. */
export function flagUsage(name: string, spec: FlagSpec): string {
  const short = spec.short ? `-${spec.short}, ` : ''
  if (spec.type === 'boolean') return `${short}--${name}`
  return `${short}--${name} ${spec.choices ? spec.choices.join('|') : (spec.value ?? exampleOf(spec))}${spec.repeated ? '..' : ''}`
}

function exampleOf(spec: FlagSpec): string {
  return { string: 'TEXT', integer: 'N', size: '4G', duration: '30m', boolean: '' }[spec.type]
}
