import { LOBBY_NAMES, RESERVED_NAMES } from '../../accounts/names.ts'
import { usageError } from '../error.ts'
import { shown } from '../values.ts'

const MAX_LENGTH = 40

/**
 * Names are 1 to 40 of a-z, 0-9 and single inner hyphens, starting with a letter, and none of those that ssh
 * clients send by themselves.
 * @returns the name
 * @throws CommandError (usage) that says which rule is broken and what a near name would be
 */
export function validName(name: string): string {
  const problem = nameProblem(name)
  if (!problem) return name
  const near = mended(name)
  throw usageError(problem, near && near !== name && !nameProblem(near) ? `such as ${near}` : undefined)
}

/** @returns a sentence, or undefined for a good name */
export function nameProblem(name: string): string | undefined {
  if (name === '') return "a machine's name has at least one letter"
  if (name.length > MAX_LENGTH) return `a machine's name has at most ${MAX_LENGTH} characters`
  if (!/^[a-z]/.test(name)) return `a machine's name starts with a letter of a-z, and ${shown(name)} does not`
  if (!/^[a-z0-9-]+$/.test(name)) return `a machine's name has only a-z, 0-9 and hyphens, and ${shown(name)} has others`
  if (/--|-$/.test(name)) return `hyphens stand single and inside a machine's name, and in ${name} they do not`
  if (LOBBY_NAMES.some((lobby) => lobby === name)) return `${name} is never a machine's name: it leads to the lobby`
  if (RESERVED_NAMES.has(name)) return `${name} is never a machine's name: ssh clients send it by themselves`
  return undefined
}

function mended(name: string): string {
  return name
    .toLowerCase()
    .normalize('NFD')
    .replaceAll(/[^a-z0-9]+/g, '-')
    .replace(/^[^a-z]+/, '')
    .slice(0, MAX_LENGTH)
    .replace(/-+$/, '')
}
