import { expect, test } from 'vitest'
import { isToBeWritten } from './space-guard.ts'

/** Machines that stand still before the disk under their volume is full: vmhost/full-disk.test.ts. */

const MiB = 2 ** 20
const GiB = 2 ** 30

const space = (underlyingFreeBytes: number | undefined, totalBytes = 134 * GiB) => ({
  totalBytes,
  underlyingFreeBytes,
  reserveBytes: GiB,
})
const server = (unwrittenBytes: number | undefined, memoryBytes = 64 * GiB) => ({ memoryBytes, unwrittenBytes })

test('what waits to be written is, when it may not find space later', () => {
  expect(isToBeWritten(space(14 * GiB), server(9 * GiB))).toBe(true)
  expect(isToBeWritten(space(5 * GiB), server(20 * MiB))).toBe(true)
  // Nobody says how much it is.
  expect(isToBeWritten(space(17 * GiB), server(undefined))).toBe(true)
})

test('a server of much memory does not write all it has each second for a disk that is never emptier', () => {
  expect(isToBeWritten(space(14 * GiB), server(0))).toBe(false)
  expect(isToBeWritten(space(14 * GiB), server(GiB))).toBe(false)
  // A smaller one, of which a tenth is left beside its volume.
  expect(isToBeWritten(space(3.7 * GiB, 33 * GiB), server(10 * MiB, 16 * GiB))).toBe(false)
})

test('no more can wait than the kernel lets wait, and none does without a filesystem under the volume', () => {
  expect(isToBeWritten(space(17.1 * GiB), server(30 * GiB))).toBe(false)
  expect(isToBeWritten(space(17 * GiB), server(30 * GiB))).toBe(true)
  expect(isToBeWritten(space(undefined), server(30 * GiB))).toBe(false)
})
