import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import {
  beginMemory,
  findMemory,
  forgetMemory,
  keepMemory,
  memoryBytes,
  memoryFolder,
  type SavedMemory,
  spendMemory,
} from './memory.ts'

const saved: SavedMemory = {
  format: 1,
  stateVersion: 'qemu pc-q35-7.2 tcg',
  bootSet: '0123456789abcdef',
  commandLine: 'console=hvc0',
  cpus: 1,
  memoryBytes: 2 ** 29,
  boot: 3,
  at: '2026-11-23T05:00:00.000Z',
}
const nothing = { damaged: false, used: false, unfinished: false }
let directory: string

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-memory-'))
})
afterEach(() => rmSync(directory, { recursive: true }))

async function sleeping(): Promise<void> {
  const folder = await beginMemory(directory)
  writeFileSync(join(folder, 'state'), Buffer.alloc(100_000, 1))
  await keepMemory(directory, saved)
}

test('what is being written is no memory yet, is nobody’s but root’s, and starts anew after it was cut off', async () => {
  const folder = await beginMemory(directory)
  expect(statSync(folder)).toMatchObject({ uid: 0, mode: 0o40700 })
  writeFileSync(join(folder, 'state'), 'half')
  expect(await findMemory(directory)).toEqual({ ...nothing, unfinished: true })
  expect(existsSync(join(await beginMemory(directory), 'state'))).toBe(false)
})

test('what was kept is found with what it needs, root’s alone to change, and counted in blocks', async () => {
  await sleeping()
  expect(await findMemory(directory)).toEqual({ ...nothing, saved })
  expect(statSync(memoryFolder(directory))).toMatchObject({ uid: 0, mode: 0o40700 })
  expect(await memoryBytes(directory)).toBeGreaterThanOrEqual(100_000)
})

test('who has not what it takes to look does not say that there is none, nor that it is damaged', async () => {
  await sleeping()
  const script = `import { closeSync, openSync } from 'node:fs'
    const { findMemory } = await import('${new URL('./memory.ts', import.meta.url).href}')
    const words = () => findMemory('${directory}').then(JSON.stringify, (error) => error.code)
    const opened = []
    try { for (;;) opened.push(openSync('/dev/null', 'r')) } catch {}
    const all = await words()
    closeSync(opened.pop())
    const kept = await words()
    process.stdout.write(all + ' ' + kept)`
  const command = 'ulimit -n 40; exec "$0" --input-type=module -e "$1"'
  const said = execFileSync('sh', ['-c', command, process.execPath, script], { encoding: 'utf8' })
  expect(said).toMatch(/^EMFILE \{"saved":\{.*"damaged":false.*\}$/)
})

test('memory that was spent is never found as memory again', async () => {
  await sleeping()
  await spendMemory(directory)
  expect(await findMemory(directory)).toEqual({ ...nothing, used: true })
  // The next sleep takes the remains away, in case nobody else has.
  await sleeping()
  expect(await findMemory(directory)).toEqual({ ...nothing, saved })
})

test('everything is forgotten, whatever there is', async () => {
  await sleeping()
  mkdirSync(join(directory, 'memory.used'))
  await beginMemory(directory)
  await forgetMemory(directory)
  expect(await findMemory(directory)).toEqual(nothing)
  await forgetMemory(directory)
})

test.each([
  ['cut short', '{"format":1,'],
  ['of a format that is not known', JSON.stringify({ ...saved, format: 2 })],
  ['with a boot set that is a path', JSON.stringify({ ...saved, bootSet: '../../etc' })],
])('a record %s is damaged memory, not none', async (_, text) => {
  await sleeping()
  writeFileSync(join(memoryFolder(directory), 'saved.json'), text)
  expect(await findMemory(directory)).toEqual({ ...nothing, damaged: true })
})
