/** Most that all of a machine's variables may add up to, names and `=` included. */
const maxEnvironmentBytes = 64 * 1024
const maxEnvironmentVariables = 256

// Variables that sshd, the login shell or systemd must set themselves, or a session would not work as its user.
const reserved = new Set([
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
 * Says why a variable cannot be given to a machine. Names are POSIX names ([A-Za-z_][A-Za-z0-9_]*). Values may hold
 * spaces, quotes, `=`, `$`, `%`, backslashes, tabs and any Unicode text; line breaks and other control characters
 * are refused, because sshd_config's SetEnv has no way to write them.
 * @returns a sentence for people, or undefined when the variable is good
 */
export function environmentProblem(name: string, value: string): string | undefined {
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name))
    return `"${printable(name)}" is no variable name: letters, digits and _ only, not starting with a digit`
  if (name.length > 255) return 'a variable name has at most 255 characters'
  if (reserved.has(name)) return `${name} belongs to the session itself and cannot be set`
  if (/[\n\r]/.test(value)) return `the value of ${name} has a line break, which SSH sessions cannot be given`
  if (/[\u0000-\u0008\u000b-\u001f\u007f]/.test(value)) return `the value of ${name} has a control character`
  if (!value.isWellFormed()) return `the value of ${name} is no valid Unicode text`
  if (Buffer.byteLength(value) > 32 * 1024) return `the value of ${name} is longer than 32 KiB`
  return undefined
}

/** The same for all of a machine's variables together. */
export function environmentsProblem(environment: Readonly<Record<string, string>>): string | undefined {
  const entries = Object.entries(environment)
  if (entries.length > maxEnvironmentVariables) return `a machine has at most ${maxEnvironmentVariables} variables`
  let bytes = 0
  for (const [name, value] of entries) {
    const problem = environmentProblem(name, value)
    if (problem) return problem
    bytes += Buffer.byteLength(name) + Buffer.byteLength(value) + 2
  }
  if (bytes > maxEnvironmentBytes) return `a machine's variables add up to at most ${maxEnvironmentBytes / 1024} KiB`
  return undefined
}

/** A machine's own variables on top of those of its image, of which those are left out that would be too much. */
export function environmentOver(
  image: Readonly<Record<string, string>>,
  own: Readonly<Record<string, string>>,
): Record<string, string> {
  let together: Record<string, string> = { ...own }
  for (const [name, value] of Object.entries(image)) {
    const more = { ...together, [name]: value }
    if (!Object.hasOwn(own, name) && environmentsProblem(more) === undefined) together = more
  }
  return together
}

function printable(text: string): string {
  return text.replace(/[\u0000-\u001f\u007f]/g, '?').slice(0, 40)
}
