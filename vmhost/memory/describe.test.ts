import { expect, test } from 'vitest'
import { describeMemory } from './describe.ts'

const GiB = 2 ** 30
const figures = {
  host: { totalBytes: 16 * GiB, availableBytes: 6 * GiB, stall: { some: 0, full: 0 } },
  level: 'ample',
  usedBytes: 8 * GiB,
  reclaimedBytes: 0,
} as const

test('the operator reads what there is, what machines hold, and what they gave back', () => {
  expect(describeMemory(figures)).toEqual({
    check: 'memory',
    ok: true,
    message: '6.0 of 16.0 GiB of memory are available; machines hold 8.0 GiB',
  })
  expect(describeMemory({ ...figures, reclaimedBytes: 1.5 * GiB }).message).toMatch(/ and have given back 1\.5$/)
})

test('a server that is short is something to fix', () => {
  expect(describeMemory({ ...figures, level: 'short', reclaimedBytes: GiB })).toMatchObject({
    ok: false,
    message: expect.stringMatching(/^The server is short of memory: 6\.0 of .* have given back 1\.0\. /),
    remedy: expect.stringContaining('host overcommit'),
  })
})

test('a kernel that does not measure stalls is told of, and nothing to fix', () => {
  expect(describeMemory({ ...figures, host: { ...figures.host, stall: undefined } })).toMatchObject({
    ok: true,
    message: expect.stringContaining('(PSI)'),
  })
})
