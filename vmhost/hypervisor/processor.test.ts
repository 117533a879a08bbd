import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { Processors, readProcessor } from './processor.ts'

/** What a guest that was saved under KVM finds on a server that has started again: its processor, and its kernel's word for it. */

let folder: string

beforeEach(async () => {
  folder = join(await mkdtemp(join(tmpdir(), 'berth-processor-')), 'processors')
})
afterEach(() => rm(join(folder, '..'), { recursive: true }))

/** As proc_cpuinfo(5) has it. */
function processor(features: string, model = 'Imaginary 9000') {
  const one = `processor\t: 0\nvendor_id\t: Some\nmodel name\t: ${model}\nflags\t\t: ${features}\nbugs\t\t: none\n\n`
  return readProcessor(one + one.replace(': 0', ': 1'))
}

test('a kernel that knows more features of the same processor restores what the one before saved', async () => {
  const before = processor('fpu sse avx')
  await new Processors(folder, before).keep()
  const now = processor('fpu sse avx bhi')
  expect(now.kind).not.toBe(before.kind)
  expect(await new Processors(folder, now).obstacle(before.kind)).toBeUndefined()
})

test('a feature that is missing is named, and what was saved waits for it', async () => {
  const before = processor('fpu sse avx avx512f')
  await new Processors(folder, before).keep()
  const says = "with features of the processor that its server, or its server's kernel, does not have now: avx, avx512f"
  expect(await new Processors(folder, processor('fpu sse')).obstacle(before.kind)).toBe(says)
  expect(await new Processors(folder, processor('fpu sse avx avx512f')).obstacle(before.kind)).toBeUndefined()
})

test('another model, or one of which nothing was written down, is another processor', async () => {
  const before = processor('fpu sse')
  const now = new Processors(folder, processor('fpu sse avx', 'Imaginary 9001'))
  const another = 'on another processor than its server has now'
  expect(await now.obstacle(before.kind)).toBe(another)
  await new Processors(folder, before).keep()
  expect(await now.obstacle(before.kind)).toBe(another)
  expect(await now.obstacle('../../../etc/passwd')).toBe(another)
})
