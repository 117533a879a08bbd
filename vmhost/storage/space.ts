import { statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import { missingBytes } from './ballast.ts'
import type { Volume } from './volume.ts'

/**
 * What the store can still take. Two filesystems may run out: the store's own, and the one under the volume's file;
 * the second shows inside a guest as a failed write although its own `df` has space.
 */
export type Space = {
  readonly totalBytes: number
  /** the smaller of the two; below zero when some of the ballast had to be given up */
  readonly freeBytes: number
  readonly volumeFreeBytes: number
  readonly underlyingFreeBytes: number | undefined
  /** below this nothing new is begun, so that the machines there are can go on writing */
  readonly reserveBytes: number
}

const GiB = 2 ** 30

export async function measureSpace(volume: Volume): Promise<Space> {
  const own = await statfs(volume.path)
  const totalBytes = own.blocks * own.bsize
  const volumeFreeBytes = own.bavail * own.bsize - (volume.ballast ? await missingBytes(volume.ballast) : 0)
  const under = volume.backingFile ? await statfs(dirname(volume.backingFile)) : undefined
  const underlyingFreeBytes = under ? under.bavail * under.bsize : undefined
  return {
    totalBytes,
    volumeFreeBytes,
    underlyingFreeBytes,
    freeBytes: Math.min(volumeFreeBytes, underlyingFreeBytes ?? Number.POSITIVE_INFINITY),
    reserveBytes: Math.min(GiB, Math.floor(totalBytes / 20)),
  }
}

/** A sentence when the store is full, else undefined. */
export function spaceProblem(space: Space): string | undefined {
  if (space.freeBytes >= space.reserveBytes) return undefined
  const free = `${(Math.max(0, space.freeBytes) / GiB).toFixed(1)} GiB`
  if (space.underlyingFreeBytes !== undefined && space.underlyingFreeBytes < space.volumeFreeBytes) {
    return `The server's disk is full: the filesystem under the machines' volume has ${free} left`
  }
  return `The server's disk is full: the machines' store has ${free} left`
}

/**
 * Whether machines must stand still for the server's own programs to have space; with some between the limits, so that
 * it is not one and the other by turns.
 * @param isShort what it was
 */
export function isShortOfSpace(space: Pick<Space, 'freeBytes' | 'reserveBytes'>, isShort: boolean): boolean {
  return space.freeBytes < space.reserveBytes / (isShort ? 2 : 4)
}
