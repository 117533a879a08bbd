import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { heldBytes, type KernelFiles, readHostMemory, readUnwrittenBytes } from './host-memory.ts'

const KiB = 1024

let folder: string
let files: KernelFiles

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'berth-memory-'))
  files = { meminfo: join(folder, 'meminfo'), pressure: join(folder, 'pressure'), processes: folder }
  writeFileSync(
    files.meminfo,
    'MemTotal:        8000000 kB\nMemFree:          100000 kB\nMemAvailable:    3000000 kB\n',
  )
})
afterEach(() => rmSync(folder, { recursive: true }))

test("this server's own kernel says how much memory there is, and how much of it is to be had", async () => {
  const { totalBytes, availableBytes } = await readHostMemory()
  expect(totalBytes).toBeGreaterThan(availableBytes)
  expect(availableBytes).toBeGreaterThan(0)
})

test('a kernel that measures stalls is believed, one that does not is done without', async () => {
  expect(await readHostMemory(files)).toEqual({
    totalBytes: 8_000_000 * KiB,
    availableBytes: 3_000_000 * KiB,
    stall: undefined,
  })
  writeFileSync(
    files.pressure,
    'some avg10=12.50 avg60=3.00 avg300=0.10 total=4711\nfull avg10=1.25 avg60=0.00 avg300=0.00 total=42\n',
  )
  expect((await readHostMemory(files)).stall).toEqual({ some: 0.125, full: 0.0125 })
})

test('a kernel that does not say what is available is an error, and no server without memory', async () => {
  writeFileSync(files.meminfo, 'MemTotal: 8000000 kB\n')
  await expect(readHostMemory(files)).rejects.toThrow(/does not say how much memory is available/)
})

test('what waits to be written is what the kernel says does, and what it writes now', async () => {
  expect(await readUnwrittenBytes()).toBeGreaterThanOrEqual(0)
  expect(await readUnwrittenBytes(files)).toBeUndefined()
  writeFileSync(
    files.meminfo,
    'Dirty:              3000 kB\nWriteback:           500 kB\nWritebackTmp:         70 kB\n',
  )
  expect(await readUnwrittenBytes(files)).toBe(3500 * KiB)
})

test('a process holds its own memory and what it shares with nobody by a name; one that is gone holds none', async () => {
  expect(await heldBytes(process.pid)).toBeGreaterThan(10 * 2 ** 20)
  mkdirSync(join(folder, '7'))
  const status = 'VmRSS:\t  900000 kB\nRssAnon:\t  500000 kB\nRssFile:\t  390000 kB\nRssShmem:\t   10000 kB\n'
  writeFileSync(join(folder, '7', 'status'), status)
  expect(await heldBytes(7, files)).toBe(510_000 * KiB)
  expect(await heldBytes(8, files)).toBe(0)
})
