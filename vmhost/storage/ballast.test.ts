import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { giveUpBallast, keepBallast } from './ballast.ts'
import { isShortOfSpace, measureSpace } from './space.ts'
import { prepareVolume, type Volume } from './volume.ts'

/** A data directory on a filesystem with reflinks, which machines share with everything else on it. */

const MiB = 2 ** 20
let home: string
let data: string
let volume: Volume

beforeEach(async () => {
  home = mkdtempSync(join(tmpdir(), 'berth-ballast-'))
  data = join(home, 'data')
  execFileSync('truncate', ['-s', '512M', join(home, 'disk')])
  execFileSync('mkfs.xfs', ['-q', '-m', 'reflink=1', join(home, 'disk')])
  execFileSync('mkdir', [data])
  execFileSync('mount', ['-o', 'loop', join(home, 'disk'), data])
  volume = await prepareVolume({ dataDirectory: data, log: { info: () => {}, warn: () => {} } })
})
afterEach(() => {
  execFileSync('umount', [data])
  rmSync(home, { recursive: true })
})

test('what the ballast leaves when it is given up is space for others and none for machines', async () => {
  const { ballast } = volume
  if (!ballast) throw new Error('a store without a volume of its own has ballast')
  const before = await measureSpace(volume)
  await keepBallast(ballast)
  await keepBallast(ballast)
  expect(statSync(ballast.path).blocks * 512).toBe(ballast.sizeBytes)
  // Counted as kept, whether it is there or not.
  expect(Math.abs((await measureSpace(volume)).freeBytes - before.freeBytes)).toBeLessThan(MiB)

  const disk = join(volume.path, 'disk')
  expect(() => execFileSync('dd', ['if=/dev/zero', `of=${disk}`, 'bs=1M'], { stdio: 'ignore' })).toThrow()
  expect(isShortOfSpace(await measureSpace(volume), false)).toBe(true)
  await giveUpBallast(ballast)
  writeFileSync(join(data, 'postgres'), Buffer.alloc(2 * MiB, 1), { flush: true })
  expect(isShortOfSpace(await measureSpace(volume), true)).toBe(true)

  rmSync(disk)
  await expect.poll(async () => isShortOfSpace(await measureSpace(volume), true)).toBe(false)
  await keepBallast(ballast)
  expect(statSync(ballast.path).blocks * 512).toBe(ballast.sizeBytes)
})

test('short of space is said in time, and taken back only with some to spare', () => {
  const space = (freeBytes: number) => ({
    ...{ totalBytes: 20_000, volumeFreeBytes: freeBytes, underlyingFreeBytes: undefined },
    ...{ freeBytes, reserveBytes: 1000 },
  })
  expect([260, 240, 490, 510].map((bytes) => [false, true].map((was) => isShortOfSpace(space(bytes), was)))).toEqual([
    [false, true],
    [true, true],
    [false, true],
    [false, false],
  ])
})
