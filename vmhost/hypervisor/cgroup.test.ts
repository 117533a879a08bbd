import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test, vi } from 'vitest'
import { groupName } from './cgroup.ts'
import { destroy } from './directory.ts'

const id = 51
let home: string
let groups: string
let parent: string

beforeAll(() => {
  home = mkdtempSync(join(tmpdir(), 'berth-cgroup-'))
  groups = join(home, 'cgroup')
  mkdirSync(groups)
  execFileSync('mount', ['-t', 'cgroup2', 'none', groups])
  // The hierarchy is the server's, whoever mounts it.
  parent = mkdtempSync(join(groups, 'berth-test-'))
})
afterAll(async () => {
  // Of a test that failed.
  writeFileSync(join(parent, 'cgroup.kill'), '1')
  const remove = () => {
    for (const name of readdirSync(parent)) if (name.startsWith('vm')) rmdirSync(join(parent, name))
    rmdirSync(parent)
  }
  await vi.waitFor(remove, { timeout: 60_000 })
  execFileSync('umount', [groups])
  rmSync(home, { recursive: true })
})

test('what has left its directory, and its user, is ended by its group', async () => {
  const directory = join(home, String(id))
  mkdirSync(directory)
  const group = join(parent, groupName(id, directory))
  mkdirSync(group)
  const child = spawn('sh', ['-c', 'sleep 600 & wait'], { cwd: '/', stdio: 'ignore' })
  const ended = once(child, 'exit')
  writeFileSync(join(group, 'cgroup.procs'), String(child.pid))
  expect(await destroy(id, directory, parent)).toBeGreaterThan(0)
  expect((await ended)[1]).toBe('SIGKILL')
  expect(existsSync(group)).toBe(false)
})

test('without a group nothing of it happens', async () => {
  const directory = join(home, 'none')
  mkdirSync(directory)
  expect(await destroy(id, directory, parent)).toBe(0)
  expect(await destroy(id, directory, join(home, 'no-hierarchy'))).toBe(0)
})
