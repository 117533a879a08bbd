import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { zstdCompressSync } from 'node:zlib'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { isUnreadable, stateFile } from './qemu-state.ts'

const because = (why: string) => `error while loading state section id 2(ram) load of migration failed: ${why}`
const bytes = randomBytes(2 ** 20)
let directory: string

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-state-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

test.each<[string, { packed?: boolean; cut?: boolean }, string, boolean]>([
  ['is something else', {}, because('Invalid argument'), true],
  ['is something else, packed', { packed: true }, because('Invalid argument'), true],
  ['ends too early', {}, because('Input/output error'), true],
  ['ends too early, packed', { packed: true, cut: true }, because('Input/output error'), true],
  ['ends too early, packed, which QEMU is silent about', { packed: true, cut: true }, '', true],
  ['is whole, packed, and was not read to its end', { packed: true }, because('Input/output error'), false],
  ['found no memory', {}, because('Cannot allocate memory'), false],
  ['was never read', {}, 'Could not access KVM kernel module: No such file or directory', false],
  ['was never read, packed', { packed: true }, '', false],
])('a saved guest that %s', async (_, { packed, cut }, said, isProved) => {
  const path = join(directory, stateFile)
  writeFileSync(path, packed ? zstdCompressSync(bytes) : bytes)
  if (cut) truncateSync(path, 100_000)
  expect(await isUnreadable(directory, said)).toBe(isProved)
})
