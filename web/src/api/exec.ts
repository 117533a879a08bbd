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
  /** what to type or do next, where there is something */
  readonly wayOn: string | undefined
  /** all that was said of it: some failures say more than why */
  readonly document: Record<string, unknown>

  constructor(
    message: string,
    { code, status, document = {} }: { code: string; status: number; document?: Record<string, unknown> },
  ) {
    super(message)
    this.code = code
    this.status = status
    // One of several lines is a table for a terminal: the page that asked draws it from the document.
    const wayOn = document.way_on
    this.wayOn = typeof wayOn === 'string' && !wayOn.includes('\n') ? wayOn : undefined
    this.document = document
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

const CUT = 'the connection to Berth was cut; what the command began may go on'

type Words = readonly string[]

/** What a command says before it has ended (gateway/https/exec/telling.ts). */
export type Piece =
  | { progress: string; done_bytes?: number; total_bytes?: number }
  | { text: string }
  | { remark: string }

/**
 * Runs a command that tells what it is doing, for as long as it takes.
 * @param onPiece hears of it, as it comes
 * @returns its document
 * @throws ExecError; the signal's reason: what was asked for goes on without a listener
 */
export async function follow<T = unknown>(
  words: readonly string[],
  onPiece: (piece: Piece) => void,
  { signal }: ExecOptions = {},
): Promise<T> {
  const response = await post(words, 'application/x-ndjson', signal, '/exec?follow')
  if (!response.ok || !response.body) throw errorOf(await documentOf(response), response.status)
  for await (const line of linesOf(response.body)) {
    const said = JSON.parse(line) as Piece | { result: T } | { error: string }
    if ('result' in said) return said.result
    if ('error' in said) throw errorOf(said, response.status)
    onPiece(said)
  }
  signal?.throwIfAborted()
  throw new ExecError(CUT, { code: 'exec.cut', status: response.status })
}

/** A command that somebody gave here, for the bar that shows what was done. */
export type Run = {
  id: number
  words: readonly string[]
  /** as one types it in one's own shell */
  line: string
  startedAtMs: number
  endedAtMs?: number
  /** the reason, when it failed, and what to do about it */
  error?: string
  wayOn?: string
  /** what it is doing */
  progress?: string
  /** what takes it back, all of it at once */
  undo?: readonly Words[]
  /** what comes back by that and what does not, a sentence, where not all of it does */
  brings?: string
}

/** The command, or commands, that take one back, or how that follows from its document. */
export type Undo = Words | readonly Words[] | ((document: unknown) => Words | undefined)

/** The last ones, the newest first. */
export const runs = signal<readonly Run[]>([])
const RUNS_KEPT = 20
/** counts the commands given here that have ended: whatever is shown may be other by then */
export const ended = signal(0)
let lastRun = 0

/**
 * Runs a command that changes something: it is shown while it runs and after it, with what takes it back.
 * @throws ExecError
 */
export async function run<T = unknown>(
  words: readonly string[],
  {
    undo,
    brings,
    signal,
    onPiece,
  }: ExecOptions & { undo?: Undo | undefined; brings?: string | undefined; onPiece?: (piece: Piece) => void } = {},
): Promise<T> {
  const id = ++lastRun
  const line = commandLine(words)
  runs.value = [{ id, words, line, startedAtMs: Date.now() }, ...runs.value].slice(0, RUNS_KEPT)
  const change = (part: Partial<Run>) => {
    runs.value = runs.value.map((one) => (one.id === id ? { ...one, ...part } : one))
  }
  const end = (part: Partial<Run>) => {
    change({ endedAtMs: Date.now(), ...part })
    ended.value++
  }
  const hear = (piece: Piece) => {
    if ('progress' in piece) change({ progress: piece.progress })
    if ('remark' in piece) change({ progress: piece.remark })
    onPiece?.(piece)
  }
  let wayBack: Partial<Run> = {}
  try {
    const document = await follow<T>(words, hear, signal ? { signal } : {})
    // A command on several machines answers for each: what was done to some is taken back where others failed.
    const errors = errorsIn(document)
    const failed = failureIn(document)
    const back = typeof undo === 'function' ? (errors || failed === undefined) && undo(document) : !failed && undo
    if (back && back.length > 0) wayBack = { undo: isOne(back) ? [back] : back, ...(brings ? { brings } : {}) }
    const said = document as Record<string, unknown>
    if (failed !== undefined) throw new ExecError(failed, { code: 'exec.partial', status: 200, document: said })
    end(wayBack)
    return document
  } catch (error) {
    const wayOn = error instanceof ExecError ? error.wayOn : undefined
    end({ ...wayBack, error: error instanceof Error ? error.message : String(error), ...(wayOn ? { wayOn } : {}) })
    throw error
  }
}

function isOne(undo: Words | readonly Words[]): undo is Words {
  return typeof undo[0] === 'string'
}

/** Takes a command back; then it cannot be taken back once more. */
export async function takeBack({ undo = [], brings, ...taken }: Run): Promise<void> {
  runs.value = runs.value.map((one) => (one.id === taken.id ? taken : one))
  await Promise.all(undo.map((words) => run(words)))
}

/** A command as one types it in one's own shell: `ssh -p 2222 host stop demo`. */
export function commandLine(words: readonly string[]): string {
  return typed(installation.lobby, words)
}

async function post(
  words: readonly string[],
  accept: string,
  signal: AbortSignal | undefined,
  to = '/exec',
): Promise<Response> {
  let response: Response
  try {
    response = await fetch(to, {
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

const LEAVING_MS = 5_000
let leftAtMs = Number.NEGATIVE_INFINITY

/** Signed out: to the sign-in page, and back here. Whoever says so second would break off the first one's way there. */
export function leave(): void {
  if (performance.now() - leftAtMs < LEAVING_MS) return
  leftAtMs = performance.now()
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
  const said = (document ?? {}) as Record<string, unknown>
  const { error, code } = said
  return new ExecError(typeof error === 'string' ? error : `status ${status}`, {
    code: typeof code === 'string' ? code : 'exec.failed',
    status,
    document: said,
  })
}

/** Why it failed for some, by machine, in the document of a command on several. */
export function errorsIn(document: unknown): Record<string, unknown> | undefined {
  const { errors } = (document ?? {}) as { errors?: unknown }
  return typeof errors === 'object' && errors !== null && !Array.isArray(errors)
    ? (errors as Record<string, unknown>)
    : undefined
}

/** Said of a few; the others are counted. */
const FAILURES_SAID = 5

/** `errors`, or `error` in a document of a command that went well otherwise. */
function failureIn(document: unknown): string | undefined {
  const all = Object.entries(errorsIn(document) ?? {}).map(([name, why]) => `${name}: ${why}`)
  const more = all.length - FAILURES_SAID
  if (all.length > 0) return [...all.slice(0, FAILURES_SAID), ...(more > 0 ? [`and ${more} more`] : [])].join('; ')
  const { error } = (document ?? {}) as { error?: unknown }
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
