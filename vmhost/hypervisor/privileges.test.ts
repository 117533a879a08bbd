import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { kvmGroups, privileges } from './privileges.ts'

const uid = 2_000_041
let directory: string
let device: string

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-privileges-'))
  chmodSync(directory, 0o711)
  device = join(directory, 'kvm')
  writeFileSync(device, 'opened')
})

afterEach(() => rmSync(directory, { recursive: true }))

function open(mode: number, gid: number) {
  chownSync(device, 0, gid)
  chmodSync(device, mode)
  const found = kvmGroups(device)
  // Whatever it says, the operator's device stays as it is.
  expect(statSync(device).mode & 0o777).toBe(mode)
  return found
}

test.each([
  ['its group', 0o660, 4711, '2000041 4711'],
  ['everybody', 0o666, 0, '2000041'],
])('a hypervisor opens a device that is open to %s, and is in no other group', (_, mode, gid, groups) => {
  const found = open(mode, gid)
  if (!('groups' in found)) throw new Error(found.problem)
  const as = privileges(uid, found.groups)
  expect(execFileSync('setpriv', [...as, 'id', '-G'], { encoding: 'utf8' }).trim()).toBe(groups)
  expect(execFileSync('setpriv', [...as, 'cat', device], { encoding: 'utf8' })).toBe('opened')
})

test.each([
  ['has no permission for its group', 0o600, 4711],
  ["belongs to root's group", 0o660, 0],
])('a device that %s is said to be closed, with a way on', (_, mode, gid) => {
  expect(open(mode, gid)).toEqual({ problem: expect.stringMatching(/open to root alone.*chgrp kvm .* && chmod 660 /) })
})
