import { expect, test } from 'vitest'
import { pullInWords } from './image-progress.ts'

const MiB = 2 ** 20
const counted = { doneBytes: 12.25 * MiB, totalBytes: 80 * MiB, layersDone: 2, layers: 5 }
const uncounted = { doneBytes: null, totalBytes: null, layersDone: null, layers: null }

test('whoever waits for an image reads what is done and how much of it', () => {
  expect(pullInWords({ step: 'resolving', ...uncounted })).toBe('looking up its image')
  expect(pullInWords({ step: 'fetching', ...counted })).toBe('fetching its image, 12.3 MiB of 80 MiB, 2 of 5 layers')
  expect(pullInWords({ step: 'unpacking', ...counted })).toBe('unpacking its image, 15 %')
  expect(pullInWords({ step: 'reading', ...counted, totalBytes: 0, doneBytes: 0 })).toBe('reading its image, 0 %')
  expect(pullInWords({ step: 'making', ...uncounted })).toBe('making the disk of its image')
})
