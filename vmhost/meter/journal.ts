import { open, readFile, rename, stat } from 'node:fs/promises'
import { dirname } from 'node:path'
import { z } from 'zod'
import { replaceFile, sync } from '../storage/durable.ts'
import type { KeptTime } from './clock.ts'
import { type KeptReading, parts, type Reading } from './readings.ts'
import type { OpenPiece, Piece } from './spans.ts'

/**
 * What the ledger does not have yet, in a file of the server: it is written whole each time, and after a power cut there
 * is the last one or the one before.
 */
export type Kept = {
  readonly time: KeptTime
  /** when counters were read last, in milliseconds since 1970 */
  readonly lookedAt?: number | undefined
  /** what machines are in the midst of; `time.at` is when they were seen so */
  readonly open: readonly OpenPiece[]
  /** sent, and may have arrived: they are sent again as they are, or not at all */
  readonly underway: readonly Piece[]
  readonly waiting: readonly Piece[]
  readonly readings: readonly KeptReading[]
}

const count = z.number().int().min(0)
const sized = { machineId: count, cpus: count, memoryBytes: count, diskBytes: count, checkpointBytes: count }
const state = z.enum(['creating', 'running', 'asleep', 'stopped', 'failed'])
const piece = z.object({ ...sized, state, startedAt: count, endedAt: count })
const keptSchema = z.object({
  format: z.literal(1),
  time: z.object({ boot: z.string(), monotonicMs: count, at: count }),
  lookedAt: count.optional(),
  open: z.array(z.object({ ...sized, state, startedAt: count, process: z.string().nullable() })),
  underway: z.array(piece),
  waiting: z.array(piece),
  readings: z.array(
    z.object({
      series: z.uuid(),
      counters: z.uuid(),
      part: z.enum(parts).optional(),
      isSent: z.boolean(),
      sequence: count,
      machineId: count,
      boot: z.uuid(),
      at: count,
      directOutBytes: count,
      directOutPackets: count,
      directInBytes: count,
      directInPackets: count,
      gatewayOutBytes: count,
      gatewayOutPackets: count,
      gatewayInBytes: count,
      gatewayInPackets: count,
    }),
  ),
})

/**
 * @returns undefined when there is none
 * @throws JournalError when it cannot be made sense of; it is put aside then
 */
export async function readJournal(path: string): Promise<Kept | undefined> {
  const text = await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return undefined
    throw error
  })
  if (text === undefined) return undefined
  try {
    return keptSchema.parse(JSON.parse(text))
  } catch (cause) {
    const aside = `${path}.damaged`
    await rename(path, aside)
    throw new JournalError(`What the ledger does not have yet could not be read, and is kept as ${aside}`, { cause })
  }
}

/** It is there after a power cut when this returns. */
export async function writeJournal(path: string, kept: Kept): Promise<void> {
  await replaceFile(path, JSON.stringify({ format: 1, ...kept }))
}

/** Where facts are that the ledger never takes, and those that waited for it too long: one line of JSON each. */
export const asidePath = (path: string): string => `${path}.refused`
/** Some hundred thousand facts. The file before is kept beside it. */
const asideMostBytes = 2 ** 26

/** It is there after a power cut when this returns. @param why for the operator */
export async function putAside(path: string, facts: readonly (Piece | Reading)[], why: string): Promise<void> {
  const aside = asidePath(path)
  const isFull = await stat(aside).then(
    ({ size }) => size > asideMostBytes,
    () => false,
  )
  if (isFull) await rename(aside, `${aside}.old`)
  const file = await open(aside, 'a', 0o600)
  try {
    await file.writeFile(facts.map((fact) => `${JSON.stringify({ why, ...fact })}\n`).join(''))
    await file.sync()
  } finally {
    await file.close()
  }
  await sync(dirname(aside))
}

export class JournalError extends Error {
  override readonly name = 'JournalError'
}
