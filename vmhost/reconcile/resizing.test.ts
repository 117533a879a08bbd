import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { ChannelError } from '../guest/channel.ts'
import type { MachineSize } from '../hypervisor/driver.ts'
import { giveSize } from './resizing.ts'
import type { RunsWith } from './starting.ts'

const GiB = 2 ** 30
const had: RunsWith = { bootSet: '0123456789abcdef', commandLine: 'ip=x', cpus: 2, memoryBytes: GiB }
let directory: string
let warned: object[]

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-resize-'))
  warned = []
})
afterEach(() => rmSync(directory, { recursive: true }))

/** @param online how many processors its kernel says that it uses, each time that it is told of them */
function give(gives: MachineSize, online: () => number, before = had) {
  const resizing = {
    hypervisor: { resize: async () => gives },
    agent: { online: async () => ({ cpuCount: online() }) },
    directory,
    limitMs: 500,
    log: { info: () => {}, warn: (what: unknown) => warned.push(what as object) },
  }
  return giveSize(resizing, before, { cpus: 4, memoryBytes: 4 * GiB })
}

test('what a hypervisor gave is noted, with what the guest was started with, and its kernel is told until it uses it', async () => {
  const uses = [2, 3, 4]
  const has = await give({ cpus: 4, memoryBytes: GiB }, () => uses.shift() ?? 0)
  expect(has).toEqual({ ...had, cpus: 4, startedCpus: 2 })
  expect(JSON.parse(readFileSync(join(directory, 'started.json'), 'utf8'))).toEqual(has)
  expect([uses, warned]).toEqual([[], []])
})

test('a kernel that does not use its processors has them all the same', async () => {
  expect(await give({ cpus: 3, memoryBytes: 2 * GiB }, () => 2)).toMatchObject({ cpus: 3, memoryBytes: 2 * GiB })
  const refuses = () => {
    throw new ChannelError('agent.refused', "this machine's agent does not know that request")
  }
  expect(await give({ cpus: 3, memoryBytes: GiB }, refuses)).toMatchObject({ cpus: 3 })
  expect(warned).toEqual([
    { cpus: 3, used: 2 },
    { cpus: 3, used: 0 },
  ])
})

test('of what it was given before, its kernel is told once more', async () => {
  let told = 0
  const grown = { ...had, cpus: 4, startedCpus: 2 }
  expect(await give({ cpus: 4, memoryBytes: GiB }, () => ++told && 4, grown)).toBe(grown)
  expect(told).toBe(1)
})

test('a hypervisor that gives nothing changes nothing', async () => {
  const never = () => {
    throw new Error('nobody is told')
  }
  expect(await give({ cpus: 2, memoryBytes: GiB }, never)).toBe(had)
})
