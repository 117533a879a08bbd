import { readFile, rename } from 'node:fs/promises'
import { z } from 'zod'
import { replaceFile } from '../storage/durable.ts'
import type { KeptTime } from './clock.ts'
import type { Reading } from './readings.ts'
import type { OpenPiece, Piece } from './spans.ts'

/**
 * What the ledger does not have yet, in a file of the server: it is written whole each time, and after a power cut there
 * is the last one or the one before.
 */
export type Kept = {
  readonly time: KeptTime
  /** what machines are in the midst of; `time.at` is when they were seen so */
  readonly open: readonly OpenPiece[]
  /** sent, and may have arrived: they are sent again as they are, or not at all */
  readonly underway: readonly Piece[]
  readonly waiting: readonly Piece[]
  readonly readings: readonly (Reading & { readonly counters: string; readonly isSent: boolean })[]
}

const count = z.number().int().min(0)
const sized = { machineId: count, cpus: count, memoryBytes: count, diskBytes: count, checkpointBytes: count }
const state = z.enum(['creating', 'running', 'asleep', 'stopped', 'failed'])
const piece = z.object({ ...sized, state, startedAt: count, endedAt: count })
const keptSchema = z.object({
  format: z.literal(1),
  time: z.object({ boot: z.string(), monotonicMs: count, at: count }),
  open: z.array(z.object({ ...sized, state, startedAt: count, process: z.string().nullable() })),
  underway: z.array(piece),
  waiting: z.array(piece),
  readings: z.array(
    z.object({
      series: z.uuid(),
      counters: z.uuid(),
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

export class JournalError extends Error {
  override readonly name = 'JournalError'
}
