import type { App, Caller, CommandIo } from '../app.ts'
import type { CommandError } from './error.ts'
import type { Progress } from './progress.ts'
import type { View } from './text.ts'

/** What completion may look at. */
export type CompletionContext = { app: App; caller: Caller }
/** All values that could stand at a place; the caller filters by what was typed. */
export type Completer = (context: CompletionContext) => Promise<readonly string[]> | readonly string[]

export type FlagSpec = {
  /**
   * `integer` is a number without unit; `size` becomes bytes (`4G` is 4 GiB); `duration` becomes milliseconds
   * (`1h30m`), or `'never'` where `never` is set
   */
  type: 'string' | 'integer' | 'size' | 'duration' | 'boolean'
  summary: string
  /** one letter: `-l` */
  short?: string
  /** may be given several times */
  repeated?: true
  never?: true
  /** the only values a string flag takes */
  choices?: readonly string[]
  /** how the value is called in the usage line; default the flag's name in capitals */
  value?: string
  min?: number
  max?: number
  complete?: Completer
  /** other names that mean the same */
  aliases?: readonly string[]
  /** taken for compatibility, not shown */
  hidden?: true
  /** its value is kept out of the audit record */
  secret?: true
}

export type ArgumentSpec = {
  /** as the usage line shows it: NAME */
  label: string
  optional?: true
  /** takes all that follow; at least one unless optional */
  repeated?: true
  complete?: Completer
}

export type FlagSpecs = Readonly<Record<string, FlagSpec>>
export type ArgumentSpecs = Readonly<Record<string, ArgumentSpec>>

type ScalarOf<F extends FlagSpec> = F['type'] extends 'boolean'
  ? boolean
  : F['type'] extends 'duration'
    ? F extends { never: true }
      ? number | 'never'
      : number
    : F['type'] extends 'integer' | 'size'
      ? number
      : F extends { choices: readonly (infer C)[] }
        ? C
        : string

export type FlagValues<F extends FlagSpecs> = {
  [K in keyof F]: F[K] extends { repeated: true } ? ScalarOf<F[K]>[] : ScalarOf<F[K]> | undefined
}
export type ArgumentValues<A extends ArgumentSpecs> = {
  [K in keyof A]: A[K] extends { repeated: true }
    ? string[]
    : A[K] extends { optional: true }
      ? string | undefined
      : string
}

/** What came of a command: one value, shown as text or as one JSON document. */
export type Result = {
  /** the `--json` document */
  json: unknown
  /** for people; lines end in a line feed, none at all for a command that has nothing to say */
  text: string | ((view: View) => string)
  /** parts that failed while others were done: told on stderr, and the first decides the exit status */
  failures?: readonly CommandError[]
  /** exit status when nothing failed; default 0 */
  exit?: number
}

/** What a command works with. Nothing in it knows how the caller is connected. */
export type Context = {
  app: App
  caller: Caller
  io: CommandIo
  json: boolean
  view: View
  /** aborted when the person interrupts or is gone */
  signal: AbortSignal
  /** one line that rewrites itself on a terminal; silent elsewhere */
  progress: Progress
  /** Writes text for people to stdout at once, and waits while the client does not read. */
  print(text: string): Promise<void>
  /** Writes a remark to stderr at once; nothing with `--json`. */
  remark(text: string): Promise<void>
  /**
   * Asks a question on the terminal.
   * @returns the line typed; undefined without a terminal or with `--json`
   * @throws CommandError (interrupted) when it was left with Ctrl-C or Ctrl-D
   */
  ask(question: string): Promise<string | undefined>
  /**
   * Everything on stdin, up to its end.
   * @param what named in messages: `the setup script`
   */
  readStdin(limitBytes: number, what: string): Promise<string>
  /** What any error means to the person; one of ours that they cannot help is logged under a reference. */
  asCommandError(error: unknown): CommandError
  /** The keyboard's raw bytes, Ctrl-C included, for a command that hands the terminal on. */
  rawInput(): { stdin: CommandIo['stdin']; release: () => void }
}

export type CommandSpec<F extends FlagSpecs, A extends ArgumentSpecs> = {
  /** one or two words: `ls`, `ssh-key add` */
  name: string
  aliases?: readonly string[]
  /** one line, without a capital or a full stop */
  summary: string
  /** paragraphs shown by `--help` below the summary */
  description?: string
  flags?: F
  arguments?: A
  /** lines that can be typed as they are */
  examples?: readonly string[]
  /** what follows the first argument belongs to another program: flags in it are not read */
  passThrough?: true
  /** for the operator's account only; not listed for others */
  operator?: true
  /** it changes machines alone, and finds them through `app.machines`: a token for some of them may run it */
  onMachines?: true
  /** it shows what signs a person in: a token must name it to run it */
  signsIn?: true
  /** listed under this heading in `help` */
  group: 'machines' | 'web' | 'you' | 'operator' | 'lobby'
  run(context: Context, input: { flags: FlagValues<F>; args: ArgumentValues<A> }): Promise<Result>
}

/** A command as the table holds it, its flags' types forgotten. */
export type Command = Omit<CommandSpec<FlagSpecs, ArgumentSpecs>, 'flags' | 'arguments' | 'run'> & {
  flags: FlagSpecs
  arguments: ArgumentSpecs
  run(context: Context, input: ParsedInput): Promise<Result>
}
export type ParsedInput = { flags: Record<string, unknown>; args: Record<string, unknown> }

/** Gives a command its types: `flags` and `args` of `run` follow from the declarations. */
export function defineCommand<const F extends FlagSpecs, const A extends ArgumentSpecs>(
  spec: CommandSpec<F, A>,
): Command {
  const { flags, arguments: args, run, ...rest } = spec
  return {
    ...rest,
    flags: flags ?? {},
    arguments: args ?? {},
    // parse.ts builds the values from these very declarations, so the shapes agree.
    run: (context, input) =>
      run(context, { flags: input.flags as FlagValues<F>, args: input.args as ArgumentValues<A> }),
  }
}
