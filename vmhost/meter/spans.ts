import type { SpanState } from '../../migrations/schema.ts'

/**
 * What each machine's time is spent in.
 *
 *     nothing --stands--> open piece --another state, size or process--> closed, and the next one open from there
 *     open piece --five minutes (an hour where it does not run), or midnight UTC--> closed, and goes on in the next
 *     open piece --trashed, gone--> closed, and nothing
 *
 * A closed piece is a fact and goes to the ledger. An open one is this vmhost's, which notes every minute that it was
 * still so. The next vmhost goes on with what is still so: a machine that runs must run in the very process that was
 * noted; otherwise nobody saw its end, and the last proof of life is taken for it.
 */

export type Size = {
  readonly cpus: number
  readonly memoryBytes: number
  readonly diskBytes: number
  readonly checkpointBytes: number
}

/**
 * How a machine stands. `between`: no hypervisor, and about to have one; it is taken for what it was before.
 * `process` tells one run of a hypervisor from all others; null: it has none.
 */
export type Standing = Size & { readonly state: SpanState | 'between'; readonly process: string | null }

/** A piece of a machine's time, closed; times in milliseconds since 1970. */
export type Piece = Size & {
  readonly machineId: number
  readonly state: SpanState
  readonly startedAt: number
  readonly endedAt: number
}

export type OpenPiece = Size & {
  readonly machineId: number
  readonly state: SpanState
  readonly startedAt: number
  readonly process: string | null
}

const dayMs = 86_400_000
const pieceMostMs = 300_000
/** Nothing but the disk costs anything. */
const restingMostMs = 3_600_000

export class Spans {
  readonly #open = new Map<number, OpenPiece>()
  /** Where the last closed piece of each machine ends. */
  readonly #ends = new Map<number, number>()
  /** Grows with each change of what is open. */
  revision = 0

  get open(): readonly OpenPiece[] {
    return [...this.#open.values()]
  }

  /** The ledger has this machine's time until then. */
  endedAt(machineId: number, at: number): void {
    this.#ends.set(machineId, Math.max(at, this.#ends.get(machineId) ?? 0))
  }

  /** @param standing undefined: in the trash, gone, or not of this server any more @returns pieces that this closes */
  note(machineId: number, standing: Standing | undefined, at: number): Piece[] {
    const was = this.#open.get(machineId)
    const now = standing && settled(standing, was)
    if (was && now && isSame(was, now)) return []
    const closed = this.#close(machineId, at)
    if (now) this.#begin(machineId, now, at)
    else if (this.#open.delete(machineId)) this.revision++
    return closed
  }

  /** @returns pieces that have become long enough, or have come to the end of their day */
  cut(at: number): Piece[] {
    return this.open.flatMap((open) => {
      const mostMs = open.state === 'running' ? pieceMostMs : restingMostMs
      const midnight = nextMidnight(open.startedAt)
      if (at - open.startedAt >= mostMs) return this.#goOn(open, at)
      return at >= midnight ? this.#goOn(open, midnight) : []
    })
  }

  /** The time between `from` and `to` never was. */
  jump(from: number, to: number): Piece[] {
    return this.open.flatMap((open) => {
      const closed = this.#close(open.machineId, from)
      this.#begin(open.machineId, open, to)
      return closed
    })
  }

  /**
   * Goes on after another vmhost, from the first look at everything.
   * @param kept what that one had open
   * @param provenUntil when the machine was last seen, or last showed signs of life, before it ended unseen
   * @param startedAt when a process started that it did not know of; undefined: not known
   */
  goOn(
    machineId: number,
    kept: OpenPiece | undefined,
    standing: Standing | undefined,
    times: { readonly now: number; readonly provenUntil: number; readonly startedAt?: number | undefined },
  ): Piece[] {
    if (kept) this.#open.set(machineId, kept)
    const next = standing && settled(standing, kept)
    const runs = next?.process ?? null
    if (kept && kept.process !== runs) {
      // A process that was started after the last note ended what was before; what ended with a process, ended unseen.
      const end = kept.process === null ? (times.startedAt ?? times.now) : times.provenUntil
      const closed = this.#close(machineId, end)
      this.#open.delete(machineId)
      if (next) this.#begin(machineId, next, runs === null ? times.now : (times.startedAt ?? times.now))
      return closed
    }
    if (kept && !standing) return this.note(machineId, undefined, times.provenUntil)
    if (!kept && next) {
      this.#begin(machineId, next, runs === null ? times.now : (times.startedAt ?? times.now))
      return []
    }
    return this.note(machineId, standing, times.now)
  }

  #begin(machineId: number, { state, process, cpus, memoryBytes, diskBytes, checkpointBytes }: Settled, at: number) {
    const end = this.#ends.get(machineId) ?? 0
    // What is far ahead was written by a clock that was wrong.
    const startedAt = end - at > dayMs ? at : Math.max(at, end)
    this.#open.set(machineId, { machineId, state, startedAt, process, cpus, memoryBytes, diskBytes, checkpointBytes })
    this.revision++
  }

  #goOn(open: OpenPiece, at: number): Piece[] {
    const closed = this.#close(open.machineId, at)
    if (closed.length > 0) this.#open.set(open.machineId, { ...open, startedAt: at })
    return closed
  }

  #close(machineId: number, at: number): Piece[] {
    const open = this.#open.get(machineId)
    if (!open || at <= open.startedAt) return []
    this.#ends.set(machineId, at)
    return byDay(open, at)
  }
}

type Settled = Size & { readonly state: SpanState; readonly process: string | null }

function settled(standing: Standing, was: OpenPiece | undefined): Settled {
  const { state } = standing
  if (state !== 'between') return { ...standing, state }
  return { ...standing, state: was && was.state !== 'running' ? was.state : 'stopped' }
}

function isSame(was: OpenPiece, now: Settled): boolean {
  return was.state === now.state && was.process === now.process && isSameSize(was, now)
}

export function isSameSize(one: Size, other: Size): boolean {
  return (
    one.cpus === other.cpus &&
    one.memoryBytes === other.memoryBytes &&
    one.diskBytes === other.diskBytes &&
    one.checkpointBytes === other.checkpointBytes
  )
}

function byDay({ process: _, ...open }: OpenPiece, endedAt: number): Piece[] {
  const pieces: Piece[] = []
  for (let startedAt = open.startedAt; startedAt < endedAt; ) {
    const end = Math.min(endedAt, nextMidnight(startedAt))
    pieces.push({ ...open, startedAt, endedAt: end })
    startedAt = end
  }
  return pieces
}

/** The first midnight UTC after this time: a leap second is no time of its own in Unix time. */
export function nextMidnight(at: number): number {
  return (Math.floor(at / dayMs) + 1) * dayMs
}
