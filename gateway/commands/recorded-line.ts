import type { Command, FlagSpecs } from './command.ts'
import { COMMON_FLAGS, canonicalName, optionTokens } from './parse.ts'
import { harmless } from './text.ts'
import { quoteWord } from './words.ts'

const MOST = 500

/**
 * A line as the audit record keeps it: what was typed, but for values that may be secret (of `--env K=V` the name
 * stays), how the answer was wanted, and what belongs to another program.
 */
export function recordedLine(command: Command, words: readonly string[]): string {
  const specs: FlagSpecs = { ...command.flags, ...COMMON_FLAGS }
  const kept: string[] = []
  for (const token of optionTokens(command, words)) {
    if (token.kind === 'option-terminator') kept.push('--')
    else if (token.kind === 'positional') kept.push(quoteWord(token.value))
    else {
      const name = canonicalName(specs, token.name)
      if (name !== undefined && name in COMMON_FLAGS) continue
      // A flag that there is not ends the command before anything is recorded.
      const spec = name === undefined ? undefined : specs[name]
      if (token.value === undefined) kept.push(token.rawName)
      else kept.push(`${token.rawName}=${spec?.secret ? withoutValue(token.value) : quoteWord(token.value)}`)
    }
  }
  const line = harmless([command.name, ...kept].join(' ')).replaceAll('\n', ' ')
  return line.length > MOST ? `${line.slice(0, MOST - 1)}…` : line
}

function withoutValue(text: string): string {
  const name = /^([A-Za-z_][A-Za-z0-9_]*)=/.exec(text)?.[1]
  return name === undefined ? '…' : `${name}=…`
}
