/**
 * How a command that fails ends: 1 failed, 2 usage, 3 not found, 4 not allowed, 5 busy or no capacity. `doc scripts`
 * promises them; `POST /exec` maps them to statuses.
 */
export type ExitStatus = 1 | 2 | 3 | 4 | 5

export type CommandErrorOptions = ErrorOptions & {
  /** What to type or do next: one line, without a full stop. */
  wayOn?: string
  /** Further members of the JSON error document, beside `error` and `code`. */
  detail?: Record<string, unknown>
  /** The machine that it is about, as it was named. */
  machineName?: string
}

/**
 * A command that did not do what it was asked. `message` is one sentence for the person, without a capital or a full
 * stop, as the lobby prints it; `code` is for programs (`machine.not_found`).
 */
export class CommandError extends Error {
  override readonly name = 'CommandError'
  readonly code: string
  readonly exit: ExitStatus
  readonly wayOn: string | undefined
  readonly detail: Record<string, unknown>
  readonly machineName: string | undefined

  constructor(code: string, exit: ExitStatus, message: string, options: CommandErrorOptions = {}) {
    super(message, options)
    this.code = code
    this.exit = exit
    this.wayOn = options.wayOn
    this.detail = options.detail ?? {}
    this.machineName = options.machineName
  }
}

/** The member of an error's document that says what to do next; of those that have nothing to say none. */
export function wayOnOf({ wayOn }: CommandError): { way_on?: string } {
  return wayOn === undefined ? {} : { way_on: wayOn }
}

/** The line was not understood: exit 2. */
export function usageError(message: string, wayOn?: string): CommandError {
  return new CommandError('usage', 2, message, wayOn === undefined ? {} : { wayOn })
}
