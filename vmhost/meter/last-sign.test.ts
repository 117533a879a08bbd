import { mkdirSync, mkdtempSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { lastSign } from './last-sign.ts'

test('a hypervisor was there when it last wrote to its disk, or was written to one', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'berth-sign-'))
  const write = (name: string, seconds: number) => {
    const path = join(directory, name)
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, '')
    utimesSync(path, seconds, seconds)
  }
  try {
    expect(await lastSign(directory)).toBeUndefined()
    write('root.raw', 1_000)
    // Anybody may write these at any time.
    write('console.log', 9_000)
    write('host_key', 9_000)
    expect(await lastSign(directory)).toBe(1_000_000)
    write('memory.used/state', 900)
    expect(await lastSign(directory)).toBe(1_000_000)
    write('memory/state', 2_000)
    expect(await lastSign(directory)).toBe(2_000_000)
  } finally {
    rmSync(directory, { recursive: true })
  }
})
