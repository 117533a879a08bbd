import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { hashInitSources } from './boot.ts'
import { makeDisk } from './images.ts'

const execute = promisify(execFile)
let path = ''

beforeAll(async () => {
  path = await mkdtemp(join(tmpdir(), 'berth-disk-'))
})
afterAll(async () => {
  await rm(path, { recursive: true, force: true })
})

test('a disk is a clean, unpartitioned ext4 with 4 KiB blocks however small, sparse, with the tree in it', async () => {
  const root = join(path, 'root')
  await mkdir(join(root, 'etc'), { recursive: true })
  await writeFile(join(root, 'etc/hostname'), 'demo\n', { mode: 0o640 })
  const file = join(path, 'root.raw')
  const sizeBytes = await makeDisk(file, root)
  const { size, blocks } = await stat(file)
  expect(size).toBe(sizeBytes)
  expect(size % (1024 * 1024)).toBe(0)
  expect(blocks * 512).toBeLessThan(size / 8)
  await execute('e2fsck', ['-fn', file])
  const { stdout } = await execute('dumpe2fs', ['-h', file])
  expect(stdout).toMatch(/^Block size:\s+4096$/m)
  expect(stdout).toMatch(/^Inode size:\s+256$/m)
  expect(stdout).toMatch(/^Reserved block count:\s+0$/m)
  expect((await execute('debugfs', ['-R', 'cat /etc/hostname', file])).stdout).toBe('demo\n')
})

test('what exe-init is compiled from decides its hash; tests and results of builds do not', async () => {
  const init = join(path, 'init')
  await mkdir(join(init, 'build'), { recursive: true })
  for (const name of ['main.c', 'protocol.h', 'Makefile', 'sshd_config']) await writeFile(join(init, name), name)
  const before = await hashInitSources(init)
  await writeFile(join(init, 'build/main.c'), 'made')
  await writeFile(join(init, 'ip.test.ts'), 'test')
  await writeFile(join(init, 'ip_fuzz.c'), 'fuzz')
  expect(await hashInitSources(init)).toBe(before)
  await writeFile(join(init, 'sshd_config'), 'changed')
  expect(await hashInitSources(init)).not.toBe(before)
})
