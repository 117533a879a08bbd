/**
 * Everything the dashboard does is a command of the lobby, through `POST /exec`, as whoever is signed in; its JSON
 * document is the answer.
 */
import { signal } from '@preact/signals'
import { installation } from '../installation.ts'
import { quoted, typed } from './words.ts'

/** Why a command did not end well; the message is for the person. */
export class ExecError extends Error {
  override readonly name = 'ExecError'
  /** as `--json` has it: `machine.not_found` */
  readonly code: string
  /** of the HTTP response; 0 when there was none */
  readonly status: number

  constructor(message: string, { code, status }: { code: string; status: number }) {
    super(message)
    this.code = code
    this.status = status
  }
}

export type ExecOptions = { signal?: AbortSignal }

/**
 * Runs a command and answers with its document.
 * @param words `['ls']`, `['rm', 'demo']`; `--json` need not be among them
 * @throws ExecError; the signal's reason
 */
export async function exec<T = unknown>(words: readonly string[], { signal }: ExecOptions = {}): Promise<T> {
  const response = await post(words, 'application/json', signal)
  const document = await documentOf(response)
  if (!response.ok) throw errorOf(document, response.status)
  return document as T
}

export type Chunk = { stdout: string } | { stderr: string }

/**
 * Runs `ssh NAME CMD..`, which may print for as long as it likes.
 * @param onChunk hears of what is printed, as it comes
 * @returns the exit status
 * @throws ExecError; the signal's reason
 */
export async function stream(
  words: readonly string[],
  onChunk: (chunk: Chunk) => void,
  { signal }: ExecOptions = {},
): Promise<number> {
  const response = await post(words, 'application/x-ndjson', signal)
  if (!response.ok || !response.body) throw errorOf(await documentOf(response), response.status)
  const decoders = { stdout: new TextDecoder(), stderr: new TextDecoder() }
  const text = (of: 'stdout' | 'stderr', base64: string) =>
    decoders[of].decode(
      Uint8Array.from(atob(base64), (character) => character.charCodeAt(0)),
      { stream: true },
    )
  for await (const line of linesOf(response.body)) {
    const said = JSON.parse(line) as { stdout?: string; stderr?: string; exit_code?: number; error?: string }
    if (said.stdout !== undefined) onChunk({ stdout: text('stdout', said.stdout) })
    else if (said.stderr !== undefined) onChunk({ stderr: text('stderr', said.stderr) })
    else if (said.exit_code !== undefined) return said.exit_code
    else throw new ExecError(said.error ?? CUT, { code: 'exec.failed', status: response.status })
  }
  throw new ExecError(CUT, { code: 'exec.cut', status: response.status })
}

const CUT = 'the connection to Berth was cut; what the command began may go on'

type Words = readonly string[]

/** A command that somebody gave here, for the bar that shows what was done. */
export type Run = {
  id: number
  words: readonly string[]
  /** as one types it in one's own shell */
  line: string
  startedAtMs: number
  endedAtMs?: number
  /** the reason, when it failed */
  error?: string
  /** what takes it back: one command after the other */
  undo?: readonly Words[]
}

/** The last ones, the newest first. */
export const runs = signal<readonly Run[]>([])
const RUNS_KEPT = 20
let lastRun = 0

/**
 * Runs a command that changes something: it is shown while it runs and after it, with what takes it back.
 * @throws ExecError
 */
export async function run<T = unknown>(
  words: readonly string[],
  { undo, signal }: ExecOptions & { undo?: Words | readonly Words[] | undefined } = {},
): Promise<T> {
  const id = ++lastRun
  const line = commandLine(words)
  runs.value = [{ id, words, line, startedAtMs: Date.now() }, ...runs.value].slice(0, RUNS_KEPT)
  const end = (change: Partial<Run>) => {
    runs.value = runs.value.map((one) => (one.id === id ? { ...one, endedAtMs: Date.now(), ...change } : one))
  }
  try {
    const document = await exec<T>(words, signal ? { signal } : {})
    // A command on several machines answers for each; the first that failed says why.
    const failed = failureIn(document)
    if (failed !== undefined) throw new ExecError(failed, { code: 'exec.partial', status: 200 })
    end(undo && undo.length > 0 ? { undo: isOne(undo) ? [undo] : undo } : {})
    return document
  } catch (error) {
    end({ error: error instanceof Error ? error.message : String(error) })
    throw error
  }
}

function isOne(undo: Words | readonly Words[]): undo is Words {
  return typeof undo[0] === 'string'
}

/** Takes a command back; then it cannot be taken back once more. */
export async function takeBack({ id, undo = [] }: Run): Promise<void> {
  runs.value = runs.value.map(({ undo, ...one }) => (one.id === id || !undo ? one : { ...one, undo }))
  for (const words of undo) await run(words)
}

/** A command as one types it in one's own shell: `ssh -p 2222 host stop demo`. */
export function commandLine(words: readonly string[]): string {
  return typed(installation.lobby, words)
}

async function post(words: readonly string[], accept: string, signal: AbortSignal | undefined): Promise<Response> {
  let response: Response
  try {
    response = await fetch('/exec', {
      method: 'POST',
      headers: { Accept: accept, 'Content-Type': 'text/plain; charset=utf-8' },
      body: quoted(words),
      ...(signal ? { signal } : {}),
    })
  } catch {
    signal?.throwIfAborted()
    throw new ExecError('Berth is not reached from here; the machines go on', { code: 'exec.unreachable', status: 0 })
  }
  if (response.status === 401) leave()
  return response
}

/** Signed out: to the sign-in page, and back here. */
export function leave(): void {
  location.assign(`/signin?${new URLSearchParams({ next: `${location.pathname}${location.search}` })}`)
}

async function documentOf(response: Response): Promise<unknown> {
  try {
    return await response.json()
  } catch {
    throw new ExecError(`Berth answered with status ${response.status} and no document`, {
      code: 'exec.malformed',
      status: response.status,
    })
  }
}

function errorOf(document: unknown, status: number): ExecError {
  const { error, code } = (document ?? {}) as { error?: unknown; code?: unknown }
  return new ExecError(typeof error === 'string' ? error : `status ${status}`, {
    code: typeof code === 'string' ? code : 'exec.failed',
    status,
  })
}

/** `errors`, by machine, or `error` in a document of a command that went well for others. */
function failureIn(document: unknown): string | undefined {
  const { error, errors } = (document ?? {}) as { error?: unknown; errors?: unknown }
  if (typeof errors === 'object' && errors !== null && !Array.isArray(errors)) {
    const all = Object.entries(errors).map(([name, why]) => `${name}: ${why}`)
    if (all.length > 0) return all.join('; ')
  }
  return typeof error === 'string' ? error : undefined
}

async function* linesOf(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader()
  let rest = ''
  try {
    for (;;) {
      const { value, done } = await reader.read()
      const lines = (rest + (value ?? '')).split('\n')
      rest = done ? '' : (lines.pop() ?? '')
      for (const line of lines) if (line !== '') yield line
      if (done) return
    }
  } finally {
    await reader.cancel().catch(() => {})
  }
}
