import { usageError } from './error.ts'
import { shown } from './values.ts'

const MAX_VARIABLES = 256
const MAX_BYTES = 64 * 1024
const MAX_VALUE_BYTES = 32 * 1024

/** What sshd, the login shell or systemd set themselves; with another value a session would not work as its user. */
const OF_THE_SESSION = new Set([
  'HOME',
  'USER',
  'LOGNAME',
  'SHELL',
  'MAIL',
  'TERM',
  'SSH_CLIENT',
  'SSH_CONNECTION',
  'SSH_TTY',
])

/**
 * `K=V` words become variables; of a name given twice the last counts. The rules are those of the server, which
 * checks again: POSIX names, values without line breaks (sshd_config's SetEnv cannot write them).
 * @throws CommandError (usage)
 */
export function environmentOf(words: readonly string[]): Record<string, string> {
  const variables: Record<string, string> = Object.create(null)
  for (const word of words) {
    const equals = word.indexOf('=')
    if (equals < 0) throw usageError(`--env wants K=V, and ${shown(word)} has no =`)
    const name = word.slice(0, equals)
    const value = word.slice(equals + 1)
    checkVariable(name, value)
    variables[name] = value
  }
  const entries = Object.entries(variables)
  if (entries.length > MAX_VARIABLES) throw usageError(`a machine has at most ${MAX_VARIABLES} variables`)
  const bytes = entries.reduce((sum, [name, value]) => sum + Buffer.byteLength(name) + Buffer.byteLength(value) + 2, 0)
  if (bytes > MAX_BYTES) throw usageError(`a machine's variables add up to at most ${MAX_BYTES / 1024} KiB`)
  return { ...variables }
}

function checkVariable(name: string, value: string): void {
  if (!/^[A-Za-z_][A-Za-z0-9_]{0,254}$/.test(name)) {
    throw usageError(`${shown(name)} is no variable's name: letters, digits and _, not beginning with a digit`)
  }
  if (OF_THE_SESSION.has(name)) throw usageError(`${name} belongs to the session itself and cannot be set`)
  if (/[\u0000-\u0008\u000a-\u001f\u007f]/.test(value))
    throw usageError(`the value of ${name} has a line break or control character`)
  if (!value.isWellFormed()) throw usageError(`the value of ${name} is no valid Unicode text`)
  if (Buffer.byteLength(value) > MAX_VALUE_BYTES) throw usageError(`the value of ${name} is longer than 32 KiB`)
}
