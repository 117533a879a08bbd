import { chmodSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { chown, mkdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { type Hypervisor, hypervisorUid } from '../hypervisor/driver.ts'
import { qemuDriver, qemuVersion } from '../hypervisor/qemu.ts'
import { makeTinyGuest } from '../hypervisor/tiny-guest.ts'
import { ageMs, readProcess, readTaps } from './load-readings.ts'

const MiB = 2 ** 20
let home: string
let hypervisor: Hypervisor | undefined

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'berth-load-'))
  chmodSync(home, 0o711)
})
afterEach(async () => {
  await hypervisor?.kill()
  hypervisor = undefined
  rmSync(home, { recursive: true })
})

test('of a real guest the processor time, the memory and what it reads of its disk are counted', async () => {
  const machineId = 44
  const uid = hypervisorUid(machineId)
  const directory = join(home, String(machineId))
  await mkdir(directory, { mode: 0o750 })
  await chown(directory, 0, uid)
  const disk = join(directory, 'root.raw')
  writeFileSync(disk, '', { mode: 0o600 })
  truncateSync(disk, 64 * MiB)
  await chown(disk, uid, uid)
  const kernel = join(home, 'reads')
  await makeTinyGuest(kernel, 'reads')
  const driver = qemuDriver({ accelerator: 'tcg', version: await qemuVersion(), cgroups: false })
  const spec = { machineId, directory, cpus: 1, memoryBytes: 64 * MiB, kernel, commandLine: '', disk }
  const one = await driver.start(spec)
  hypervisor = one
  await expect.poll(async () => (await one.diskCounters()).readBytes, { timeout: 20_000 }).toBeGreaterThan(0)
  const first = { process: readProcess(one.pid), disk: await one.diskCounters() }
  await expect
    .poll(() => readProcess(one.pid)?.cpuMs, { timeout: 20_000 })
    .toBeGreaterThan((first.process?.cpuMs ?? 0) + 200)
  const second = { process: readProcess(one.pid), disk: await one.diskCounters() }
  expect(second.process?.startTicks).toBe(first.process?.startTicks)
  expect(second.disk.readBytes).toBeGreaterThan(first.disk.readBytes)
  // Whole sectors, and it writes none.
  expect(second.disk.readBytes % 512).toBe(0)
  expect(second.disk.writtenBytes).toBe(0)
  expect(second.process?.heldBytes).toBeGreaterThan(MiB)
  expect(second.process?.heldBytes).toBeLessThan(512 * MiB)
  const age = ageMs(second.process ?? { startTicks: 0 })
  expect(age).toBeGreaterThan(200)
  expect(age).toBeLessThan(60_000)
  await one.kill()
  expect(readProcess(one.pid)).toBeUndefined()
})

test('taps are told by machine, and out is what the machine sent', () => {
  const path = join(home, 'dev')
  writeFileSync(
    path,
    `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1053388   13330    0    0    0     0          0         0  1053388   13330    0    0    0     0       0          0
  vm12:     900      10    0    0    0     0          0         0     1400      11    0    0    0     0       0          0
vm1234567:123456789012 10   0    0    0     0          0         0     5      11    0    0    0     0       0          0
  vmx:        1       1    0    0    0     0          0         0        1       1    0    0    0     0       0          0
`,
  )
  expect([...readTaps(path)]).toEqual([
    [12, { outBytes: 900, inBytes: 1400 }],
    [1234567, { outBytes: 123_456_789_012, inBytes: 5 }],
  ])
})
